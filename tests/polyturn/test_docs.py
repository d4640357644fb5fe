"""The documentation's sources: every public name has its place, every picture and link its file."""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import polyturn

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks" / "results").glob("*/*.md")]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_where_it_is_defined(docs: ModuleType, tmp_path: Path) -> None:
    docs.gather(tmp_path / "pages")
    for floor in docs.FLOORS:
        package = import_module(f"polyturn.{floor}")
        listed = re.findall(r"^::: (\S+)$", (tmp_path / "pages" / "api" / f"{floor}.md").read_text(), re.MULTILINE)
        assert sorted(name.rpartition(".")[2] for name in listed) == sorted(package.__all__)
        for place in listed:
            module, _, name = place.rpartition(".")
            assert getattr(import_module(module), name, None) is getattr(package, name), place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {polyturn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
