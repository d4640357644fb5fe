"""Suite `distillation`: what the full distribution of a large model adds to the tokens, for small Gemma 2 policies.

The claims are Gemma 2's (arXiv 2408.00118): trained on the same tokens, a small model that learns the large model's
distribution has a lower perplexity than one that learns only the tokens, at every size of the small model; and
distillation continues in post-training on the student's own samples. Small scale: Gemma 2's architecture (soft caps,
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
from polyturn.benchmarks.running.plots import BLUE, DOTS, GREEN, VERMILLION, Dot, picture
from polyturn.benchmarks.running.reporting import by_name, compare, paired_difference, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.benchmarks.token_policies import one_thread
from polyturn.envs.trajectory import Trajectory

ENV = "polyturn/EducationDialogue-v0"
WIDTHS = (16, 32, 64)
TEACHER_WIDTH = 96
METHODS: Mapping[str, Method] = {"tokens": SFT(), "distilled": Distillation()}
"""From random weights, on stored conversations: the tokens, or the teacher's distribution at each token."""
LATER: Mapping[str, Method] = {
    "stored, teacher first": Distillation(),
    "own, teacher first": Distillation(),
    "own, student first": Distillation(first="student"),
}
"""From the distilled student of the middle width: more stored conversations, or the student's own."""
MAX_TOKENS, MAX_NEW_TOKENS = 400, 48


def gemma(texts: Sequence[str], *, width: int, layers: int, seed: int) -> Policy:
    """A Gemma 2 with random weights. The tokenizer depends only on the texts."""
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
        # Only eager attention applies the soft cap of the attention logits.
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return Policy(model.eval(), tokenizer, version=f"gemma2-{width}")


def scripted_conversations(count: int, *, seed: int, turns: int) -> list[Trajectory]:
    """Conversations of scripted teachers of mixed quality."""
    groups = collect(ScriptedTeacher(), ENV, groups=count, seed=seed, env_options={"turns": turns}, progress=False)
    return [group[0] for group in groups]


def texts_of(conversations: Sequence[Trajectory]) -> list[str]:
    """The texts that the tokenizer is made from."""
    return [turn.observation + turn.action for trajectory in conversations[:600] for turn in trajectory.turns]


def learn(
    method: Method, policy: Policy, teacher: Policy | None, source: Any, *, steps: int, lr: float
) -> list[dict[str, Any]]:
    """Trains the policy in place and returns the records of its steps."""
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
            tokens_per_micro_batch=8192,
            cpu=True,
        ),
        progress=False,
    ).history


@torch.no_grad()
def score(policy: Policy, teacher: Policy, members: Sequence[Trajectory]) -> dict[str, float]:
    """Mean over the agent's tokens, in nats: NLL, KL(teacher || policy) and KL(policy || teacher)."""
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
    """Valid conversations in which the policy is the teacher."""
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS), max_tokens=MAX_TOKENS, slots=32)
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
    conversations = scripted_conversations(options["teacher_data"], seed=1000 * seed, turns=turns)
    held_out = scripted_conversations(options["held_out"], seed=1000 * seed + 500, turns=turns)
    texts = texts_of(conversations)

    # The teacher, on all conversations.
    teacher = gemma(texts, width=TEACHER_WIDTH, layers=2, seed=seed)
    examples = demonstrations(teacher, conversations)
    learn(SFT(), teacher, None, minibatches(examples, 2 * batch, seed=seed), steps=options["teacher_steps"], lr=2e-3)
    teacher.version = "teacher"
    result: dict[str, Any] = {"teacher": score(teacher, teacher, held_out)}

    # The students, on the first conversations, in the same order for both methods.
    stored = minibatches(examples[:data], batch, seed=seed)
    students: dict[tuple[str, int], Policy] = {}
    for width in WIDTHS:
        for name, method in METHODS.items():
            student = students[name, width] = gemma(texts, width=width, layers=2, seed=seed)
            learn(method, student, teacher, stored, steps=options["steps"], lr=options["lr"])
            result[f"{name} {width}"] = score(student, teacher, held_out)

    # More updates of the distilled student of the middle width.
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
                sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS),
                max_tokens=MAX_TOKENS,
                slots=32,
            ),
            seed=seed,
        )
        source = stored if name.startswith("stored") else own
        learn(method, student, teacher, source, steps=options["later_steps"], lr=options["later_lr"])
    for name, student in later.items():
        members = own_conversations(student, options["held_out"], seed=1000 * seed + 700, turns=turns)
        result[f"later: {name}"] = {
            "held out": score(student, teacher, held_out),
            "own": score(student, teacher, members),
        }
    return result


Results = Sequence[Mapping[str, Any]]


def _nll(runs: Results, name: str) -> list[float]:
    """NLL on held-out conversations in nats a token, one a seed."""
    return [float(run[name]["nll"]) for run in runs]


def _own_kl(runs: Results, name: str) -> list[float]:
    """KL(student || teacher) on the student's own conversations after the later updates, one a seed."""
    return [float(run[f"later: {name}"]["own"]["student_first"]) for run in runs]


LATER_PAIRS = (
    ("stored, teacher first", "the start"),
    ("own, teacher first", "stored, teacher first"),
    ("own, student first", "stored, teacher first"),
)


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    runs = by_name(outcomes)["students"]
    options = outcomes[0].cell.options

    def perplexity(nll: Sequence[float]) -> str:
        return plus_minus([math.exp(value) for value in nll], 2)

    by_width = [
        [
            str(width),
            *(perplexity(_nll(runs, f"{name} {width}")) for name in METHODS),
            *(plus_minus([run[f"{name} {width}"]["teacher_first"] for run in runs]) for name in METHODS),
        ]
        for width in WIDTHS
    ]
    afterwards = [
        [
            name,
            perplexity([run[f"later: {name}"]["held out"]["nll"] for run in runs]),
            *(
                plus_minus([run[f"later: {name}"]["own"][which] for run in runs])
                for which in ("student_first", "teacher_first")
            ),
        ]
        for name in ("the start", *LATER)
    ]
    text = [
        "# distillation: the teacher's full distribution, or only the tokens\n",
        f"{len(runs)} seeds (other weights, conversations and samples), mean with the 95% Student interval. Gemma 2 "
        f"with two layers. Teacher: width {TEACHER_WIDTH}, {options['teacher_steps']} updates of "
        f"{2 * options['batch']} of {options['teacher_data']} conversations. Students: {options['steps']} updates of "
        f"{options['batch']} of the first {options['data']} of these, in the same order for both methods; "
        f"{options['held_out']} other conversations are held out. Perplexity is that of the agent's tokens; the "
        f"teacher's is {perplexity(_nll(runs, 'teacher'))}.\n",
        "## From random weights, on the same tokens\n",
        table(
            ["width", *(f"perplexity, {name}" for name in METHODS), *(f"KL(teacher, student), {n}" for n in METHODS)],
            by_width,
        ),
        "\nNLL in nats a token:\n",
    ]
    for width in WIDTHS:
        distilled, tokens = (_nll(runs, f"{name} {width}") for name in ("distilled", "tokens"))
        text.append(f"- width {width}: {compare('distilled', distilled, 'tokens', tokens)}")
    text += [
        f"\n## Afterwards: {options['later_steps']} more updates of the distilled student of width {WIDTHS[1]}\n",
        "On the student's own conversations, the divergences are those of the text that it writes itself.\n",
        table(["", "perplexity, held out", "KL(student, teacher), own", "KL(teacher, student), own"], afterwards),
        "\nKL(student || teacher) on the student's own conversations, nats a token:\n",
        *(f"- {compare(a, _own_kl(runs, a), b, _own_kl(runs, b))}" for a, b in LATER_PAIRS),
        "\n![perplexity by width, and paired differences](perplexity.svg)\n",
    ]
    _draw(runs, out)
    return "\n".join(text)


def _draw(runs: Results, out: Path) -> None:
    """Perplexity by width, what distillation changes at each width, and what the later updates change."""
    with picture(out / "perplexity", 1, 3, width=3.9, height=2.4, note=DOTS, share_y=False) as ((left, middle, right),):
        # Widths from top to bottom, both methods at each.
        colours = dict(zip(METHODS, (VERMILLION, BLUE), strict=True))
        left.dots(
            [
                Dot(f"width {width}, {name}", [math.exp(value) for value in _nll(runs, f"{name} {width}")], colour)
                for width in WIDTHS
                for name, colour in colours.items()
            ],
            bounds=(1.0, None),
        )
        left.axes.set_xscale("log")
        left.axes.set_xticks([2, 5, 10, 20], ["2", "5", "10", "20"])
        left.axes.minorticks_off()
        left.words(title="perplexity, held out", x="perplexity")
        middle.dots(
            [
                Dot(
                    f"width {width}",
                    paired_difference(_nll(runs, f"distilled {width}"), _nll(runs, f"tokens {width}")),
                    BLUE,
                )
                for width in WIDTHS
            ],
            zero=0,
        )
        middle.words(title="distilled minus tokens, NLL", x="nats a token")
        right.dots(
            [
                Dot(f"{first}\nminus {second}", paired_difference(_own_kl(runs, first), _own_kl(runs, second)), GREEN)
                for first, second in LATER_PAIRS
            ],
            zero=0,
        )
        right.words(title="afterwards, KL(student, teacher)", x="nats a token")


SUITE = Suite(
    name="distillation",
    summary="small Gemma 2 students: the tokens, a teacher's full distribution, and their own conversations",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=3,
    parallel=True,
)
