"""Checkpoints: whole or absent after any kill of the process, resumed bit for bit, refused where they do not belong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flat_settings import flat
from torch import Tensor

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import (
    MDPO,
    MKTO,
    CheckpointError,
    Example,
    Interrupted,
    ResumeWarning,
    latest,
    minibatches,
    train,
)
from polyturn.algorithms.training import checkpoint
from polyturn.algorithms.training.checkpoint import DamagedCheckpointWarning
from polyturn.envs.preference import by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
STEPS, EVERY = 10, 2


def trajectory(seed: int, reward: float, *actions: list[int]) -> Trajectory:
    turns = tuple(
        Turn(
            observation="o",
            action="a",
            reward=reward if h == len(actions) - 1 else 0.0,
            context_ids=np.array([100 + seed, 50 + h], np.int32),
            action_ids=np.array(action, np.int32),
        )
        for h, action in enumerate(actions)
    )
    return Trajectory("Toy-v0", seed, turns, terminated=True)


def examples(method: Any) -> list[Example]:
    groups = [
        Group((trajectory(s, 1.0, [20] * (1 + s), [21]), trajectory(s, 0.0, [30], [32] * (s + 2)))) for s in range(7)
    ]
    rng = np.random.default_rng(0)
    return [method.examples(group, by_return(group), rng) for group in groups]


def policy(**options: Any) -> Policy:
    return tiny_policy(["x"], seed=0, **{"hidden": 32, "layers": 2, "heads": 2, "context": 64, **options})


def go(out: Path | None, *, method: Any = None, data: Any = None, learner: Policy | None = None, **options: Any) -> Any:
    """The run under test: Adam, warmup, cosine, several micro-batches, a cached reference, dropout on."""
    method = method or MKTO()
    learner = learner or policy()
    for module in learner.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    reference = options.pop("reference", policy().copy())
    settings: dict[str, Any] = {
        "steps": STEPS, "lr": 3e-3, "weight_decay": 0.1, "warmup": 3, "schedule": "cosine", "accumulate": 2,
        "cache_reference": True, "dropout": True, "save_every": EVERY, "progress": False, "cpu": True, **options,
    }  # fmt: skip
    data = minibatches(examples(method), 4, seed=1) if data is None else data
    result = train(method, learner, reference, data, out=out, **flat(settings, train=True))
    return learner, result


def bits(learner: Policy) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in learner.model.state_dict().items()}


def losses(result: Any) -> list[float]:
    return [record["loss"] for record in result.history]


MOMENTS = [
    *(f"in loss {call}" for call in (1, 9, 12)),
    *(f"while writing weights {save}" for save in (1, 3)),
    "while writing the optimizer 2",
    "before the rename 2",
    "after the rename 3",
    "while pruning 1",
    "while logging 5",
]


def _die_at(moment: str) -> None:
    """Makes this process kill itself with SIGKILL at the given moment, half a file written where one is being."""
    text, _, number = moment.rpartition(" ")
    left = int(number)

    def bomb(before: Callable[..., None] | None = None) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                if before:
                    before(*args)
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    def before_calls(owner: Any, name: str, action: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            action(*args)
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    def half(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"\x10\0\0\0\0\0\0\0{half")

    def half_a_folder(_: Any, path: Path) -> None:
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"half')

    if text == "in loss":
        before_calls(MKTO, "loss", bomb())
    elif text == "while writing weights":
        before_calls(Policy, "save_pretrained", bomb(half_a_folder))
    elif text == "while writing the optimizer":
        before_calls(checkpoint, "save_file", bomb(half))
    elif text == "before the rename":
        explode = bomb()
        before_calls(Path, "rename", lambda path, target: explode() if ".tmp" in path.name else None)
    elif text == "after the rename":
        explode = bomb()
        before_calls(checkpoint, "flush", lambda path: explode() if path.name == "checkpoints" else None)
    elif text == "while pruning":
        explode = bomb(lambda path: (path / "state.json").unlink())
        before_calls(
            shutil, "rmtree", lambda path, **_: explode(path) if (Path(path) / "state.json").exists() else None
        )
    elif text == "while logging":
        from polyturn.algorithms.training.metrics import MetricsFile

        def half_a_line(log: Any, _: Any) -> None:
            with log._path.open("a") as file:
                file.write('{"step": 5, "lo')

        before_calls(MetricsFile, "append", bomb(half_a_line))
    else:
        raise AssertionError(moment)


def _child(action: Callable[[], None]) -> int:
    """Forks before any thread pool exists, so that every kill costs milliseconds rather than an import of torch."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def killing_main(folder: str) -> None:
    """Kills runs at every moment and some times, resumes each, and writes what came out of it."""
    root = Path(folder)

    def finish(name: str) -> None:
        learner, result = go(root / name, resume=True)
        report = {"bits": {k: v.hex() for k, v in bits(learner).items()}, "losses": losses(result)}
        (root / f"{name}.json").write_text(json.dumps(report))

    def killed(moment: str) -> None:
        _die_at(moment)
        go(root / moment)

    def run_and_wait(name: str) -> None:
        go(root / name)
        time.sleep(60)

    wait = lambda child: os.waitpid(child, 0)[1]  # noqa: E731
    assert wait(_child(lambda: finish("whole"))) == 0
    for moment in MOMENTS:
        assert os.WTERMSIG(wait(_child(lambda moment=moment: killed(moment)))) == signal.SIGKILL, moment
        assert wait(_child(lambda moment=moment: finish(moment))) == 0, moment
    for index, delay in enumerate((0.02, 0.06, 0.1, 0.15, 0.2)):
        name = f"at some time {index}"
        child = _child(lambda name=name: run_and_wait(name))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        wait(child)
        assert wait(_child(lambda name=name: finish(name))) == 0, name


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('test_checkpoint', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        "module.killing_main(sys.argv[1])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = json.loads((tmp_path / "whole.json").read_text())
    learner, result = go(None)
    assert {k: v.hex() for k, v in bits(learner).items()} == whole["bits"]
    assert losses(result) == whole["losses"]
    names = [path.stem for path in tmp_path.glob("*.json")]
    assert len(names) == 1 + len(MOMENTS) + 5
    for name in names:
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["bits"] == whole["bits"], name
        assert report["losses"] == whole["losses"], name
        folders = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        assert folders == ["step-00000008", "step-00000010"], name


def test_adapters_resume_to_the_same_bits(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Policy:
        start = policy()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = peft.get_peft_model(start.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        return Policy(model, start.tokenizer)

    common: dict[str, Any] = {"method": MDPO(), "reference": None}
    expected, _ = go(None, learner=adapted(), **common)
    with pytest.raises(_StopError):
        go(tmp_path, learner=adapted(), data=_stopping(MDPO(), 5), **common)
    resumed, _ = go(tmp_path, learner=adapted(), resume=True, **common)
    assert bits(resumed) == bits(expected)
    saved = tmp_path / "checkpoints" / "step-00000010" / "model"
    assert (saved / "adapter_model.safetensors").stat().st_size < 20_000
    assert not (saved / "model.safetensors").exists()


class _StopError(Exception):
    pass


def _stopping(method: Any, at: int) -> Callable[[int], list[Example]]:
    batches = minibatches(examples(method), 4, seed=1)

    def step(index: int) -> list[Example]:
        if index == at:
            raise _StopError
        return batches(index)

    return step


def test_every_kind_of_source_finds_its_place_again(tmp_path: Path) -> None:
    """A generator is moved on, a sequence indexed, and a source with its own state put back without being replayed."""
    batches = minibatches(examples(MKTO()), 4, seed=1)

    class Stateful:
        def __init__(self) -> None:
            self.at, self.made = 0, 0

        def __iter__(self) -> Iterator[list[Example]]:
            while True:
                self.at, self.made = self.at + 1, self.made + 1
                yield batches(self.at - 1)

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = state["at"]

    def generator() -> Iterator[list[Example]]:
        yield from (batches(step) for step in range(STEPS))

    stateful = Stateful()
    sources: dict[str, Any] = {
        "generator": generator(),
        "sequence": [batches(s) for s in range(STEPS)],
        "own": stateful,
    }
    expected = bits(go(None)[0])
    for name, source in sources.items():
        with pytest.raises(_StopError):
            go(tmp_path / name, data=_stopping(MKTO(), 7) if name != "own" else _limited(Stateful(), 7))
        learner, _ = go(tmp_path / name, data=source, resume=True)
        assert bits(learner) == expected, name
    assert stateful.made == STEPS - 7


def _limited(source: Any, at: int) -> Any:
    class Limited(type(source)):  # type: ignore[misc]
        def __iter__(self) -> Iterator[list[Example]]:
            for index, item in enumerate(super().__iter__()):
                if index == at:
                    raise _StopError
                yield item

    return Limited()


def test_an_evaluation_that_fails_loses_nothing_and_is_made_up_for(tmp_path: Path) -> None:
    """It fails after step 5, of which there is no regular checkpoint; the resumed run has the same records."""

    def evaluate(learner: Policy, step: int) -> dict[str, float]:
        return {"weight": float(next(iter(learner.model.state_dict().values())).sum())}

    def failing(learner: Policy, step: int) -> dict[str, float]:
        if step == 5:
            raise ConnectionError("the Docker daemon died")
        return evaluate(learner, step)

    with pytest.raises(ConnectionError, match="daemon died") as caught:
        go(tmp_path, evaluate=failing, evaluate_every=1)
    assert "stopped after 5 of 10 steps and saved in" in caught.value.__notes__[0]
    learner, result = go(tmp_path, evaluate=evaluate, evaluate_every=1, resume=True)
    expected, whole = go(None, evaluate=evaluate, evaluate_every=1)
    assert bits(learner) == bits(expected)

    def values(result: Any, key: str) -> list[float]:
        return [record[key] for record in result.history if key in record]

    for key in ("loss", "eval/weight"):
        assert values(result, key) == values(whole, key)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def interrupt(_: Policy, step: int) -> dict[str, float]:
        if step == 3:
            os.kill(os.getpid(), number)
        return {}

    with pytest.raises(Interrupted, match=r"stopped after 3 of 10 steps and saved in .*step-00000003; .*resume=True"):
        go(tmp_path, evaluate=interrupt, evaluate_every=1)
    assert signal.getsignal(number) is before
    learner, result = go(tmp_path, resume=True)
    assert bits(learner) == bits(go(None)[0])
    assert [record["step"] for record in result.history] == list(range(1, STEPS + 1))


def test_a_second_interrupt_stops_at_once() -> None:
    def interrupt(_: Policy, step: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt) as caught:
        go(None, evaluate=interrupt)
    assert not isinstance(caught.value, Interrupted)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, result = go(tmp_path)

    def never(step: int) -> list[Example]:
        raise AssertionError("not reached")

    again, same = go(tmp_path, data=never, resume=True)
    assert bits(again) == bits(first)
    assert (same.history, same.steps, same.path) == (result.history, STEPS, result.path)


def test_what_is_kept_loads_anywhere_and_holds_no_pickle(tmp_path: Path) -> None:
    learner, result = go(tmp_path, keep=3)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [f"step-{s:08d}" for s in (6, 8, 10)]
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step-00000010"
    assert bits(Policy.from_pretrained(result.path, device="cpu")) == bits(learner)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".jinja", ".sqlite", ""}  # ".lock" holds nothing


def test_other_runs_checkpoints_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    go(tmp_path, steps=2)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wider = policy(hidden=64)
    fresh = bits(wider)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("holds step-00000002 of an earlier run; pass resume=True", {}),
        (
            r"of another architecture: its parameter 'model.embed_tokens.weight' is \[\d+, 32\], this model's is "
            r"\[\d+, 64\]",
            {"learner": wider, "resume": True},
        ),
        ("its parameter 'model.layers.2.*missing", {"learner": policy(layers=3), "resume": True}),
        ("of another method: its beta is 0.1, this one's is 0.2", {"method": MKTO(beta=0.2), "resume": True}),
        ("of another method", {"method": MDPO(), "resume": True}),
    ]
    for message, options in cases:
        with pytest.raises(CheckpointError, match=message):
            go(tmp_path, steps=4, **options)
    assert bits(wider) == fresh
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_damaged_checkpoints_and_other_optimizers_get_one_clear_error(tmp_path: Path) -> None:
    go(tmp_path, steps=2)
    folder = latest(tmp_path)
    assert folder is not None
    steps_changed = pytest.warns(ResumeWarning, match="steps was 2, is 4")
    with steps_changed, pytest.raises(CheckpointError, match="expected SGD, got the state of AdamW"):
        go(tmp_path, steps=4, resume=True, optimizer=torch.optim.SGD)
    weights = (folder / "model" / "model.safetensors").read_bytes()
    for name in ("model/model.safetensors", "optimizer.safetensors", "state.json", "model/config.json"):
        before = (folder / name).read_bytes()
        middle = len(before) // 2
        (folder / name).write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        with pytest.raises(CheckpointError, match=f"{name} is not what was written .* restore the files"):
            go(tmp_path, steps=4, resume=True)
        (folder / name).write_bytes(before)
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    (folder / "digests.json").unlink()
    with pytest.raises(CheckpointError, match=r"digests\.json cannot be read"):
        go(tmp_path, steps=4, resume=True)


def test_a_damaged_checkpoint_is_passed_over_for_an_earlier_one(tmp_path: Path) -> None:
    """One bit of the newest weights flips; the run goes on from the one before, says so, and ends as if whole."""
    whole, _ = go(tmp_path / "whole", keep=5)
    with pytest.raises(_StopError):
        go(tmp_path / "cut", data=_stopping(MKTO(), 7), keep=5)
    newest = latest(tmp_path / "cut")
    assert newest is not None
    damaged = bytearray((newest / "model" / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (newest / "model" / "model.safetensors").write_bytes(damaged)
    with pytest.warns(DamagedCheckpointWarning, match=r"going on from step-00000006, because .* step-00000007: model/"):
        learner, _ = go(tmp_path / "cut", resume=True, keep=5)
    assert bits(learner) == bits(whole)


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    """The second is refused while the first trains, and may follow when it has ended."""

    def meanwhile(step: int) -> list[Example]:
        if step == 1:
            with pytest.raises(CheckpointError, match="in which another run is training"):
                go(tmp_path, steps=2, resume=True)
        return examples(MKTO())[:4]

    go(tmp_path, steps=2, data=meanwhile)
    assert go(tmp_path, steps=2, resume=True)[1].steps == 2


def test_ctrl_c_while_the_last_checkpoint_is_written_does_not_cost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints only at the end; the signal comes in the middle of writing that one."""
    original = checkpoint.save_file

    def interrupted(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(Interrupted, match="stopped after 3 of 3 steps and saved in"):
        go(tmp_path, steps=3, save_every=None)
    monkeypatch.undo()
    assert go(tmp_path, steps=3, save_every=None, resume=True)[1].steps == 3


def test_one_process_of_several_that_were_announced_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a launcher that Accelerate does not see: each of two processes would train a separate run."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE says, but Accelerate sees 1"):
        go(None, steps=1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    go(None, steps=1)


def test_a_folder_that_cannot_be_written_stops_before_the_first_step(tmp_path: Path) -> None:
    """Root may write everywhere, so the folder is under a file; a full disk is one with 1 kB free."""

    def never(step: int) -> list[Example]:
        raise AssertionError("not reached")

    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"expected a folder to write checkpoints to.*Not a directory"):
        go(tmp_path / "file" / "run", data=never)


def test_a_full_disk_stops_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 KB of parameters need three times that for Adam; keep=2 and room for one more: three checkpoints."""

    def never(step: int) -> list[Example]:
        raise AssertionError("not reached")

    usage = shutil.disk_usage(tmp_path)
    size = 3 * sum(p.numel() * 4 for p in policy().model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size - 1))
    with pytest.raises(CheckpointError, match=r"free in .* for its checkpoints \(.* each\), got .*; free some space"):
        go(tmp_path, data=never)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size))
    go(tmp_path)


def test_a_disk_that_fills_up_leaves_earlier_checkpoints_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = 0, checkpoint.save_file

    def failing(tensors: dict[str, Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints are intact"):
        go(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    monkeypatch.undo()
    learner, _ = go(tmp_path, resume=True)
    assert bits(learner) == bits(go(None)[0])


def test_a_resumed_run_uses_the_weight_decay_given_now(tmp_path: Path) -> None:
    """The warning says that the weight decay is another now, so it must be."""
    seen: list[set[float]] = []

    class Noted(torch.optim.AdamW):
        def step(self, *args: Any, **options: Any) -> Any:
            seen.append({group["weight_decay"] for group in self.param_groups})
            return super().step(*args, **options)

    go(tmp_path, steps=1, optimizer=Noted, weight_decay=0.2)
    with pytest.warns(ResumeWarning, match=r"weight_decay was 0\.2, is 0\.3"):
        go(tmp_path, steps=2, optimizer=Noted, weight_decay=0.3, resume=True)
    assert seen == [{0.0, 0.2}, {0.0, 0.3}]


def test_a_stateless_optimizer_is_saved_too(tmp_path: Path) -> None:
    """Plain SGD has no state; with momentum it has."""
    for momentum in (0.0, 0.9):
        out = tmp_path / str(momentum)

        def sgd(groups: list[dict[str, Any]], momentum: float = momentum) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, momentum=momentum)

        expected, _ = go(None, optimizer=sgd)
        with pytest.raises(_StopError):
            go(out, data=_stopping(MKTO(), 5), optimizer=sgd)
        resumed, _ = go(out, resume=True, optimizer=sgd)
        assert bits(resumed) == bits(expected)
