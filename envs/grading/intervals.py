"""Sets of real numbers: intervals and their unions from inequalities, and their intersections."""

from __future__ import annotations

from fractions import Fraction
from functools import cmp_to_key
from typing import Any, NamedTuple

from polyturn.envs.grading.functions import context
from polyturn.envs.grading.identity import AGREE
from polyturn.envs.grading.reading.tree import INFINITY, MINUS_INFINITY, Node, contains, difference, variables
from polyturn.envs.grading.values import BITS, Evaluator, close
from polyturn.envs.grading.work import OutOfWork, TooHard

_FLIP = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


class _Interval(NamedTuple):
    """An interval with both its ends as trees, and whether they belong to it."""

    low: Node
    low_in: bool
    high: Node
    high_in: bool

    def node(self) -> Node:
        return Node("tuple", (self.low, self.high), ("[" if self.low_in else "(") + ("]" if self.high_in else ")"))


_ALL = _Interval(MINUS_INFINITY, False, INFINITY, False)


def solution_set(node: Node, evaluator: Evaluator) -> Node | None:
    """The numbers that satisfy an inequality, as an interval or a union of intervals.

    Read are comparisons in one variable, or one named quantity, that stands in one place only, on its own, in an
    absolute value, or in a linear expression: `-x > -1`, `1 <= |z| <= 3/2`, `-3 < 2x + 1 < 7`, `x != 3`,
    `0 < f(x) < 1`.

    Args:
        node: A relation, or a list of relations joined by "and", "or" or commas.
        evaluator: Where the work is counted.

    Returns:
        A tuple or union node; None if it is no such inequality.
    """
    try:
        found = _solved(node, evaluator)
    except OutOfWork:
        raise
    except TooHard:
        return None
    return _union(found) if found else None


def subject(node: Node) -> Node | None:
    """What an inequality, or a list of them, is about: its only variable, or the quantity it names."""
    found = {_subject(part) for part in (node.parts if node.kind == "list" else (node,))}
    return found.pop() if len(found) == 1 else None


def same_set(answer: Node, gold: Node, evaluator: Evaluator) -> bool | None:
    """Whether two unions of intervals and finite sets hold the same real numbers; None if one is no such union."""
    try:
        ours, theirs = (_merged(_pieces_of(node, evaluator), evaluator) for node in (answer, gold))
    except OutOfWork:
        raise
    except TooHard:
        return None
    return len(ours) == len(theirs) and all(
        (one.low_in, one.high_in) == (other.low_in, other.high_in)
        and _compare(one.low, other.low, evaluator) == _compare(one.high, other.high, evaluator) == 0
        for one, other in zip(ours, theirs, strict=True)
    )


def _pieces_of(node: Node, evaluator: Evaluator) -> list[_Interval]:
    match node.kind:
        case "union":
            return [piece for part in node.parts for piece in _pieces_of(part, evaluator)]
        case "without":
            left = _pieces_of(node.parts[0], evaluator)
            for hole in _pieces_of(node.parts[1], evaluator):
                below = _Interval(MINUS_INFINITY, False, hole.low, not hole.low_in)
                above = _Interval(hole.high, not hole.high_in, INFINITY, False)
                left = _common(left, [below, above], evaluator)
            return left
        case "set":
            return [_Interval(part, True, part, True) for part in node.parts]
        case "tuple" if len(node.parts) == 2 and _compare(*node.parts, evaluator) < 0:
            return [_Interval(node.parts[0], node.name[0] == "[", node.parts[1], node.name[1] == "]")]
    raise TooHard(f"a {node.kind} is no set of intervals")


def _union(intervals: list[_Interval]) -> Node:
    nodes = tuple(interval.node() for interval in intervals)
    return nodes[0] if len(nodes) == 1 else Node("union", nodes)


def _solved(node: Node, evaluator: Evaluator) -> list[_Interval] | None:
    if node.kind == "rel":
        return _relation(node, evaluator)
    if node.kind != "list" or len({_subject(part) for part in node.parts}) != 1 or _subject(node.parts[0]) is None:
        return None
    each = [_relation(part, evaluator) for part in node.parts]
    sets = [one for one in each if one]
    if len(sets) != len(each):
        return None
    # Conditions that can hold together are joined by "and" or a comma; "x < 3 and x > 5" can only mean either.
    if node.name != "or" or all(part.name == "!=" for part in node.parts):
        together = sets[0]
        for one in sets[1:]:
            together = _common(together, one, evaluator)
        if together:
            return together
    return _merged([interval for one in sets for interval in one], evaluator)


def _subject(node: Node) -> Node | None:
    """The variable, or named quantity, that a relation of an order is about: the only part with a variable in it."""
    if node.kind != "rel" or not set(node.name.split()) <= {"<", "<=", ">", ">=", "!="}:
        return None
    parts = [part for part in node.parts if variables(part)]
    if len(parts) != 1:
        return None
    names = variables(parts[0])
    if len(names) == 1:
        return Node("variable", name=names.pop())
    return parts[0] if parts[0].kind == "mul" else None


def _relation(node: Node, evaluator: Evaluator) -> list[_Interval] | None:
    about = _subject(node)
    signs = node.name.split()
    if about is None or len(signs) > 2 or ("!=" in signs and len(signs) > 1):
        return None
    # What the subject's side is compared with, as "side < bound".
    at = next(index for index, part in enumerate(node.parts) if variables(part))
    side = node.parts[at]
    bounds: list[tuple[str, Node]] = []
    for index, sign in enumerate(signs):
        if index + 1 == at:
            bounds.append((_FLIP.get(sign, sign), node.parts[index]))
        elif index == at:
            bounds.append((sign, node.parts[index + 1]))
        else:
            return None
    # Each comparison cuts a piece off the line; what is left satisfies all of them.
    result = [_ALL]
    for sign, bound in bounds:
        piece = _one_bound(side, about, sign, bound, evaluator)
        if piece is None:
            return None
        result = _common(result, piece, evaluator)
    return result


def _one_bound(side: Node, about: Node, sign: str, bound: Node, evaluator: Evaluator) -> list[_Interval] | None:
    """The values of the subject at which `side sign bound` holds."""
    if side == about:
        return _pieces(sign, bound)
    if side.kind == "func" and side.name == "abs":
        return _modulus(side.parts[0], about, sign, bound, evaluator)
    # A linear side a x + b: its values at 0 and 1 give both, a third point that it is linear.
    zero, slope = _line(side, about, evaluator)
    if slope is None:
        return None
    rising = _sign(slope, evaluator)
    return None if rising == 0 else _pieces(
        sign if rising > 0 else _FLIP.get(sign, sign), Node("div", (difference(bound, zero), slope))
    )  # fmt: skip


def _pieces(sign: str, bound: Node) -> list[_Interval]:
    match sign:
        case "<" | "<=":
            return [_Interval(MINUS_INFINITY, False, bound, sign == "<=")]
        case ">" | ">=":
            return [_Interval(bound, sign == ">=", INFINITY, False)]
    return [_Interval(MINUS_INFINITY, False, bound, False), _Interval(bound, False, INFINITY, False)]


def _modulus(inner: Node, about: Node, sign: str, bound: Node, evaluator: Evaluator) -> list[_Interval] | None:
    """`|inner| < bound` is `-bound < inner < bound`, and `|inner| > bound` is either side of it."""
    if _sign(bound, evaluator) < 0 or sign == "!=":
        return None
    above = _one_bound(inner, about, sign, bound, evaluator)
    below = _one_bound(inner, about, _FLIP[sign], Node("neg", (bound,)), evaluator)
    if above is None or below is None:
        return None
    return _common(below, above, evaluator) if sign.startswith("<") else [*below, *above]


def _line(side: Node, about: Node, evaluator: Evaluator) -> tuple[Node, Node | None]:
    """The value at zero and the slope of a linear expression; no slope if it is not linear."""
    at = [_put(side, about, Fraction(value)) for value in (0, 1, -3)]
    slope = difference(at[1], at[0])
    numbers = [evaluator.constant(each).number for each in at]
    if contains(side, "func", "pow", "fact") or None in numbers or about.kind != "variable":
        return at[0], None
    context().prec = BITS
    straight = close(numbers[2], 4 * numbers[0] - 3 * numbers[1], AGREE)
    return at[0], slope if straight else None


def _put(node: Node, about: Node, value: Fraction) -> Node:
    if node == about:
        return Node("num", name=str(value), value=value)
    parts = tuple(_put(part, about, value) for part in node.parts)
    return Node(node.kind, parts, node.name, node.value, node.places)


# Order


def _common(first: list[_Interval], second: list[_Interval], evaluator: Evaluator) -> list[_Interval]:
    """The intersection of two unions."""
    found = []
    for one in first:
        for other in second:
            low, low_in = _bound(one.low, one.low_in, other.low, other.low_in, evaluator, largest=True)
            high, high_in = _bound(one.high, one.high_in, other.high, other.high_in, evaluator, largest=False)
            order = _compare(low, high, evaluator)
            if order < 0 or (order == 0 and low_in and high_in):
                found.append(_Interval(low, low_in, high, high_in))
    return found


def _bound(
    one: Node, one_in: bool, other: Node, other_in: bool, evaluator: Evaluator, *, largest: bool
) -> tuple[Node, bool]:
    order = _compare(one, other, evaluator)
    if order == 0:
        return one, one_in and other_in
    return (one, one_in) if (order > 0) == largest else (other, other_in)


def _merged(intervals: list[_Interval], evaluator: Evaluator) -> list[_Interval]:
    """The same union in ascending order, with pieces that overlap or touch joined."""

    def order(one: _Interval, other: _Interval) -> int:
        return _compare(one.low, other.low, evaluator) or other.low_in - one.low_in

    merged: list[_Interval] = []
    for piece in sorted(intervals, key=cmp_to_key(order)):
        last = merged[-1] if merged else None
        gap = -1 if last is None else _compare(last.high, piece.low, evaluator)
        if last is None or gap < 0 or (gap == 0 and not (last.high_in or piece.low_in)):
            merged.append(piece)
            continue
        longer = _compare(piece.high, last.high, evaluator)
        ends = (piece.high, piece.high_in or (longer == 0 and last.high_in)) if longer >= 0 else last[2:]
        merged[-1] = _Interval(last.low, last.low_in, *ends)
    return merged


def _compare(one: Node, other: Node, evaluator: Evaluator) -> int:
    """-1, 0 or 1 as one end is below, at or above the other."""
    if one == other:
        return 0
    infinite = [1 if end == INFINITY else -1 if end == MINUS_INFINITY else 0 for end in (one, other)]
    if any(infinite):
        return -1 if infinite[0] < infinite[1] else 1
    exact = evaluator.exact(one), evaluator.exact(other)
    if exact[0] is not None and exact[1] is not None:
        return (exact[0] > exact[1]) - (exact[0] < exact[1])
    numbers = _real(one, evaluator), _real(other, evaluator)
    if close(*numbers, AGREE):
        return 0
    return 1 if numbers[0] > numbers[1] else -1


def _sign(node: Node, evaluator: Evaluator) -> int:
    return _compare(node, Node("num"), evaluator)


def _real(node: Node, evaluator: Evaluator) -> Any:
    number = None if variables(node) else evaluator.constant(node).number
    if number is None or context().im(number) != 0:
        raise TooHard("an end of an interval that is no real number")
    return number
