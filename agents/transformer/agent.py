"""A transformer policy as an agent: conversations in, sampled tokens and their log-probabilities out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from polyturn.agents.agent import Action, ContextFull, Episode
from polyturn.agents.shipping import Ticket
from polyturn.agents.transformer.engines.interface import Engine
from polyturn.agents.transformer.engines.opening import open_engine
from polyturn.agents.transformer.engines.settings import EngineChoice
from polyturn.agents.transformer.engines.thinking import Thinking
from polyturn.agents.transformer.engines.weights import Published, load_published, publish
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.positions import length_limit
from polyturn.envs.settings import check_count
from polyturn.envs.tools.calls import TOOLS
from polyturn.envs.trajectory import Logps, TokenIds


@dataclass(frozen=True)
class SampledAs:
    """The distribution that an agent's tokens were drawn from, besides its weights.

    Attributes:
        temperature: As in `Sampling`.
        top_p: As in `Sampling`.
        mixed: Whether another policy was mixed in.
        top_k: As in `Sampling`.
        min_p: As in `Sampling`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    mixed: bool = False
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def by(cls, sampling: Sampling) -> SampledAs:
        """What an agent with these settings draws from."""
        return cls(sampling.temperature, sampling.top_p, False, sampling.top_k, sampling.min_p)

    @classmethod
    def of(cls, name: str) -> SampledAs | None:
        """What the name of a `TransformerAgent` or `MixtureAgent` says, as trajectories record it; None for others."""
        number = r"([\d.e+-]+)"
        cuts = rf"(?:, top_k=(\d+), min_p={number})?"
        found = re.match(rf"\w+\(temperature={number}, top_p={number}{cuts}, [^)]*\)( mixed )?", name)
        if found is None:
            return None
        return cls(float(found[1]), float(found[2]), found[5] is not None, int(found[3] or 0), float(found[4] or 0))


def longest(policy: Policy, max_tokens: int) -> int:
    """Tokens that an episode may have: as asked for, where the model's positions reach so far and stay the same."""
    table = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (table, length_limit(policy.model)) if limit is not None]
    return min([max_tokens, *limits])


class TransformerAgent:
    """Acts by sampling from a policy.

    The tokens of an episode only ever grow: a turn appends the new observation and what was sampled, and the
    key-value cache is kept until the episode ends.

    Args:
        policy: The model; its present weights are used, so an agent made once follows training.
        sampling: How tokens are drawn.
        max_tokens: Tokens a whole episode may have; then it is truncated.
        slots: Episodes held at once; with the exact engine this changes speed and memory, never a result.
        engine: What samples: "exact" (the same tokens at any concurrency), "transformers" (its continuous batching),
            "vllm" (a server that is started here, where vLLM is installed), or the address of a server that returns
            token ids (vLLM: "http://host:port/v1"), several of them, or `TokenServers` with options.

    Raises:
        ValueError: An engine that there is not, or that lacks an option of the sampling.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 2048,
        slots: int = 64,
        engine: EngineChoice = "exact",
    ) -> None:
        self.policy = policy
        self.sampling = Sampling() if sampling is None else sampling
        check_count("TransformerAgent(slots)", slots)
        check_count("TransformerAgent(max_tokens)", max_tokens)
        self.max_concurrency = slots
        limit = longest(policy, max_tokens)
        self._engine = open_engine(engine, policy, self.sampling, slots=slots, capacity=limit)
        self._slots: dict[int, int] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 2048,
        slots: int = 64,
        engine: EngineChoice = "exact",
        **policy_options: Any,
    ) -> TransformerAgent:
        """Loads a policy (see `Policy.from_pretrained` for the options and errors) and makes it an agent."""
        policy = Policy.from_pretrained(source, **policy_options)
        return cls(policy, sampling=sampling, max_tokens=max_tokens, slots=slots, engine=engine)

    @property
    def engine(self) -> Engine:
        """What samples: the slots are shared by all that use this agent."""
        return self._engine

    @property
    def name(self) -> str:
        """Recorded in trajectories: the architecture and how it samples, since both decide what is said."""
        model = getattr(self.policy.model, "get_base_model", lambda: self.policy.model)()
        how = self.sampling
        cuts = f", top_k={how.top_k}, min_p={_number(how.min_p)}" if how.top_k or how.min_p else ""
        # Texts may hold brackets, which a name is read by.
        ends = f", stop={sha256(repr(how.stop).encode()).hexdigest()[:8]}" if how.stop else ""
        budget = "" if how.max_episode_tokens is None else f", max_episode_tokens={how.max_episode_tokens}"
        budget += "" if how.max_thinking_tokens is None else f", max_thinking_tokens={how.max_thinking_tokens}"
        engine = "" if self._engine.name == "exact" else f", engine={self._engine.name}"
        return (
            f"{type(model).__name__}(temperature={_number(how.temperature)}, top_p={_number(how.top_p)}{cuts}, "
            f"max_new_tokens={how.max_new_tokens}, max_tokens={self._engine.capacity}{ends}{budget}{engine})"
        )

    @property
    def version(self) -> str:
        """Which weights act."""
        return self.policy.version

    def fingerprint(self) -> str:
        """A digest of the weights that act."""
        return self.policy.fingerprint()

    def ship(self, root: Path) -> Ticket:
        """What makes this agent, with the weights of now, in another process; see `Shipped`.

        Raises:
            ValueError: Servers sample for it, which are reached from one process.
        """
        if self._engine.name not in ("exact", "transformers"):
            raise ValueError(
                "TransformerAgent: expected engine='exact' or 'transformers' for an agent that acts in other "
                f"processes, got {self._engine.name!r}; servers are reached from this process: leave the cluster out"
            )
        return shipped(TransformerAgent, {"policy": self.policy}, root, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "sampling": self.sampling,
            "max_tokens": self._engine.capacity,
            "slots": self.max_concurrency,
            "engine": self._engine.name,
        }

    async def act(self, episode: Episode) -> Action:
        """Samples the next turn.

        Raises:
            ContextFull: The observation leaves no room for an answer, or the episode's budget is spent.
        """
        limit = self._left(episode)
        key = id(episode)
        if key not in self._slots:
            self._slots[key] = await self._engine.acquire()
        slot = self._slots[key]
        previous = episode.turns[-1].action_ids if episode.turns else None
        chat, tools = self.policy.chat, episode.info.get(TOOLS) or []
        context = self._heard(episode, tools, previous)
        unread = self._unread(episode, context, self._engine.length(slot))
        if self._engine.length(slot) + len(unread) + 1 > self._engine.capacity:
            raise ContextFull(
                f"the episode has {self._engine.length(slot)} tokens and its next observation {len(context)}; "
                f"the limit is {self._engine.capacity}"
            )
        ids, logps, forced = await self._sampled(slot, unread, context, episode.rng, limit)
        text = chat.text(ids)
        reply = chat.calls.reply(text, tools, sum(len(turn.calls) for turn in episode.turns)) if tools else None
        return Action(text, context, ids, logps, self._engine.noted(slot), reply, forced)

    async def _sampled(
        self, slot: int, unread: TokenIds, context: TokenIds, rng: np.random.Generator, limit: int | None
    ) -> tuple[TokenIds, Logps, tuple[int, ...]]:
        """An action: its tokens, their log-probabilities, and the places of those that were put there."""
        how = self.sampling
        if how.max_thinking_tokens is None:
            ended = self._ended if how.stop else None
            return *(await self._engine.generate(slot, unread, rng, limit=limit, finished=ended)), ()
        most = how.max_new_tokens if limit is None else min(limit, how.max_new_tokens)
        thinking = Thinking(self.policy.tokenizer, how.max_thinking_tokens, context.tolist())
        ids: list[int] = []
        logps: list[float] = []
        forced: list[int] = []

        def finished(new: list[int]) -> bool:
            thinking.heard(ids + new)
            return thinking.exhausted or (bool(how.stop) and self._ended(ids + new))

        while True:
            if thinking.exhausted:
                # Something must fit after the mark; else the limit has cut the action off, as it may anywhere.
                mark = thinking.closing
                room = self._engine.capacity - self._engine.length(slot) - len(unread)
                if min(most - len(ids), room) <= len(mark):
                    break
                forced += range(len(ids), len(ids) + len(mark))
                ids, logps = ids + mark, logps + [0.0] * len(mark)
                unread = np.concatenate([unread, np.asarray(mark, np.int32)])
                thinking.close()
            new, said = await self._engine.generate(slot, unread, rng, limit=most - len(ids), finished=finished)
            ids, logps = ids + new.tolist(), logps + said.tolist()
            if not thinking.exhausted or ids[-1] in self.policy.chat.stop_ids:
                break
            unread = new[-1:]
        if not ids:
            raise ContextFull(f"the limits leave no room for a thought's closing mark ({len(thinking.closing)} tokens)")
        return np.asarray(ids, np.int32), np.asarray(logps, np.float32), tuple(forced)

    def _heard(self, episode: Episode, tools: Sequence[Mapping[str, Any]], previous: TokenIds | None) -> TokenIds:
        """`[C]` tokens of what the environment said: as text, or as the messages that it gave for chat templates."""
        chat = self.policy.chat
        if not episode.messages:
            return chat.context(episode.observation, previous)
        if tools:
            _ = chat.calls  # a template that has no tools is refused before anything is sampled
        if previous is None:
            return chat.messages.prompt(episode.messages, tools)
        return chat.messages.continuation(episode.messages, tools, previous, calls=len(episode.turns[-1].calls))

    def _left(self, episode: Episode) -> int | None:
        """Tokens that the episode's budget leaves; None without one.

        Raises:
            ContextFull: None are left.
        """
        budget = self.sampling.max_episode_tokens
        if budget is None:
            return None
        spent = sum(len(turn.action_ids) for turn in episode.turns)
        if spent >= budget:
            raise ContextFull(f"the episode's actions have {spent} tokens; the budget is {budget}")
        return budget - spent

    def _ended(self, ids: list[int]) -> bool:
        """Whether an action contains a stop text; earlier tokens than could complete one now have been looked at."""
        longest_stop = max(map(len, self.sampling.stop))
        # A letter may take up to four tokens, one for each of its bytes.
        said = self.policy.chat.text(np.asarray(ids[-(4 * longest_stop + 8) :], np.int32))
        return any(text in said for text in self.sampling.stop)

    @staticmethod
    def _unread(episode: Episode, context: TokenIds, read: int) -> TokenIds:
        """The episode's tokens that the engine has not read: at least the last sampled one and the new context.

        An episode that this agent goes on with, but did not begin, is read from its start.
        """
        if any(len(turn.action_ids) == 0 for turn in episode.turns):
            raise ValueError(
                "TransformerAgent: expected an episode whose turns have tokens, got one with text only; "
                "give them tokens with policy.chat.written(trajectory)"
            )
        pieces = [piece for turn in episode.turns for piece in (turn.context_ids, turn.action_ids)]
        return np.concatenate([*pieces, context])[read:]

    def release(self, episode: Episode) -> None:
        """Frees the episode's slot."""
        slot = self._slots.pop(id(episode), None)
        if slot is not None:
            self._engine.release(slot)


def shipped(kind: type[TransformerAgent], policies: Mapping[str, Policy], root: Path, **settings: Any) -> Ticket:
    """A ticket for an agent of this kind, whose policies travel as published weights.

    Args:
        kind: Its class.
        policies: Those that it is made of, by the names of its arguments.
        root: Where they are published.
        settings: Its other arguments.
    """
    published = {name: publish(policy, root) for name, policy in policies.items()}
    folders = tuple(each.folder for each in published.values())
    return Ticket(partial(_unpacked, kind, published, settings), f"{kind.__name__} {published} {settings}", folders)


def _unpacked(
    kind: type[TransformerAgent], published: Mapping[str, Published], settings: Mapping[str, Any]
) -> TransformerAgent:
    logging.disable_progress_bar()  # many processes write to one terminal
    made: dict[str, Any] = {name: load_published(each) for name, each in published.items()}
    return kind(**made, **settings)


def _number(value: float) -> str:
    """A number in few letters, and never another number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
