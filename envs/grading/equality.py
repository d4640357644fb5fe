"""Whether two answers, read into trees, are the same mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from polyturn.envs.grading.identity import identical
from polyturn.envs.grading.intervals import same_set, solution_set, subject
from polyturn.envs.grading.matrices import as_array
from polyturn.envs.grading.names import label
from polyturn.envs.grading.numbers import same_number
from polyturn.envs.grading.reading.tree import REAL_LINE, Node, contains, difference, joined, variables
from polyturn.envs.grading.reading.units import units_agree
from polyturn.envs.grading.values import Evaluator
from polyturn.envs.grading.work import OutOfWork, TooHard

_MAX_ELEMENTS = 64
_APPROXIMATE = 1e-2
_SAME_WORDS = {"dne": "does not exist"}
_NOTHING = frozenset({"no solution", "no solutions", "empty set", "the empty set"})
_ALL_REAL = frozenset({"all real numbers", "all reals", "all real", "real numbers", "all x", "the real numbers"})


def equal(answer: Node, gold: Node, evaluator: Evaluator) -> bool:
    """Whether an answer is the gold one; see `polyturn.envs.grading.grade.grade` for what counts as the same.

    What is beyond the budget of operations, or cannot be decided, is equal only if it is written the same way.
    """
    try:
        return answer == gold or _equal(answer, gold, evaluator)
    except (TooHard, RecursionError):
        return _shape(answer) == _shape(gold)


def _equal(answer: Node, gold: Node, ev: Evaluator) -> bool:
    if "unit" in (answer.kind, gold.kind) and "rel" not in (answer.kind, gold.kind):  # whose value may have a unit
        return units_agree(_unit(answer), _unit(gold)) and _equal(_bare(answer), _bare(gold), ev)
    about = subject(answer), subject(gold)
    if None not in about and about[0] != about[1]:
        return False
    answer, gold = _expand(answer, ev), _expand(gold, ev)
    kinds = {answer.kind, gold.kind}
    if "rel" in kinds:
        return _relations(answer, gold, ev)
    if "word" in kinds:
        return _words(answer, gold)
    if kinds & {"union", "without"}:
        verdict = same_set(answer, gold, ev)
        return verdict if verdict is not None else len(kinds) == 1 and _unordered(answer.parts, gold.parts, ev)
    if kinds & {"list", "set"}:
        return _collections(answer, gold, ev)
    if "ratio" in kinds:
        return _ratios(answer, gold, ev)
    if "based" in kinds:
        return len(kinds) == 1 and answer.name == gold.name
    if "builder" in kinds:
        return len(kinds) == 1 and _ordered(answer.parts, gold.parts, ev)
    answer, gold = as_array(answer), as_array(gold)
    if {answer.kind, gold.kind} & {"matrix", "tuple"}:
        return _arrays(answer, gold, ev)
    return _numbers(answer, gold, ev)


# Shapes


def _bare(node: Node) -> Node:
    return node.parts[0] if node.kind == "unit" else node


def _unit(node: Node) -> str:
    if node.kind == "neg":
        return _unit(node.parts[0])
    return node.name if node.kind == "unit" else "degree" if node.kind == "degrees" else ""


def _shape(node: Node) -> object:
    """The tree without the way its numbers were written: for what cannot be evaluated."""
    if node.kind == "num":
        return node.value
    return node.kind, node.name, tuple(_shape(part) for part in node.parts)


def _expand(node: Node, ev: Evaluator) -> Node:
    """Both values of a plus-minus; inequalities about one thing become intervals. A named value stays a relation."""
    if contains(node, "pm") and node.kind not in ("list", "set", "tuple", "rel"):
        return Node("list", (_signed(node, 1), _signed(node, -1)))
    if node.kind in ("list", "set") and any(contains(_bare(part), "pm") for part in node.parts):
        parts: list[Node] = []
        for part in node.parts:
            parts += [_signed(part, 1), _signed(part, -1)] if contains(part, "pm") else [part]
        return Node(node.kind, tuple(parts), node.name)
    if node.kind in ("rel", "list"):
        return solution_set(_excluded(node), ev) or node
    if node.kind == "word" and node.name in _ALL_REAL:
        return REAL_LINE
    if node.kind == "word" and node.name in _NOTHING:
        return Node("set")
    return node


def _signed(node: Node, sign: int) -> Node:
    parts = tuple(_signed(part, sign) for part in node.parts)
    if node.kind != "pm":
        return Node(node.kind, parts, node.name, node.value, node.places)
    last = parts[-1] if (sign > 0) == (node.name == "pm") else Node("neg", (parts[-1],))
    return last if len(parts) == 1 else Node("add", (parts[0], last))


def _excluded(node: Node) -> Node:
    """`x != 1, 2` and `x != \\pm 1` with a relation for each; `x \\in \\mathbb{R}` says nothing of a number."""
    if node.kind == "list":
        parts = [p for p in node.parts if not (p.kind == "rel" and p.name == "in" and p.parts[1] == REAL_LINE)]
        if len(parts) < len(node.parts):
            return _excluded(joined("list", parts) if len(parts) < 2 else Node("list", tuple(parts), node.name))
    if node.kind == "rel" and node.name == "!=" and contains(node, "pm"):
        return Node("list", (_signed(node, 1), _signed(node, -1)), ",")
    if node.kind != "list" or node.parts[0].kind != "rel" or node.parts[0].name != "!=":
        return node
    named = node.parts[0].parts[0]
    parts = [part if part.kind == "rel" else Node("rel", (named, part), "!=") for part in node.parts]
    return Node("list", tuple(parts), node.name)


# Words and names


def _words(answer: Node, gold: Node) -> bool:
    """The same word; or a product of letters against the letters written together: `s t` and `st`."""
    ours, theirs = (_word(node) for node in (answer, gold))
    if ours is None or theirs is None:
        return False
    product = "mul" in (answer.kind, gold.kind) and len(ours) == 2
    return ours == theirs or (product and ours == theirs[::-1])


def _word(node: Node) -> str | None:
    if node.kind == "word":
        return _SAME_WORDS.get(node.name, node.name)
    if node.kind == "mul" and all(part.kind in ("variable", "const") and len(part.name) == 1 for part in node.parts):
        return "".join(part.name for part in node.parts).lower()
    return node.name.lower() if node.kind in ("variable", "const") and len(node.name) == 1 else None


def _relations(answer: Node, gold: Node, ev: Evaluator) -> bool:
    # Named values: equal if the values are, unless two different things are named.
    name_a, value_a = _named(answer, ev)
    name_g, value_g = _named(gold, ev)
    if value_a is not None and value_g is not None and (name_a is None or name_g is None or name_a == name_g):
        if value_a.kind == "rel" or value_g.kind == "rel":
            return False
        if _equal(value_a, value_g, ev):
            return True
    if answer.kind != "rel" or gold.kind != "rel":
        return False
    if answer.name == gold.name == "=":
        return _same_equation(answer, gold, ev)
    answer, gold = _ascending(answer), _ascending(gold)
    return answer.name == gold.name and _ordered(answer.parts, gold.parts, ev)


def _ascending(node: Node) -> Node:
    """`a > b >= c` as `c <= b < a`."""
    if not node.name.startswith(">"):
        return node
    return Node("rel", node.parts[::-1], " ".join(reversed(node.name.split())).replace(">", "<"))


def _named(node: Node, ev: Evaluator) -> tuple[str | None, Node | None]:
    """A name and the value given to it; (None, the node) for a plain value; (None, None) for any other relation."""
    if node.kind != "rel":
        return None, node
    signs = node.name.split()
    if set(signs) == {"in"} and len(node.parts) == 2:
        return label(node.parts[0]), node.parts[1] if label(node.parts[0]) else None
    if not set(signs) <= {"=", "~"}:
        return None, None
    if (name := label(node.parts[0])) is not None:
        return name, _agreed(node.parts[1:], signs[1:], ev)
    if (name := label(node.parts[-1])) is not None and signs == ["="]:
        return name, node.parts[0]
    return None, _agreed(node.parts, signs, ev) if not any(variables(part) for part in node.parts) else None


def _agreed(parts: Sequence[Node], signs: Sequence[str], ev: Evaluator) -> Node | None:
    """The last part of a chain of equations whose parts are all equal, else None.

    What follows an approximation sign must be near the part before it, which is then the value.
    """
    if "~" in signs:
        cut = signs.index("~") + 1
        numbers = [None if variables(part) else ev.constant(_bare(part)).number for part in parts]
        exact = numbers[cut - 1]
        near = exact is not None and all(
            number is not None and abs(number - exact) <= _APPROXIMATE * abs(exact) for number in numbers[cut:]
        )
        return _agreed(parts[:cut], signs[: cut - 1], ev) if near else None
    last = parts[-1]
    if last.kind == "unit" and last.name == "percent" and parts[:-1] and parts[0].kind != "unit":
        # "0.56 = 56%" says what the percent sign means.
        share = Node("div", (last.parts[0], Node("num", value=Fraction(100))))
        return last if all(_equal(part, share, ev) for part in parts[:-1]) else None
    return last if all(_equal(part, last, ev) for part in parts[:-1]) else None


def _same_equation(answer: Node, gold: Node, ev: Evaluator) -> bool:
    """Whether two equations differ by a constant factor only."""
    if len(answer.parts) != 2 or len(gold.parts) != 2:
        return False
    if not variables(answer) or variables(answer) != variables(gold):
        return False
    left, right = difference(*answer.parts), difference(*gold.parts)
    verdict = identical(left, right, ev, up_to_factor=True)
    return _shape(answer) == _shape(gold) if verdict is None else verdict


# Collections


def _collections(answer: Node, gold: Node, ev: Evaluator) -> bool:
    kinds = {answer.kind, gold.kind}
    # A list as Python prints it; `[1, 2]` for a list is only the answer's way of writing, as a gold it is an interval.
    if answer.kind == "tuple" and answer.name == "[]" and gold.kind in ("list", "set"):
        answer = Node(gold.kind, answer.parts)
    elif gold.kind == "tuple" and gold.name == "[]" and len(gold.parts) > 2:
        gold = Node(answer.kind, gold.parts)
    elif "tuple" in kinds and "list" in kinds:
        tuple_, list_ = (answer, gold) if answer.kind == "tuple" else (gold, answer)
        return tuple_.name == "()" and (
            _ordered(list_.parts, tuple_.parts, ev) or _ordered(_by_name(list_.parts), tuple_.parts, ev)
        )
    ours, theirs = (node.parts if node.kind in ("list", "set") else (node,) for node in (answer, gold))
    if "set" in kinds:
        ours, theirs = _distinct(ours, ev), _distinct(theirs, ev)
    return _unordered(ours, theirs, ev)


def _by_name(parts: Sequence[Node]) -> Sequence[Node]:
    """`y=4, x=3` in the order of the names, which is the order of the point's coordinates."""
    names = [part.parts[0].name if part.kind == "rel" and part.name == "=" else "" for part in parts]
    if not all(names) or len(set(names)) != len(names):
        return ()
    return [part for _, part in sorted(zip(names, parts, strict=True), key=lambda pair: pair[0])]


def _distinct(parts: Sequence[Node], ev: Evaluator) -> tuple[Node, ...]:
    kept: list[Node] = []
    for part in parts[:_MAX_ELEMENTS]:
        if not any(_equal(part, other, ev) for other in kept):
            kept.append(part)
    return (*kept, *parts[_MAX_ELEMENTS:])


def _unordered(ours: Sequence[Node], theirs: Sequence[Node], ev: Evaluator) -> bool:
    if len(ours) != len(theirs) or len(ours) > _MAX_ELEMENTS:
        return False
    left = list(theirs)
    for one in ours:
        match = next((index for index, other in enumerate(left) if _equal(one, other, ev)), None)
        if match is None:
            return False
        del left[match]
    return True


def _ordered(ours: Sequence[Node], theirs: Sequence[Node], ev: Evaluator) -> bool:
    return len(ours) == len(theirs) and all(_equal(one, other, ev) for one, other in zip(ours, theirs, strict=True))


def _ratios(answer: Node, gold: Node, ev: Evaluator) -> bool:
    """Ratios are equal up to scaling, clock times only digit by digit; 3:4 is also the fraction 3/4."""
    if answer.kind == gold.kind:
        if len(answer.parts) != len(gold.parts):
            return False
        if _clock(answer) or _clock(gold):
            return _ordered(answer.parts, gold.parts, ev)
        scale = Node("div", (answer.parts[0], gold.parts[0]))
        return all(
            _equal(one, Node("mul", (scale, other)), ev) for one, other in zip(answer.parts, gold.parts, strict=True)
        )
    ratio, other = (answer, gold) if answer.kind == "ratio" else (gold, answer)
    return len(ratio.parts) == 2 and not _clock(ratio) and _equal(Node("div", ratio.parts), other, ev)


def _clock(node: Node) -> bool:
    return all(part.kind == "num" and len(part.name) == 2 for part in node.parts[1:])


def _arrays(answer: Node, gold: Node, ev: Evaluator) -> bool:
    """Tuples and intervals by brackets and order; a column matrix is the point with its entries; [[..], [..]] is a
    matrix."""
    answer, gold = _array(answer, gold), _array(gold, answer)
    if answer.kind != gold.kind or answer.kind not in ("tuple", "matrix"):
        return False
    if answer.kind == "tuple":
        python = answer.name == "[]" and gold.name == "()" and len(gold.parts) > 2  # no interval: a list, as printed
        return (python or answer.name == gold.name) and _ordered(answer.parts, gold.parts, ev)
    return len(answer.parts) == len(gold.parts) and all(
        _ordered(one.parts, other.parts, ev) for one, other in zip(answer.parts, gold.parts, strict=True)
    )


def _array(node: Node, other: Node) -> Node:
    if node.kind == "tuple" and node.name == "[]" and node.parts and all(map(_lone, node.parts)):
        node = Node("matrix", tuple(Node("row", part.parts) for part in node.parts))  # a column: [[1], [2]]
    if node.kind == "matrix" and other.kind == "tuple" and not any(part.kind == "tuple" for part in other.parts):
        if all(len(row.parts) == 1 for row in node.parts):
            return Node("tuple", tuple(row.parts[0] for row in node.parts), "()" if other.name == "()" else "[]")
        if len(node.parts) == 1 and other.name == "[]":
            return Node("tuple", node.parts[0].parts, "[]")
    if node.kind == "tuple" and other.kind == "matrix" and all(part.kind == "tuple" for part in node.parts):
        return Node("matrix", tuple(Node("row", part.parts) for part in node.parts))
    return node


def _lone(node: Node) -> bool:
    return node.kind == "tuple" and node.name == "[]" and len(node.parts) == 1


def _numbers(answer: Node, gold: Node, ev: Evaluator) -> bool:
    try:
        verdict = same_number(answer, gold, ev)
    except OutOfWork:
        raise
    except TooHard:
        verdict = None
    return _shape(answer) == _shape(gold) if verdict is None else verdict
