"""`polyturn rollout`, `train` and `eval` as a person types them: results, resumption, one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.cli import main
from polyturn.envs.store import Store, read
from polyturn.envs.tool_math.word_problems import word_problems
from polyturn.envs.trajectory import Trajectory, Turn

LOCAL = ("-o", "sandbox=local")
SMALL = ("--max-new-tokens", "8", "--max-tokens", "400", "--slots", "8", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    texts = [problem.question for problem in word_problems(1, split="train", size=50)]
    tiny_policy(texts, seed=0, vocab_size=300, hidden=32, layers=1, heads=2).save_pretrained(folder)
    return str(folder)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def test_gold_rollouts_solve_generated_problems_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gold.jsonl"
    command = ("rollout", "polyturn/ToolMath-v0", "--agent", "gold", "--problems", "generated:1:6", *LOCAL, "--quiet")
    code, shown, _ = said(capsys, *command, "--out", str(out))
    assert code == 0
    assert f"episodes     6 in {out}" in shown
    assert "mean return  1.0000 [1.0000, 1.0000]\nsuccess      100.0% [61.0, 100.0]" in shown
    assert said(capsys, *command, "--out", str(out))[1] == shown
    assert len(list(read(out))) == 6
    assert said(capsys, *command, "--groups", "8", "--group-size", "2")[1].startswith("episodes     16\n")


def test_misses_are_shown_safely(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = said(
        capsys, "rollout", "polyturn/ToolMath-v0", "--agent", "random", "--problems", "generated:1:3", *LOCAL,
        "--quiet", "--misses", "2",
    )  # fmt: skip
    assert code == 0
    assert shown.count("--- generated/1/") == 2
    assert "[assistant] " in shown


def test_sft_then_preferences_then_evaluation(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The main job by hand: demonstrations, sft, an iteration of raft on easy rewards, eval; then again, resumed."""
    demos, sft = tmp_path / "demos.jsonl", tmp_path / "sft"
    rollout = ("rollout", "polyturn/ToolMath-v0", "--agent", "demonstrator", "--problems", "generated:1:12", *LOCAL)
    assert said(capsys, *rollout, "--out", str(demos), "--quiet")[0] == 0
    command = ("train", "sft", "--model", model, "--data", str(demos), "--out", str(sft), "--lr", "1e-3", "--quiet")
    code, shown, _ = said(capsys, *command, "--epochs", "2", "--batch-size", "4")
    assert code == 0
    assert f"the policy is in {sft / 'policy'}" in shown
    assert Policy.from_pretrained(sft / "policy").version == "sft"
    scores = tmp_path / "scores.json"
    evaluate = ("eval", "--model", str(sft / "policy"), "--problems", "generated:1:4", *LOCAL, *SMALL, "--samples", "2")
    code, shown, _ = said(capsys, *evaluate, "--json", str(scores), "--out", str(tmp_path / "eval.jsonl"))
    assert code == 0
    assert shown.startswith("mean return  ")
    assert "\nsuccess      " in shown
    assert "(4 problems x 2)" in shown
    assert "pass@2" in shown
    assert json.loads(scores.read_text())["samples"] == 2
    assert said(capsys, *evaluate, "--out", str(tmp_path / "eval.jsonl"))[1] == shown
    assert len(list(read(tmp_path / "eval.jsonl"))) == 8
    assert "(3 problems x 2)" in said(capsys, *evaluate, "--limit", "3")[1]
    run = tmp_path / "run"
    learn = ("train", "raft", "--model", str(sft / "policy"), "--problems", "generated:1:4", *LOCAL, *SMALL, "--out",
             str(run), "--iterations", "1", "--groups", "3", "--group-size", "3", "-m", "above=-1")  # fmt: skip
    code, shown, _ = said(capsys, *learn)
    assert code == 0
    assert shown.splitlines()[0].startswith("iteration  episodes  invalid")
    assert shown.splitlines()[1].split()[:3] == ["1", "9", "0"]
    assert said(capsys, *learn)[1] == shown
    assert Policy.from_pretrained(run / "iteration-1" / "policy").version == "iteration-1"
    code, _, err = said(capsys, *learn, "--group-size", "4")
    assert code == 2
    assert "collect.group_size was 3, is 4" in err


def test_a_model_saved_in_half_precision_is_trained_in_float32(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """As most published models are; in bfloat16 the updates of usual learning rates would round away."""
    half = Policy.from_pretrained(model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    with Store(tmp_path / "data.jsonl") as store:
        store.append(Trajectory("Toy-v0", 0, (Turn("2 + 2?", "4"),), terminated=True))
    command = ("train", "sft", "--model", str(tmp_path / "half"), "--data", str(tmp_path / "data.jsonl"))
    assert said(capsys, *command, "--out", str(tmp_path / "run"), "--quiet")[0] == 0
    trained = Policy.from_pretrained(tmp_path / "run" / "policy").model
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    assert not [warning for warning in recwarn if "rounds away" in str(warning.message)]


def test_adapters_are_trained_the_same_each_time(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    demos = tmp_path / "demos.jsonl"
    rollout = ("rollout", "polyturn/ToolMath-v0", "--agent", "gold", "--problems", "generated:1:4", *LOCAL, "--quiet")
    assert said(capsys, *rollout, "--out", str(demos))[0] == 0
    weights = []
    for name in ("a", "b"):
        out = tmp_path / name
        command = ("train", "sft", "--model", model, "--data", str(demos), "--out", str(out), "--lora", "2", "--quiet")
        assert said(capsys, *command)[0] == 0
        assert not (out / "policy" / "model.safetensors").exists()
        weights.append((out / "policy" / "adapter_model.safetensors").read_bytes())
        evaluate = ("eval", "--model", str(out / "policy"), "--problems", "generated:1:2", *LOCAL, *SMALL)
        assert said(capsys, *evaluate)[0] == 0
    assert weights[0] == weights[1]


MISTAKES: dict[str, tuple[str, int, str]] = {
    "method": ("train mdop --model {model} --out {out}", 2, "got 'mdop'. Did you mean 'mdpo'?"),
    "method option": ("train mdpo --model {model} --out {out} -m bta=1", 2, "got 'bta'. Did you mean 'beta'?"),
    "environment": ("rollout polyturn/ToolMat-v0 --agent gold", 2, "Did you mean 'polyturn/ToolMath-v0'?"),
    "environment option": ("rollout polyturn/ToolMath-v0 --agent gold -o sandbx=local", 2, "sandbox"),
    "sandbox": ("rollout polyturn/ToolMath-v0 --agent gold -o sandbox=dokcer", 2, "Did you mean 'docker'?"),
    "option": ("eval --model {model} --sample 3", 2, "Did you mean '--samples'?"),
    "model": ("eval --model ./nosuch", 2, "expected a model folder, got './nosuch', which is not a folder"),
    "agent": ("rollout polyturn/ToolMath-v0 --agent ./nosuch", 2, "which is not a folder"),
    "no template": ("eval --model {untemplated}", 2, "expected a tokenizer with a chat template, got one without"),
    "problems": ("eval --model {model} --problems {broken}", 2, "broken.jsonl"),
    "no problems file": ("eval --model {model} --problems nosuch.jsonl", 2, "nosuch.jsonl: no such file"),
    "no data": ("train sft --model {model} --out {out}", 2, "expected either --data STORE or --online STEPS"),
    "data for a method that samples": (
        "train rloo --model {model} --out {out} --data {broken}",
        2,
        "rloo: expected a method that learns from recorded data",
    ),
    "data in no layout": (
        "train mdpo --model {model} --out {out} --data {broken}",
        2,
        "or rows with chosen and rejected",
    ),
    "iterations on data": (
        "train mdpo --model {model} --out {out} --data {broken} --iterations 2",
        2,
        "expected no --iterations for train mdpo, which compares the groups of --data",
    ),
    "iterations of an online run": (
        "train rloo --model {model} --out {out} --online 2 --from-previous 1",
        2,
        "expected no --from-previous for train rloo, which with --online",
    ),
    "sft online": (
        "train sft --model {model} --out {out} --data {broken} --online 3",
        2,
        "expected either --data STORE or --online STEPS",
    ),
    "missing data": ("train sft --model {model} --out {out} --data {out}/nosuch", 1, "nosuch"),
    "not a store": ("train sft --model {model} --out {out} --data {broken}", 2, "expected a store of trajectories"),
    "unwritable folder": ("train mdpo --model {model} --out /proc/nosuch/run", 1, "/proc/nosuch"),
    "unwritable store": ("rollout polyturn/ToolMath-v0 --agent gold --out /proc/nosuch.jsonl", 1, "/proc/nosuch.jsonl"),
    "unwritable figures": (
        "eval --model {model} --limit 1 -o sandbox=local --json /proc/nosuch.json",
        1,
        "/proc/nosuch",
    ),
    "gold without problems": ("rollout polyturn/Bandit-v0 --agent gold", 2, "expected an environment with problems"),
    "temperature": ("eval --model {model} --temperature -1", 2, "temperature: expected 0 or more"),
    "groups": ("rollout polyturn/ToolMath-v0 --agent gold --group-size 0 -o sandbox=local", 2, "collect(group_size): "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_one_line_with_a_remedy(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected, text = MISTAKES[name]
    (tmp_path / "broken.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n{"question": \n', "utf-8")
    untemplated = tmp_path / "untemplated"
    if "{untemplated}" in command:
        policy = Policy.from_pretrained(model)
        policy.save_pretrained(untemplated)
        (untemplated / "chat_template.jinja").unlink()
    words = command.format(model=model, out=tmp_path / "run", broken=tmp_path / "broken.jsonl", untemplated=untemplated)
    try:
        code, _, err = said(capsys, *words.split())
    except SystemExit as stop:  # argparse
        code, err = int(str(stop.code)), capsys.readouterr().err
    complaint = [line for line in err.splitlines() if line.startswith("polyturn: ")]
    assert (code, len(complaint)) == (expected, 1), err
    assert text in complaint[0]
    assert "Traceback" not in err
    if name == "problems":
        assert "line 2" in complaint[0]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """A rollout of slow programs, interrupted: exit code 130, one line, and what was finished is kept."""
    out = tmp_path / "runs.jsonl"
    script = (
        "import sys; from polyturn.agents.scripted import demonstrator as d; import polyturn.cli as c;"
        "act = d.Demonstrator.act;"
        "slow = lambda self, e: '```python\\nimport time; time.sleep(0.2)\\n```' if len(e.turns) < 2 else act(self, e);"
        "d.Demonstrator.act = slow; sys.exit(c.main(sys.argv[1:]))"
    )
    command = ["rollout", "polyturn/ToolMath-v0", "--agent", "demonstrator", "--problems", "generated:1:200", *LOCAL]
    child = subprocess.Popen(
        [sys.executable, "-c", script, *command, "--out", str(out), "--concurrency", "2"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 3):
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert f"interrupted: run the same command again to go on with {out}" in err
    assert 2 <= len(list(read(out))) < 200


TALK = ("--env", "polyturn/EducationDialogue-v0", "-o", "turns=2", "--preference", "education", "--quiet",
        "--max-new-tokens", "8", "--max-tokens", "400", "--slots", "4", "--groups", "3")  # fmt: skip


def test_a_fitted_reward_model_pays_a_policy_and_mtpo_needs_none(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fit, then RLHF with what was fitted, single turns with the same; MTPO with the exact oracle, all resumable."""
    fitted = str(tmp_path / "rm" / "model")
    fit = ("fit", "reward_model", "--model", model, "--steps", "2", "--out", str(tmp_path / "rm"), *TALK)
    code, shown, err = said(capsys, *fit)
    assert code == 0, err
    assert "on 1 held-out starts" in shown
    assert f"--preference reward_model:{fitted}" in shown
    assert said(capsys, *fit)[1] == shown
    paid = [*TALK[:4], "--preference", f"reward_model:{fitted}", *TALK[6:]]
    for name, command in (
        ("rlhf", ["ppo", "-m", "over=turn", "-m", "kl=0.1", *paid]),
        (
            "single",
            ["ppo", "-m", "over=turn", "-m", "reward=turns", "-m", "discount=0.0", "--turn-reward", fitted, *TALK],
        ),
        ("mtpo", ["mtpo", "-m", "value_warmup=1", *TALK]),
        ("tau", ["mtpo", "--opponent", "mixture:0.5", *TALK]),
        ("ipo-md", ["ipo", "--actor", "mixture:0.25", *TALK]),
    ):
        out = tmp_path / name
        code, shown, err = said(
            capsys, "train", *command, "--model", model, "--out", str(out), "--online", "2", "--group-size", "2",
        )  # fmt: skip
        assert code == 0, err
        assert "2 steps" in shown
        assert Policy.from_pretrained(out / "policy").model is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preference", "educaton"], "Did you mean 'education'?"),
        (["--preference", "nowhere.at:all"], "expected a preference at nowhere.at:all"),
        (["--question", "Who is kinder?"], "expected a question only for judge:MODEL or server:MODEL"),
        (["--actor", "mixture:0.5"], "expected no --actor for train ipo, which collects and trains in iterations"),
        (["--online", "1", "--actor", "average:0.5"], "--actor: expected mixture:BETA"),
        (["--online", "1", "--opponent", "mixture:2"], "--opponent: expected mixture:BETA or average:DECAY"),
    ],
)
def test_mistakes_about_annotators_and_agents(
    arguments: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--env", "polyturn/EducationDialogue-v0", "--out", str(tmp_path), "--quiet")
    code, _, err = said(capsys, "train", "ipo", "--model", model, *common, *arguments)
    assert code != 0
    assert message in err
