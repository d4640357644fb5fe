"""Suite `online_vs_offline`: preferences on stored answers against preferences on fresh ones, and an instructed judge.

The length tasks of arXiv 2404.14367 and the online AI feedback of arXiv 2402.04792, on a small transformer trained from
random weights. First part: the true reward is a function of the length, so over-optimisation can be measured exactly.
Second part: the annotator is an agent with a prompt, asked in both orders, and its instruction asks for a length or
for none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from polyturn.benchmarks.running.plots import BLUE, NOT_NEGATIVE, RUNS, SHARE, VERMILLION, picture
from polyturn.benchmarks.running.reporting import by_name, compare, fall_from_peak, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.benchmarks.token_policies import (
    CONTEXT,
    Array,
    Evaluator,
    Task,
    at_the_end,
    evaluations,
    one_thread,
    over_training,
    scripted_agent,
    start_policy,
    trainable_copy,
    with_tokens,
)
from polyturn.envs.games.token_tasks import skewed_lengths
from polyturn.envs.preference import Judged, Pair, by_return
from polyturn.envs.trajectory import Group

LIMIT, MODE = 24, 12
"""Words of the longest answer, and of a typical one."""
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
"""The methods that run on each task. The skewed task differs from the minimum only in its stored data, so its online
methods are those of the minimum."""

QUESTION = "Judge which assistant answered the user better."
INSTRUCTIONS: Mapping[str, str] = {
    "nothing": QUESTION,
    "short": f"{QUESTION} Prefer the shorter answer.",
    "very short": f"{QUESTION} Prefer a very short answer.",
    "long": f"{QUESTION} Prefer the longer answer.",
}
ONE_ORDER = "short, one order"
PULL, BIAS = 0.15, 1.5
"""The judge's log-odds for one word of difference, and for the first place."""
JUDGED = GPO(f="logistic", beta=0.5, soft_labels=True)
"""The method that learns from the judge."""


class InstructionReader:
    """A judge made of rules: it finds in the prompt what to prefer, and counts the words of both answers.

    It is not a language model. It knows "short" and "long", some words of the same meaning, and "very", which is four
    times as strong. Its log-odds for the first answer are PULL for each word of difference, in the direction that the
    instruction asks for and 0 where it asks for no length, plus BIAS for the first place. An empty answer loses to any
    other.
    """

    name = "instruction-reader"
    _direction = re.compile(r"\b(very\s+)?(?:(short|shorter|brief|concise)|(long|longer|detailed))\b", re.IGNORECASE)
    _answer = re.compile(r"^\[2\] Assistant:(.*)$", re.MULTILINE)

    def choice_logps(self, episode: Episode, choices: Sequence[str]) -> list[float]:
        """Log-probabilities of the two choices; the first choice stands for the first answer.

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


def random_words(length: int, rng: np.random.Generator) -> str:
    """An answer of the given number of words."""
    return " ".join(WORDS[word] for word in rng.integers(len(WORDS), size=length))


def typical_answer(rng: np.random.Generator) -> str:
    """A demonstration: about 12 words, standard deviation 3."""
    return random_words(int(np.clip(np.rint(rng.normal(MODE, 3.0)), 1, LIMIT)), rng)


def skewed_answer(rng: np.random.Generator) -> str:
    """An answer of the skewed data: near the limit, short ones are rare."""
    return random_words(int(skewed_lengths(1, rng, limit=LIMIT, scale=4.0)[0]), rng)


def length_task(task: str) -> Task:
    """`polyturn/TokenLength-v0` in the suite's size."""
    options = {"task": task, "limit": LIMIT, "mode": MODE, "prompts": 8}
    return Task("polyturn/TokenLength-v0", options, typical_answer, LIMIT + 8, lambda turn: "length" in turn.info)


def train_on_reward(
    task_name: str, name: str, reference: Policy, options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Trains one method on one task by the true reward, and returns its evaluations."""
    task, method, policy = length_task(task_name), METHODS[name], trainable_copy(reference)
    if name.startswith("online"):
        size = 4 if isinstance(method, BestOfN) else 2
        batches: Any = _fresh_batches(task, policy, groups=2 * options["pairs"] // size, group_size=size, seed=seed)
    else:
        # Stored pairs: of the reference, or of the skewed data with the policy's tokens.
        author = scripted_agent(skewed_answer) if task_name == "skew" else task.agent(reference)
        groups = task.collect(author, groups=options["stored"], group_size=2, seed=seed + 40_000)
        groups = with_tokens(reference, groups) if task_name == "skew" else groups
        rng = np.random.default_rng(seed)
        examples = [method.examples(group, by_return(group), rng) for group in groups]  # type: ignore[attr-defined]
        batches = minibatches([one for one in examples if one is not None], options["pairs"], seed=seed)
    return _train(task, method, policy, reference, batches, options["steps"], options, seed)


def train_on_judge(asked: str, reference: Policy, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Online DPO on a judge's preferences: its evaluations, and the judge's bias in one order and in both."""
    task, policy = length_task("minimum"), trainable_copy(reference)
    instruction = INSTRUCTIONS["short" if asked == ONE_ORDER else asked]
    both = ai_feedback(InstructionReader(), instruction)
    annotator = Judged(both.judge, both_orders=False) if asked == ONE_ORDER else both
    batches = _fresh_batches(task, policy, groups=options["pairs"], group_size=2, seed=seed, preference=annotator)
    result = _train(task, JUDGED, policy, reference, batches, options["judged_steps"], options, seed)
    # The judge itself, on pairs of the reference's answers.
    groups = task.collect(task.agent(reference), groups=64, group_size=2, seed=seed + 50_000)
    return result | judge_bias(both, groups)


def judge_bias(both: Judged, groups: Sequence[Group]) -> dict[str, float]:
    """A judge on pairs of one policy's answers, asked once and in both orders.

    Returns:
        The position bias; P(the member shown first wins), which is 1/2 for a fair judge because both are of one
        policy; and how often the shorter of two answers wins.
    """

    def averaged(pairs: Sequence[Pair]) -> list[float]:
        return [float(both(Group(pair)).matrix[0, 1]) for pair in pairs]

    pairs = [(group[0], group[1]) for group in groups]
    once, twice = (np.asarray(judge(pairs)) for judge in (both.judge, averaged))
    words = np.array([[len(member.turns[0].action.split()) for member in pair] for pair in pairs])
    differ = words[:, 0] != words[:, 1]

    def shorter_wins(p: Array) -> float:
        return float(((p > 0.5) == (words[:, 0] < words[:, 1]))[differ].mean())

    return {
        "bias once": position_bias(both.judge, groups),
        "bias averaged": position_bias(averaged, groups),
        "first wins once": float(once.mean()),
        "first wins averaged": float(twice.mean()),
        "shorter wins once": shorter_wins(once),
        "shorter wins averaged": shorter_wins(np.where(twice == 0.5, np.nan, twice)),
    }


def _fresh_batches(task: Task, policy: Policy, *, groups: int, group_size: int, **options: Any) -> Any:
    collect = CollectOptions(
        groups=groups,
        group_size=group_size,
        env_options=task.options,
        sampling=task.sampling(),
        max_tokens=CONTEXT,
        slots=64,
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
        evaluate=Evaluator(task, reference, samples=options["samples"], seed=seed),
        progress=False,
    )
    return evaluations(result.history)


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
    rewarded = [f"{task}: {name}" for task, methods in TASKS.items() for name in methods]
    judged = [f"judge: {asked}" for asked in (*INSTRUCTIONS, ONE_ORDER)]
    return [Cell(name, seed, options) for seed in range(seeds) for name in (*rewarded, *judged)]


def _run(cell: Cell, work: Path) -> Mapping[str, Any]:
    part, _, name = cell.name.partition(": ")
    folder = work / f"start-seed{cell.seed}"
    with one_thread():
        reference = start_policy(length_task("minimum"), folder, seed=cell.seed, **cell.options["start"]).copy()
        if part == "judge":
            return train_on_judge(name, reference, cell.options, cell.seed)
        return train_on_reward(part, name, reference, cell.options, cell.seed)


# The report.

Results = Mapping[str, list[Mapping[str, Any]]]
"""The results of all seeds by the cell's name."""


def _runs(found: Results, task: str, name: str) -> list[Mapping[str, Any]]:
    """The seeds of a method on a task; on the skewed task online methods are those of the minimum."""
    return found[f"minimum: {name}" if task == "skew" and name.startswith("online") else f"{task}: {name}"]


def _methods_on(task: str) -> tuple[str, ...]:
    return tuple(METHODS) if task == "skew" else TASKS[task]


def _highest(runs: Sequence[Mapping[str, Any]]) -> tuple[int, list[float], list[float]]:
    """Where the mean win rate is highest: the step, and the win rates there and at the end, one a seed."""
    wins = over_training(runs, "win_rate")
    place = int(wins.mean(axis=0).argmax())
    return round(runs[0]["step"][place]), wins[:, place].tolist(), wins[:, -1].tolist()


def _reward_tables(found: Results) -> list[str]:
    """One table a task: win rate at its highest and at the end, reward, KL, valid answers."""
    text = []
    for task in TASKS:
        rows = []
        for name in _methods_on(task):
            runs = _runs(found, task, name)
            step, highest, last = _highest(runs)
            rows.append(
                [
                    name,
                    f"{plus_minus(highest, 2)} at {step}",
                    plus_minus(last, 2),
                    *(
                        plus_minus(at_the_end(runs, figure), digits)
                        for figure, digits in (("reward", 2), ("kl", 1), ("proper", 2))
                    ),
                ]
            )
        start_reward = over_training(_runs(found, task, "offline DPO"), "reward")[:, 0].tolist()
        header = ["method", "highest win rate, at step", "at the end", "reward", "KL, nats", "valid answers"]
        text += [f"\n## {task}; the reference earns {plus_minus(start_reward, 2)}\n", table(header, rows)]
    return text


def _reward_sentences(found: Results) -> list[str]:
    """Which falls and which orderings the intervals support."""
    text = []
    for task in TASKS:
        # Does the win rate fall after its highest point?
        for name in ("offline DPO", "online DPO"):
            wins = over_training(_runs(found, task, name), "win_rate")
            if len(wins) > 1:
                fall = compare("the highest win rate", fall_from_peak(wins.tolist()), "the last", [0.0] * len(wins))
                text.append(f"- {task}, {name}: {fall}")
        # Which method earns more at the end?
        ends = {name: at_the_end(_runs(found, task, name), "reward") for name in _methods_on(task)}
        pairs = [("online DPO", "offline DPO"), ("offline DPO", "Pref-FT"), ("online BoN", "Pref-FT")]
        pairs += [("online IPO", "offline IPO"), ("offline IPO", "offline DPO")] if "offline IPO" in ends else []
        text += [f"- {task}, reward at the end: {compare(a, ends[a], b, ends[b], 2)}" for a, b in pairs]
    # Do the compared answers become likelier than under the reference?
    for task in TASKS:
        for name in ("offline DPO", "online DPO"):
            runs = _runs(found, task, name)
            text.append(
                f"- {task}, {name}, pairs of the last step: log-ratio to the reference of preferred answers "
                f"{plus_minus(at_the_end(runs, 'preferred'), 1)} nats, of the other answers "
                f"{plus_minus(at_the_end(runs, 'other'), 1)}; below 0 an answer has become less likely."
            )
    return text


def _judge_part(found: Results) -> list[str]:
    """Lengths under each instruction, the judge's bias, and which differences the intervals support."""
    asked = (*INSTRUCTIONS, ONE_ORDER)
    runs = {name: found[f"judge: {name}"] for name in asked}
    words = {name: at_the_end(runs[name], "words") for name in asked}
    before = over_training(runs["nothing"], "words")[:, 0].tolist()
    lengths = [[name, plus_minus(words[name], 2), plus_minus(at_the_end(runs[name], "kl"), 2)] for name in asked]
    figures = ("bias", "first wins", "shorter wins")
    bias = [
        [name, orders, *(plus_minus([run[f"{figure} {orders}"] for run in runs[name]]) for figure in figures)]
        for name in INSTRUCTIONS
        for orders in ("once", "averaged")
    ]
    text = [
        f"\n## The judge's instruction; the reference writes {plus_minus(before, 2)} words\n",
        table(["asked for", "words at the end", "KL, nats"], lengths),
        "\n## The judge on pairs of the reference's answers, asked once and averaged over both orders\n",
        table(["asked for", "", "position bias", "P(the first wins)", "the shorter wins"], bias),
        "\n## Findings: the judge\n",
    ]
    text += [
        f"- Words, asked for {name}: {compare('the end', words[name], 'the reference', before, 2)}"
        for name in INSTRUCTIONS
    ]
    for a, b in (("short", "nothing"), ("very short", "short"), ("long", "nothing"), (ONE_ORDER, "short")):
        text.append(f"- Words at the end: {compare(f'asked for {a}', words[a], f'asked for {b}', words[b], 2)}")
    spread = {name: over_training(runs[name], "words")[:, 1:].std(axis=1).tolist() for name in asked}
    text.append(
        "- Training on one order, standard deviation of the length over the evaluations after the first: "
        + compare("one order", spread[ONE_ORDER], "both orders", spread["short"], 2)
    )
    return text


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    found = by_name(outcomes)
    options = outcomes[0].cell.options
    seeds = len(found["minimum: offline DPO"])
    text = [
        "# online_vs_offline: stored answers, fresh answers, and an instructed judge\n",
        f"{seeds} seeds (other weights, demonstrations and samples), mean with the 95% Student interval. A Llama of 2 "
        "layers and width 32, trained from random weights on "
        f"{options['start']['demonstrations']} answers of about {MODE} "
        f"random words, then {options['steps']} AdamW steps at {options['lr']} on {options['pairs']} pairs each. "
        f"Stored: {options['stored']} pairs, of the reference (minimum, mode) or with lengths near {LIMIT} (skew). "
        f"Reward: minus the length (minimum, skew), minus the distance to {MODE} words (mode); an answer that is "
        "empty, too long or not made of words earns the lowest reward. Win rate: by the true reward, over the "
        "reference's answers; a tie counts one half.\n",
        "Claims: offline DPO rises, then falls, and online DPO keeps rising (arXiv 2402.04792). Where the data is far "
        "from the optimum, on-policy and contrastive methods are ahead; where it is near, all methods work "
        "(arXiv 2404.14367). The annotator's instruction changes the length (arXiv 2402.04792).\n",
        *_reward_tables(found),
        "\nThe online methods of skew are those of the minimum: the tasks differ only in the stored data.\n",
        "\n## Findings: stored or fresh\n",
        "A run's highest win rate is read at the step at which the mean of the other seeds is highest, so choosing the "
        "step makes no fall by itself.\n",
        *_reward_sentences(found),
        *_judge_part(found),
        "\n![win rate over training and against KL](curves.svg)\n",
        "\n![length under each instruction](judge.svg)\n",
    ]
    _draw_rewarded(found, out)
    _draw_judged(found, out)
    return "\n".join(text)


FAMILIES: Mapping[str, tuple[str, str]] = {
    "DPO": ("online DPO", "offline DPO"),
    "IPO": ("online IPO", "offline IPO"),
    "likelihood": ("online BoN", "Pref-FT"),
}
"""Columns of the picture: a method on fresh answers and one on stored answers."""


def _draw_rewarded(found: Results, out: Path) -> None:
    """One row a task: win rates of three families over training, and DPO's win rate against its KL."""
    with picture(out / "curves", len(TASKS), 4, width=2.9, height=2.0, note=RUNS) as grid:
        for row, task in zip(grid, TASKS, strict=True):
            for panel, (family, pair) in zip(row, FAMILIES.items(), strict=False):
                panel.words(title=f"{task}: {family}", x="step", y="" if panel is not row[0] else "win rate")
                if not set(pair) <= {*_methods_on(task)}:
                    panel.missing("not run")
                    continue
                for name, colour in zip(pair, (BLUE, VERMILLION), strict=True):
                    runs = _runs(found, task, name)
                    wins = over_training(runs, "win_rate")
                    panel.curve(runs[0]["step"], wins, colour=colour, label=name, bounds=SHARE)
            for name, colour in zip(FAMILIES["DPO"], (BLUE, VERMILLION), strict=True):
                runs = _runs(found, task, name)
                kl, wins = (over_training(runs, figure).mean(axis=0) for figure in ("kl", "win_rate"))
                row[3].line(kl.tolist(), wins.tolist(), colour=colour, label=name, marker="o")
            row[3].axes.set_xscale("symlog", linthresh=1.0)
            row[3].words(title=f"{task}: DPO, means", x="KL to the reference, nats")
            row[0].limits(y=SHARE)


def _draw_judged(found: Results, out: Path) -> None:
    """One panel an instruction; the other instructions' means in grey."""
    asked = (*INSTRUCTIONS, ONE_ORDER)
    runs = {name: found[f"judge: {name}"] for name in asked}
    words = {name: over_training(runs[name], "words") for name in asked}
    note = f"{RUNS} Grey: the other instructions."
    with picture(out / "judge", 1, len(asked), width=2.2, height=2.2, note=note) as (row,):
        for panel, name in zip(row, asked, strict=True):
            for other in asked:
                panel.context(runs[other][0]["step"], words[other].mean(axis=0).tolist())
            panel.curve(runs[name][0]["step"], words[name], colour=BLUE, bounds=NOT_NEGATIVE)
            panel.words(title=f"asked for {name}", x="step", y="words an answer" if panel is row[0] else "")
        row[0].limits(y=NOT_NEGATIVE)


SUITE = Suite(
    name="online_vs_offline",
    summary="length tasks: stored or fresh preferences, and a judge whose instruction sets the length",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=4,
)
