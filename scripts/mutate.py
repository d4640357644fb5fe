"""Mutation testing: changes files a little, one change at a time, and counts the changes that a test notices.

    make mutate FILES="algorithms/losses.py"
    make mutate FILES="algorithms/pairing.py:tests/algorithms/methods/test_examples.py"

Without test files after the colon, every test file that imports the module, or a public name of it, is run. mutmut
(extra `mutation`) makes the changes; it expects a package in the working directory, so the floors are copied to
`.cache/mutation` in the layout that an installation has. Class attributes, and so the defaults of a dataclass's fields,
and decorated functions are not changed.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".cache" / os.environ.get("MUTATION_FOLDER", "mutation")
# The wording of a message is not behaviour: lines that begin with a string, calls that raise or check, and which line a
# warning points at. Nor is the name of the encoding that is the platform's own.
MESSAGES = [
    r'^\s*[rfb]*"', r"\braise \w+\(", r"\bcheck_(range|count|choice|pairs)\(", r"\bassert ", r"\bstacklevel=",
    r'"utf-8"',
]  # fmt: skip
# Exit codes of mutmut: a failed test, a time limit, a crash.
NOTICED = {1, 3, 24, 36, 152, 255, -24, -11, -9}


def module_of(file: str) -> str:
    """The dotted name that a source file has once installed."""
    return "polyturn." + file.removesuffix(".py").removeprefix("polyturn/").replace("/", ".")


def public_names() -> dict[str, str]:
    """`polyturn.floor.Name` -> the module that defines it, from the floors' lists of public names."""
    found = {}
    for stub in sorted(ROOT.glob("*/__init__.pyi")):
        floor = "polyturn" if stub.parent.name == "polyturn" else f"polyturn.{stub.parent.name}"
        for node in ast.parse(stub.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                found.update({f"{floor}.{alias.name}": f"{floor}.{node.module or alias.name}" for alias in node.names})
    return found


def importers(file: str) -> list[str]:
    """The test files that import the module of `file` or a public name of it."""
    name, public, found = module_of(file), public_names(), []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if name in imported | {public.get(each, each) for each in imported}:
            found.append(path.relative_to(ROOT).as_posix())
    return found


def lay_out(files: list[str], tests: list[str]) -> None:
    """Copies package and tests to `WORK` and writes mutmut's settings there."""
    shutil.rmtree(WORK, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / ".typing" / "polyturn", WORK / "polyturn", ignore=skip)
    shutil.copytree(ROOT / "tests", WORK / "tests", ignore=skip)
    # A method's parts are checked by their names, and mutmut adds one for every change.
    base = WORK / "polyturn" / "algorithms" / "methods" / "base.py"
    known, theirs = 'if not name.startswith("_")', 'if not name.startswith(("_", "x"))'
    text = base.read_text("utf-8")
    assert known in text
    base.write_text(text.replace(known, theirs), "utf-8")
    settings = {
        "source_paths": ["polyturn"],
        "only_mutate": [module_of(file).replace(".", "/") + ".py" for file in files],
        "do_not_mutate_patterns": MESSAGES,
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-q"],
        "pytest_add_cli_args_test_selection": tests,
    }
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (WORK / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{''.join(lines)}", "utf-8")


def report(file: str) -> None:
    """Prints the share of changes that were noticed, and every other change."""
    meta = WORK / "mutants" / (module_of(file).replace(".", "/") + ".py.meta")
    codes = json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
    noticed = sum(code in NOTICED for code in codes.values())
    for name in sorted(key for key, code in codes.items() if code not in NOTICED):
        shown = subprocess.run([program("mutmut"), "show", name], cwd=WORK, capture_output=True, text=True).stdout
        lines = [line for line in shown.splitlines() if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]
        print(name + ("" if codes[name] == 0 else " (no test reaches it)"), *lines, sep="\n    ")
    print(f"{file}: {noticed} of {len(codes)} changes noticed ({noticed / max(len(codes), 1):.1%})")


def program(name: str) -> str:
    """A program of the virtual environment that this script runs in."""
    return str(Path(sys.executable).parent / name)


def main(arguments: list[str]) -> int:
    """Runs mutmut on the given files and reports."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    files, tests = [], []
    for argument in arguments:
        file, _, named = argument.partition(":")
        if not (ROOT / file).is_file():
            print(f"mutate: expected a source file of the repository, got {file!r}", file=sys.stderr)
            return 2
        files.append(file)
        tests += named.split(",") if named else importers(file)
    lay_out(files, sorted(set(tests)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(WORK)}
    command = [program("mutmut"), "run", "--max-children", os.environ.get("WORKERS", "2")]
    with open(WORK / "mutmut.log", "wb") as log:
        code = subprocess.run(command, cwd=WORK, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        print(f"mutate: mutmut failed; the end of {WORK / 'mutmut.log'}:", file=sys.stderr)
        print((WORK / "mutmut.log").read_text("utf-8", "replace")[-3000:], file=sys.stderr)
        return code
    for file in files:
        report(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
