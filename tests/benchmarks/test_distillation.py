"""The suite `distillation` in its quick form, and the parts of its figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from polyturn.algorithms.batch import collate
from polyturn.algorithms.protocols.warmup import demonstrations
from polyturn.benchmarks import distillation
from polyturn.benchmarks.distillation import LATER, METHODS, WIDTHS, gemma, score, scripted_conversations, texts_of
from polyturn.benchmarks.running.suite import run_suite


def test_students_and_teacher_are_gemma_2_over_one_tokenizer() -> None:
    """Soft caps of 30 and 50 (arXiv 2408.00118), a local layer before each global one, the same tokens for all."""
    texts = texts_of(scripted_conversations(4, seed=0, turns=2))
    small, large = gemma(texts, width=16, layers=2, seed=0), gemma(texts, width=96, layers=2, seed=1)
    config = large.model.config
    assert (config.final_logit_softcapping, config.attn_logit_softcapping) == (30.0, 50.0)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config._attn_implementation == "eager"
    assert small.tokenizer.get_vocab() == large.tokenizer.get_vocab()


def test_scores_are_means_over_the_agents_tokens() -> None:
    shown = scripted_conversations(3, seed=0, turns=2)
    policy = gemma(texts_of(shown), width=16, layers=2, seed=0)
    other = gemma(texts_of(shown), width=16, layers=2, seed=1)
    batch = collate(demonstrations(policy, shown))
    where = batch.turn_ids >= 0
    nll = -float(policy.logps(batch.ids, batch.mask, where).detach().sum()) / int(where.sum())
    same, apart = score(policy, policy, shown), score(policy, other, shown)
    assert same["nll"] == apart["nll"] == pytest.approx(nll, rel=1e-5)
    assert abs(same["teacher_first"]) < 1e-6
    assert abs(same["student_first"]) < 1e-6
    assert apart["teacher_first"] > 0.01
    assert apart["student_first"] > 0.01


def test_the_quick_form_runs_and_its_report_claims_no_ordering_with_one_seed(tmp_path: Path) -> None:
    record = run_suite(distillation.SUITE, tmp_path, quick=True, progress=False)
    (cell,) = record["cells"]
    result = cell["result"]
    assert set(result) == {
        "teacher",
        *(f"{name} {width}" for name in METHODS for width in WIDTHS),
        *(f"later: {name}" for name in ("the start", *LATER)),
    }
    assert all(math.isfinite(result[f"{name} {width}"]["nll"]) for name in METHODS for width in WIDTHS)
    page = (tmp_path / "report.md").read_text()
    assert "one seed, which supports no ordering" in page
    assert (tmp_path / "perplexity.svg").exists()
