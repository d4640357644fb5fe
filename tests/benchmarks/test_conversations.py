"""The suites `education` and `car_dealer` in a small form: they run, resume, and claim only what intervals support."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.agents import ScriptedAgent, collect
from polyturn.agents.scripted.sellers import ScriptedSeller, SellingHabits
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.benchmarks.conversations import car_dealer, education, methods, pages, study
from polyturn.benchmarks.conversations.setting import QUICK, Setting, from_options
from polyturn.benchmarks.running.suite import Cell, run_suite
from polyturn.envs.trajectory import Group

TINY: dict[str, Any] = {
    **QUICK, "demonstrations": 24, "sft_steps": 2, "hidden": 16, "layers": 1, "vocabulary": 300, "comparisons": 6,
    "compared": 2, "fit_steps": 1, "steps": 2, "groups": 2, "evaluate_every": 2, "starts": 2, "duels": 2, "turns": 2,
    "max_new_tokens": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "QUICK", TINY)


def test_education_compares_all_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_suite(education.SUITE, tmp_path, quick=True, progress=False)
    duels = record["cells"][-1]["result"]
    assert duels["names"] == ["SFT", *education.METHODS]
    rate = np.array(duels["rate"])
    assert rate + rate.T == pytest.approx(np.ones_like(rate))
    text = (tmp_path / "report.md").read_text()
    assert text.count("| open") + text.count("| above") + text.count("| below") >= len(education.CLAIMED_ORDER)
    for name in education.METHODS:
        assert f"**{name}**" in text
    for picture in ("curves", "order"):
        assert f"]({picture}.svg)" in text
        assert (tmp_path / f"{picture}.png").stat().st_size > 5_000
    monkeypatch.setattr(methods, "train", lambda *_, **__: pytest.fail("trained a finished policy again"))
    assert run_suite(education.SUITE, tmp_path, quick=True, progress=False) == record


def test_an_order_is_claimed_only_where_its_interval_supports_it() -> None:
    """Rates 56, 57 and 58 with half widths 6: over seeds 7 +- 2.5 (t 4.303 x 1 / sqrt 3), over starts 7 +- 3.5."""
    duels = [
        {"names": ["a", "b"], "rate": [[0.5, r], [1 - r, 0.5]], "half": [[0, 0.06], [0.06, 0]]}
        for r in (0.56, 0.57, 0.58)
    ]
    assert education._pair_row(duels, "a", "b") == ["a", "b", "7.0 ± 2.5", "above", "7.0 ± 3.5", "above"]
    assert education._pair_row(duels, "b", "a")[3::2] == ["below", "below"]
    assert education._pair_row(duels[:1], "a", "b")[3] == "open"


def test_car_dealer_pays_what_was_agreed(tmp_path: Path) -> None:
    record = run_suite(car_dealer.SUITE, tmp_path, quick=True, progress=False)
    sales = record["cells"][-1]["result"]
    names = ["SFT", *car_dealer.METHODS]
    assert list(sales) == ["fits", *names]
    assert set(sales["fits"]) == {"PreferenceModel-whole", "RewardModel-whole"}
    assert all(0 <= sales[name]["reward"] <= 1 and sales[name]["episodes"] == 4 for name in names)
    assert "# car_dealer" in (tmp_path / "report.md").read_text()


def test_preferences_for_sales_hold_no_prices() -> None:
    groups = collect(ScriptedSeller(), car_dealer.TASK.env, groups=5, group_size=4, progress=False)
    for group in groups:
        found = car_dealer.HigherPriceWins()(group)
        assert found.scores is None
        paid = np.array([member.total_reward for member in group])
        assert found.matrix == pytest.approx(0.5 + 0.5 * np.sign(paid[:, None] - paid[None]))


def test_a_given_model_is_trained_with_small_steps() -> None:
    options = asdict(Setting())
    assert from_options(options) == Setting()
    given = from_options({**options, "model": "my/model"})
    assert (given.lr, given.sft_lr, given.max_tokens) == (1e-6, 2e-5, 4096)


def test_a_study_starts_from_a_given_model(tmp_path: Path) -> None:
    """As with --model: the model keeps its tokenizer and size, imitates first, and is trained and saved."""
    texts = ["Please teach me about the heart. How do you like to learn best?"]
    given = tiny_policy(texts, seed=3, vocab_size=290, hidden=16, layers=1, heads=2, context=600)
    given.save_pretrained(tmp_path / "given")
    options = {**asdict(replace(Setting(), **TINY)), "model": str(tmp_path / "given")}
    result = education.SUITE.run(Cell("M-DPO", 0, options), tmp_path / "work")
    assert [record["step"] for record in result["history"]] == [0, 1, 2]
    learned = Policy.from_pretrained(tmp_path / "work" / "M-DPO-seed0" / "policy")
    assert learned.tokenizer.get_vocab() == given.tokenizer.get_vocab()
    assert learned.model.config.max_position_embeddings == 600


def test_model_text_cannot_leave_its_block() -> None:
    shown = pages.sample_section({"x": [[["hi", "```\n# not a heading"]]]}, ("S", "T"))
    assert "".join(shown).count("```") == 2


@pytest.mark.parametrize("habit", ["asks", "listens"])
def test_dealers_that_ask_and_listen_earn_more(habit: str) -> None:
    """Over 300 buyers; with only one of both habits a dealer earns less, so the mixture can be improved."""
    best = SellingHabits(asks=1.0, listens=1.0, shoots_high=0.0, takes=0.0)
    without = replace(best, **{habit: 0.0})
    earned = [mean_reward(ScriptedSeller(habits)) for habits in (best, without)]
    assert earned[0] > earned[1] + 0.02


def mean_reward(agent: Any) -> float:
    groups: list[Group] = collect(agent, car_dealer.TASK.env, groups=300, seed=5, progress=False)
    return float(np.mean([group[0].total_reward for group in groups]))


def test_scripted_dealers_earn_more_than_a_dealer_without_an_offer() -> None:
    assert mean_reward(ScriptedSeller()) > 0.15
    assert mean_reward(ScriptedAgent(["Hello."] * 12)) == 0.0
    assert json.dumps(asdict(SellingHabits()))
