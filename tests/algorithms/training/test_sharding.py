"""Weights cut over two processes: the update of one process, and checkpoints that one and two can read."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms import DROV, MDPO, MKTO, PMPO, ActorCritic, TrainOptions, latest, minibatches, train

_spec = importlib.util.spec_from_file_location("shared_with_train", Path(__file__).with_name("test_train.py"))
assert _spec is not None
assert _spec.loader is not None
shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)

STEPS = 3


def adapted() -> Policy:
    made: Policy = shared.policy().with_adapters(2)
    return made


def with_values() -> ActorCritic:
    return ActorCritic(shared.policy())


# By name: method, groups, options, and what is trained.
CASES: dict[str, tuple[Any, int, dict[str, Any], Callable[[], Any]]] = {
    "pairs": (MDPO(), 5, {}, shared.policy),
    "one group": (MDPO(), 1, {}, shared.policy),
    "pieces": (MDPO(), 3, {"tokens_per_micro_batch": 9}, shared.policy),
    "one group in pieces": (MDPO(), 1, {"tokens_per_micro_batch": 9}, shared.policy),
    "mismatched": (MKTO(), 5, {"tokens_per_micro_batch": 40}, shared.policy),
    "cached": (MDPO(), 3, {"cache_reference": True, "gradient_checkpointing": True}, shared.policy),
    "whole predictions": (PMPO(), 3, {"tokens_per_micro_batch": 20}, shared.policy),
    "adapters": (MDPO(), 3, {}, adapted),
    "values": (DROV(), 3, {}, with_values),
}


def go(name: str, out: Path | None = None, *, steps: int = STEPS, **more: Any) -> tuple[Any, Any]:
    method, count, options, make = CASES[name]
    learner = make()
    reference = None if name in ("adapters",) else getattr(learner, "policy", learner).copy()
    settings = {"lr": 0.05, "cpu": True, "optimizer": shared.SGD, **options, **more}
    data = minibatches(shared.examples(method, count), count, seed=0)
    result = train(
        method, learner, reference, data, steps=steps, out=out, options=TrainOptions(**settings), progress=False,
        resume=out is not None,
    )  # fmt: skip
    return learner, result


def sharded_main(folder: str) -> None:
    """What each of two processes does."""
    import torch.distributed as dist
    from accelerate import PartialState

    rank, place = PartialState(cpu=True).process_index, Path(folder)
    for name in CASES:
        learner, result = go(name, fully_sharded=True)
        saved = {n: v.detach().contiguous().clone() for n, v in learner.model.named_parameters()}
        save_file(saved, place / f"{name}-{rank}.safetensors")
        if rank == 0:
            (place / f"{name}.json").write_text(json.dumps(result.history))
    # Two steps by both of what one process ends, and one more of what one process began.
    adamw = {"optimizer": "adamw", "lr": 1e-3}
    go("pairs", place / "begun by two", steps=2, fully_sharded=True, **adamw)
    learner, _ = go("pairs", place / "begun by one", steps=4, fully_sharded=True, **adamw)
    if rank == 0:
        save_file({n: v.detach() for n, v in learner.model.named_parameters()}, place / "ended by two.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def run_two(folder: Path, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = folder / "both.py"
    script.write_text(
        f"import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('test_sharding', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
        f"module.{call}(sys.argv[1])\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true", **environment}
    return subprocess.run(
        [*launch, str(script), str(folder)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_sharded_weights_get_the_update_of_one_process(tmp_path: Path) -> None:
    """Uneven groups, groups in pieces, mismatched rows, adapters, value networks; and checkpoints either can read."""
    adamw = {"optimizer": "adamw", "lr": 1e-3}
    go("pairs", tmp_path / "begun by one", steps=2, **adamw)
    done = run_two(tmp_path, "sharded_main")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in CASES:
        single, result = go(name)
        saved = [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1)]
        for parameter, value in single.model.named_parameters():
            torch.testing.assert_close(
                saved[0][parameter], value, atol=3e-6, rtol=1e-4, msg=lambda m, n=name, p=parameter: f"{n}, {p}: {m}"
            )
            assert torch.equal(saved[0][parameter], saved[1][parameter])
        history = json.loads((tmp_path / f"{name}.json").read_text())
        for mine, theirs in zip(result.history, history, strict=True):
            for key in {"loss", "grad_norm", "tokens", "margin", "z0", "kl"} & set(mine):
                assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), (name, key)
    # What two began one ends, and the other way round.
    whole, _ = go("pairs", steps=4, **adamw)
    resumed, _ = go("pairs", tmp_path / "begun by two", steps=4, **adamw)
    ended = load_file(tmp_path / "ended by two.safetensors")
    for parameter, value in whole.model.named_parameters():
        torch.testing.assert_close(dict(resumed.model.named_parameters())[parameter], value, atol=3e-6, rtol=1e-4)
        torch.testing.assert_close(ended[parameter], value, atol=3e-6, rtol=1e-4)
    found = latest(tmp_path / "begun by two")
    assert found is not None
    Policy.from_pretrained(found / "model")  # as everywhere


def test_one_process_has_nothing_to_cut() -> None:
    plain, _ = go("pairs", steps=1)
    asked, _ = go("pairs", steps=1, fully_sharded=True)
    for mine, theirs in zip(plain.model.parameters(), asked.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_sharding_does_not_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r'optimizer: expected "adamw" with fully sharded weights, got \'adamw_8bit\''):
        go("pairs", fully_sharded=True, optimizer="adamw_8bit")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="got fsdp_offload_params"):
        go("pairs")


def dying_main(folder: str) -> None:
    """The second process is killed in the third step, when two are learned."""
    import signal

    from accelerate import PartialState

    rank, place = PartialState(cpu=True).process_index, Path(folder)
    method, count, _, make = CASES["pairs"]
    rows = shared.examples(method, count)
    learner = make()

    batches = minibatches(rows, count, seed=0)

    def source(step: int) -> Any:
        if step == 2 and rank == DIES[os.environ["DIES"]]:
            os.kill(os.getpid(), signal.SIGKILL)
        return batches(step)

    options = TrainOptions(lr=1e-3, cpu=True, fully_sharded=os.environ.get("SHARDED") == "1", save_every=1 if
                           os.environ.get("SHARDED") == "1" else None)  # fmt: skip
    train(method, learner, learner.copy(), source, steps=4, out=place / "run", options=options, progress=False)


DIES = {"second": 1, "first": 0}


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "sharded"), [("second", False), ("first", False), ("second", True)])
def test_a_process_that_dies_ends_the_run_with_what_was_learned(tmp_path: Path, dies: str, sharded: bool) -> None:
    done = run_two(tmp_path, "dying_main", DIES=dies, SHARDED=str(int(sharded)))
    assert done.returncode != 0
    said = "the last checkpoint is" if sharded else "what was learned is saved in"
    assert f"another process died after 2 of 4 steps{', and with it' if sharded else '; ' + said}" in done.stderr
    assert said in done.stderr
    found = latest(tmp_path / "run")
    assert found is not None
    assert found.name == "step-00000002"
    # One process goes on, as if nothing had happened.
    method, count, _, make = CASES["pairs"]
    results = []
    for out in (tmp_path / "run", None):
        learner = make()
        data = minibatches(shared.examples(method, count), count, seed=0)
        options = TrainOptions(lr=1e-3, cpu=True)
        train(method, learner, make().copy(), data, steps=4, out=out, options=options, progress=False, resume=True)
        results.append(learner)
    for mine, theirs in zip(results[0].model.parameters(), results[1].model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=3e-6, rtol=1e-4)
