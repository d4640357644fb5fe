"""Trajectories worth looking at, hostile ones among them, for the tests of the viewer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory, Turn

MARKUP = "</script><script>window.stolen=1</script><img src=x onerror='window.stolen=1'><style>*{display:none}</style>"
HIDDEN = "a\u202eb\x1b[31mc\u200bd\x00e\ud83d"
MIXED = "p\u0430yp\u0430l"  # Cyrillic letters between Latin ones
ENV = "polyturn/ToolMath-v0"
PROGRAM = "```python\nfor x in range(3):  # three\n    print('value', x)\n```"


def turn(observation: str, action: str, reward: float = 0.0, *, tool_error: bool = False, seed: int = 0) -> Turn:
    """A turn with tokens and log-probs."""
    rng = np.random.default_rng(seed)
    return Turn(
        observation,
        action,
        reward,
        rng.integers(1, 9, 4),
        [*rng.integers(1, 9, 5), 0],
        -rng.exponential(1.0, 6),
        {"tool_error": True} if tool_error else {},
    )


def episode(
    number: int, member: int, answer: str, reward: float, *, version: str = "iteration-1", error: str | None = None
) -> Trajectory:
    """A solved or failed word problem: a program, what it printed, an answer."""
    output = "\n".join(f"line {n}" for n in range(30))
    turns = (
        turn(f"What is {number} + {member}? Write a program.", f"I compute it.\n{PROGRAM}\nrun {member}", seed=member),
        turn(f"```output\n{output}\n```", answer, reward, tool_error=member == 1, seed=member + 1),
    )
    return Trajectory(
        ENV, number, turns, task_id=f"problem-{number}", agent="policy", policy_version=version, member=member,
        terminated=error is None, error=error, info={"group": number, "task_index": number},
        final_observation="That is right." if reward else "That is wrong.",
    )  # fmt: skip


def ordinary(path: Path, version: str = "iteration-1", groups: int = 3, flipped: bool = False) -> Path:
    """Groups of four, one member of the first invalid."""
    with Store(path, fsync="never") as store:
        for number in range(groups):
            for member in range(4):
                right = (number + member) % 2 == flipped
                error = "sandbox lost: the container died" if (number, member) == (0, 3) else None
                answer = f"The answer is {number + member if right else 99}."
                store.append(episode(number, member, answer, float(right), version=version, error=error))
    return path


def branched(path: Path) -> Path:
    """Three members that share two turns."""
    shared = (
        turn("Teach me about tides.", "What do you know?", seed=1),
        turn("Very little.", "The moon pulls.", seed=2),
    )
    with Store(path, fsync="never") as store:
        for member, (said, reward) in enumerate([("Water rises.", 1.0), ("Look it up.", 0.0), ("Ask again.", 0.5)]):
            store.append(
                Trajectory(
                    "polyturn/EducationDialogue-v0", 7, (*shared, turn("And then?", said, reward, seed=3 + member)),
                    task_id="tides", agent="policy", member=member, truncated=True,
                    info={"group": 0, "shared_prefix": {"turns": 2}},
                )
            )  # fmt: skip
    return path


def hostile(path: Path) -> Path:
    """Markup, controls and lookalikes wherever text may stand, and numbers that are none."""
    texts = [
        MARKUP,
        HIDDEN,
        MIXED,
        f"```{MARKUP}\n{MARKUP}\n```",
        "\u2028'\"\\`${window.stolen=1}",
        "\uff28\uff25\uff2c\uff2c\uff2f \u043f\u0440\u0438\u0432\u0435\u0442",
    ]
    with Store(path, fsync="never") as store:
        for number, text in enumerate(texts):
            store.append(
                Trajectory(
                    text.replace("\ud83d", ""), 2**60 + number,
                    (turn(text, text, float("inf")), turn(text, text, seed=1)),
                    task_id=text, agent=text, policy_version=text, final_observation=text, terminated=number % 2 == 0,
                    error=text if number % 2 else None, env_options={text: text},
                    info={"note": text, "nan": float("nan")},
                )
            )  # fmt: skip
    return path


def run_folder(folder: Path, iterations: int = 2) -> Path:
    """The folder of an iterative run with stores, figures and a tokenizer."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": {"class": "MDPO", "beta": 0.1}, "seed": 0}))
    for number in range(iterations + 1):
        place = folder / f"iteration-{number}"
        (place / "train").mkdir(parents=True)
        done = {
            "number": number,
            "episodes": 12,
            "mean_return": 0.2 + 0.2 * number,
            "evaluation": {"success": {"value": 0.3 * number, "low": 0.0}},
        }
        (place / "done.json").write_text(json.dumps(done))
        if number:
            ordinary(place / "trajectories.jsonl", f"iteration-{number}")
            lines = [{"step": step, "loss": 0.7 / step, "grad_norm": 1.0, "note": "text"} for step in range(1, 41)]
            (place / "train" / "metrics.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41'
            )
    tokenizer(folder / "iteration-0" / "policy")
    return folder


def tokenizer(folder: Path) -> Path:
    """A tokenizer of nine words, one of them special and one a line end."""
    from tokenizers import AddedToken, Tokenizer, models

    words = ["<|end|>", "\n", "the", "moon", " pulls", "water", "<b>", "\u202e", "answer"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="the"))
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def results_folder(folder: Path) -> Path:
    """Committed results of a suite with a report and a picture."""
    folder.mkdir(parents=True)
    cells = [
        {"name": "M-DPO", "seed": seed, "options": {}, "result": {"success": 0.5 + seed / 10}} for seed in range(2)
    ]
    record = {
        "suite": "tool_math",
        "summary": "a claim",
        "command": "polyturn bench tool_math",
        "seeds": 2,
        "cells": cells,
    }
    (folder / "results.json").write_text(json.dumps(record))
    (folder / "report.md").write_text(f"# Report\n{MARKUP}\n")
    (folder / "curve.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
        '<script>window.stolen=1</script><rect width="9" height="9"/></svg>'
    )
    return folder


def weighed(path: Path) -> Path:
    """A pair with what is trained on; one of the loser's tokens is not trained on, and the winner's observation is."""
    numbers = [
        {"log_ratio": [0.5, -0.25, 0.1, 0.0, 1.0, 0.2], "weight": [-0.05] * 6, "outside": [0.0, 0.0, 0.0, -0.01]},
        {"log_ratio": [None, -0.25, 0.1, 0.0, 1.0, 0.2], "weight": [0.0, *[0.05] * 4, 0.01]},
    ]
    with Store(path, fsync="never") as store:
        for member, found in enumerate(numbers):
            one = Turn(**{**turn(MARKUP, MARKUP, seed=member).to_json(), "info": {"trained_on": found, "note": MARKUP}})
            store.append(
                Trajectory(ENV, 5, (one,), member=member, terminated=True, info={"trained_on": {"by": MARKUP}})
            )
    return path
