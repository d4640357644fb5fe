"""Whether two answers, read into trees, are the same mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from polyturn.envs.grading.tree import INFINITY, Node
from polyturn.envs.grading.units import units_agree
from polyturn.envs.grading.values import Evaluator, TooHard, close, context, same

_MAX_ELEMENTS = 64
_REAL_LINE = Node("tuple", (Node("neg", (INFINITY,)), INFINITY), "()")
_ALL_REAL = frozenset({"all real numbers", "all reals", "all real", "real numbers", "all x", "the real numbers"})


def equal(answer: Node, gold: Node, evaluator: Evaluator) -> bool:
    """Whether an answer is the gold one; see `polyturn.envs.grading.grade.grade` for what counts as the same."""
    try:
        return _equal(answer, gold, evaluator)
    except (TooHard, RecursionError):
        return _shape(answer) == _shape(gold)


def _equal(answer: Node, gold: Node, ev: Evaluator) -> bool:
    if answer.kind == "unit" or gold.kind == "unit":
        return units_agree(*(node.name if node.kind == "unit" else "" for node in (answer, gold))) and _equal(
            _bare(answer), _bare(gold), ev
        )
    answer, gold = _expand(answer), _expand(gold)
    if answer.kind == "rel" or gold.kind == "rel":
        return _relations(answer, gold, ev)
    if "word" in (answer.kind, gold.kind):
        return _word(answer) == _word(gold)
    if "list" in (answer.kind, gold.kind) or "set" in (answer.kind, gold.kind):
        return _collections(answer, gold, ev)
    if "union" in (answer.kind, gold.kind):
        return answer.kind == gold.kind and _unordered(answer.parts, gold.parts, ev)
    if "ratio" in (answer.kind, gold.kind):
        return _ratios(answer, gold, ev)
    if "based" in (answer.kind, gold.kind):
        return answer.kind == gold.kind and answer.name == gold.name
    answer, gold = _scaled(answer), _scaled(gold)
    if "matrix" in (answer.kind, gold.kind) or "tuple" in (answer.kind, gold.kind):
        return _arrays(answer, gold, ev)
    return _numbers(answer, gold, ev)


# Shapes


def _bare(node: Node) -> Node:
    return node.parts[0] if node.kind == "unit" else node


def _word(node: Node) -> str | None:
    if node.kind == "word":
        return node.name
    return node.name.lower() if node.kind in ("variable", "const") and len(node.name) == 1 else None


def _shape(node: Node) -> object:
    """The tree without the way its numbers were written: for what cannot be evaluated."""
    if node.kind == "num":
        return node.value
    return node.kind, node.name, tuple(_shape(part) for part in node.parts)


def _expand(node: Node) -> Node:
    """Both values of a plus-minus; a named value, `x = 5` or `x in A`, stays a relation; inequalities in one variable
    become intervals."""
    if _has_sign(node) and node.kind not in ("list", "set", "tuple", "rel"):
        return Node("list", (_signed(node, 1), _signed(node, -1)))
    if node.kind in ("list", "set") and any(_has_sign(_bare(part)) for part in node.parts):
        parts: list[Node] = []
        for part in node.parts:
            parts += [_signed(part, 1), _signed(part, -1)] if _has_sign(part) else [part]
        return Node(node.kind, tuple(parts))
    if node.kind == "rel":
        return _interval(node) or node
    if node.kind == "word" and node.name in _ALL_REAL:
        return _REAL_LINE
    if node.kind == "list" and node.parts:
        intervals = [_interval(part) or part for part in node.parts]
        if all(part.kind == "tuple" and part not in node.parts for part in intervals):
            return Node("union", tuple(intervals))
    return node


def _has_sign(node: Node) -> bool:
    return node.kind == "pm" or any(_has_sign(part) for part in node.parts)


def _signed(node: Node, sign: int) -> Node:
    parts = tuple(_signed(part, sign) for part in node.parts)
    if node.kind != "pm":
        return Node(node.kind, parts, node.name, node.value, node.places)
    last = parts[-1] if (sign > 0) == (node.name == "pm") else Node("neg", (parts[-1],))
    return last if len(parts) == 1 else Node("add", (parts[0], last))


def _interval(node: Node) -> Node | None:
    """`a < x <= b` as (a, b], `x > a` as (a, infinity), `x != a` as both sides of a; None for any other relation."""
    signs = node.name.split() if node.kind == "rel" else []
    if signs == ["!="] and node.parts[0].kind == "variable" and not _variables(node.parts[1]):
        left = Node("tuple", (Node("neg", (INFINITY,)), node.parts[1]), "()")
        return Node("union", (left, Node("tuple", (node.parts[1], INFINITY), "()")))
    if not signs or not (set(signs) <= {"<", "<="} or set(signs) <= {">", ">="}):
        return None
    parts = list(node.parts)
    if signs[0].startswith(">"):
        parts.reverse()
        signs = [sign.replace(">", "<") for sign in reversed(signs)]
    if any(_variables(part) for part in parts if part.kind != "variable"):
        return None
    where = [part.kind == "variable" for part in parts]
    brackets = [{"<": "(", "<=": "["}[sign] for sign in signs]
    closing = {"(": ")", "[": "]"}
    if where == [False, True, False]:
        return Node("tuple", (parts[0], parts[2]), brackets[0] + closing[brackets[1]])
    if where == [False, True]:
        return Node("tuple", (parts[0], INFINITY), brackets[0] + ")")
    if where == [True, False]:
        return Node("tuple", (Node("neg", (INFINITY,)), parts[1]), "(" + closing[brackets[0]])
    return None


def _variables(node: Node) -> set[str]:
    return {node.name} if node.kind == "variable" else {name for part in node.parts for name in _variables(part)}


def _scaled(node: Node) -> Node:
    """A number times a matrix as one matrix."""
    if node.kind == "neg" and (inner := _scaled(node.parts[0])).kind == "matrix":
        return _cells(inner, lambda cell: Node("neg", (cell,)))
    if node.kind == "div" and (inner := _scaled(node.parts[0])).kind == "matrix":
        return _cells(inner, lambda cell: Node("div", (cell, node.parts[1])))
    if node.kind == "mul":
        factors = [_scaled(part) for part in node.parts]
        matrices = [part for part in factors if part.kind == "matrix"]
        if len(matrices) == 1:
            scalars = tuple(part for part in factors if part.kind != "matrix")
            return _cells(matrices[0], lambda cell: Node("mul", (*scalars, cell)))
    return node


def _cells(matrix: Node, change: Callable[[Node], Node]) -> Node:
    return Node("matrix", tuple(Node("row", tuple(change(cell) for cell in row.parts)) for row in matrix.parts))


# Comparisons


def _relations(answer: Node, gold: Node, ev: Evaluator) -> bool:
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
        return _proportional(answer, gold, ev)
    answer, gold = _ascending(answer), _ascending(gold)
    return (
        answer.name == gold.name
        and len(answer.parts) == len(gold.parts)
        and all(_equal(one, other, ev) for one, other in zip(answer.parts, gold.parts, strict=True))
    )


def _ascending(node: Node) -> Node:
    """`a > b >= c` as `c <= b < a`."""
    if not node.name.startswith(">"):
        return node
    return Node("rel", node.parts[::-1], " ".join(reversed(node.name.split())).replace(">", "<"))


def _named(node: Node, ev: Evaluator) -> tuple[str | None, Node | None]:
    """A name and what it is said to be; (None, the node) if it is a plain value; (None, None) for other relations."""
    if node.kind != "rel":
        return None, node
    if set(node.name.split()) == {"in"} and len(node.parts) == 2:
        return _label(node.parts[0]), node.parts[1] if _label(node.parts[0]) else None
    if set(node.name.split()) != {"="}:
        return None, None
    first, last = node.parts[0], node.parts[-1]
    if (label := _label(first)) is not None:
        return label, _agreed(node.parts[1:], ev)
    if (label := _label(last)) is not None and len(node.parts) == 2:
        return label, first
    return None, _agreed(node.parts, ev) if not any(_variables(part) for part in node.parts) else None


def _agreed(parts: Sequence[Node], ev: Evaluator) -> Node | None:
    """The last part of a chain of equations whose parts are all equal, else None."""
    if all(_equal(part, parts[-1], ev) for part in parts[:-1]):
        return parts[-1]
    return None


def _label(node: Node) -> str | None:
    """The name on the left of an equation: x, x_1, AB, f(x), f(2), dy/dx, a + b, (x, y), or words."""
    if node.kind in ("variable", "word"):
        return node.name
    if node.kind == "const" and node.name in ("e", "i"):
        return node.name
    if node.kind == "mul" and node.parts[0].kind == "variable" and all(part.kind == "num" for part in node.parts[1:]):
        return node.parts[0].name + "".join(f"({part.value})" for part in node.parts[1:])
    if node.kind in ("mul", "div", "add"):
        letters = [_label(part) for part in node.parts]
        return {"mul": "", "div": "/", "add": "+"}[node.kind].join(map(str, letters)) if None not in letters else None
    if node.kind == "pow" and node.parts[1] == Node("neg", (Node("num", name="1", value=Fraction(1)),)):
        return _label(node.parts[0])
    if node.kind == "tuple":
        names = [_label(part) for part in node.parts]
        return ",".join(str(name) for name in names) if None not in names else None
    return _label(node.parts[0]) if node.kind == "unit" else None


def _proportional(answer: Node, gold: Node, ev: Evaluator) -> bool:
    """Whether two equations differ by a constant factor only."""
    if len(answer.parts) != 2 or len(gold.parts) != 2:
        return False
    left, right = (ev.values(Node("add", (node.parts[0], Node("neg", (node.parts[1],))))) for node in (answer, gold))
    if not _variables(answer) or _variables(answer) != _variables(gold):
        return False
    ratios = [
        one / other
        for one, other in zip(left, right, strict=True)
        if one is not None and other is not None and one != 0 and other != 0
    ]
    return len(ratios) >= 2 and all(close(ratio, ratios[0]) for ratio in ratios)


def _collections(answer: Node, gold: Node, ev: Evaluator) -> bool:
    kinds = {answer.kind, gold.kind}
    if "tuple" in kinds and "list" in kinds:
        tuple_, list_ = (answer, gold) if answer.kind == "tuple" else (gold, answer)
        if tuple_.name == "[]" and len(tuple_.parts) > 2:  # too long for an interval: a list as Python prints it
            return _unordered(list_.parts, tuple_.parts, ev)
        return tuple_.name == "()" and _ordered(list_.parts, tuple_.parts, ev)
    ours, theirs = (node.parts if node.kind in ("list", "set") else (node,) for node in (answer, gold))
    if "set" in kinds:
        ours, theirs = _distinct(ours, ev), _distinct(theirs, ev)
    return _unordered(ours, theirs, ev)


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
    if answer.kind != gold.kind or answer.kind not in ("tuple", "matrix", "row"):
        return False
    if answer.kind == "tuple" and answer.name != gold.name:
        return False
    if answer.kind == "matrix":
        return len(answer.parts) == len(gold.parts) and all(
            _ordered(one.parts, other.parts, ev) for one, other in zip(answer.parts, gold.parts, strict=True)
        )
    return _ordered(answer.parts, gold.parts, ev)


def _array(node: Node, other: Node) -> Node:
    if node.kind == "matrix" and other.kind == "tuple" and not any(part.kind == "tuple" for part in other.parts):
        if all(len(row.parts) == 1 for row in node.parts):
            return Node("tuple", tuple(row.parts[0] for row in node.parts), "()" if other.name == "()" else "[]")
        if len(node.parts) == 1 and other.name == "[]":
            return Node("tuple", node.parts[0].parts, "[]")
    if node.kind == "tuple" and other.kind == "matrix" and all(part.kind == "tuple" for part in node.parts):
        return Node("matrix", tuple(Node("row", part.parts) for part in node.parts))
    return node


# Numbers


def _numbers(answer: Node, gold: Node, ev: Evaluator) -> bool:
    infinite = _infinite(answer), _infinite(gold)
    if any(infinite):
        return infinite[0] == infinite[1]
    exact_answer, exact_gold = ev.exact(answer), ev.exact(gold)
    if exact_answer is not None and exact_gold is not None:
        return numbers_agree(exact_answer, _places(answer), exact_gold, _places(gold))
    if (exact_answer is None and exact_gold is None) or (_places(answer) < 0 and _places(gold) < 0):
        return same(ev.values(answer), ev.values(gold))
    if _variables(answer) or _variables(gold):
        return False
    decimal, other = (exact_answer, gold) if exact_answer is not None else (exact_gold, answer)
    places = _places(answer if exact_answer is not None else gold)
    value = ev.values(other)[0]
    if value is None or decimal is None or context().im(value) != 0:
        return False
    mp = context()
    return rounds_to(decimal, places, Fraction(int(mp.nint(mp.re(value) * 10**40)), 10**40))


def numbers_agree(one: Fraction, one_places: int, other: Fraction, other_places: int) -> bool:
    """Exact numbers must be equal; a written decimal may also be another's rounding.

    Args:
        one: A number.
        one_places: How many decimals it was written with, -1 if it was not written as a decimal.
        other: The other number.
        other_places: Likewise.

    Returns:
        Whether they are equal, or differ by floating-point noise (1e-9 relative, decimals only), or one is a decimal
        and the other a fraction that takes more decimals to write and rounds to it, as `rounds_to` says.
    """
    if one == other:
        return True
    if one_places < 0 and other_places < 0:
        return False
    if abs(one - other) <= Fraction(1, 10**9) * max(abs(one), abs(other), Fraction(1, 1000)):
        return True
    if one_places >= 0 and other_places < 0:
        return _decimals(other) > one_places and rounds_to(one, one_places, other)
    return (
        other_places >= 0 and one_places < 0 and _decimals(one) > other_places and rounds_to(other, other_places, one)
    )


def rounds_to(decimal: Fraction, places: int, value: Fraction) -> bool:
    """Whether a decimal with so many places is `value` cut or rounded there, and right to one part in 10,000."""
    error = abs(decimal - value)
    return error <= Fraction(1, 10**places) and error <= Fraction(1, 10**4) * max(abs(value), abs(decimal))


def _decimals(value: Fraction) -> float:
    """How many decimals it takes to write a number out, infinity if there is no end to them."""
    bottom, counts = value.denominator, [0, 0]
    for index, prime in enumerate((2, 5)):
        while bottom % prime == 0:
            bottom //= prime
            counts[index] += 1
    return max(counts) if bottom == 1 else math.inf


def _places(node: Node) -> int:
    """Decimals of a number written as one, signed or in scientific notation; -1 for anything else."""
    if node.kind == "neg":
        return _places(node.parts[0])
    if node.kind == "mul" and [part.kind for part in node.parts] == ["num", "pow"]:
        base, power = node.parts[1].parts
        exponent = power.parts[0] if power.kind == "neg" else power
        if base.kind == exponent.kind == "num" and base.value == 10 and exponent.places < 0 and exponent.value < 400:
            shift = int(exponent.value) * (-1 if power.kind == "neg" else 1)
            return max(node.parts[0].places - shift, 0) if node.parts[0].places >= 0 else -1
    return node.places if node.kind == "num" else -1


def _infinite(node: Node) -> int:
    if node.kind == "neg":
        return -_infinite(node.parts[0])
    return 1 if node == INFINITY else 0
