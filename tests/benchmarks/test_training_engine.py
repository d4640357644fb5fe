"""The suite that measures preference steps: its shapes are what it says, and its figures mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyturn.algorithms import collate
from polyturn.benchmarks.running.suite import Cell, Outcome
from polyturn.benchmarks.training_engine import suite, worker
from polyturn.benchmarks.training_engine.measuring import Meter
from polyturn.benchmarks.training_engine.report import report
from polyturn.benchmarks.training_engine.shapes import draw_groups, examples, peer_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    worker.make_model(folder, vocabulary=100, hidden=16, layers=1)
    return folder


def test_shapes_have_the_tokens_that_their_descriptions_say() -> None:
    sizes = {
        name: [[sum(len(c) + len(a) for c, a in row) for row in group] for group in draw_groups(name, 32_000)]
        for name in ("pairs", "one pair", "group", "tree")
    }
    assert sizes["pairs"] == [[768, 768]] * 4
    assert sizes["one pair"] == [[778, 674]]
    assert sizes["group"] == [[1128] * 8]
    assert sizes["tree"] == [[256 + 64 + 5 * 128] * 8]


def test_the_tree_branches_at_turns_two_and_four() -> None:
    (rows,) = draw_groups("tree", 32_000)
    turns = [{tuple(np.concatenate(row[turn]).tolist()) for row in rows} for turn in range(6)]
    assert [len(found) for found in turns] == [1, 2, 2, 8, 8, 8]


@pytest.mark.parametrize("shape", ["pairs", "group", "tree"])
def test_both_sides_read_the_same_tokens(shape: str) -> None:
    groups = draw_groups(shape, 32_000)
    batch = collate(examples(shape, groups))
    rows = peer_rows(shape, groups)
    assert len(rows) == len(batch.pairs) == 4
    for (winner, loser), row in zip(batch.pairs.tolist(), rows, strict=True):
        for index, completion in ((winner, "chosen_ids"), (loser, "rejected_ids")):
            length = int(batch.mask[index].sum())
            assert batch.ids[index, :length].tolist() == row["prompt_ids"] + row[completion]


def test_every_way_takes_the_same_step(model: Path) -> None:
    rows = examples("small", draw_groups("small", 100))
    # Compiling takes long; tests/algorithms/training/test_kernels.py holds that its steps are the same.
    found = [worker.measured(model, rows, way, 1) for way in worker.WAYS if way != "compiled"]
    for figures in found:
        assert figures["loss"] == pytest.approx(0.6931472, abs=1e-6)
        assert figures["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-5)
        assert len(figures["cpu"]) == 1  # the step that warms up is left out
    assert found[0]["distinct_tokens"] == 24 + 4 * 16


def test_the_arithmetic_is_counted(model: Path) -> None:
    figures = worker.floor({"shape": "small", "vocabulary": 100, "model": str(model)})
    assert figures["default_s"] == pytest.approx(4 / 3 * figures["cached_s"])
    assert 0 < figures["cached_s"] < 1


def test_a_profile_sorts_operations_into_parts_of_the_step(model: Path) -> None:
    figures = worker.profile({"shape": "small", "vocabulary": 100, "model": str(model)})
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    kinds = {
        name: worker.kind_of(name)
        for name in (
            "addmm_",
            "mm",
            "mul",
            "scaled_dot_product_flash_attention_for_cpu_backward",
            "fused_adamw_",
            "exp_",
            "mul_",
        )
    }
    assert kinds == {
        "addmm_": "matrix products", "mm": "matrix products", "mul": "elementwise, copies, indices",
        "scaled_dot_product_flash_attention_for_cpu_backward": "attention", "fused_adamw_": "optimizer",
        "exp_": "softmax of the head", "mul_": "elementwise, copies, indices",
    }  # fmt: skip


def test_a_meter_sees_memory_that_was_given_back() -> None:
    meter = Meter()
    meter.begin()
    kept = torch.ones(30_000_000)
    del kept
    meter.begin()
    meter.end()
    assert len(meter.cpu) == 2
    assert 100 < float(str(meter.figures()["peak_mb"])) < 200


def test_a_missing_peer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(suite.PEERS, str(tmp_path / "none"))
    figures = suite._peer("dpo", "default", tmp_path, tmp_path, tmp_path, 1)
    assert "scripts/peers.sh" in figures["failed"]
    cost = {"cpu": [2.0, 3.0, 4.0], "wall": [1.0], "peak_mb": 10.0, "tokens": 9.0, "distinct_tokens": 8.0,
            "grad_norm": 1.0}  # fmt: skip
    result = {
        "floor": {"default_s": 1.5, "cached_s": 1.0, "gflops": {"body": 50, "head": 50}},
        "profile": {"cpu": 1.0, "seconds": {"matrix products": 3.0, "attention": 1.0}},
        "polyturn, default": cost,
        "TRL DPO, default": {**cost, "cpu": [12.0, 15.0, 18.0], "peak_mb": 40.0},
        "TRL DPO, its best": figures,
    }
    options = {"shape": "pairs", "vocabulary": 32_000, "layers": 6, "hidden": 256, "repeats": 3}
    text = report([Outcome(Cell("pairs, 32000", 0, options), result)], tmp_path)
    assert (
        "5.0 times faster (aim 5; the arithmetic alone would be 10.0 times faster), 4.0 times less memory (aim 3)"
        in text
    )
    assert "not run" in text
    assert "of 4.00 s in operations of one step: matrix products 75%, attention 25%." in text
    assert "| 50% " in text  # 1.5 of 3 seconds
