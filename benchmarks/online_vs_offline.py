"""Suite `online_vs_offline`: preferences on stored answers against preferences on the policy's own, and a judge that
is told what to like.

The length tasks of arXiv 2404.14367 and the online AI feedback of arXiv 2402.04792 on a small transformer trained from
nothing. First part: the true reward is a function of the length, so over-optimisation is measured, not guessed. Second
part: the annotator is an agent behind a prompt, asked in both orders, whose instruction asks for a length or for none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.agents.agent import Episode
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.feedback.ai_feedback import ai_feedback, position_bias
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.methods.imitation import SFT, BestOfN
from polyturn.algorithms.methods.pairwise import GPO, IPO
from polyturn.algorithms.protocols.online import online
from polyturn.algorithms.training.data_source import minibatches
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import by_name, compare, line, panels, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.benchmarks.token_policies import CONTEXT, Measure, Task, curve, one_thread, scripted, start, written
from polyturn.envs.games.token_tasks import skewed_lengths
from polyturn.envs.preference import Judged, Pair, by_return
from polyturn.envs.trajectory import Group

Array = NDArray[np.float64]

LIMIT, MODE = 24, 12
WORDS = ("sun", "moon", "star", "sky", "sea", "rock", "tree", "bird")
METHODS: Mapping[str, Method] = {
    "offline DPO": GPO(f="logistic", beta=0.1),
    "online DPO": GPO(f="logistic", beta=0.1),
    "offline IPO": IPO(tau=0.1),
    "online IPO": IPO(tau=0.1),
    "Pref-FT": SFT(best=1),
    "online BoN": BestOfN(),
}
"""Online methods learn from fresh pairs (best of N: fresh groups of four, the same number of answers), the others from
stored pairs."""
TASKS: Mapping[str, tuple[str, ...]] = {
    "minimum": tuple(METHODS),
    "mode": ("offline DPO", "online DPO", "Pref-FT", "online BoN"),
    "skew": ("offline DPO", "offline IPO", "Pref-FT"),
}
"""What is run on each task. The skewed task differs from the minimum in its stored data alone, so its online methods
are those of the minimum."""

ASKED = "Judge which assistant answered the user better."
INSTRUCTIONS: Mapping[str, str] = {
    "nothing": ASKED,
    "short": f"{ASKED} Prefer the shorter answer.",
    "very short": f"{ASKED} Prefer a very short answer.",
    "long": f"{ASKED} Prefer the longer answer.",
}
ONE_ORDER = "short, one order"
PULL, BIAS = 0.15, 1.5
"""The reader's log-odds for one word of difference, and for being shown first."""
JUDGED = GPO(f="logistic", beta=0.5, soft_labels=True)


class InstructionReader:
    """A judge made of rules: it finds in the prompt what it is asked to prefer, and counts the words of both answers.

    No language model: it knows "short" and "long", some words of the same meaning, and "very", four times as strong.
    Its log-odds for the first answer are PULL for each word of difference, in the direction asked for and none where
    nothing is said of length, plus BIAS for standing first. Whoever says nothing loses to whoever says something.
    """

    name = "instruction-reader"
    _direction = re.compile(r"\b(very\s+)?(?:(short|shorter|brief|concise)|(long|longer|detailed))\b", re.IGNORECASE)
    _answer = re.compile(r"^\[2\] Assistant:(.*)$", re.MULTILINE)

    def choice_logps(self, episode: Episode, choices: Sequence[str]) -> list[float]:
        """Log-probabilities of the two choices, the first being for the first answer.

        Raises:
            ValueError: The prompt does not show two conversations of one exchange.
        """
        instruction, _, shown = episode.observation.partition("### Conversation 1")
        answers = self._answer.findall(shown)
        if len(answers) != 2 or len(choices) != 2:
            raise ValueError(f"InstructionReader: expected two answers and two choices, got {len(answers)} answers")
        found = self._direction.search(instruction)
        pull = 0.0 if found is None else PULL * (4.0 if found[1] else 1.0) * (1.0 if found[3] else -1.0)
        first, second = (len(text.split()) for text in answers)
        odds = pull * (first - second) if first and second else 20.0 * (bool(first) - bool(second))
        odds += BIAS
        return [-math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds))]

    def act(self, episode: Episode) -> str:
        """The likelier of "1" and "2"."""
        first, second = self.choice_logps(episode, ("1", "2"))
        return "1" if first >= second else "2"


def answer(length: int, rng: np.random.Generator) -> str:
    """That many random words."""
    return " ".join(WORDS[word] for word in rng.integers(len(WORDS), size=length))


def usual(rng: np.random.Generator) -> str:
    """What the demonstrations are: about 12 words, standard deviation 3."""
    return answer(int(np.clip(np.rint(rng.normal(MODE, 3.0)), 1, LIMIT)), rng)


def skewed(rng: np.random.Generator) -> str:
    """Answers of the skewed data: near the limit, short ones rare."""
    return answer(int(skewed_lengths(1, rng, limit=LIMIT, scale=4.0)[0]), rng)


def length_task(task: str) -> Task:
    """`polyturn/TokenLength-v0` in the suite's size."""
    options = {"task": task, "limit": LIMIT, "mode": MODE, "prompts": 8}
    return Task("polyturn/TokenLength-v0", options, usual, LIMIT + 8, lambda turn: "length" in turn.info)


def train_on_reward(
    task_name: str, name: str, reference: Policy, options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """One method on one task, compared by the true reward: its evaluations over training."""
    task, method, policy = length_task(task_name), METHODS[name], _trainable(reference)
    if name.startswith("online"):
        size = 4 if isinstance(method, BestOfN) else 2
        batches: Any = _fresh(task, policy, groups=2 * options["pairs"] // size, group_size=size, seed=seed)
    else:
        author = scripted(skewed) if task_name == "skew" else task.speaking(reference)
        groups = task.play(author, groups=options["stored"], group_size=2, seed=seed + 40_000)
        groups = written(reference, groups) if task_name == "skew" else groups
        rng = np.random.default_rng(seed)
        found = [method.examples(group, by_return(group), rng) for group in groups]  # type: ignore[attr-defined]
        batches = minibatches([one for one in found if one is not None], options["pairs"], seed=seed)
    return _train(task, method, policy, reference, batches, options["steps"], options, seed)


def train_on_judge(asked: str, reference: Policy, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Online DPO on a judge's preferences: its evaluations, and how biased the judge is in one order and in both."""
    task, policy = length_task("minimum"), _trainable(reference)
    instruction = INSTRUCTIONS["short" if asked == ONE_ORDER else asked]
    both = ai_feedback(InstructionReader(), instruction)
    annotator = Judged(both.judge, both_orders=False) if asked == ONE_ORDER else both
    batches = _fresh(task, policy, groups=options["pairs"], group_size=2, seed=seed, preference=annotator)
    found = _train(task, JUDGED, policy, reference, batches, options["judged_steps"], options, seed)
    groups = task.play(task.speaking(reference), groups=64, group_size=2, seed=seed + 50_000)
    return found | bias_of(both, groups)


def bias_of(both: Judged, groups: Sequence[Group]) -> dict[str, float]:
    """A judge on pairs of one policy's answers, asked once and in both orders.

    Returns:
        The position bias, how likely the member shown first is found better (1/2 for a fair judge, because both are
        from one policy), and how often the shorter of two is.
    """

    def averaged(pairs: Sequence[Pair]) -> list[float]:
        return [float(both(Group(pair)).matrix[0, 1]) for pair in pairs]

    pairs = [(group[0], group[1]) for group in groups]
    once, twice = (np.asarray(judge(pairs)) for judge in (both.judge, averaged))
    words = np.array([[len(member.turns[0].action.split()) for member in pair] for pair in pairs])
    differ = words[:, 0] != words[:, 1]

    def shorter(p: Array) -> float:
        return float(((p > 0.5) == (words[:, 0] < words[:, 1]))[differ].mean())

    return {
        "bias once": position_bias(both.judge, groups),
        "bias averaged": position_bias(averaged, groups),
        "first wins once": float(once.mean()),
        "first wins averaged": float(twice.mean()),
        "shorter wins once": shorter(once),
        "shorter wins averaged": shorter(np.where(twice == 0.5, np.nan, twice)),
    }


def _trainable(reference: Policy) -> Policy:
    policy = reference.copy()
    policy.model.requires_grad_(True)
    return policy


def _fresh(task: Task, policy: Policy, *, groups: int, group_size: int, **options: Any) -> Any:
    collect = CollectOptions(
        groups=groups,
        group_size=group_size,
        env_options=task.options,
        sampling=task.sampling(),
        max_tokens=CONTEXT,
    )
    return online(policy, task.env, collect=collect, **options)


def _train(
    task: Task,
    method: Method,
    policy: Policy,
    reference: Policy,
    batches: Any,
    steps: int,
    options: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    result = train(
        method,
        policy,
        reference,
        batches,
        steps=steps,
        options=TrainOptions(lr=options["lr"], evaluate_every=max(2, steps // 10), cpu=True),
        evaluate=Measure(task, reference, samples=options["samples"], seed=seed),
        progress=False,
    )
    return curve(result.history)


def _cells(quick: bool, seeds: int) -> list[Cell]:
    options = {
        "start": {"demonstrations": 512 if quick else 2048, "steps": 120 if quick else 400, "lr": 3e-3},
        "stored": 16 if quick else 512,
        "pairs": 8 if quick else 32,
        "samples": 16 if quick else 128,
        "steps": 4 if quick else 120,
        "judged_steps": 4 if quick else 60,
        "lr": 3e-4,
    }
    rewarded = [Cell(f"{task}: {name}", 0, options) for task, methods in TASKS.items() for name in methods]
    judged = [Cell(f"judge: {asked}", 0, options) for asked in (*INSTRUCTIONS, ONE_ORDER)]
    return [Cell(cell.name, seed, options) for seed in range(seeds) for cell in (*rewarded, *judged)]


def _run(cell: Cell, work: Path) -> Mapping[str, Any]:
    part, _, name = cell.name.partition(": ")
    folder = work / f"start-seed{cell.seed}"
    with one_thread():
        reference = start(length_task("minimum"), folder, seed=cell.seed, **cell.options["start"]).copy()
        if part == "judge":
            return train_on_judge(name, reference, cell.options, cell.seed)
        return train_on_reward(part, name, reference, cell.options, cell.seed)


def _runs_of(found: Mapping[str, list[Mapping[str, Any]]], task: str, name: str) -> list[Mapping[str, Any]]:
    """The seeds of a method on a task; on the skewed one online methods are the minimum's."""
    return found[f"minimum: {name}" if task == "skew" and name.startswith("online") else f"{task}: {name}"]


def _methods_on(task: str) -> tuple[str, ...]:
    return tuple(METHODS) if task == "skew" else TASKS[task]


def _stack(runs: Sequence[Mapping[str, Any]], key: str) -> Array:
    """`[seeds, evaluations]`."""
    return np.array([run[key] for run in runs], np.float64)


def _reward_tables(found: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    text = []
    for task in TASKS:
        rows = []
        for name in _methods_on(task):
            runs = _runs_of(found, task, name)
            wins = _stack(runs, "win_rate")
            peak = int(wins.mean(axis=0).argmax())
            last = {key: _stack(runs, key)[:, -1].tolist() for key in ("win_rate", "reward", "kl", "proper")}
            rows.append(
                [
                    name,
                    f"{plus_minus(wins[:, peak].tolist(), 2)} at {runs[0]['step'][peak]:.0f}",
                    plus_minus(last["win_rate"], 2),
                    plus_minus(last["reward"], 2),
                    plus_minus(last["kl"], 1),
                    plus_minus(last["proper"], 2),
                ]
            )
        start_reward = _stack(_runs_of(found, task, "offline DPO"), "reward")[:, 0].tolist()
        header = ["method", "highest win rate, at step", "at the end", "reward", "KL, nats", "proper answers"]
        text += [f"\n## {task}; the reference earns {plus_minus(start_reward, 2)}\n", table(header, rows)]
    return text


def _reward_sentences(found: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    text = []
    for task in TASKS:
        for name in ("offline DPO", "online DPO"):
            runs = _runs_of(found, task, name)
            wins = _stack(runs, "win_rate")
            peak = int(wins.mean(axis=0).argmax())
            where = f"its win rate at step {runs[0]['step'][peak]:.0f}, the highest of the mean curve,"
            sentence = compare(where, wins[:, peak].tolist(), "that at the end", wins[:, -1].tolist())
            text.append(f"- {task}, {name}: {sentence}")
        ends = {n: _stack(_runs_of(found, task, n), "reward")[:, -1].tolist() for n in _methods_on(task)}
        pairs = [("online DPO", "offline DPO"), ("offline DPO", "Pref-FT"), ("online BoN", "Pref-FT")]
        pairs += [("online IPO", "offline IPO"), ("offline IPO", "offline DPO")] if "offline IPO" in ends else []
        text += [f"- {task}, reward at the end: {compare(a, ends[a], b, ends[b], 2)}" for a, b in pairs]
    for task in TASKS:
        for name in ("offline DPO", "online DPO"):
            runs = _runs_of(found, task, name)
            preferred, other = (_stack(runs, key)[:, -1].tolist() for key in ("preferred", "other"))
            text.append(
                f"- {task}, {name}, the last step's pairs: log-ratio to the reference of preferred answers "
                f"{plus_minus(preferred, 1)} nats, of the others {plus_minus(other, 1)}; below 0 an answer has become "
                "less likely than it was."
            )
    return text


def _judge_part(found: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    asked = (*INSTRUCTIONS, ONE_ORDER)
    words = {name: _stack(found[f"judge: {name}"], "words")[:, -1].tolist() for name in asked}
    before = _stack(found["judge: nothing"], "words")[:, 0].tolist()
    spread = {name: _stack(found[f"judge: {name}"], "words")[:, 1:].std(axis=1).tolist() for name in asked}
    rows = [
        [name, plus_minus(words[name], 2), plus_minus(_stack(found[f"judge: {name}"], "kl")[:, -1].tolist(), 2)]
        for name in asked
    ]
    text = [
        f"\n## The judge's instruction; the reference writes {plus_minus(before, 2)} words\n",
        table(["asked for", "words at the end", "KL, nats"], rows),
        "\n## The judge on pairs of the reference's own answers, asked once and in both orders\n",
        table(
            ["asked for", "", "position bias", "P(the first wins)", "the shorter wins"],
            [
                [
                    name,
                    way,
                    *(
                        plus_minus([run[f"{key} {way}"] for run in found[f"judge: {name}"]])
                        for key in ("bias", "first wins", "shorter wins")
                    ),
                ]
                for name in INSTRUCTIONS
                for way in ("once", "averaged")
            ],
        ),
        "\n## What the figures say: the judge\n",
    ]
    text += [
        f"- Words, asked for {name}: {compare('the end', words[name], 'the reference', before, 2)}"
        for name in INSTRUCTIONS
    ]
    for a, b in (("short", "nothing"), ("very short", "short"), ("long", "nothing"), (ONE_ORDER, "short")):
        text.append(f"- Words at the end: {compare(f'asked for {a}', words[a], f'asked for {b}', words[b], 2)}")
    text.append(
        "- Training on one order, the standard deviation of the length over evaluations after the first: "
        + compare("one order", spread[ONE_ORDER], "both orders", spread["short"], 2)
    )
    return text


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    found = by_name(outcomes)
    options = outcomes[0].cell.options
    seeds = len(found["minimum: offline DPO"])
    text = [
        "# online_vs_offline: stored answers, fresh answers, and a judge that is told what to like\n",
        f"{seeds} seeds (weights, demonstrations, samples anew), mean with the 95% Student interval. A Llama of 2 "
        f"layers and width 32, trained from nothing on {options['start']['demonstrations']} answers of about {MODE} "
        f"random words, then {options['steps']} AdamW steps at {options['lr']} on {options['pairs']} pairs each. "
        f"Stored: {options['stored']} pairs, of the reference (minimum, mode) or with lengths near {LIMIT} (skew). "
        f"Reward: minus the length (minimum, skew), minus the distance to {MODE} words (mode); an answer that is "
        "empty, too long or not made of words earns the lowest. Win rate: by the true reward over the "
        "reference's answers, ties half.\n",
        "Claims: offline DPO rises, then falls, while online DPO keeps rising (arXiv 2402.04792); where the data is "
        "far from the optimum on-policy and contrastive methods are ahead, where it is near all work "
        "(arXiv 2404.14367); the annotator's instruction moves the length (arXiv 2402.04792).\n",
        *_reward_tables(found),
        "\nThe online methods of skew are those of the minimum: the tasks differ in the stored data alone.\n",
        "\n## What the figures say: stored or fresh\n",
        "The highest point of a curve is chosen by looking at it, which alone makes a small fall; the same sentence "
        "about online DPO shows how much.\n",
        *_reward_sentences(found),
        *_judge_part(found),
        "\n![win rate over training](curves.svg)\n",
        "\n![length under each instruction](judge.svg)\n",
    ]
    _draw(found, out)
    return "\n".join(text)


def _draw(found: Mapping[str, list[Mapping[str, Any]]], out: Path) -> None:
    with panels(15, 3.9, 4) as (canvas, axes):
        for axis, task in zip(axes, TASKS, strict=False):
            for number, name in enumerate(METHODS):
                if name in _methods_on(task):
                    runs = _runs_of(found, task, name)
                    dashes = "-" if name.startswith("online") else "--"
                    line(axis, runs[0]["step"], _stack(runs, "win_rate"), label=name, color=f"C{number}", ls=dashes)
            axis.set(title=task, xlabel="step", ylabel="win rate over the reference", ylim=(-0.02, 1.02))
        axes[0].legend(frameon=False, fontsize=7)
        for number, task in enumerate(TASKS):
            for name, dashes in (("offline DPO", "--"), ("online DPO", "-")):
                runs = _runs_of(found, task, name)
                kl, wins = (_stack(runs, key).mean(axis=0) for key in ("kl", "win_rate"))
                axes[3].plot(kl, wins, ls=dashes, color=f"C{number}", marker="o", ms=3, label=f"{task}, {name}")
        axes[3].set(
            title="DPO, mean over seeds", xlabel="KL to the reference, nats", ylabel="win rate", ylim=(-0.02, 1.02)
        )
        axes[3].set_xscale("symlog", linthresh=1.0)
        axes[3].legend(frameon=False, fontsize=7)
        save(canvas, out / "curves")
    with panels(6, 3.6, 1) as (canvas, (axis,)):
        for number, name in enumerate((*INSTRUCTIONS, ONE_ORDER)):
            runs = found[f"judge: {name}"]
            dashes = "--" if name == ONE_ORDER else "-"
            line(axis, runs[0]["step"], _stack(runs, "words"), label=name, color=f"C{number}", ls=dashes)
        axis.set(xlabel="step", ylabel="words an answer", title="online DPO on the judge's preferences")
        axis.legend(frameon=False, fontsize=7)
        save(canvas, out / "judge")


SUITE = Suite(
    name="online_vs_offline",
    summary="length tasks: stored or fresh preferences, and a judge whose instruction sets the length",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=4,
)
