"""The page of the eleven papers: its rule, and that what is committed is what the committed cells make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polyturn.benchmarks.papers.claims import Claim, verdicts
from polyturn.benchmarks.papers.page import PAPERS, Judged, judged, page, with_table

ROOT = Path(__file__).resolve().parents[2]


def claim(values: list[float], *, same: float | None = None) -> Claim:
    return Claim("a above b", "nash", values, "points", same=same)


def test_the_rule_of_the_verdicts() -> None:
    """Differences 1 to 6: p .0059, which Holm allows among two; 1, 2, -1.5 is above 0 and open; its negative is below.
    Alike: 0.1, 0.2, 0.3 is .2 +- .248, within .5, not within .3, and its mean not within .1."""
    told, open_, below = claim([1, 2, 3, 4, 5, 6]), claim([1, 2, -1.5]), claim([-1, -2, 1.5])
    assert verdicts([told, open_, below]) == ["reproduced", "in direction", "not"]
    # The same claim among ten is not told apart any more.
    assert verdicts([told, *[open_] * 9])[0] == "in direction"
    alike = [claim([0.1, 0.2, 0.3], same=each) for each in (0.5, 0.3, 0.1)]
    assert verdicts(alike) == ["reproduced", "in direction", "not"]
    assert verdicts([claim([0.0, 0.0, 0.0])]) == ["not"]


@pytest.fixture(scope="module")
def found() -> Judged:
    return judged(ROOT / "benchmarks" / "results")


def test_the_committed_page_is_that_of_the_committed_cells(found: Judged) -> None:
    """Byte for byte, and README's table; `python -m polyturn.benchmarks.papers.page .` writes both."""
    assert page(found, ROOT / "benchmarks" / "results") == (ROOT / "docs" / "papers.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_table(readme, found) == readme


def test_every_paper_has_claims_a_picture_and_reasons(found: Judged) -> None:
    assert len({paper.arxiv for paper, _ in found}) == len(PAPERS) == 11
    for paper, each in found:
        assert (ROOT / "docs" / "pictures" / "papers" / f"{paper.key}.svg").is_file()
        for one, verdict in zip(paper.claims, each, strict=True):
            assert len(one.values) > 1, one.text
            assert verdict != "not" or one.reason, f"{paper.key}: {one.text} needs a reason"
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)


def test_a_readme_without_the_marks_is_refused(found: Judged) -> None:
    with pytest.raises(ValueError, match="expected the marks"):
        with_table("# polyturn\n", found)
