"""The suites `education` and `car_dealer` in their small form: they run, resume, and say what their figures carry."""

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
from polyturn.benchmarks.conversations import (
    car_dealer,
    education,
    pages as conversation_pages,
    training as conversations,
)
from polyturn.benchmarks.conversations.training import QUICK, Setting, with_model
from polyturn.benchmarks.running.suite import Cell, run_suite
from polyturn.envs.trajectory import Group

TINY: dict[str, Any] = {
    **QUICK, "demonstrations": 24, "sft_steps": 2, "hidden": 16, "layers": 1, "vocabulary": 300, "comparisons": 6,
    "compared": 2, "fit_steps": 1, "steps": 2, "groups": 2, "evaluate_every": 2, "starts": 2, "duels": 2, "turns": 2,
    "max_new_tokens": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for suite in (education, car_dealer):
        monkeypatch.setattr(suite, "QUICK", TINY)


def test_education_compares_all_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_suite(education.SUITE, tmp_path, quick=True, progress=False)
    duels = record["cells"][-1]["result"]
    assert duels["names"] == ["SFT", *education.NAMES]
    rate = np.array(duels["rate"])
    assert rate + rate.T == pytest.approx(np.ones_like(rate))
    text = (tmp_path / "report.md").read_text()
    assert text.count("| open") + text.count("| above") + text.count("| below") >= len(education.LINKS)
    for name in education.NAMES:
        assert f"**{name}**" in text
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    monkeypatch.setattr(conversations, "train", lambda *_, **__: pytest.fail("trained again what was done"))
    assert run_suite(education.SUITE, tmp_path, quick=True, progress=False) == record


def test_an_order_is_claimed_only_where_its_interval_carries_it() -> None:
    """Rates 56, 57 and 58 with half widths 6: over seeds 7 +- 2.5 (t 4.303 x 1 / sqrt 3), over starts 7 +- 3.5."""
    duels = [
        {"names": ["a", "b"], "rate": [[0.5, r], [1 - r, 0.5]], "half": [[0, 0.06], [0.06, 0]]}
        for r in (0.56, 0.57, 0.58)
    ]
    assert education._link(duels, "a", "b") == ["a", "b", "7.0 ± 2.5", "above", "7.0 ± 3.5", "above"]
    assert education._link(duels, "b", "a")[3::2] == ["below", "below"]
    assert education._link(duels[:1], "a", "b")[3] == "open"


def test_car_dealer_pays_what_was_agreed(tmp_path: Path) -> None:
    record = run_suite(car_dealer.SUITE, tmp_path, quick=True, progress=False)
    sales = record["cells"][-1]["result"]
    assert list(sales) == ["fits", "SFT", *car_dealer.NAMES]
    assert set(sales["fits"]) == {"PreferenceModel-whole", "RewardModel-whole"}
    assert all(0 <= sales[name]["reward"] <= 1 and sales[name]["episodes"] == 4 for name in ["SFT", *car_dealer.NAMES])
    assert "# car_dealer" in (tmp_path / "report.md").read_text()


def test_preferences_for_sales_hold_no_prices() -> None:
    groups = collect(ScriptedSeller(), car_dealer.TASK.env, groups=5, group_size=4, progress=False)
    for group in groups:
        found = car_dealer.DearerSale()(group)
        assert found.scores is None
        paid = np.array([member.total_reward for member in group])
        assert found.matrix == pytest.approx(0.5 + 0.5 * np.sign(paid[:, None] - paid[None]))


def test_a_given_model_is_moved_by_small_steps() -> None:
    options = asdict(Setting())
    assert with_model(Setting(), options) == Setting()
    given = with_model(Setting(), {**options, "model": "my/model"})
    assert (given.lr, given.sft_lr, given.max_tokens) == (1e-6, 2e-5, 4096)


def test_a_study_starts_from_a_given_model(tmp_path: Path) -> None:
    """As with --model: its own tokenizer and size, imitating first, then improved and saved like the small one."""
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
    shown = conversation_pages.conversations_shown({"x": [[["hi", "```\n# not a heading"]]]}, ("S", "T"))
    assert "".join(shown).count("```") == 2


@pytest.mark.parametrize("habit", ["asks", "listens"])
def test_dealers_who_ask_and_listen_earn_more_together(habit: str) -> None:
    """Over 300 buyers; either alone is worth less, so the mixture has something better in it to find."""
    best = SellingHabits(asks=1.0, listens=1.0, shoots_high=0.0, takes=0.0)
    without = replace(best, **{habit: 0.0})
    earned = [mean_reward(ScriptedSeller(habits)) for habits in (best, without)]
    assert earned[0] > earned[1] + 0.02


def mean_reward(agent: Any) -> float:
    groups: list[Group] = collect(agent, car_dealer.TASK.env, groups=300, seed=5, progress=False)
    return float(np.mean([group[0].total_reward for group in groups]))


def test_scripted_dealers_earn_more_than_one_who_says_nothing() -> None:
    assert mean_reward(ScriptedSeller()) > 0.15
    assert mean_reward(ScriptedAgent(["Hello."] * 12)) == 0.0
    assert json.dumps(asdict(SellingHabits()))
