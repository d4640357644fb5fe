"""One run of an agent program as the server sees it: calls, linked by exact tokens, and the trajectory they make."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyturn.agents.serving.messages import Message, Reply, Request, digest_of, shown
from polyturn.agents.serving.rendering import Renderer
from polyturn.envs.settings import check_count
from polyturn.envs.trajectory import Logps, TokenIds, Trajectory, Turn

ENV_ID = "program"
"""What trajectories of agent programs have as `env_id`."""


@dataclass(frozen=True)
class Start:
    """What a run starts from, and whose turn it is in a group.

    Attributes:
        task_id: Name of the task.
        seed: Of the start; with `task_id` and `options` it says which runs may be compared.
        group: Which start of a collection; runs of different starts are never compared. With `stream` and `member` it
            fixes the random numbers.
        member: Position in its group.
        stream: Seed of the collection.
        options: What else is fixed about the start; JSON values.

    Raises:
        ValueError: A field of another kind.
    """

    task_id: str = ""
    seed: int = 0
    group: int = 0
    member: int = 0
    stream: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("seed", "group", "member", "stream"):
            check_count(f"Start.{name}", getattr(self, name), 0)
        if not isinstance(self.task_id, str) or not isinstance(self.options, Mapping):
            raise ValueError(f"Start: expected a text and a mapping, got {self.task_id!r:.60} and {self.options!r:.60}")


@dataclass(eq=False)
class Call:
    """A call that was answered.

    Attributes:
        number: Position in the episode, by arrival.
        parent: The call whose prompt and answer this prompt begins with, token by token.
        context: `[C]` tokens of the prompt after those of the parent.
        prompt: `[P]` all tokens that the model read.
        ids: `[A]` the answer as sampled.
        logps: `[A]` nats.
        observation: The new messages, for a person.
        text: What was sampled, marks spelled out.
        reply: The answer, taken apart.
        finish: "stop", "length" or "tool_calls".
        stopped: The stop text that ended it, or None.
        messages: The conversation, the reply included.
        tools: Digest of the tools.
        delivered: Whether a client got the answer.
    """

    number: int
    parent: Call | None
    context: TokenIds
    prompt: TokenIds
    ids: TokenIds
    logps: Logps
    observation: str
    text: str
    reply: Reply
    finish: str
    stopped: str | None
    messages: tuple[Message, ...]
    tools: str
    delivered: bool = False

    @property
    def length(self) -> int:
        """Tokens read and written."""
        return len(self.prompt) + len(self.ids)


class ServedEpisode:
    """The calls of one run.

    Attributes:
        id: Name in answers' ids; not the key.
        start: What it starts from.
        notes: Counters that its trajectory's info holds.
        closed: Whether it takes no more calls.
        failure: What made the model fail, or None.
        arrived: Requests that were no repetitions.
        answers: Answers, given or under way, by the digest of what was asked.
        marked: The same by digest and idempotency key.
    """

    def __init__(self, number: int, start: Start) -> None:
        self.id, self.start = f"e{number}", start
        self.notes = {"replayed": 0, "rewritten": 0, "context_full": 0, "unforced": 0}
        self.closed = False
        self.failure: str | None = None
        self.arrived = 0
        self.marked: dict[tuple[str, str], asyncio.Future[Call]] = {}
        self.answers: dict[str, list[asyncio.Future[Call]]] = {}
        self._repeats: dict[tuple[str, str], int] = {}
        self._calls: list[Call] = []
        self._after: dict[tuple[str, str], Call] = {}
        self._prompts: dict[bytes, int] = {}

    def replayed(self, digest: str, mark: str) -> asyncio.Future[Call] | None:
        """The answer of the request that this one repeats, under way or given; None if there was none.

        Requests with equal bodies are different samples. The n-th repetition with one mark belongs to the n-th of them.

        Args:
            digest: Of the body.
            mark: What marks the request as a repetition.
        """
        first = self.answers.get(digest)
        if not first:
            return None
        which = self._repeats.get((digest, mark), 0)
        self._repeats[digest, mark] = which + 1
        self.notes["replayed"] += 1
        return first[min(which, len(first) - 1)]

    def replayed_by_mark(self, digest: str, mark: str) -> asyncio.Future[Call] | None:
        """The answer to the request with this idempotency key, under way or given; None if there was none."""
        found = self.marked.get((digest, mark))
        self.notes["replayed"] += found is not None
        return found

    def forget(self, answer: asyncio.Future[Call]) -> None:
        """Drops an answer that failed: a repetition is a new request."""
        self.answers = {digest: [a for a in given if a is not answer] for digest, given in self.answers.items()}
        self.marked = {key: given for key, given in self.marked.items() if given is not answer}

    def prompt(self, request: Request, renderer: Renderer) -> tuple[TokenIds, TokenIds, Call | None, str]:
        """The prompt of a request: the tokens of the longest conversation that it continues, and what is new.

        Messages only look that conversation up; what the model reads of it are its stored tokens.

        Returns:
            The prompt, its part after the parent, the parent or None, and the new messages as text.
        """
        tools = self.tools_of(request)
        prefixes = _prefixes(request.messages)
        answered = max((n for n, message in enumerate(request.messages) if message.role == "assistant"), default=-1) + 1
        parent = self._after.get((tools, prefixes[answered])) if answered else None
        if parent is not None:
            new = request.messages[answered:]
            context = renderer.continuation(new, request.tools, parent.ids, len(parent.reply.tool_calls))
            if context is not None:
                return np.concatenate([parent.prompt, parent.ids, context]), context, parent, shown(new)
        whole = renderer.prompt(request.messages, request.tools)
        self.notes["rewritten"] += bool(self._calls) and answered > 0
        return whole, whole, None, shown(request.messages)

    @staticmethod
    def tools_of(request: Request) -> str:
        """One name for a set of tools: with others the model reads another prompt."""
        return digest_of([dict(tool) for tool in request.tools])

    def rng(self, prompt: TokenIds) -> np.random.Generator:
        """A generator of the call's own: it depends on the episode and on what is asked, not on when."""
        digest = hashlib.blake2b(prompt.astype("<i4").tobytes(), digest_size=16).digest()
        before = self._prompts.get(digest, 0)
        self._prompts[digest] = before + 1
        start, words = self.start, np.frombuffer(digest, "<u4").tolist()
        key = [start.stream, start.group, start.member + 1, before, *words]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

    def add(self, call: Call) -> None:
        """Takes in a call that was answered."""
        self._calls.append(call)
        self._after[call.tools, _prefixes(call.messages)[-1]] = call

    def messages(self) -> list[dict[str, str]]:
        """What was read and said, segment after segment."""
        return [
            {"role": role, "content": text}
            for segment in _segments(self._calls)
            for call in segment
            for role, text in (("user", call.observation), ("assistant", call.text))
        ]

    def call(self, number: int) -> Call | None:
        """An answered call by its number."""
        return next((call for call in self._calls if call.number == number), None)

    def trajectory(self, reward: float, error: str | None, *, agent: str, version: str) -> Trajectory:
        """The whole run as one trajectory; the reward stands at its last turn.

        A call whose answer reached no client makes it invalid: the program did not see what the policy said.
        """
        self.closed = True
        error = self.failure if error is None else error
        lost = [call.number for call in self._calls if not call.delivered]
        pending = sum(not answer.done() for answers in self.answers.values() for answer in answers)
        if error is None and (lost or pending):
            error = f"abandoned: {len(lost) + pending} of {self.arrived} calls were answered to no client"
        if error is None and not self._calls:
            error = "no call: the program ended without asking the model"
        segments = _segments(self._calls)
        turns = [
            Turn(
                call.observation,
                call.text,
                0.0,
                call.context if place else call.prompt,
                call.ids,
                call.logps,
                {"call": call.number, "finish": call.finish},
            )
            for segment in segments
            for place, call in enumerate(segment)
        ]
        if turns:
            last = turns[-1]
            paid = reward if error is None else 0.0
            turns[-1] = Turn(
                last.observation, last.action, paid, last.context_ids, last.action_ids, last.logps, last.info
            )
        starts = np.cumsum([len(segment) for segment in segments])[:-1].tolist()
        return Trajectory(
            ENV_ID,
            self.start.seed,
            tuple(turns),
            task_id=self.start.task_id,
            agent=agent,
            policy_version=version,
            member=self.start.member,
            group=self.start.group,
            terminated=error is None,
            error=error,
            env_options=self.start.options,
            info={"group": self.start.group, "calls": len(self._calls), **self.notes},
            segment_starts=tuple(starts),
        )


def _segments(calls: Sequence[Call]) -> list[list[Call]]:
    """Calls as append-only runs: a call continues the run that its parent ends, or begins one."""
    segments: list[list[Call]] = []
    ends: dict[int, list[Call]] = {}
    for call in sorted(calls, key=lambda each: each.number):
        run = None if call.parent is None else ends.pop(call.parent.number, None)
        if run is None:
            run = []
            segments.append(run)
        run.append(call)
        ends[call.number] = run
    return segments


def _prefixes(messages: Sequence[Message]) -> list[str]:
    """A digest of the first n messages, for n from 0 to all."""
    found = [""]
    for message in messages:
        found.append(hashlib.blake2b((found[-1] + message.fingerprint()).encode(), digest_size=16).hexdigest())
    return found
