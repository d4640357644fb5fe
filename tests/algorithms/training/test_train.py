"""The loop: every method learns, and no way of cutting, caching or distributing the work changes the update."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from flat_settings import flat
from safetensors.torch import load_file
from torch import Tensor

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import (
    MDPO,
    MKTO,
    RAFT,
    SFT,
    Batch,
    CheckpointError,
    Loss,
    NonFiniteError,
    ResumeWarning,
    collate,
    minibatches,
    train,
)
from polyturn.algorithms.methods.base import Method, Needs
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training.data_source import AnnotatedGroup
from polyturn.algorithms.training.options import TrainOptions
from polyturn.algorithms.training.schedule import factor
from polyturn.envs.preference import by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
SGD = functools.partial(torch.optim.SGD, momentum=0.0)
METHODS: list[Any] = [SFT(above=0.0), MDPO(), MKTO()]


def trajectory(seed: int, reward: float, *actions: list[int]) -> Trajectory:
    turns = tuple(
        Turn(
            observation="o",
            action="a",
            reward=reward if h == len(actions) - 1 else 0.0,
            context_ids=np.array([100 + seed, 50 + h], np.int32),
            action_ids=np.array(action, np.int32),
        )
        for h, action in enumerate(actions)
    )
    return Trajectory("Toy-v0", seed, turns, terminated=True)


def group(seed: int) -> Group:
    """The winner writes 20s, the loser 30s; lengths differ from group to group."""
    return Group(
        (trajectory(seed, 1.0, [20] * (1 + seed), [21, 2]), trajectory(seed, 0.0, [30, 31], [32] * (seed + 2)))
    )


def examples(method: Any, count: int = 6) -> list[Example]:
    rng = np.random.default_rng(0)
    made = [method.examples(group(seed), by_return(group(seed)), rng) for seed in range(count)]
    return [example for example in made if example is not None]


def policy(**options: Any) -> Policy:
    return tiny_policy(["x"], seed=0, **{"hidden": 32, "layers": 2, "heads": 2, "context": 64, **options})


def weights(trained: Policy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trained.model.named_parameters()}


def run(method: Any, data: Any = None, *, steps: int = 3, start: Policy | None = None, **options: Any) -> Any:
    learner = start or policy()
    reference = None if method.__class__ in (SFT, RAFT) else options.pop("reference", None) or learner.copy()
    data = [examples(method)] if data is None else data
    result = train(
        method,
        learner,
        reference,
        data,
        steps=steps,
        progress=False,
        **flat({"lr": 0.1, "cpu": True, **options}, train=True),
    )
    return learner, result


def assert_same(first: Policy, second: Policy, *, atol: float = 2e-6) -> None:
    for name, value in weights(first).items():
        torch.testing.assert_close(
            weights(second)[name], value, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def probability(trained: Policy, row: Trajectory) -> float:
    batch = collate([Example((row,))])
    with torch.no_grad():
        return float(trained.logps(batch.ids, batch.mask, batch.turn_ids >= 0).sum())


@pytest.mark.parametrize("method", [SFT(), RAFT(), MDPO(), MDPO(turns="last"), MKTO(), MKTO(turns="last")])
def test_every_method_learns_to_prefer_the_winner(method: Any) -> None:
    """From the known loss at the start to winners far above losers, on all groups."""
    data = examples(method)
    learner, result = run(method, minibatches(data, 6, seed=0), steps=40, lr=3e-3)
    known = {"mdpo": math.log(2), "mkto": 0.5}
    if method.name in known:
        assert result.history[0]["loss"] == pytest.approx(known[method.name], abs=1e-6)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    before = policy()
    for seed in range(6):
        winner, loser = group(seed)
        gain = probability(learner, winner) - probability(before, winner)
        assert gain - (probability(learner, loser) - probability(before, loser)) > 3.0
        if method.name in ("sft", "raft"):
            assert gain > 3.0


def test_a_users_own_method_is_a_name_needs_and_a_loss() -> None:
    """Plain likelihood of all actions, as an object of no class of ours; it asks for a reference and is given it."""

    class Mine:
        name = "mine"
        needs = Needs(reference=True)

        def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
            assert reference is not None
            return Loss(-logps.sum(1))

    mine = Mine()
    assert isinstance(mine, Method)
    data = [Example(group(seed).trajectories) for seed in range(3)]
    _, result = run(mine, [data], steps=10, lr=3e-3, optimizer=torch.optim.AdamW)
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "cut",
    [
        {"accumulate": 2},
        {"accumulate": 4},
        {"tokens_per_micro_batch": 40},
        {"tokens_per_micro_batch": 9},  # less than one pair: read in pieces
        {"cache_reference": True},
    ],
)
def test_micro_batches_and_the_cache_do_not_change_the_update(method: Any, cut: dict[str, Any]) -> None:
    whole, one = run(method, optimizer=SGD)
    parts, many = run(method, optimizer=SGD, **cut)
    assert_same(whole, parts)
    for first, second in zip(one.history, many.history, strict=True):
        for name in {"loss", "grad_norm", "tokens", "margin", "z0"} & set(first):
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_make_the_same_update_as_one(tmp_path: Path) -> None:
    """Also with groups that cannot be shared out evenly, and one group that leaves a process without any."""
    script = tmp_path / "both.py"
    script.write_text(
        f"import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('test_train', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        "module.distributed_main(sys.argv[1])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (method, count, options) in distributed_cases().items():
        single, result = run(method, [examples(method, count)], optimizer=SGD, **options)
        saved = load_file(tmp_path / f"{name}-0.safetensors")
        other = load_file(tmp_path / f"{name}-1.safetensors")
        for parameter, value in weights(single).items():
            torch.testing.assert_close(saved[parameter], value, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(saved[parameter], other[parameter])
        history = json.loads((tmp_path / f"{name}.json").read_text())
        for mine, theirs in zip(result.history, history, strict=True):
            for key in {"loss", "grad_norm", "tokens", "margin", "z0"} & set(mine):
                assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), (name, key)


def distributed_cases() -> dict[str, tuple[Any, int, dict[str, Any]]]:
    return {
        "sft": (SFT(above=0.0), 5, {"accumulate": 2}),
        "mdpo": (MDPO(), 5, {}),
        "lonely": (MDPO(), 1, {}),
        "mkto": (MKTO(), 5, {"tokens_per_micro_batch": 40}),
        "own": (MDPO(), 5, {"sharded": False}),
        "cached": (MDPO(), 3, {"cache_reference": True, "gradient_checkpointing": True}),
    }


def distributed_main(folder: str) -> None:
    from accelerate import PartialState
    from safetensors.torch import save_file

    rank = PartialState(cpu=True).process_index
    for name, (method, count, options) in distributed_cases().items():
        out = Path(folder) / f"run-{name}"
        data = examples(method, count)
        data = data if options.get("sharded", True) else data[rank::2]
        learner, result = run(method, [data], optimizer=SGD, out=out, **options)
        save_file({n: v.contiguous() for n, v in weights(learner).items()}, Path(folder) / f"{name}-{rank}.safetensors")
        if rank == 0:
            (Path(folder) / f"{name}.json").write_text(json.dumps(result.history))
            assert (out / "checkpoints" / "step-00000003" / "state.json").exists()
    # Gloo's threads must end before the interpreter does, or the process may abort on its way out.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def test_gradient_checkpointing_recomputes_and_changes_nothing() -> None:
    """Three steps: each runs the policy's layers once more, in the backward pass."""

    def counted(**options: Any) -> tuple[Policy, int]:
        start, calls = policy(), []
        start.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        learner, _ = run(MDPO(), optimizer=SGD, start=start, reference=policy().copy(), **options)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in learner.model.modules())
        return learner, len(calls)

    (plain, once), (lean, twice) = counted(), counted(gradient_checkpointing=True)
    assert_same(plain, lean, atol=1e-6)
    assert twice == once + 3


def test_two_models_may_share_one_configuration() -> None:
    """Attention over forests is switched on in the configuration, also while the reference is first looked at."""
    made = policy()
    inner: Any = made.model
    other = Policy(type(inner)(inner.config), made.tokenizer)
    other.model.load_state_dict(inner.state_dict())
    other.model.requires_grad_(False)
    _, result = run(MDPO(), steps=1, start=made, reference=other)
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_cached_reference_scores_every_row_once() -> None:
    """Six pairs, twelve rows; three epochs of one step."""
    reference, rows = policy().copy(), []
    reference.scorer.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0].mask)))
    run(MDPO(), reference=reference)
    assert sum(rows) == 36
    rows.clear()
    run(MDPO(), reference=reference, cache_reference=True)
    assert sum(rows) == 12


def test_a_resumed_run_reads_what_was_kept_of_its_reference_and_no_other(tmp_path: Path) -> None:
    """Cut after one of two steps over the same rows, the rest scores no row anew; another reference is refused."""
    rows: list[int] = []

    def counted(seed: int = 0) -> Policy:
        reference = policy() if not seed else tiny_policy(["x"], seed=seed, hidden=32, layers=2, heads=2, context=64)
        reference = reference.copy()
        reference.scorer.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0].mask)))
        return reference

    how: dict[str, Any] = {"cache_reference": True, "out": tmp_path, "resume": True}
    run(MDPO(), reference=counted(), steps=1, **how)
    assert sum(rows) == 12
    with pytest.warns(ResumeWarning):  # more steps than before
        run(MDPO(), reference=counted(), steps=2, **how)
    assert sum(rows) == 12
    with pytest.raises(CheckpointError, match="was trained against another reference"):
        run(MDPO(), reference=counted(seed=1), steps=3, **how)
    assert sum(rows) == 12


def test_dropout_is_off_unless_asked_for_and_then_follows_the_seed() -> None:
    """With it on, policy and reference differ at the first step; the same seed draws the same masks."""

    def first(**options: Any) -> float:
        start = policy()
        for layer in start.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        before = torch.get_rng_state()
        _, result = run(MDPO(), start=start, steps=1, **options)
        assert torch.equal(torch.get_rng_state(), before)
        return float(result.history[0]["loss"])

    assert first() == pytest.approx(math.log(2), abs=1e-6)
    assert first(gradient_checkpointing=True) == pytest.approx(math.log(2), abs=1e-6)
    noisy = first(dropout=True, seed=1)
    assert abs(noisy - math.log(2)) > 1e-5
    assert first(dropout=True, seed=1) == noisy
    assert first(dropout=True, seed=2) != noisy


def test_bfloat16_trains_close_to_float32() -> None:
    _, full = run(MDPO(), steps=8, lr=3e-3, optimizer=torch.optim.AdamW)
    _, half = run(MDPO(), steps=8, lr=3e-3, optimizer=torch.optim.AdamW, mixed_precision="bf16")
    assert half.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert half.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], abs=0.1)
    assert half.history[-1]["loss"] != full.history[-1]["loss"]
    _, again = run(MDPO(), steps=8, lr=3e-3, optimizer=torch.optim.AdamW, mixed_precision="no")
    assert again.history[-1]["loss"] == full.history[-1]["loss"]


def test_adapters_learn_with_their_own_base_as_the_reference() -> None:
    peft = pytest.importorskip("peft")
    start = policy()
    base = weights(start)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(start.model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    learner = Policy(adapted, start.tokenizer)
    data = minibatches(examples(MDPO()), 6, seed=0)
    result = train(MDPO(), learner, None, data, steps=30, options=TrainOptions(lr=2e-2, cpu=True), progress=False)
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.history[-1]["loss"] < 0.5
    with adapted.disable_adapter():
        assert probability(learner, group(0)[0]) == pytest.approx(probability(policy(), group(0)[0]), abs=1e-5)
    for name, value in base.items():
        kept = dict(adapted.get_base_model().named_parameters())
        found = kept.get(name, kept.get(name.replace(".weight", ".base_layer.weight")))
        assert found is not None
        assert torch.equal(found, value)


@pytest.mark.parametrize(("warmup", "expected"), [(0, 0.01), (2, 0.005)])
def test_an_update_is_as_long_as_clipping_and_schedule_allow(warmup: int, expected: float) -> None:
    """SGD with lr 1 moves by the clipped gradient, of norm 0.01; by half of it in the first of two warmup steps."""
    before = weights(policy())
    learner, result = run(MDPO(), steps=1, lr=1.0, clip=0.01, warmup=warmup, optimizer=SGD)
    moved = math.sqrt(sum(float((weights(learner)[n] - v).square().sum()) for n, v in before.items()))
    assert moved == pytest.approx(expected, rel=1e-3)
    assert result.history[0]["grad_norm"] > 0.01


def test_schedules_by_hand() -> None:
    """10 steps, 2 of warmup: 1/2, 1, then 8 left: step 6 has (10-6)/8 = 1/2 linear, (1-cos(pi/2))/2 = 1/2 cosine."""
    values = [factor(s, steps=10, warmup=2, schedule="linear") for s in range(10)]
    assert values[:3] == [0.5, 1.0, 1.0]
    assert values[6] == 0.5
    assert values[9] == 0.125
    assert factor(6, steps=10, warmup=2, schedule="cosine") == pytest.approx(0.5)
    assert factor(9, steps=10, schedule="constant") == 1.0
    _, result = run(SFT(), steps=4, lr=0.4, warmup=2, schedule="linear")
    assert [record["lr"] for record in result.history] == pytest.approx([0.2, 0.4, 0.4, 0.2])
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        factor(0, steps=1, schedule="cosin")  # type: ignore[arg-type]


class Explodes(MDPO):
    """Fails on one group of the data, whenever it comes."""

    kind = "loss"

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        loss = super().loss(logps, reference, batch)
        bad = (batch.ids[:, 0] == 103).any()
        if not bad:
            return loss
        wrong = loss.values * math.inf if self.kind == "loss" else loss.values + (loss.values * 0).sqrt()
        return Loss(wrong, loss.count, loss.metrics)


class ExplodesInGradient(Explodes):
    kind = "gradient"


@pytest.mark.parametrize("method", [Explodes(), ExplodesInGradient()])
def test_nan_stops_with_the_batch_and_the_last_good_weights_saved(method: Any, tmp_path: Path) -> None:
    """Groups 0..4 one a step; the fourth (prompt token 103) fails: three steps are saved, the batch is the fourth's."""
    data = [[example] for example in examples(MDPO())]
    learner = policy()
    with pytest.raises(NonFiniteError, match=r"step 4: expected finite numbers.*step-00000004-process-0.safetensors"):
        train(
            method,
            learner,
            policy().copy(),
            data,
            steps=6,
            options=TrainOptions(lr=1e-3, cpu=True),
            progress=False,
            out=tmp_path,
        )
    batch = Batch.load(tmp_path / "nonfinite" / "step-00000004-process-0")
    assert batch.ids[:, 0].tolist() == [103, 103]
    assert json.loads((tmp_path / "nonfinite" / "step-00000004-process-0.json").read_text())["lengths"]
    saved = Policy.from_pretrained(tmp_path / "checkpoints" / "step-00000003" / "model", device="cpu")
    assert all(torch.equal(value, weights(saved)[name]) for name, value in weights(learner).items())
    assert all(torch.isfinite(value).all() for value in weights(learner).values())


def test_evaluation_metrics_and_trackers(tmp_path: Path) -> None:
    class Recorder(GeneralTracker):  # type: ignore[misc]
        name = "recorder"
        requires_logging_directory = False
        tracker = None

        def __init__(self) -> None:
            super().__init__()
            self.logged: list[tuple[int, dict[str, float]]] = []

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.config = values

        def log(self, values: dict[str, float], step: int, **_: Any) -> None:
            self.logged.append((step, values))

    recorder, seen = Recorder(), []

    def evaluate(learner: Policy, step: int) -> dict[str, float]:
        seen.append(step)
        assert not learner.model.training
        return {"winner": probability(learner, group(0)[0])}

    _, result = run(
        MDPO(), steps=5, evaluate=evaluate, evaluate_every=2, trackers=[recorder], out=tmp_path, lr=1e-3,
        optimizer=torch.optim.AdamW,
    )  # fmt: skip
    assert seen == [0, 2, 4, 5]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [record["step"] for record in lines] == [0, 1, 2, 3, 4, 5]
    assert [record["step"] for record in lines if "eval/winner" in record] == [0, 2, 4, 5]
    assert [step for step, _ in recorder.logged] == [0, 1, 2, 3, 4, 5]
    assert recorder.config["lr"] == 1e-3
    assert result.path == tmp_path / "checkpoints" / "step-00000005" / "model"


def test_sequences_start_over_and_iterators_end() -> None:
    data = [[example] for example in examples(SFT(), 2)]
    _, result = run(SFT(), data, steps=5)
    assert result.steps == 5

    def once() -> Iterator[list[Example]]:
        yield from data

    with pytest.warns(UserWarning, match="ended after 2 of 5 steps"):
        _, short = run(SFT(), once(), steps=5)
    assert short.steps == 2
    assert short.history[1]["loss"] == result.history[1]["loss"]


def test_minibatches_take_every_example_once_an_epoch() -> None:
    data = examples(SFT(), 7)
    at = minibatches(data, 3, seed=5)
    for epoch in range(2):
        steps = [at(3 * epoch + i) for i in range(3)]
        assert [len(step) for step in steps] == [3, 2, 2]
        assert {id(example) for step in steps for example in step} == {id(example) for example in data}
    assert [id(e) for e in at(0)] != [id(e) for e in at(3)]
    assert [id(e) for e in at(4)] == [id(e) for e in minibatches(data, 3, seed=5)(4)]


def test_max_length_leaves_out_and_says_so() -> None:
    with pytest.warns(UserWarning, match="left out 6 of 12 trajectories"):
        _, result = run(MDPO(), steps=1, max_length=10)
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="none of at most 3 tokens"):
            run(MDPO(), steps=1, max_length=3)


def test_wrong_arguments_are_refused_before_any_work() -> None:
    learner, data = policy(), [examples(MDPO())]

    def call(*given: Any, **more: Any) -> Any:
        return train(*given, **flat({"steps": 1, "progress": False, "cpu": True, **more}, train=True))

    with pytest.raises(ValueError, match="mdpo needs a reference, got None"):
        call(MDPO(), learner, None, data)
    with pytest.raises(ValueError, match="got the policy itself"):
        call(MDPO(), learner, learner, data)
    with pytest.raises(ValueError, match="all frozen"):
        call(MDPO(), learner.copy(), learner, data)
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1"):
        call(MDPO(), learner, learner.copy(), data, steps=0)
    for name, bad in {"lr": -1e-6, "weight_decay": -0.1, "warmup": -1, "clip": 0.0, "save_every": 0,
                      "evaluate_every": 0, "tokens_per_micro_batch": 0}.items():  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {bad}"):
            call(MDPO(), learner, learner.copy(), data, **{name: bad})
    with pytest.raises(ValueError, match="expected a method with name, needs and loss"):
        call("mdpo", learner, learner.copy(), data)
    with pytest.raises(ValueError, match="needs collate"):
        call(MKTO(), learner, learner.copy(), [collate(examples(MKTO()))])
    with pytest.raises(ValueError, match="none"):
        call(MDPO(), learner, learner.copy(), [[Example(group(0).trajectories)]])


@pytest.mark.parametrize("what", ["examples", "groups", "annotated groups"])
def test_batches_that_are_no_steps_are_named_with_the_remedy(what: str) -> None:
    """What a first call gets wrong: a flat list, of which each item would be one step."""
    flat: dict[str, list[Any]] = {
        "examples": examples(MDPO()),
        "groups": [group(0), group(1)],
        "annotated groups": [AnnotatedGroup(group(0), by_return(group(0)), (0,))],
    }
    found = {"examples": "Example", "groups": "Trajectory", "annotated groups": "AnnotatedGroup"}[what]
    with pytest.raises(ValueError, match=rf"step after step.* is or holds one {found};.*minibatches\("):
        run(MDPO(), flat[what], steps=1)
    with pytest.raises(ValueError, match=r"got the class MDPO; write MDPO\(\)"):
        train(MDPO, policy(), policy().copy(), [examples(MDPO())], steps=1)  # type: ignore[arg-type]


def test_half_precision_weights_are_warned_of_and_float32_ones_are_not(recwarn: pytest.WarningsRecorder) -> None:
    """At lr 1e-6 a bfloat16 weight of .02, with neighbours 1e-4 away, does not move: nearly nothing is learned."""
    data = [examples(MDPO())]
    run(MDPO(), data, steps=1, lr=1e-6)
    assert not [w for w in recwarn if "rounds away" in str(w.message)]
    learner = policy()
    learner.model.to(torch.bfloat16)
    before = weights(learner)
    with pytest.warns(UserWarning, match=r"weights are bfloat16.*rounds away.*dtype=torch\.float32") as found:
        run(MDPO(), data, start=learner, steps=1, lr=1e-6)
    assert found[0].filename == __file__
    moved = torch.cat([(weights(learner)[name] != value).flatten() for name, value in before.items()])
    assert float(moved.float().mean()) < 0.1
