"""The suite without pairs: tables that reach their closed forms, and a report with all figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from polyturn.algorithms.exact.closed_forms import pmpo_optimum
from polyturn.benchmarks.running.suite import Cell, load, run_suite
from polyturn.benchmarks.token_policies import one_thread
from polyturn.benchmarks.unpaired import TAUS, accepted_and_rejected, dro_table, fit_pmpo, pmpo_table


def test_the_best_two_of_four_are_accepted_and_the_other_two_rejected() -> None:
    """Two arms, even: an accepted sample is arm 1 with the mean of 0, 1/2, 1, 1, 1 over 0 to 4 draws of it, weighed
    1, 4, 6, 4, 1 of 16: 2 + 6 + 4 + 1 = 13 of 16. Both halves together are all samples."""
    rng = np.random.default_rng(0)
    accepted, rejected = accepted_and_rejected(np.array([0.5, 0.5]), np.array([0.0, 1.0]), groups=40_000, rng=rng)
    assert accepted[1] == pytest.approx(13 / 16, abs=0.01)
    assert rejected[1] == pytest.approx(3 / 16, abs=0.01)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.5, 2.0), (0.0, 3.0)])
def test_descent_reaches_the_closed_form(alpha: float, beta: float) -> None:
    accepted, rejected = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
    reference = np.array([0.4, 0.3, 0.3])
    found = fit_pmpo(accepted, rejected, reference, alpha=alpha, beta=beta, steps=300, lr=0.1)
    expected = pmpo_optimum(accepted, rejected, reference, alpha=alpha, beta=beta)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("beta", "corner"), [(0.0, True), (0.5, True), (3.0, False)])
def test_learning_only_from_rejected_answers_needs_the_kl(beta: float, corner: bool) -> None:
    """alpha 0: below beta 1 the coefficients of log pi add up to less than 0, and all probability goes to one arm."""
    rejected, reference = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    found = fit_pmpo(reference, rejected, reference, alpha=0.0, beta=beta, steps=300, lr=0.1)
    assert (found.max() > 0.99) == corner


def test_the_table_reports_where_there_is_an_optimum() -> None:
    """alpha 0: the coefficients add up to beta - 1. alpha 1: an optimum at every beta, which the policy reaches."""
    found = pmpo_table(groups=500, steps=100, lr=0.1, rounds=1, seed=0)
    assert found["0.0 0.0"]["sum"] == pytest.approx(-1.0)
    assert found["0.0 0.0"]["distance"] is None
    for beta in ("0.0", "1.0", "3.0"):
        run = found[f"1.0 {beta}"]
        assert run["distance"] < 1e-3
        assert run["rewards"][1] > run["rewards"][0]


def test_dro_reaches_its_optimum_from_the_data_of_another_policy() -> None:
    found = dro_table(steps=2000, lr=0.2, seed=0)
    for tau in TAUS:
        assert found[f"DRO {tau}"]["distance"] < 1e-6
        assert found[f"DRO {tau}"]["value error"] < 1e-6
    assert found["DRO 0.1"]["kl"] > found["DRO 1.0"]["kl"] > found["DRO 5.0"]["kl"]


def test_the_suite_writes_its_report(tmp_path: Path) -> None:
    """The smallest form: every cell runs, the report names its pictures, another run changes nothing."""
    suite = load("unpaired")
    least = {"start": {"demonstrations": 128, "steps": 40, "lr": 3e-3}, "stored": 8}

    def cells(quick: bool, seeds: int) -> Sequence[Cell]:
        return [
            cell if cell.name.startswith("table") else dataclasses.replace(cell, options={**cell.options, **least})
            for cell in suite.cells(quick, seeds)
        ]

    small = dataclasses.replace(suite, cells=cells)
    with one_thread():
        record = run_suite(small, tmp_path, quick=True, progress=False)
    assert json.loads((tmp_path / "results.json").read_text()) == record
    report = (tmp_path / "report.md").read_text()
    assert "supports no ordering" in report
    for plot in ("pmpo", "scalar"):
        assert f"]({plot}.svg)" in report
        assert (tmp_path / f"{plot}.png").stat().st_size > 1000
    assert run_suite(small, tmp_path, quick=True, progress=False) == record
