"""Learned feedback: a Bradley-Terry reward model and a pairwise preference model over whole conversations.

Both are annotators, usable in place of an oracle, and both are trained by the one loop: a comparison is a row each way
(or a row each), and `BradleyTerry` is the logistic loss on the difference of two rows' scores. They read text with
their own tokenizer, so they may judge agents of any kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.positions import length_limit
from polyturn.agents.transformer.reading import Reader
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import acting
from polyturn.algorithms.batch import Batch, collate
from polyturn.algorithms.estimators import sequence_sum
from polyturn.algorithms.feedback.agreement import Calibration, calibration
from polyturn.algorithms.losses import logistic
from polyturn.algorithms.methods.base import Loss, Needs
from polyturn.algorithms.networks.compound import Compound, widened
from polyturn.algorithms.pairing import Example, judged_pairs
from polyturn.algorithms.training.data_source import minibatches
from polyturn.algorithms.training.loop import TrainResult, train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Judged, Pair, Preference
from polyturn.envs.trajectory import Group, TokenIds, Trajectory, Turn

_HEAD = "head.safetensors"
_FIRST, _SECOND = "\n\nFirst conversation:\n", "\n\nSecond conversation:\n"

Annotations = Sequence[tuple[Group, Preference]]


@dataclass(frozen=True)
class BradleyTerry:
    """-p log sigmoid(s1 - s2) - (1 - p) log sigmoid(s2 - s1) on the scores of two rows (Bradley and Terry 1952)."""

    name: ClassVar[str] = "bradley_terry"
    needs: ClassVar[Needs] = Needs(reference=False)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Cross-entropy of each pair; what stands where log-probabilities would are scores, at each row's end."""
        score = sequence_sum(logps, batch.turn_ids)
        margin = score[batch.pairs[:, 0]] - score[batch.pairs[:, 1]]
        p = batch.probability
        values = p * logistic(margin) + (1.0 - p) * logistic(-margin)
        right = ((margin > 0) == (p > 0.5)).float()[p != 0.5]
        metrics = {"accuracy": right, "margin": margin.detach().abs()}
        return Loss(values * batch.weight, batch.weight, metrics)


class _Scorer(nn.Module):
    """A body and a linear head, read at the last token of each row."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def engaged(self) -> AbstractContextManager[None]:
        """As `TokenScorer.engaged`."""
        return self._reader().attending()

    def every(self, rows: Rows) -> Tensor:
        """`[P]` the score that a row would have if it ended after each of the distinct tokens."""
        scores: Tensor = self.head(self._reader()(rows).to(self.head.weight.dtype))[..., 0].float()
        return scores

    def forward(self, rows: Rows, token_mask: Tensor | None = None) -> dict[str, Tensor]:
        """`[N, T]`, called "logps" as the loop expects: the row's score at its last real token, 0 elsewhere."""
        last = (rows.mask.sum(1) - 1).clamp(min=0)[:, None]
        score = self.every(rows)[rows.place.gather(1, last)]
        return {"logps": torch.zeros(rows.mask.shape, dtype=score.dtype, device=score.device).scatter(1, last, score)}

    def _reader(self) -> Reader:
        return Reader(self.body, "last_hidden_state")


class _Judge:
    """What both models share: a transformer's body with one number at the end of a conversation."""

    def __init__(self, policy: Policy, *, version: str | None = None) -> None:
        self.policy = policy.copy(version=version)
        inner = cast("Any", getattr(self.policy.model, "get_base_model", lambda: self.policy.model)())
        widened(self.policy.model)
        body = inner.get_decoder().requires_grad_(True)
        head = nn.Linear(int(inner.config.get_text_config().hidden_size), 1, bias=False).to(policy.device)
        # Equal scores for all until something is learned.
        nn.init.zeros_(head.weight)
        self.model = Compound(body, head=head)
        self.scorer = _Scorer(body, head)
        stated = int(getattr(inner.config.get_text_config(), "max_position_embeddings", 0)) or None
        self.limit = min((each for each in (stated, length_limit(inner)) if each is not None), default=None)

    @property
    def version(self) -> str:
        """Name of the weights."""
        return self.policy.version

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the body as the language model it came from, its tokenizer, and the head."""
        self.policy.save_pretrained(folder)
        save_file({"weight": self.scorer.head.weight.detach().cpu().contiguous()}, Path(folder) / _HEAD)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> Self:
        """Reads them back.

        Raises:
            PolicyLoadError: No model there.
            FileNotFoundError: No head there.
        """
        made = cls(Policy.from_pretrained(source, device=device))
        with torch.no_grad():
            made.scorer.head.weight.copy_(load_file(Path(source) / _HEAD)["weight"])
        return made

    def _row(self, ids: TokenIds, start: Trajectory) -> Trajectory:
        """Tokens as a trajectory from the same start, whose score is at its last token."""
        if self.limit is not None and len(ids) > self.limit:
            raise ValueError(
                f"{type(self).__name__}: expected at most {self.limit} tokens, its model's limit, got {len(ids)}; "
                "use a model with a longer context or leave out long conversations"
            )
        return replace(start, turns=(Turn("", "", 0.0, ids[:-1], ids[-1:]),), terminated=True, segment_starts=())

    def _written(self, trajectory: Trajectory) -> TokenIds:
        """The whole conversation, the environment's last words included, in this model's tokens."""
        chat = self.policy.chat
        written = chat.written(_as_text(trajectory))
        ids = written.tokens[0]
        if trajectory.final_observation:
            previous = written.turns[-1].action_ids if written.turns else None
            ids = np.concatenate([ids, chat.context(trajectory.final_observation, previous)])
        return ids

    def _scores(self, rows: Sequence[Trajectory]) -> NDArray[np.float64]:
        """`[R]`."""
        result = np.zeros(len(rows))
        with torch.no_grad(), acting(self.model):
            for part, batch in self._batches(rows):
                result[part] = self.scorer(batch.rows())["logps"].sum(1).double().cpu().numpy()
        return result

    def _batches(self, rows: Sequence[Trajectory], *, size: int = 16) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Rows of like length together, and which they are."""
        order = np.argsort([len(row.tokens[0]) for row in rows], kind="stable")
        for part in (order[start : start + size] for start in range(0, len(order), size)):
            yield part, collate([Example((rows[int(index)],)) for index in part]).to(self.policy.device)


class RewardModel(_Judge):
    """A score for each conversation; P(a beats b) = sigmoid(score(a) - score(b)).

    Args:
        policy: The source of its body and tokenizer, which are copied.
        version: Name of the weights.
    """

    def scores(self, trajectories: Sequence[Trajectory]) -> NDArray[np.float64]:
        """`[K]` score of each whole conversation; the scale is that of log-odds.

        Raises:
            ValueError: A conversation is longer than the model can read.
        """
        return self._scores([self._row(self._written(trajectory), trajectory) for trajectory in trajectories])

    def turn_scores(self, trajectories: Sequence[Trajectory]) -> list[NDArray[np.float64]]:
        """For each conversation `[H]` scores, each of what had been said when the agent's turn ended.

        For a model fitted to single turns (`polyturn.algorithms.feedback.single_turns`), whose scores
        `online(turn_reward=model.turn_scores)` pays. A conversation is read once for all of its turns.

        Raises:
            ValueError: A conversation is longer than the model can read, or has no turn.
        """
        written = [self.policy.chat.written(_as_text(trajectory)) for trajectory in trajectories]
        rows = [self._row(row.tokens[0], start) for row, start in zip(written, trajectories, strict=True)]
        ends = [np.cumsum([len(t.context_ids) + len(t.action_ids) for t in row.turns]) - 1 for row in written]
        result: list[NDArray[np.float64]] = [np.zeros(0)] * len(rows)
        with torch.no_grad(), acting(self.model):
            for part, batch in self._batches(rows):
                packed = batch.rows()
                each = self.scorer.every(packed)[packed.place].double().cpu().numpy()
                for place, index in enumerate(part):
                    result[int(index)] = each[place][ends[int(index)]]
        return result

    def __call__(self, group: Group) -> Preference:
        """Preference and scores of all members; those that are invalid are never compared."""
        scores = np.full(len(group), np.nan)
        valid = [index for index, member in enumerate(group) if member.valid]
        scores[valid] = self.scores([group[index] for index in valid])
        matrix = 0.5 + 0.5 * np.tanh((scores[:, None] - scores[None]) / 2.0)
        return Preference(matrix, "model", scores)

    def example(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """All judged pairs, each conversation read once; None where no pair was judged."""
        pairs = judged_pairs(group, preference, rng)
        if not len(pairs):
            return None
        members, rows = np.unique(pairs, return_inverse=True)
        written = tuple(self._row(self._written(group[int(m)]), group[int(m)]) for m in members)
        return Example(written, rows.reshape(-1, 2).astype(np.int64), probability=_labels(preference, pairs))


class PreferenceModel(_Judge):
    """P(a beats b) = sigmoid(s(a, b) - s(b, a)): both conversations are read together, once in each order.

    Antisymmetric by construction, P(a, b) + P(b, a) = 1, and free to be intransitive, which no score can be: what the
    Nash methods ask for (arXiv 2312.00886).

    Args:
        policy: The source of its body and tokenizer, which are copied.
        version: Name of the weights.
    """

    def probabilities(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """`[P]` probability that the first of each pair is better.

        Raises:
            ValueError: Two conversations together are longer than the model can read.
        """
        rows = [row for pair in pairs for row in self._both(*pair)]
        scores = self._scores(rows).reshape(-1, 2)
        return np.asarray(0.5 + 0.5 * np.tanh((scores[:, 0] - scores[:, 1]) / 2.0), np.float64)

    def __call__(self, group: Group) -> Preference:
        """Preference over all valid members."""
        return Judged(self.probabilities, source="model", both_orders=False)(group)

    def example(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """All judged pairs, each as two rows, one for each order; None where no pair was judged."""
        pairs = judged_pairs(group, preference, rng)
        if not len(pairs):
            return None
        rows = tuple(itertools.chain(*(self._both(group[int(i)], group[int(j)]) for i, j in pairs)))
        order = np.arange(len(rows)).reshape(-1, 2)
        return Example(rows, order, probability=_labels(preference, pairs))

    def _both(self, first: Trajectory, second: Trajectory) -> tuple[Trajectory, Trajectory]:
        opening, middle = (self.policy.chat.plain(text) for text in (_FIRST, _SECOND))
        a, b = self._written(first), self._written(second)
        forward, backward = (np.concatenate([opening, x, middle, y]) for x, y in ((a, b), (b, a)))
        return self._row(forward, first), self._row(backward, first)


@dataclass(frozen=True)
class Fit:
    """What fitting a model of preferences found.

    Attributes:
        training: The run.
        before: On the held-out groups before training.
        after: On the held-out groups after it.
    """

    training: TrainResult
    before: Calibration
    after: Calibration


def fit(
    model: RewardModel | PreferenceModel,
    annotated: Annotations,
    held_out: Annotations,
    *,
    steps: int,
    batch_size: int = 32,
    options: TrainOptions | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Fits a model to preferences, in place, and says how accurate and how well calibrated it is on others.

    Args:
        model: What is trained.
        annotated: Groups and preferences over them; soft labels and ties count as they are.
        held_out: Groups of other starts, only for the report.
        steps: Updates.
        batch_size: Groups an update.
        options: How it trains; default `TrainOptions(lr=1e-5)`.
        out: Folder for checkpoints and metrics.
        resume: Go on from the newest checkpoint in `out`, if there is one.
        seed: Of the order of groups.
        progress: Show a progress bar.

    Raises:
        ValueError: No comparison to learn from or to report on, or a start in both sets.
    """
    if shared := {group[0].start for group, _ in annotated} & {group[0].start for group, _ in held_out}:
        raise ValueError(f"fit: expected held-out groups of other starts, got {len(shared)} in both, as {min(shared)}")
    rng = np.random.default_rng(seed)
    found = [model.example(group, preference, rng) for group, preference in annotated]
    examples = [example for example in found if example is not None]
    if not examples:
        raise ValueError("fit: expected groups with judged pairs, got none")
    before = calibration(model, held_out)
    result = train(
        BradleyTerry(),
        model,
        None,
        minibatches(examples, batch_size, seed=seed),
        steps=steps,
        options=TrainOptions(lr=1e-5) if options is None else options,
        out=out,
        resume=resume,
        progress=progress,
    )
    return Fit(result, before, calibration(model, held_out))


def _as_text(trajectory: Trajectory) -> Trajectory:
    """The conversation as text, without the tokens of its writers."""
    turns = tuple(Turn(turn.observation, turn.action) for turn in trajectory.turns)
    return replace(trajectory, turns=turns, segment_starts=())


def _labels(preference: Preference, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    matrix = np.where(np.isnan(preference.matrix), 1.0 - preference.matrix.T, preference.matrix)
    return matrix[pairs[:, 0], pairs[:, 1]].astype(np.float32)
