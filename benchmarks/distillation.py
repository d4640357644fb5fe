"""Suite `distillation`: what a teacher's whole prediction teaches small Gemma 2 policies beyond the tokens themselves.

The claims are Gemma 2's (arXiv 2408.00118): trained on the same tokens, a small model that learns the large one's
distribution has a lower perplexity than one that learns the tokens alone, at every size of the small one; and
distillation goes on in post-training on what the student writes itself. Small scale: Gemma 2's architecture (soft caps,
local and global layers) with widths of 16 to 96, conversations of scripted teachers in Education Dialogue.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_tokenizer
from polyturn.algorithms.batch import collate
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.methods.distillation import Distillation
from polyturn.algorithms.methods.imitation import SFT
from polyturn.algorithms.protocols.online import online
from polyturn.algorithms.protocols.warmup import demonstrations
from polyturn.algorithms.training.data_source import minibatches
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import by_name, compare, line, panels, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.benchmarks.token_policies import one_thread
from polyturn.envs.trajectory import Trajectory

ENV = "polyturn/EducationDialogue-v0"
WIDTHS = (16, 32, 64)
TEACHER_WIDTH = 96
METHODS: Mapping[str, Method] = {"tokens": SFT(), "distilled": Distillation()}
"""From nothing, on stored conversations: the tokens alone, or the teacher's prediction at each of them."""
LATER: Mapping[str, Method] = {
    "stored, teacher first": Distillation(),
    "own, teacher first": Distillation(),
    "own, student first": Distillation(first="student"),
}
"""From the distilled student of the middle width: more of the same conversations, or the student's own."""
MAX_TOKENS, MAX_NEW = 400, 48


def gemma(texts: Sequence[str], *, width: int, layers: int, seed: int) -> Policy:
    """A Gemma 2 with random weights; the same texts give the same tokenizer, whatever the width and the seed."""
    tokenizer = tiny_tokenizer(texts, vocab_size=768)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=max(8, width // 4),
        query_pre_attn_scalar=max(8, width // 4),
        sliding_window=64,
        max_position_embeddings=2 * MAX_TOKENS,
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The kind of attention that caps its logits as well.
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return Policy(model.eval(), tokenizer, version=f"gemma2-{width}")


def shown(count: int, *, seed: int, turns: int) -> list[Trajectory]:
    """Conversations of scripted teachers of mixed quality."""
    groups = collect(ScriptedTeacher(), ENV, groups=count, seed=seed, env_options={"turns": turns}, progress=False)
    return [group[0] for group in groups]


def texts_of(told: Sequence[Trajectory]) -> list[str]:
    """What was said, for a tokenizer."""
    return [turn.observation + turn.action for trajectory in told[:600] for turn in trajectory.turns]


def learn(
    method: Method, policy: Policy, teacher: Policy | None, source: Any, *, steps: int, lr: float
) -> list[dict[str, Any]]:
    """Trains in place and returns the records."""
    return train(
        method,
        policy,
        teacher,
        source,
        steps=steps,
        options=TrainOptions(
            lr=lr,
            warmup=steps // 10,
            schedule="cosine",
            optimizer=functools.partial(torch.optim.AdamW, betas=(0.9, 0.98)),
            cpu=True,
        ),
        progress=False,
    ).history


@torch.no_grad()
def score(policy: Policy, teacher: Policy, members: Sequence[Trajectory]) -> dict[str, float]:
    """Mean over the agent's tokens: NLL, and both divergences between the teacher and the policy, in nats."""
    totals = {"nll": 0.0, "teacher_first": 0.0, "student_first": 0.0}
    tokens = 0
    examples = demonstrations(policy, members)
    for start in range(0, len(examples), 16):
        batch = collate(examples[start : start + 16])
        where = batch.turn_ids >= 0
        rows = batch.rows()
        against = teacher.scorer.predict(rows)
        tokens += int(where.sum())
        for first in ("teacher_first", "student_first"):
            found = policy.scorer(rows, where, against=against, reference_first=first == "teacher_first")
            totals[first] += float(found["kl"].sum())
        totals["nll"] -= float(found["logps"].sum())
    return {name: total / tokens for name, total in totals.items()}


def own_conversations(policy: Policy, count: int, *, seed: int, turns: int) -> list[Trajectory]:
    """What the policy says when it teaches."""
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=MAX_NEW), max_tokens=MAX_TOKENS, slots=32)
    groups = collect(agent, ENV, groups=count, seed=seed, env_options={"turns": turns}, progress=False)
    return [group[0] for group in groups if group[0].valid]


def _cells(quick: bool, seeds: int) -> list[Cell]:
    options = {
        "turns": 2,
        "teacher_data": 32 if quick else 3200,
        "teacher_steps": 3 if quick else 600,
        "data": 32 if quick else 800,
        "steps": 3 if quick else 150,
        "batch": 8 if quick else 16,
        "lr": 6e-3,
        "later_steps": 1 if quick else 30,
        "later_lr": 1e-3,
        "held_out": 4 if quick else 120,
    }
    return [Cell("students", seed, options) for seed in range(seeds)]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    with one_thread():
        return _study(cell.options, cell.seed)


def _study(options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    turns, batch, data = options["turns"], options["batch"], options["data"]
    told = shown(options["teacher_data"], seed=1000 * seed, turns=turns)
    held = shown(options["held_out"], seed=1000 * seed + 500, turns=turns)
    texts = texts_of(told)
    teacher = gemma(texts, width=TEACHER_WIDTH, layers=2, seed=seed)
    examples = demonstrations(teacher, told)
    learn(SFT(), teacher, None, minibatches(examples, 2 * batch, seed=seed), steps=options["teacher_steps"], lr=2e-3)
    teacher.version = "teacher"
    stored = minibatches(examples[:data], batch, seed=seed)
    result: dict[str, Any] = {"teacher": score(teacher, teacher, held)}
    students: dict[tuple[str, int], Policy] = {}
    for width in WIDTHS:
        for name, method in METHODS.items():
            student = students[name, width] = gemma(texts, width=width, layers=2, seed=seed)
            learn(method, student, teacher, stored, steps=options["steps"], lr=options["lr"])
            result[f"{name} {width}"] = score(student, teacher, held)
    start = students["distilled", WIDTHS[1]]
    later = {"the start": start}
    for name, method in LATER.items():
        student = later[name] = start.copy(version=name, trainable=True)
        own = online(
            student,
            ENV,
            collect=CollectOptions(
                groups=batch,
                group_size=1,
                env_options={"turns": turns},
                sampling=Sampling(max_new_tokens=MAX_NEW),
                max_tokens=MAX_TOKENS,
                slots=32,
            ),
            seed=seed,
        )
        source = stored if name.startswith("stored") else own
        learn(method, student, teacher, source, steps=options["later_steps"], lr=options["later_lr"])
    for name, student in later.items():
        members = own_conversations(student, options["held_out"], seed=1000 * seed + 700, turns=turns)
        result[f"later: {name}"] = {"held out": score(student, teacher, held), "own": score(student, teacher, members)}
    return result


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    runs = by_name(outcomes)["students"]
    options = outcomes[0].cell.options

    def nll(name: str) -> list[float]:
        return [float(run[name]["nll"]) for run in runs]

    def perplexity(name: str) -> str:
        return plus_minus([math.exp(value) for value in nll(name)], 2)

    rows = [
        [
            str(width),
            *(perplexity(f"{name} {width}") for name in METHODS),
            *(plus_minus([run[f"{name} {width}"]["teacher_first"] for run in runs]) for name in METHODS),
        ]
        for width in WIDTHS
    ]
    later = ["the start", *LATER]
    after = [
        [
            name,
            plus_minus([math.exp(run[f"later: {name}"]["held out"]["nll"]) for run in runs], 2),
            *(
                plus_minus([run[f"later: {name}"]["own"][which] for run in runs])
                for which in ("student_first", "teacher_first")
            ),
        ]
        for name in later
    ]

    def own(name: str) -> list[float]:
        return [float(run[f"later: {name}"]["own"]["student_first"]) for run in runs]

    text = [
        "# distillation: the teacher's whole prediction, or the tokens alone\n",
        f"{len(runs)} seeds (weights, conversations and samples anew), mean with the 95% Student interval. Gemma 2 of "
        f"two layers. Teacher: width {TEACHER_WIDTH}, {options['teacher_steps']} updates of {2 * options['batch']} of "
        f"{options['teacher_data']} conversations. Students: {options['steps']} updates of {options['batch']} of the "
        f"first {options['data']} of them, the same order for both; {options['held_out']} other conversations held "
        f"out. Perplexity of the agent's tokens; the teacher's is {perplexity('teacher')}.\n",
        "## From nothing, on the same tokens\n",
        table(
            ["width", *(f"perplexity, {name}" for name in METHODS), *(f"KL(teacher, student), {n}" for n in METHODS)],
            rows,
        ),
        "\nNLL in nats a token:\n",
        *(
            f"- width {width}: {compare('distilled', nll(f'distilled {width}'), 'tokens', nll(f'tokens {width}'))}"
            for width in WIDTHS
        ),
        f"\n## Afterwards: {options['later_steps']} more updates of the distilled student of width {WIDTHS[1]}\n",
        "On the conversations of the policy itself the divergences are those of what it really says.\n",
        table(
            ["", "perplexity, held out", "KL(student, teacher), own", "KL(teacher, student), own"],
            after,
        ),
        "\nKL(student || teacher) on the policy's own conversations, nats a token:\n",
        *(
            f"- {compare(first, own(first), second, own(second))}"
            for first, second in (
                ("stored, teacher first", "the start"),
                ("own, teacher first", "stored, teacher first"),
                ("own, student first", "stored, teacher first"),
            )
        ),
        "\n![perplexity by width](perplexity.svg)\n",
    ]
    _draw(runs, out)
    return "\n".join(text)


def _draw(runs: Sequence[Mapping[str, Any]], out: Path) -> None:
    with panels(6, 3.8, 1) as (canvas, (axis,)):
        for name in METHODS:
            values = [[math.exp(run[f"{name} {width}"]["nll"]) for width in WIDTHS] for run in runs]
            line(axis, WIDTHS, values, label=name, marker="o")
        teacher = sum(math.exp(run["teacher"]["nll"]) for run in runs) / len(runs)
        axis.axhline(teacher, color="grey", lw=0.8, ls="--", label="teacher")
        axis.set(xlabel="width of the student", ylabel="perplexity, held out", xscale="log", yscale="log")
        axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.legend(frameon=False, fontsize=8)
        save(canvas, out / "perplexity")


SUITE = Suite(
    name="distillation",
    summary="small Gemma 2 students: the tokens alone, a teacher's whole prediction, and on their own conversations",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=3,
    parallel=True,
)
