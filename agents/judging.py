"""Judges of whole conversations: an agent asked by a prompt, and a person at the terminal. Both are pair judges
(`polyturn.envs.preference`); `agent_judge` and `human_judge` make annotators of them.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TextIO
from zlib import crc32

import numpy as np

from polyturn.agents.agent import Agent, AgentFailed, Episode
from polyturn.agents.collecting.roles import reply
from polyturn.agents.loop_thread import LoopInterrupted, LoopThread
from polyturn.envs.conversation import transcript
from polyturn.envs.preference import Judged, Pair
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.trajectory import Trajectory

TEACHING = (
    "Two teachers taught the same topic to the same student. Judge how well each of them taught: were the explanations "
    "clear, was the teaching suited to how this student learns, was the student drawn in, and did the student "
    "understand more at the end?"
)
SELLING = "Two car dealers talked to the same buyer. Judge which dealer did better for the dealership."

_VERDICT = re.compile(r"(?<![\w.])(0|1|2|tie|draw|equal|equally)(?![\w]|\.\d)", re.IGNORECASE)
_VALUES = {"1": 1.0, "2": 0.0}


def verdict(text: str) -> float:
    """What a judge's answer says: 1.0 the first is better, 0.0 the second, 0.5 a tie, nan neither clearly.

    The last line that holds a verdict decides; a line that holds two different ones decides nothing.
    """
    for line in reversed(text[-4_000:].splitlines()):
        found = {_VALUES.get(word, 0.5) for word in _VERDICT.findall(line.lower())}
        if found:
            return found.pop() if len(found) == 1 else math.nan
    return math.nan


class JudgeFailed(RuntimeError):
    """A judge failed at many questions in a row: what it stands on is down, and to go on would compare nothing."""


class PromptedJudge:
    """An agent that is shown two conversations and asked which is better.

    Where the agent can say how likely each answer is, through a method `choice_logps(episode, ("1", "2"))` that returns
    their log-probabilities (or an awaitable of them), these make a probability; otherwise its text is read. If the
    answer is neither 1, 2 nor a tie, or the agent fails after all retries, the pair counts as unasked (nan).

    The conversations are written so that no turn can pass for another or for the prompt's headings. A turn that
    instructs the judge what to answer ("Answer 1!") is still read, but says the same in both orders, so that `Judged`
    makes a tie of it.

    Args:
        agent: The judge.
        question: What to judge; the annotator is steered by it.
        speakers: Roles of the environment's and of the agent's turns.
        concurrency: Questions under way at once.
        retries: How often a failed question is asked again, unless the agent has tried again itself (`AgentFailed`).
        backoff: Seconds before the first retry; doubled each time.
            timeout: Seconds for a question, its repetitions and the waits between them included; None for no limit.
        patience: After how many failed questions in a row `JudgeFailed` is raised.
            seed: Of a sampling agent's randomness; the same prompt always gets the same.
        sleep: Waits; given for tests.
    """

    def __init__(
        self,
        agent: Agent,
        question: str = TEACHING,
        *,
        speakers: tuple[str, str] = ("student", "teacher"),
        concurrency: int = 16,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float | None = 300.0,
        patience: int = 16,
        seed: int = 0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        for name, value, low in (("concurrency", concurrency, 1), ("retries", retries, 0), ("patience", patience, 1)):
            check_count(f"PromptedJudge({name})", value, low)
        check_range("PromptedJudge(backoff)", backoff, 0)
        if timeout is not None:
            check_range("PromptedJudge(timeout)", timeout, 0, above=True)
        self.agent, self.question, self.speakers = agent, question, speakers
        self._concurrency = min(concurrency, int(getattr(agent, "max_concurrency", concurrency)))
        self._retries, self._backoff, self._timeout = retries, backoff, timeout
        self._patience, self._in_a_row = patience, 0
        self._seed, self._sleep = seed, sleep
        self._loop = LoopThread()
        self.failures: list[str] = []

    def prompt(self, first: Trajectory, second: Trajectory) -> str:
        """What the agent is asked."""
        return (
            f"{self.question}\n\n### Conversation 1\n{conversation(first, self.speakers)}\n\n"
            f"### Conversation 2\n{conversation(second, self.speakers)}\n\n"
            'Which conversation is better? Answer with "1" or "2" alone, or "0" if they are equally good.'
        )

    def __call__(self, pairs: Sequence[Pair], /) -> list[float]:
        """`[P]` probabilities that the first of each pair is better; `failures` then says what went wrong.

        Raises:
            JudgeFailed: As many questions in a row as `patience` says had no answer at all.
        """
        self.failures = []

        async def ask_all() -> list[float]:
            places = asyncio.Semaphore(self._concurrency)

            async def one(pair: Pair) -> float:
                async with places:
                    if self._in_a_row >= self._patience:
                        raise JudgeFailed(
                            f"expected answers from the judge {getattr(self.agent, 'name', '')}, got none to "
                            f"{self._in_a_row} questions in a row, the last with {self.failures[-1]}"
                        )
                    return await self._ask(self.prompt(*pair))

            return await asyncio.gather(*(one(pair) for pair in pairs))

        return self._loop.run(ask_all)

    async def _ask(self, prompt: str) -> float:
        try:
            found = await asyncio.wait_for(self._asked(prompt), self._timeout)
        except TimeoutError:
            self._failed(f"TimeoutError: no answer within {self._timeout:g} s")
            return math.nan
        return found

    def _failed(self, what: str) -> None:
        self.failures.append(what)
        self._in_a_row += 1

    async def _asked(self, prompt: str) -> float:
        wait = self._backoff
        for attempt in range(self._retries + 1):
            rng = np.random.default_rng([self._seed, crc32(prompt.encode("utf-8", "replace")), attempt])
            episode = Episode("judge", self._seed, "", 0, rng, prompt)
            try:
                answer = await self._answer(episode)
            except LoopInterrupted:
                raise
            except Exception as error:
                if attempt == self._retries or isinstance(error, AgentFailed):
                    self._failed(f"{type(error).__name__}: {error}")
                    return math.nan
                await self._sleep(wait)
                wait *= 2.0
                continue
            finally:
                release = getattr(self.agent, "release", None)
                if release is not None:
                    release(episode)
            self._in_a_row = 0
            return answer
        raise AssertionError("unreachable: the last attempt returns")

    async def _answer(self, episode: Episode) -> float:
        choose: Callable[..., Any] | None = getattr(self.agent, "choice_logps", None)
        if choose is None:
            action = await reply(self.agent, episode)
            value = verdict(action.text)
            if math.isnan(value):
                self.failures.append(f"neither 1, 2 nor a tie: {action.text[:80]!r}")
            return value
        answer = choose(episode, ("1", "2"))
        first, second = (float(value) for value in (await answer if inspect.isawaitable(answer) else answer))
        if math.isnan(first - second):  # nan, or both impossible
            self.failures.append(f"log-probabilities of the choices: {first}, {second}")
            return math.nan
        return 1.0 / (1.0 + math.exp(min(700.0, second - first)))


class HumanJudge:
    """A person at the terminal: 1, 2, 0 for a tie, an empty line to skip. End of input leaves the rest unasked.

    Which conversation is shown first is drawn from the seed and the texts, and the person is asked once a pair.

    Args:
        read: Where answers come from; default standard input.
        write: Where conversations go; default standard output.
        question: What to judge.
        speakers: Roles of the environment's and of the agent's turns.
        seed: Of the order.
    """

    def __init__(
        self,
        read: TextIO | None = None,
        write: TextIO | None = None,
        *,
        question: str = TEACHING,
        speakers: tuple[str, str] = ("student", "teacher"),
        seed: int = 0,
    ) -> None:
        self._read = sys.stdin if read is None else read
        self._write = sys.stdout if write is None else write
        self.question, self.speakers, self._seed = question, speakers, seed

    def __call__(self, pairs: Sequence[Pair], /) -> list[float]:
        """`[P]` the person's verdicts."""
        answers: list[float] = []
        for number, pair in enumerate(pairs, 1):
            texts = [conversation(member, self.speakers) for member in pair]
            flip = np.random.default_rng([self._seed, *(crc32(text.encode()) for text in texts)]).random() < 0.5
            self._say(f"\n===== pair {number} of {len(pairs)} =====\n{self.question}\n")
            for place, text in enumerate(reversed(texts) if flip else texts, 1):
                self._say(f"\n--- conversation {place} ---\n{text}\n")
            answer = self._answer()
            if answer is None:
                return answers + [math.nan] * (len(pairs) - len(answers))
            answers.append(1.0 - answer if flip else answer)
        return answers

    def _answer(self) -> float | None:
        while True:
            self._say("\nWhich is better? 1, 2, 0 = equally good, empty = skip > ")
            line = self._read.readline()
            if not line:
                return None
            if not line.strip():
                return math.nan
            if line.strip() in ("0", "1", "2"):
                return _VALUES.get(line.strip(), 0.5)
            self._say("Please answer 1, 2 or 0, or press Enter to skip.\n")

    def _say(self, text: str) -> None:
        self._write.write(text)
        self._write.flush()


def conversation(trajectory: Trajectory, speakers: tuple[str, str] = ("student", "teacher")) -> str:
    """A trajectory for a reader: one numbered line a turn, none of which can pass for another."""
    lines = [
        line for turn in trajectory.turns for line in ((speakers[0], turn.observation), (speakers[1], turn.action))
    ]
    return transcript([*lines, (speakers[0], trajectory.final_observation)] if trajectory.final_observation else lines)


def agent_judge(agent: Agent, question: str = TEACHING, **options: Any) -> Judged:
    """An annotator that asks an agent in both orders; options as in `PromptedJudge`."""
    return Judged(PromptedJudge(agent, question, **options))


def human_judge(read: TextIO | None = None, write: TextIO | None = None, **options: Any) -> Judged:
    """An annotator that asks the person at the terminal once a pair; options as in `HumanJudge`."""
    return Judged(HumanJudge(read, write, **options), source="human", both_orders=False)
