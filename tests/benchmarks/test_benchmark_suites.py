"""The exact suites in their quick form: they write their files, and exact figures have their known shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.benchmarks.ipo_vs_dpo import DATA, train
from polyturn.benchmarks.nash import BETAS, MEASURES, TAUS
from polyturn.benchmarks.running.reporting import (
    Comparison,
    compare,
    compare_all,
    fall_from_peak,
    paired_p,
    plus_minus,
)
from polyturn.benchmarks.running.suite import load, run_suite

PLOTS = {"gpo_frontier": "frontier", "ipo_vs_dpo": "curves", "nash": "nash"}


def quick(name: str, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by the cells' names, after checking that the files are there and the report names the figure."""
    record = run_suite(load(name), out, quick=True, progress=False)
    assert json.loads((out / "results.json").read_text()) == record
    text = (out / "report.md").read_text()
    assert f"]({PLOTS[name]}.svg)" in text
    assert (out / f"{PLOTS[name]}.png").stat().st_size > 1000
    assert (out / f"{PLOTS[name]}.svg").stat().st_size > 1000
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in record["cells"]:
        found.setdefault(cell["name"], []).append(cell["result"])
    return found


def test_ipo_vs_dpo_quick(tmp_path: Path) -> None:
    """Without noise: a pair seen in both orders and c beaten by a at tau 2 has margins 0 and 1/4, by symmetry
    pi(c) = 1 / (1 + 2 e^{1/4}) = 0.280 for IPO; 1,000 noisy steps come within 0.03. DPO has left it below half."""
    policies = np.array(quick("ipo_vs_dpo", tmp_path)["three answers"][0]["policies"])
    third = list(DATA).index("never preferred")
    assert policies[-1, third, 0, -1, 2] == pytest.approx(1 / (1 + 2 * np.exp(0.25)), abs=0.03)
    assert policies[-1, third, 1, -1, 2] < 0.14
    assert policies[0] == pytest.approx(1 / 3, abs=1e-5)


def test_ipo_reaches_its_margin_and_dpo_passes_any() -> None:
    """On a>b, b>c, a>c least squares gives theta = (1, 0, -1) * (2/3) / (2 tau): at tau 1, pi(a) = .448."""
    policies = train([1.0], steps=3000, batch=9, lr=0.01, seed=1, every=100)
    order = list(DATA).index("order")
    exact = np.exp(np.array([1, 0, -1]) / 3) / np.exp(np.array([1, 0, -1]) / 3).sum()
    assert policies[-10:, order, 0, 0].mean(axis=0) == pytest.approx(exact, abs=0.01)
    assert policies[-1, order, 1, 0, 0] > 0.97


def test_nash_quick(tmp_path: Path) -> None:
    """Bounds hold, the last iterate is near the equilibrium, and the best response to the reference is exploited."""
    found = quick("nash", tmp_path)
    for kind, methods in (("matrix", ("Nash-MD",)), ("multi-turn", ("MTPO", "MTPO-tau"))):
        for tau in TAUS:
            for method in methods:
                run = found[kind][0][str(tau)][method]
                assert run["of_bound"] <= 1.0
                assert run["kl"][-1] < 1e-2
    (sweep,) = found["mixture"]
    assert all(len(sweep[measure]) == len(BETAS) for measure in MEASURES)
    equilibrium, response = sweep["fixed points"]
    assert abs(equilibrium) < 1e-9 < response


def test_gpo_frontier_quick(tmp_path: Path) -> None:
    """No policy beats the exact frontier at its own KL; a smaller beta goes further."""
    (found,) = quick("gpo_frontier", tmp_path)["table"]
    exact = np.array(found["exact"])
    for curve in np.array(found["curves"]):
        inside = curve[:, 0] > exact[0, 0]
        assert np.all(curve[inside, 1] <= np.interp(curve[inside, 0], exact[:, 0], exact[:, 1]) + 1e-3)
        assert curve[0, 0] > 3 * curve[-1, 0] > 0
        assert curve[0, 1] > 0.55


def test_orderings_are_claimed_only_where_the_interval_excludes_zero() -> None:
    """Differences 1, 2, 3: 2 ± 2.484 holds 0; differences 2, 2.1, 1.9: mean 2 ± 0.248 does not."""
    assert "are not distinguishable" in compare("a", [1.0, 2.0, 3.0], "b", [0.0, 0.0, 0.0])
    assert compare("a", [2.0, 2.1, 1.9], "b", [0.0, 0.0, 0.0]).startswith("a is above b: +2.000 [+1.752, +2.248]")
    assert compare("a", [0.0, 0.0, 0.0], "b", [2.0, 2.1, 1.9]).startswith("a is below b")
    assert "supports no ordering" in compare("a", [1.0], "b", [0.0])
    assert plus_minus([1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert plus_minus([1.0]) == "1.000"


def test_comparisons_that_are_read_together_are_corrected_for_their_number() -> None:
    """Differences 1 to 6 of 6 runs: t = 3.5 / (1.8708 / sqrt 6) = 4.583, two-sided p .00593. Alone they are told apart
    at 5%, and as one of ten comparisons, of which nine say nothing, they are not (Holm: .00593 > .05 / 10)."""
    told = Comparison("a", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b", [0.0] * 6)
    silent = Comparison("c", [1.0, -1.0, 2.0, -2.0, 3.0, -3.0], "d", [0.0] * 6)
    assert paired_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(0.00593, abs=2e-5)
    assert compare_all([told])[0].startswith("a is above b: +3.500")
    sentences = compare_all([told, *[silent] * 9])
    assert sentences[0].startswith("a and b are not told apart once all 10 are counted: +3.500")
    assert set(sentences[1:]) == {compare("c", silent.a, "d", silent.b)}
    assert [paired_p([0.0, 0.0]), paired_p([2.0, 2.0])] == [1.0, 0.0]
    assert np.isnan(paired_p([1.0]))


def test_the_peak_of_a_run_is_chosen_by_the_others() -> None:
    """Sums of the other two: .9, 1.3, 1.1 and .3, 1.5, 1 and 1, 1.6, .9, so all are read at moment 1. Two runs that are
    each other's mirror are each read where the other is highest, so neither falls."""
    runs = [[0.2, 0.9, 0.4], [0.8, 0.7, 0.5], [0.1, 0.6, 0.6]]
    assert fall_from_peak(runs) == pytest.approx([0.5, 0.2, 0.0])
    assert fall_from_peak([[0.0, 1.0], [1.0, 0.0]]) == pytest.approx([-1.0, 0.0])
    with pytest.raises(ValueError, match="at least two runs"):
        fall_from_peak([[1.0, 0.0]])
