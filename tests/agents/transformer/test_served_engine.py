"""Servers as an engine: the tokens that they sampled, from the weights that were wanted, or no episode."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from fake_vllm import Act, FakeVllm, changed, fail, hang_up, send

from polyturn.agents.collecting.collect import CollectError, collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.http_client import ServerError
from polyturn.agents.serving.sampler import Sampler
from polyturn.agents.transformer.agent import SampledAs, TransformerAgent
from polyturn.agents.transformer.engines.settings import EngineChoice, TokenServers, chosen_engine
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.mixture import MixtureAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.cli import main
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Trajectory

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20
KEY = "sk-very-secret-0123456789"


class Chat(gymnasium.Env[str, str]):
    """Two turns, whose words come from the seed."""

    def __init__(self) -> None:
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 2
        return f"the cat counted {self.np_random.integers(1000)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return f"and {self.left} times", float(len(action) % 5), self.left == 0, False, {}

    def snapshot(self) -> Any:
        return self.left

    def restore(self, snapshot: Any) -> None:
        self.left = snapshot


@functools.cache
def _made(seed: int) -> Policy:
    return tiny_policy(WORDS, seed=seed, vocab_size=280, hidden=32, layers=2, heads=2, init=0.3, version=f"w{seed}")


def policy(seed: int = 0) -> Policy:
    return _made(seed).copy()


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeVllm]]:
    started: list[FakeVllm] = []

    def start(of: Policy | None = None, **options: Any) -> FakeVllm:
        started.append(FakeVllm(policy() if of is None else of, **options))
        return started[-1]

    yield start
    for fake in started:
        fake.stop()


def servers(*fakes: FakeVllm, **options: Any) -> TokenServers:
    return TokenServers(urls=tuple(fake.url for fake in fakes), **{"backoff": 0.01, **options})


def agent(engine: EngineChoice, of: Policy | None = None, **how: Any) -> TransformerAgent:
    sampling = Sampling(**{"max_new_tokens": 6, **how})
    return TransformerAgent(policy() if of is None else of, sampling=sampling, max_tokens=200, slots=4, engine=engine)


def played(by: TransformerAgent, groups: int = 2, **options: Any) -> list[Trajectory]:
    made = collect(by, Chat, **{"groups": groups, "group_size": 2, "seed": 5, "progress": False, **options})
    return [member for group in made for member in group]


def said(members: list[Trajectory]) -> list[list[int]]:
    return [turn.action_ids.tolist() for member in members for turn in member.turns]


def check_scores(of: Policy, members: list[Trajectory], temperature: float = 1.0) -> None:
    """The recorded log-probabilities are those that the policy gives to its tokens."""
    for member in members:
        ids, turn = member.tokens
        with torch.no_grad():
            logits = of.model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0, :-1] / temperature
        own = logits.log_softmax(-1).gather(1, torch.from_numpy(ids[1:, None].astype(np.int64)))[:, 0].numpy()
        recorded = np.concatenate([each.logps for each in member.turns])
        np.testing.assert_allclose(recorded, own[turn[1:] >= 0], atol=1e-4)


def test_trajectories_are_as_from_the_exact_engine(serve: Callable[..., FakeVllm]) -> None:
    """Greedy tokens are equal; sampled ones have the log-probabilities that the policy gives them."""
    fake, mine = serve(), policy()
    greedy = played(agent(fake.url, mine, temperature=0.0))
    assert said(greedy) == said(played(agent("exact", mine, temperature=0.0)))
    sampled = played(agent(fake.url, mine))
    assert all(member.valid and len(member.turns) == 2 for member in sampled)
    check_scores(mine, sampled)
    noted = sampled[0].turns[0].info["agent"]
    assert noted == {
        "engine": "servers", "bit_identical": False, "server": fake.url, "weights": mine.fingerprint(),
    }  # fmt: skip
    assert "engine=servers" in sampled[0].agent
    assert SampledAs.of(sampled[0].agent) == SampledAs()
    # A stop token, where there is one, is the action's last.
    ends = mine.chat.stop_ids
    assert all(number not in ends for ids in said(sampled) for number in ids[:-1])
    # The same seeds, the same tokens, at any concurrency of this server.
    assert said(played(agent(fake.url, mine), concurrency=1)) == said(sampled)
    assert agent(fake.url, mine).engine.capabilities.bit_identical is False


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"stop": ("1", "t")},
        {"stop": tuple("1234567890t")},
        {"max_episode_tokens": 8},
    ],
)
def test_options_of_sampling_reach_the_server(serve: Callable[..., FakeVllm], how: dict[str, Any]) -> None:
    fake = serve()
    members = played(agent(fake.url, **how))
    assert all(member.valid for member in members)
    body = fake.bodies[-1]
    assert body["logprobs"] == 0
    assert body["return_token_ids"] is True
    assert body["repetition_penalty"] == 1.0
    if "temperature" in how:
        assert body["temperature"] == 0.7
        check_scores(policy(), members, 0.7)
    if "stop" in how:
        decode = policy().tokenizer.decode
        before = [decode(ids[:-1]) for ids in said(members)]
        assert all(not any(stop in text for stop in how["stop"]) for text in before)
        assert any(len(ids) < 6 and any(stop in decode(ids) for stop in how["stop"]) for ids in said(members))
    if "max_episode_tokens" in how:
        spent = [sum(len(turn.action_ids) for turn in member.turns) for member in members]
        assert max(spent) <= 8


def test_a_server_that_ends_early_is_asked_to_go_on(serve: Callable[..., FakeVllm]) -> None:
    """Where it found a stop text that the policy's own reading does not have."""
    fake, mine = serve(), policy()

    def short(answer: dict[str, Any]) -> None:
        choice = answer["choices"][0]
        del choice["token_ids"][1:], choice["logprobs"]["token_logprobs"][1:]

    fake.acts = [None, *[changed(short)] * 4]
    members = played(agent(fake.url, mine), groups=1)
    check_scores(mine, members)
    assert all(len(ids) == 6 or ids[-1] in mine.chat.stop_ids for ids in said(members))


def test_raw_log_probabilities_are_refused_where_they_are_not_those_sampled_from(
    serve: Callable[..., FakeVllm],
) -> None:
    fake = serve(processed=False)
    assert all(member.valid for member in played(agent(fake.url)))
    assert all(member.valid for member in played(agent(fake.url, temperature=0.0)))
    with pytest.raises(CollectError) as caught:
        played(agent(fake.url, temperature=0.5))
    assert "--logprobs-mode processed_logprobs" in str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda answer: answer["choices"][0].pop("token_ids"), "no token ids"),
        (lambda answer: answer["choices"][0].pop("logprobs"), "no log-probabilities"),
    ],
)
def test_a_server_that_returns_text_only_cannot_be_trained_on(
    serve: Callable[..., FakeVllm], change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    fake = serve()
    fake.acts = [changed(change)] * 50
    with pytest.raises(CollectError) as caught:
        played(agent(fake.url), groups=1)
    message = str(caught.value)
    assert expected in message
    assert "ServerAgent" in message
    assert fake.asked["/v1/completions"] <= 4  # it was not asked again and again


def _spoil(path: str, value: Any) -> Act:
    def change(answer: dict[str, Any]) -> None:
        choice = answer["choices"][0]
        if path == "logps":
            choice["logprobs"]["token_logprobs"] = value
        elif path == "longer":
            choice["token_ids"] += [7] * value
            choice["logprobs"]["token_logprobs"] += [-1.0] * value
        elif path == "first":
            choice["token_ids"][0] = value
        elif path == "top":
            answer["choices"] = value
        else:
            choice[path] = value

    return changed(change)


HOSTILE: list[Act] = [
    _spoil("token_ids", []),
    _spoil("token_ids", "1, 2"),
    _spoil("token_ids", {"a": 1}),
    _spoil("first", -1),
    _spoil("first", 10**9),
    _spoil("first", True),
    _spoil("first", 1.5),
    _spoil("longer", 100),
    _spoil("logps", [-1.0]),
    _spoil("logps", [float("nan")] * 6),
    _spoil("logps", [float("-inf")] * 6),
    _spoil("logps", ["-1"] * 6),
    _spoil("logps", [5.0] * 6),
    _spoil("prompt_token_ids", [1, 2, 3]),
    _spoil("top", []),
    _spoil("top", None),
    _spoil("top", [1]),
    fail(200, "not JSON"),
    fail(200, "[" * 100_000),
    fail(200, "null"),
    fail(200, '{"choices": [null]}'),
    fail(500),
    fail(429, Retry_After="0.01"),
    hang_up,
]


def test_a_malformed_answer_is_asked_for_again_and_never_recorded(serve: Callable[..., FakeVllm]) -> None:
    fake, mine = serve(), policy()
    count = len(HOSTILE) // 4 + 1
    expected = said(played(agent(fake.url, mine), groups=count))
    fake.acts = [None, *HOSTILE]
    members = played(agent(servers(fake, retries=len(HOSTILE), backoff=0.001), mine), groups=count)
    assert fake.acts == []
    assert said(members) == expected
    check_scores(mine, members)


def test_a_server_that_is_never_right_makes_episodes_invalid(serve: Callable[..., FakeVllm]) -> None:
    fake = serve()
    fake.acts = [None, *[_spoil("first", -1)] * 1000]
    with pytest.raises(CollectError, match="expected token ids from 0"):
        played(agent(servers(fake, retries=1)))


def test_an_answer_without_end_is_cut_off(serve: Callable[..., FakeVllm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyturn.agents.http_client._LONGEST_ANSWER", 100_000)
    fake = serve()
    fake.acts = [None, *[fail(200, "[" + "1," * 100_000)] * 1000]
    with pytest.raises(CollectError, match="more than 100000 bytes"):
        played(agent(servers(fake, retries=0)), groups=1)


def test_a_conversation_stays_with_a_server_until_that_is_lost(serve: Callable[..., FakeVllm]) -> None:
    fakes, mine = [serve(), serve()], policy()
    expected = said(played(agent(fakes[0].url, mine)))
    members = played(agent(servers(*fakes), mine))
    assert said(members) == expected
    used = [{turn.info["agent"]["server"] for turn in member.turns} for member in members]
    assert all(len(each) == 1 for each in used)
    assert {next(iter(each)) for each in used} == {fake.url for fake in fakes}

    # One goes away in the middle: what it had is sampled by the other, with the same seeds.
    def leave(fake: FakeVllm, handler: Any, body: dict[str, Any]) -> None:
        fake.acts = [leave]
        hang_up(fake, handler, body)

    fakes[0].acts = [None, None, leave]
    members = played(agent(servers(*fakes), mine))
    assert said(members) == expected
    assert all(member.valid for member in members)
    assert any(len({turn.info["agent"]["server"] for turn in member.turns}) == 2 for member in members)


def test_servers_that_are_all_gone_make_the_episode_invalid(serve: Callable[..., FakeVllm]) -> None:
    fakes = [serve(), serve()]
    for fake in fakes:
        fake.acts = [None, None, *[hang_up] * 1000]
    with pytest.raises(CollectError, match=r"\(2 attempts\)"):
        played(agent(servers(*fakes, retries=1)))


def test_other_weights_are_found_out(serve: Callable[..., FakeVllm]) -> None:
    fake = serve(policy(1))
    with pytest.raises(CollectError) as caught:
        played(agent(fake.url, policy(0)))
    assert "expected the policy's weights" in str(caught.value)


def test_weights_that_changed_are_refused_unless_they_are_handed_over(serve: Callable[..., FakeVllm]) -> None:
    fake, mine = serve(), policy()
    acting = agent(fake.url, mine)
    played(acting)
    with torch.no_grad():
        mine.model.get_output_embeddings().weight[7] += 1e-4  # far below what a comparison could tell
    with pytest.raises(CollectError) as caught:
        played(acting)
    assert "handed" in str(caught.value)


def test_weights_are_handed_over_once_for_each_change(serve: Callable[..., FakeVllm], tmp_path: Any) -> None:
    fakes, mine = [serve(policy(3)), serve(policy(4))], policy()
    acting = agent(servers(*fakes, weights="handed", folder=str(tmp_path)), mine, temperature=0.0)
    exact = agent("exact", mine, temperature=0.0)
    for _ in range(3):
        members = played(acting)
        assert said(members) == said(played(exact))
        assert {turn.info["agent"]["weights"] for m in members for turn in m.turns} == {mine.fingerprint()}
        played(acting)  # the same weights again
        with torch.no_grad():
            for parameter in mine.model.parameters():
                parameter.mul_(1.1)
    assert [fake.asked["/collective_rpc"] for fake in fakes] == [3, 3]
    assert [fake.asked["/pause"] == fake.asked["/resume"] == 3 for fake in fakes] == [True, True]
    assert len(list(tmp_path.iterdir())) == 2  # the newest and the one before it
    # Another agent of the same weights finds them there.
    with torch.no_grad():
        for parameter in mine.model.parameters():
            parameter.div_(1.1)
    played(agent(servers(*fakes, weights="handed", folder=str(tmp_path)), mine))


def test_stale_answers_are_thrown_away(serve: Callable[..., FakeVllm], tmp_path: Any) -> None:
    """A server that was started again has its old weights, and says so: it is given the new ones once more."""
    fake, mine = serve(policy(3)), policy()
    acting = agent(servers(fake, weights="handed", folder=str(tmp_path)), mine)
    expected = said(played(acting))

    def restarted(fake: FakeVllm, handler: Any, body: dict[str, Any]) -> None:
        fake.version, fake.policy = "default", policy(3)
        send(handler, *fake.completion(body))

    fake.acts = [None, None, restarted, None, None, restarted]
    members = played(acting)
    assert said(members) == expected
    check_scores(mine, members)
    assert fake.asked["/collective_rpc"] == 3


def test_a_server_that_keeps_losing_weights_makes_episodes_invalid(serve: Callable[..., FakeVllm]) -> None:
    fake, mine = serve(policy(3)), policy()

    def others(fake: FakeVllm, handler: Any, body: dict[str, Any]) -> None:
        fake.version = "of another run"
        send(handler, *fake.completion(body))

    fake.acts = [None, *[others, None] * 1000]
    with pytest.raises(CollectError, match="does not keep the weights"):
        played(agent(servers(fake, weights="handed", retries=0), mine))


def test_a_server_that_takes_no_weights_says_how_it_would(serve: Callable[..., FakeVllm]) -> None:
    with pytest.raises(CollectError, match="VLLM_SERVER_DEV_MODE=1"):
        played(agent(servers(serve(dev=False), weights="handed")))


def test_an_adapter_is_loaded_under_the_name_of_its_weights(serve: Callable[..., FakeVllm], tmp_path: Any) -> None:
    fake = serve(policy().with_adapters(4))
    mine = policy().with_adapters(4)
    acting = agent(servers(fake, weights="handed", folder=str(tmp_path)), mine, temperature=0.0)
    exact = agent("exact", mine, temperature=0.0)
    for _ in range(2):
        with torch.no_grad():
            for parameter in mine.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05
        expected = said(played(exact))
        assert said(played(acting)) == expected
        assert fake.bodies[-1]["model"] == f"polyturn-{mine.fingerprint()}"
    assert fake.asked["/v1/load_lora_adapter"] == 2
    assert fake.asked["/collective_rpc"] == 0
    # A server that was started again knows none of its adapters.
    fake.adapters.clear()
    assert said(played(acting)) == expected
    assert fake.asked["/v1/load_lora_adapter"] == 3


def test_a_context_that_the_server_lacks_is_said_before_any_episode(serve: Callable[..., FakeVllm]) -> None:
    with pytest.raises(CollectError, match="set max_tokens=150"):
        played(agent(serve(max_model_len=150).url))


def test_the_key_is_sent_and_shown_nowhere(
    serve: Callable[..., FakeVllm], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    fake = serve()
    with Store(tmp_path / "s.jsonl") as store:
        played(agent(fake.url), groups=1, store=store)
    assert fake.keys == {f"Bearer {KEY}"}
    assert KEY not in (tmp_path / "s.jsonl").read_text()
    assert len(list(read(tmp_path / "s.jsonl"))) == 2
    fake.acts = [fail(401, f"no such key: {KEY}")] * 9
    with pytest.raises(CollectError) as caught:
        played(agent(fake.url), groups=1)
    for error in (caught.value, caught.value.__cause__):
        assert KEY not in str(error)
        assert "VLLM_API_KEY" in str(error)
    assert isinstance(caught.value.__cause__, ServerError)


def test_engines_are_chosen_by_name() -> None:
    assert chosen_engine("exact") == "exact"
    found = chosen_engine("http://a:1/v1,http://b:2/v1/")
    assert isinstance(found, TokenServers)
    assert found.urls == ("http://a:1/v1", "http://b:2/v1")
    assert chosen_engine(("http://a:1/v1",)) == TokenServers(urls=("http://a:1/v1",))
    for wrong in ("exacd", "ftp://a", "http://user:pw@a/v1", ("http://a/v1", "exact"), "http://a/v1,http://a/v1/"):
        with pytest.raises(ValueError, match="expected") as caught:
            chosen_engine(wrong)
        assert "pw" not in str(caught.value)
    with pytest.raises(ValueError, match="min_p or top_p"):
        agent("http://127.0.0.1:9/v1", min_p=0.1, top_p=0.9)
    with pytest.raises(ValueError, match="mixing token by token"):
        MixtureAgent(policy(), policy(1), beta=0.5, engine="http://127.0.0.1:9/v1")


def test_training_hands_weights_over() -> None:
    options = CollectOptions(engine="http://a:1/v1")
    assert isinstance(options.engine, TokenServers)
    assert options.engine.weights == "handed"
    assert options.recorded()["engine"] == "servers"
    assert CollectOptions().recorded()["engine"] == "exact"
    with pytest.raises(ValueError, match="handed"):
        CollectOptions(engine=TokenServers(urls=("http://a:1/v1",)))


def test_a_conversation_begun_elsewhere_is_read_from_its_start(serve: Callable[..., FakeVllm]) -> None:
    """Branches: the prefix is by the exact engine, the rest by the server."""
    fake, mine = serve(), policy()
    groups = collect(
        agent(fake.url, mine), Chat, groups=2, group_size=2, seed=1, branch_at=1, progress=False,
        prefix_agent=agent("exact", mine),
    )  # fmt: skip
    check_scores(mine, [member for group in groups for member in group])


def test_commands_take_servers(
    serve: Callable[..., FakeVllm], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = policy()
    mine.save_pretrained(tmp_path / "policy")
    fake, out = serve(), tmp_path / "runs.jsonl"
    command = ["rollout", "polyturn/Guess-v0", "--agent", str(tmp_path / "policy"), "--groups", "2", "--quiet"]
    options = ["--max-new-tokens", "4", "--max-tokens", "200", "--out", str(out)]
    assert main([*command, *options, "--engine", fake.url]) == 0
    assert all("engine=servers" in member.agent for member in read(out))
    assert main([*command, "--engine", "exacd"]) == 2
    assert "expected exact, transformers, vllm, or addresses" in capsys.readouterr().err
    assert main([*command, "--engine-weights", "handed"]) == 2
    assert "--engine-weights: expected addresses of servers" in capsys.readouterr().err


def test_agent_programs_are_answered_from_servers(serve: Callable[..., FakeVllm]) -> None:
    """As by the exact engine: a call that continues another has its tokens, and goes to the same server."""
    fakes, mine = [serve(), serve()], policy()
    acting = agent(servers(*fakes), mine, temperature=0.0)

    async def asked(engine: Any) -> list[list[int]]:
        sampler, rng = Sampler(engine), np.random.default_rng(0)
        prompt = np.arange(5, 25, dtype=np.int32)
        first, _ = await sampler.sample(prompt, rng, after=None, place=("a", 1), limit=3, finished=None)
        longer = np.concatenate([prompt, first, prompt[:4]])
        second, logps = await sampler.sample(longer, rng, after=("a", 1), place=("a", 2), limit=3, finished=None)
        assert logps.tolist() == [0.0] * len(second)
        sampler.forget("a")
        return [first.tolist(), second.tolist()]

    found = asyncio.run(asked(acting.engine))
    assert found == asyncio.run(asked(agent("exact", mine, temperature=0.0).engine))
    assert sorted(fake.asked["/v1/completions"] for fake in fakes) == [0, 3]  # one of them compares weights
