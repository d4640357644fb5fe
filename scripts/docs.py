"""Builds the documentation's site: python scripts/docs.py build | serve.

Pages are the repository's own Markdown, at the same paths, so that a link works in both places. The API reference is
made from the wheel: tools that read sources cannot see that `envs/` is installed as `polyturn.envs`. A broken link, or
a public name without a page, stops the build.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / ".cache" / "docs"
FLOORS = ("sandbox", "envs", "agents", "algorithms")
COPIED = ("docs", "benchmarks/results", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")
API_TEXT = """# API of `{package}`

{summary} Every public name, imported as `from {package} import NAME`.

"""


def public_names(package: Path) -> list[tuple[str, str]]:
    """The public names of a floor and the modules that define them, from its `__init__.pyi`."""
    names = []
    for node in ast.parse((package / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names += [(alias.asname or alias.name, node.module or "") for alias in node.names]
    return sorted(names, key=lambda each: each[0].lower())


def gather(pages: Path) -> None:
    """Copies the Markdown pages, and writes the API reference and the start page."""
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, pages / name, ignore=shutil.ignore_patterns("work", "*.json"))
        else:
            shutil.copy(source, pages / name)
    shutil.copy(ROOT / "README.md", pages / "index.md")
    (pages / "api").mkdir()
    for floor in FLOORS:
        package = f"polyturn.{floor}"
        summary = (ast.get_docstring(ast.parse((ROOT / floor / "__init__.py").read_text())) or "").partition("\n")[0]
        text = API_TEXT.format(package=package, summary=summary)
        for name, module in public_names(ROOT / floor):
            text += f"::: {'.'.join(part for part in (package, module, name) if part)}\n\n"
        (pages / "api" / f"{floor}.md").write_text(text)


def install(package: Path) -> None:
    """Puts the package where the API reference is read from, as a wheel installs it."""
    wheels = BUILT / "wheel"
    for folder in (package, wheels):
        shutil.rmtree(folder, ignore_errors=True)
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": ROOT}
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(wheels)]
    subprocess.run(command, **quiet)  # type: ignore[call-overload]
    (wheel,) = wheels.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(package), str(wheel)]
    subprocess.run(command, **quiet)  # type: ignore[call-overload]


def main() -> int:
    """Gathers, then builds strictly or serves."""
    if len(sys.argv) != 2 or sys.argv[1] not in ("build", "serve"):
        print(f"docs: expected build or serve, got {' '.join(sys.argv[1:]) or 'nothing'}", file=sys.stderr)
        return 2
    install(BUILT / "package")
    gather(BUILT / "pages")
    more = ["--strict"] if sys.argv[1] == "build" else ["--dev-addr", "127.0.0.1:8000"]
    return subprocess.run([sys.executable, "-m", "mkdocs", sys.argv[1], *more], cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
