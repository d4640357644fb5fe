"""Writes docs/papers.md, its pictures, and README's table: `python -m polyturn.benchmarks.papers.page ROOT`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from polyturn.benchmarks.papers.cells import Cells
from polyturn.benchmarks.papers.claims import Claim, Paper, Verdict, verdicts
from polyturn.benchmarks.papers.first_six import agents, conversations, coverage, distillation, dro, pmpo
from polyturn.benchmarks.papers.last_five import gpo, ipo, nash, oaif, online_ipo
from polyturn.benchmarks.running.plots import BLUE, GREY, VERMILLION, Dot, picture
from polyturn.benchmarks.running.rendering import saved_record
from polyturn.benchmarks.running.suite import table

PAPERS = (coverage, pmpo, agents, distillation, dro, conversations, online_ipo, gpo, oaif, nash, ipo)
BEGIN, END = "<!-- papers: made by polyturn.benchmarks.papers.page -->", "<!-- end of papers -->"
COLOURS: dict[Verdict, str] = {"reproduced": BLUE, "in direction": GREY, "not": VERMILLION}

Judged = Sequence[tuple[Paper, Sequence[Verdict]]]


def judged(results: Path) -> Judged:
    """Every paper with the verdicts of its claims."""
    cells = Cells(results)
    papers = [paper(cells) for paper in PAPERS]
    return [(paper, verdicts(paper.claims)) for paper in papers]


def page(found: Judged, results: Path) -> str:
    """The text of docs/papers.md."""
    text = [
        "# The eleven papers\n",
        "Every claim as a number from the committed results that should be above 0 (or near it, where two things are "
        "claimed to be alike), one value a seed, with the 95% Student interval over seeds. One rule gives the verdict: "
        '"reproduced" where the mean is on the claimed side and told apart from 0 at 5% for all claims of its paper '
        "together (Holm), or, where things are claimed to be alike, where the interval lies within the stated "
        "distance; "
        '"in direction" where only the mean is on the claimed side; "not" where it is on the other. A verdict speaks '
        "of "
        "our setting, which is small; each section says how far it is from the paper's. This page is written by "
        "`python -m polyturn.benchmarks.papers.page .` from the files in benchmarks/results.\n",
        overview(found, "../benchmarks/results", "#"),
        "",
        *_ages(found, results),
    ]
    for paper, each in found:
        text += [
            f"\n## {paper.title}\n",
            f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}). {paper.setting}\n",
            table(
                ["claim", "suite", "figure", "verdict"],
                [
                    [
                        claim.text,
                        f"[{claim.suite}](../benchmarks/results/{claim.suite}/README.md)",
                        claim.shown,
                        verdict,
                    ]
                    for claim, verdict in zip(paper.claims, each, strict=True)
                ],
            ),
            "",
            *_reasons(paper.claims, each),
            f"\nOn a GPU (not run; cost computed): {paper.gpu}\n",
            f"![{paper.title}: claims as differences](pictures/papers/{paper.key}.svg)",
        ]
    return "\n".join(text) + "\n"


def overview(found: Judged, results: str, sections: str) -> str:
    """One row a paper: how many claims have which verdict, and the commands.

    Args:
        found: The papers.
        results: Where the folders of results are, seen from the page.
        sections: What stands before the name of a section in a link.
    """
    rows = []
    for paper, each in found:
        count = Counter(each)
        suites = sorted({claim.suite for claim in paper.claims})
        link = f"[{paper.title}]({sections}{paper.title.lower().replace(',', '').replace(' ', '-')})"
        commands = ", ".join(f"[{suite}]({results}/{suite}/README.md)" for suite in suites)
        rows.append([link, paper.arxiv, *(count[verdict] or "" for verdict in COLOURS), commands])
    return table(["paper", "arXiv", *COLOURS, "`polyturn bench`"], rows)


def _reasons(claims: Sequence[Claim], each: Sequence[Verdict]) -> list[str]:
    """What is known about why, once for each reason."""
    by_reason: dict[str, list[str]] = {}
    for claim, verdict in zip(claims, each, strict=True):
        if verdict != "reproduced" and claim.reason:
            by_reason.setdefault(claim.reason, []).append(claim.text)
    return [f"- {'; '.join(texts)}: {reason}" for reason, texts in by_reason.items()]


def _ages(found: Judged, results: Path) -> list[str]:
    """Which figures are of the present code; a record of it states its seconds."""
    suites = sorted({claim.suite for paper, _ in found for claim in paper.claims})
    records = {suite: saved_record(suite, results / suite) for suite in suites}
    now = [f"{suite} ({record['cpu_s']:.0f} s)" for suite, record in records.items() if record.get("cpu_s") is not None]
    before = [suite for suite, record in records.items() if record.get("cpu_s") is None]
    lines = [f"Run whole on the present code, with the seconds of processor time: {', '.join(now)}.\n"]
    if before:
        lines.append(
            f"Figures of EARLIER code, whose starts had other seeds: {', '.join(before)}. `polyturn bench NAME` runs "
            f"them again.\n"
        )
    return lines


def draw(found: Judged, folder: Path) -> None:
    """One picture a paper: its claims as dots, in the colour of the verdict; values in units of their own spread."""
    folder.mkdir(parents=True, exist_ok=True)
    for paper, each in found:
        units = list(dict.fromkeys(claim.unit for claim in paper.claims))
        most = max(sum(claim.unit == unit for claim in paper.claims) for unit in units)
        note = "Dot: mean. Bar: 95% interval. Ticks: single seeds. Blue: reproduced; grey: in direction; red: not."
        with picture(
            folder / paper.key, len(units), 1, width=8.0, height=0.6 + 0.24 * most, note=note, share_y=False
        ) as grid:
            for unit, (panel,) in zip(units, grid, strict=True):
                mine = [(c, v) for c, v in zip(paper.claims, each, strict=True) if c.unit == unit]
                dots = [Dot(c.text, [c.scale * x for x in c.values], COLOURS[v]) for c, v in mine]
                panel.dots(dots, zero=0)
                panel.words(x=unit)
        (folder / f"{paper.key}.png").unlink()  # the page shows the other form


def write(root: Path) -> None:
    """Writes the page, its pictures, and the table in README."""
    results = root / "benchmarks" / "results"
    found = judged(results)
    (root / "docs" / "papers.md").write_text(page(found, results), "utf-8")
    draw(found, root / "docs" / "pictures" / "papers")
    readme = root / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8"), found), "utf-8")


def with_table(text: str, found: Judged) -> str:
    """README with the table between its marks.

    Raises:
        ValueError: The marks are missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README: expected the marks {BEGIN!r} and {END!r}")
    before, _, rest = text.partition(BEGIN)
    made = overview(found, "benchmarks/results", "docs/papers.md#")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
