"""Settings are values: what a method needs and how a run trains is checked when it is said, before any work."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch

from polyturn.agents import CollectOptions, Sampling
from polyturn.algorithms import METHODS, Loss, Needs, TrainOptions
from polyturn.algorithms.methods.base import hooks_of
from polyturn.envs.settings import add_arguments, changes, from_arguments, help_of, record


class Plain:
    """The least that a method is."""

    name = "plain"
    needs = Needs(reference=False)

    def loss(self, logps: Any, reference: Any, batch: Any) -> Loss:
        return Loss(-logps.sum(1))


def with_part(**parts: Any) -> Any:
    return type("Mine", (Plain,), parts)()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"token_maks": lambda self, batch: None}, r"got 'token_maks'\. Did you mean 'token_mask'\?"),
        ({"step_statistic": lambda self: None}, r"Did you mean 'step_statistics'\?"),
        ({"need": Needs()}, r"got 'need'\. Did you mean 'needs'\?"),
        ({"needs_": Needs()}, r"Did you mean 'needs'\?"),
        ({"examples": [1]}, r"expected examples to be a method, got \[1\]"),
        ({"needs": {"reference": False}}, r"expected a name \(str\) and needs"),
        ({"name": 3}, r"expected a name \(str\) and needs"),
        ({"needs": Needs(look_ahead=True)}, "expected step_statistics with needs"),
        ({"needs": Needs(mismatched=True)}, "expected step_statistics with needs"),
    ],
)
def test_a_part_that_would_be_overlooked_is_an_error(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hooks_of(with_part(**parts))


def test_what_is_not_a_part_may_have_any_name_that_is_not_nearly_one() -> None:
    @dataclass(frozen=True)
    class Own:
        """A field may be called like anything; a helper may too, if it is no near miss."""

        exampels: int = 3  # a setting, however it is spelt
        name: ClassVar[str] = "own"
        needs: ClassVar[Needs] = Needs(reference=False)

        def loss(self, logps: Any, reference: Any, batch: Any) -> Loss:
            return Loss(-logps.sum(1))

        def discount(self) -> float:
            return 0.5

        def _examples(self) -> None: ...

    hooks = hooks_of(Own())
    assert (hooks.name, hooks.examples, hooks.step_statistics, hooks.row_statistics) == ("own", None, None, None)
    assert hooks.needs == Needs(reference=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reference": False, "teacher": True}, "expected reference=True with teacher or full_kl"),
        ({"reference": False, "full_kl": "policy_first"}, "expected reference=True with teacher or full_kl"),
        (
            {"full_kl": "policy"},
            r"Needs\.full_kl: expected one of reference_first, policy_first.*Did you mean 'policy_first'",
        ),
        ({"mismatched": True, "look_ahead": True}, "mismatched or look_ahead, got both"),
        ({"values": 1}, r"Needs\.values: expected True or False, got 1"),
    ],
)
def test_needs_that_exclude_each_other_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Needs(**wrong)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_states_its_needs_and_summary(name: str) -> None:
    method = METHODS[name]()
    assert hooks_of(method).name == name
    assert (METHODS[name].__doc__ or "").splitlines()[0].endswith(".")
    assert not {"name", "needs"} & {field.name for field in fields(method)}  # what it is, not what it may be told


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -1e-6}, "^lr: expected 0 or more, got -1e-06"),
        ({"lr": float("nan")}, "^lr: expected 0 or more, got nan"),
        ({"lr": "1e-6"}, "^lr: expected 0 or more, got '1e-6'"),
        ({"clip": 0.0}, "^clip: expected a number above 0"),
        ({"clip": float("inf")}, "^clip: expected a number above 0, got inf"),
        ({"warmup": 1.5}, "^warmup: expected a whole number of at least 0, got 1.5"),
        ({"accumulate": True}, "^accumulate: expected a whole number of at least 1, got True"),
        ({"save_every": 0}, "^save_every: expected a whole number of at least 1, or None, got 0"),
        ({"schedule": "cosin"}, r"^schedule: expected one of .*Did you mean 'cosine'\?"),
        ({"mixed_precision": "fp16"}, "^mixed_precision: expected one of no, bf16, got 'fp16'"),
        ({"optimizer": "adam"}, r"^optimizer: expected one of adamw.*Did you mean 'adamw'\?"),
    ],
)
def test_train_options_are_checked_when_made(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**wrong)
    with pytest.raises(ValueError, match=message):
        TrainOptions().with_changes(**wrong)


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"group_size": -1}, {"tasks": []}, {"slots": 1.5}, {"max_tokens": 0}])
def test_collect_options_are_checked_when_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected"):
        CollectOptions(**wrong)


def test_a_record_holds_what_decides_the_weights_and_is_the_same_in_every_process() -> None:
    momentum = functools.partial(torch.optim.SGD, momentum=0.5)
    recorded = TrainOptions(lr=0.5, optimizer=momentum, save_every=3).recorded()
    assert recorded["optimizer"] == "functools.partial(<class 'torch.optim.sgd.SGD'>, momentum=0.5)"
    assert recorded["lr"] == 0.5
    assert not {"save_every", "keep", "cpu"} & set(recorded)
    assert " at 0x" not in str(record(CollectOptions(branch_at=lambda group: group)))
    assert record(CollectOptions(sampling=Sampling(top_p=0.5)))["sampling"]["top_p"] == 0.5
    then, now = TrainOptions().recorded(), TrainOptions(lr=2e-6, clip=None).recorded()
    assert changes(then, now) == ["lr was 1e-06, is 2e-06", "clip was 1.0, is None"]
    assert changes(then, then) == []


@pytest.mark.parametrize("made", [TrainOptions, CollectOptions])
def test_every_setting_is_described_once_in_the_docstring(made: Callable[..., Any]) -> None:
    described = help_of(made)  # type: ignore[arg-type]
    assert set(described) == {field.name for field in fields(made)}  # type: ignore[arg-type]
    assert all(text.endswith(".") and "Raises" not in text for text in described.values())


def test_the_command_line_is_made_from_the_class() -> None:
    parser = argparse.ArgumentParser()
    names = ("lr", "schedule", "clip", "gradient_checkpointing", "max_length")
    add_arguments(parser, TrainOptions, names, defaults={"lr": "by method"})
    args = parser.parse_args(["--schedule", "cosine", "--gradient-checkpointing", "--max-length", "99"])
    assert from_arguments(TrainOptions, args, names, lr=3e-7) == TrainOptions(
        lr=3e-7, schedule="cosine", gradient_checkpointing=True, max_length=99
    )
    shown = parser.format_help()
    assert "learning rate (default by method)" in shown
    assert "largest gradient norm" in shown
    with pytest.raises(SystemExit):
        parser.parse_args(["--schedule", "cosin"])
