"""A policy served over HTTP: agent programs ask it like any provider, and each run of a program is one trajectory.

It answers OpenAI's chat completions and Responses and Anthropic's Messages. Sampling settings are the server's, as the
log-probabilities that are kept belong to them; a client's limits on length and its stop texts are heeded.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from polyturn.agents.collecting.resuming import Signed
from polyturn.agents.serving import anthropic, chat, responses
from polyturn.agents.serving.answering import Answer
from polyturn.agents.serving.episode import Call, ServedEpisode, Start
from polyturn.agents.serving.messages import BadRequest, Message, Request, mapping
from polyturn.agents.serving.rendering import Renderer
from polyturn.agents.serving.sampler import Sampler
from polyturn.agents.serving.wire import Ask, ServerLimits, Told, Wire, error
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory

_T = TypeVar("_T")
_STOP_WINDOW = 64
_NOTHING: Mapping[str, Any] = MappingProxyType({})
MODEL = "policy"
"""What the policy is called in answers; requests may call it anything."""


class AgentServer:
    """Serves a policy to agent programs; a context manager.

    Example:
        with AgentServer(TransformerAgent(policy)) as server:
            key = server.open(Start(task_id="t"))
            client = openai.OpenAI(base_url=server.url, api_key=key)
            ...
            trajectory = server.close(key, reward=1.0)

    Each episode has its own key, which is the client's API key; the server keeps only its hash, and no record
    holds it. Calls whose messages continue an earlier call of the episode read that call's tokens exactly as they were
    sampled; calls that rewrite the history begin a new segment of the same trajectory.

    Args:
        agent: Whose policy answers, with its sampling, limits and slots.
        host: Interface to listen on.
        port: Port to listen on; 0 for any free one.
        limits: What clients may use.
        store: Where finished trajectories are appended.
        operator_key: Lets clients open and finish episodes over HTTP (`POST /v1/episodes`, `/v1/episodes/finish`);
            None: only this object does.
        clock: Seconds since 1970, for the field `created` of answers; no trajectory holds it.
    """

    def __init__(
        self,
        agent: TransformerAgent,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: ServerLimits | None = None,
        store: Store | None = None,
        operator_key: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._agent, self._clock = agent, clock
        self._store = None if store is None else Signed(store, [agent])
        self._host, self._port = host, port
        self._limits = ServerLimits() if limits is None else limits
        self._operator = None if operator_key is None else _hash(operator_key)
        self._renderer, self._sampler = Renderer(agent.policy), Sampler(agent.engine)
        self._episodes: dict[str, ServedEpisode] = {}
        self._opened = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def root(self) -> str:
        """Where it is, such as "http://127.0.0.1:8000": what Anthropic's clients take as `base_url`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def url(self) -> str:
        """What OpenAI's clients take as `base_url`."""
        return f"{self.root}/v1"

    @property
    def slots(self) -> int:
        """Answers that are sampled at once."""
        return self._sampler.engine.slots

    def start(self) -> None:
        """Begins to listen, in another thread.

        Raises:
            OSError: The port cannot be had.
        """
        if self._thread is not None:
            raise ValueError("AgentServer.start: it is listening already")
        started: Future[int] = Future()
        self._thread = threading.Thread(target=self._listen, args=(started,), name="polyturn-serve", daemon=True)
        self._thread.start()
        try:
            self._port = started.result()
        except OSError:
            self._thread = None
            raise

    def stop(self) -> None:
        """Ends every connection; episodes that were not closed are recorded as invalid."""
        if self._thread is None or self._loop is None:
            return
        self._in_loop(self._close_all)
        stopping = self._stopping
        assert stopping is not None
        self._loop.call_soon_threadsafe(stopping.set)
        self._thread.join()
        self._thread = self._loop = None

    def __enter__(self) -> AgentServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def open(self, start: Start | None = None) -> str:
        """Begins an episode and returns its key."""
        return self._in_loop(lambda: self._open(Start() if start is None else start))

    def messages(self, key: str) -> list[dict[str, str]]:
        """The conversations of an open episode so far, those of every segment one after another."""
        return self._in_loop(lambda: self._episodes[_hash(key)].messages())

    def close(
        self,
        key: str,
        *,
        reward: float = 0.0,
        error: str | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Trajectory:
        """Ends an episode.

        Args:
            key: The episode's.
            reward: What the whole run is worth.
            error: Why it failed for reasons outside the policy; it is then invalid.
            info: What else its trajectory is to record; JSON values.

        Raises:
            ValueError: No episode has this key, or the reward is not finite.
        """
        if not np.isfinite(reward):
            reward, error = 0.0, error or f"the score is not finite: {reward}"
        return self._in_loop(lambda: self._close(_hash(key), reward, error, info or {}))

    def _in_loop(self, work: Callable[[], _T]) -> _T:
        """Runs something in the server's thread, where all of its state lives."""

        async def done() -> _T:
            return work()

        if self._loop is None:
            raise ValueError("AgentServer: expected a server that listens; use it in a with block, or call start()")
        return asyncio.run_coroutine_threadsafe(done(), self._loop).result()

    def _listen(self, started: Future[int]) -> None:
        try:
            asyncio.run(self._main(started))
        except BaseException as failure:
            if not started.done():
                started.set_exception(failure)
            else:
                raise

    async def _main(self, started: Future[int]) -> None:
        wire = Wire(self._handle, self._gate, self._limits)
        listening = await asyncio.start_server(wire.connected, self._host, self._port)
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        started.set_result(listening.sockets[0].getsockname()[1])
        await self._stopping.wait()
        listening.close()

    # Everything below runs in the server's loop.

    def _open(self, start: Start) -> str:
        key = f"pt-{secrets.token_urlsafe(24)}"
        self._opened += 1
        self._episodes[_hash(key)] = ServedEpisode(self._opened, start)
        return key

    def _close(self, hashed: str, reward: float, error: str | None, info: Mapping[str, Any] = _NOTHING) -> Trajectory:
        episode = self._episodes.pop(hashed, None)
        if episode is None:
            raise ValueError("AgentServer.close: expected the key of an open episode, got another")
        made = episode.trajectory(reward, error, agent=self._agent.name, version=self._agent.version)
        made = replace(made, info={**made.info, **info})
        self._sampler.forget(episode.id)
        if self._store is not None:
            self._store.append(made)
        return made

    def _close_all(self) -> None:
        for hashed in list(self._episodes):
            self._close(hashed, 0.0, "the server ended before the episode did")

    def _gate(self, method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        if path.startswith("/v1/episodes"):
            known = self._operator is not None and secrets.compare_digest(_hash(_key(headers)), self._operator)
        else:
            known = _hash(_key(headers)) in self._episodes
        return None if known else Told(401, error("expected the key of an open episode", "invalid_api_key"))

    async def _handle(self, ask: Ask) -> Told:
        hashed = _hash(_key(ask.headers))
        try:
            if ask.path == "/v1/models" and ask.method == "GET":
                model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "polyturn"}
                return Told(200, {"object": "list", "data": [model]})
            if ask.method != "POST":
                raise BadRequest(f"expected POST, got {ask.method[:20]}")
            if ask.path.startswith("/v1/episodes"):
                return self._operate(ask.path, _body(ask.body))
            if ask.path not in _INTERFACES:
                return Told(404, error(f"expected one of {', '.join(_INTERFACES)}, got another path", "not_found"))
            if hashed not in self._episodes:
                return Told(401, error("the episode has ended", "invalid_api_key"))
            return await self._answer(self._episodes[hashed], ask)
        except BadRequest as refusal:
            return Told(400, error(str(refusal), refusal.code))
        except Exception as failure:
            # What was not foreseen loses the episode, not the server.
            if hashed in self._episodes:
                self._episodes[hashed].failure = f"{type(failure).__name__}: {failure}"
            return Told(500, error(f"the request failed: {type(failure).__name__}", "server_error"))

    def _operate(self, path: str, body: Mapping[str, Any]) -> Told:
        """Opens and finishes episodes for requests with the operator's key."""
        try:
            if path == "/v1/episodes":
                return Told(200, {"key": self._open(Start(**body))})
            if path == "/v1/episodes/finish":
                reward, failure = float(body.get("reward", 0.0)), body.get("error")
                if not np.isfinite(reward):
                    reward, failure = 0.0, failure or "the score is not finite"
                hashed = _hash(str(body.get("key")))
                made = self._close(hashed, reward, None if failure is None else str(failure))
                return Told(200, {"valid": made.valid, "calls": len(made.turns), "error": made.error})
        except (TypeError, ValueError) as wrong:
            raise BadRequest(f"{path}: {wrong}") from wrong
        return Told(404, error("expected /v1/episodes or /v1/episodes/finish", "not_found"))

    async def _answer(self, episode: ServedEpisode, ask: Ask) -> Told:
        """Answers a call: a repetition with what was said before, anything else with a new sample."""
        body = _body(ask.body)
        read, make, stream = _INTERFACES[ask.path]
        request: Request = (
            read(body, lambda name: _earlier(episode, name)) if ask.path == "/v1/responses" else read(body)
        )
        asked = mapping(body.get("stream_options") or {}, "stream_options")
        digest = hashlib.blake2b(ask.path.encode() + ask.body, digest_size=16).hexdigest()
        waiting = self._repeated(episode, ask, digest)
        if waiting is None:
            self._check_room(episode)
            # The sample is drawn to its end even where the client leaves: a repetition of the request will ask for it.
            waiting = asyncio.ensure_future(self._draw(episode, request, episode.arrived))
            episode.arrived += 1
            episode.answers.setdefault(digest, []).append(waiting)
            if mark := ask.headers.get("idempotency-key"):
                episode.marked[digest, mark] = waiting
        try:
            call = await asyncio.shield(waiting)
        except Exception as failure:
            episode.forget(waiting)
            if isinstance(failure, BadRequest):
                raise
            episode.failure = f"{type(failure).__name__}: {failure}"
            return Told(500, error("the model failed; the episode is lost", "model_failed"))
        tokenizer = self._agent.policy.tokenizer
        answer = Answer(
            call,
            f"{episode.id}-{call.number}",
            MODEL,
            int(self._clock()),
            tuple(str(tokenizer.decode([number])) for number in call.ids) if request.logprobs else (),
            request.logprobs,
        )

        def delivered() -> None:
            call.delivered = True

        if not request.stream:
            return Told(200, make(answer), delivered=delivered)
        if ask.path == "/v1/chat/completions":
            told = stream(answer, usage=bool(asked.get("include_usage")))
        else:
            told = stream(answer)
        return Told(200, events=told, delivered=delivered)

    def _repeated(self, episode: ServedEpisode, ask: Ask, digest: str) -> asyncio.Future[Call] | None:
        """The answer, given or under way, to the request that this one repeats; None if it repeats none."""
        mark, retry = ask.headers.get("idempotency-key"), ask.headers.get("x-stainless-retry-count", "0")
        if mark:
            return episode.replayed_by_mark(digest, mark)
        return episode.replayed(digest, retry) if retry.isdigit() and int(retry) > 0 else None

    def _check_room(self, episode: ServedEpisode) -> None:
        under_way = sum(not each.done() for answers in episode.answers.values() for each in answers)
        if episode.arrived >= self._limits.calls or under_way >= self._limits.parallel:
            what = f"{self._limits.calls} calls an episode, {self._limits.parallel} at once"
            raise BadRequest(f"expected at most {what}; finish the run", "limit_reached")

    async def _draw(self, episode: ServedEpisode, request: Request, number: int) -> Call:
        """Samples an answer and takes it into the episode."""
        episode.notes["unforced"] += request.forced
        prompt, context, parent, observation = episode.prompt(request, self._renderer)
        room = self._sampler.engine.capacity - len(prompt) - 1
        if room < 1:
            episode.notes["context_full"] += 1
            raise BadRequest(
                f"the maximum context length is {self._sampler.engine.capacity} tokens, and the messages have "
                f"{len(prompt)}",
                "context_length_exceeded",
            )
        chat, stops = self._agent.policy.chat, request.stop

        def finished(ids: list[int]) -> bool:
            end = chat.text(np.asarray(ids[-_STOP_WINDOW:], np.int32))
            return any(stop in end for stop in stops)

        ids, logps = await self._sampler.sample(
            prompt,
            episode.rng(prompt),
            after=None if parent is None else (episode.id, parent.number),
            place=(episode.id, number),
            limit=request.max_tokens,
            finished=finished if stops else None,
        )
        text = chat.text(ids)
        cut = min(((text.index(stop), stop) for stop in stops if stop in text), default=None)
        said = text if cut is None else text[: cut[0]]
        ended = cut is not None or int(ids[-1]) in chat.stop_ids
        reply = self._renderer.reply(said, request.tools, f"call_{episode.id}-{number}")
        finish = "length" if not ended else "tool_calls" if reply.tool_calls else "stop"
        call = Call(
            number, parent, context, prompt, ids, logps, observation, text, reply, finish,
            None if cut is None else cut[1], (*request.messages, reply.message()), episode.tools_of(request),
        )  # fmt: skip
        if episode.closed:
            self._sampler.forget(episode.id)
            raise BadRequest("the episode has ended", "invalid_api_key")
        episode.add(call)
        return call


_INTERFACES: Mapping[str, tuple[Any, Any, Any]] = {
    "/v1/chat/completions": (chat.request, chat.answer, chat.events),
    "/v1/responses": (responses.request, responses.answer, responses.events),
    "/v1/messages": (anthropic.request, anthropic.answer, anthropic.events),
}


def _earlier(episode: ServedEpisode, name: str) -> tuple[Message, ...] | None:
    number = name.removeprefix(f"resp_{episode.id}-")
    call = episode.call(int(number)) if number.isascii() and number.isdigit() else None
    return None if call is None else tuple(each for each in call.messages if each.role != "system")


def _body(data: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as wrong:
        raise BadRequest(f"expected a JSON object, got something else: {str(wrong)[:100]}") from wrong
    if not isinstance(body, dict):
        raise BadRequest(f"expected a JSON object, got {type(body).__name__}")
    return body


def _key(headers: Mapping[str, str]) -> str:
    given = headers.get("authorization", "")
    return given[7:].strip() if given[:7].lower() == "bearer " else headers.get("x-api-key", "")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
