"""Draws the rooms of the package from its imports, into docs/ARCHITECTURE.md between its two markers.

python scripts/architecture.py            write
python scripts/architecture.py --check    exit with 1 if the page is out of date
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BEGIN, END = "<!-- rooms: made by scripts/architecture.py -->", "<!-- end of rooms -->"
FLOORS = ("benchmarks", "algorithms", "agents", "envs", "sandbox")


def modules(floor: str) -> Iterator[tuple[str, Path]]:
    """Every module of a floor: its dotted name and its file."""
    for path in sorted((ROOT / floor).rglob("*.py")):
        inside = path.relative_to(ROOT / floor).with_suffix("")
        if "results" in inside.parts or "__pycache__" in inside.parts or inside.name == "__init__":
            continue
        yield ".".join(("polyturn", floor, *inside.parts)), path


def room_of(module: str) -> str:
    """The room a module stands in: its folder, or the module itself on top of the floor."""
    _, floor, *inside = module.split(".")
    return inside[0] if inside else floor


def arrows(floor: str) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Lines of code of every room of a floor, and which rooms of the same floor each imports."""
    lines: dict[str, int] = defaultdict(int)
    found: dict[str, set[str]] = defaultdict(set)
    known = {name for name, _ in modules(floor)}
    prefix = f"polyturn.{floor}."
    for name, path in modules(floor):
        text = path.read_text("utf-8")
        room = room_of(name)
        lines[room] += text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.ImportFrom) and node.module and node.level == 0):
                continue
            for target in {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}:
                if target in known and target.startswith(prefix) and room_of(target) != room:
                    found[room].add(room_of(target))
    return dict(lines), dict(found)


def drawing() -> str:
    """The drawing of every floor as Mermaid, with a line that counts rooms and arrows."""
    parts = []
    for floor in FLOORS:
        lines, found = arrows(floor)
        folders = sum((ROOT / floor / room).is_dir() for room in lines)
        count = sum(map(len, found.values()))
        parts += [
            f"### {floor}/",
            "",
            f"{folders} folders and {len(lines) - folders} files on top, {count} arrows between them.",
            "",
            "```mermaid",
            "graph TD",
            *(
                f"  {room}[{room}{'/' if (ROOT / floor / room).is_dir() else ''} {size}]"
                for room, size in sorted(lines.items())
            ),
            *(f"  {room} --> {target}" for room, targets in sorted(found.items()) for target in sorted(targets)),
            "```",
            "",
        ]
    return "\n".join(parts)


def main() -> int:
    page = PAGE.read_text("utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = f"{head}{BEGIN}\n\n{drawing()}\n{END}{tail}"
    if "--check" in sys.argv:
        return int(made != page)
    PAGE.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
