"""Where two expressions are compared: points of either sign, of many sizes, whole and not, real and complex.

Points are fixed by the names of the variables and the number of the point, so a verdict is the same every time. For
smooth expressions a few points decide. Where an absolute value, a rounding, a root or a logarithm can change an
expression from one region to the next, points are also taken between all the borders that can be found: for every
such function, the values of a variable at which its argument is zero (or a whole number, for a rounding), along
several lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from polyturn.envs.grading.functions import context
from polyturn.envs.grading.reading.tree import Node, difference, variables
from polyturn.envs.grading.values import BITS, Coordinate, Evaluator, Point, as_fraction
from polyturn.envs.grading.work import OutOfWork, TooHard

_ROUNDINGS = frozenset({"floor", "ceil"})
_BORDERED = _ROUNDINGS | {"abs", "root", "ln", "log", "arcsin", "arccos", "arcsec", "arccsc"}
_LEVELS = (0, 1, -1, 2, 5, 17, -6)
"""Whole numbers at which a rounding is looked at."""
_MAX_VARIABLES = 3
_MAX_ROOTS = 5
_ROOT_DIGITS = 55
_SECANT_STEPS = 16
_SCANNED_POWERS = 13
"""Changes of sign are looked for between 64 to this power and its inverse, about 3e23 and 3e-24."""
_SAME = Fraction(1, 10**30)
"""Two zeros closer than this, in proportion, are one zero found twice."""


class Domain:
    """What the variables of two expressions may be.

    Attributes:
        names: All variables, those at which an expression can change from region to region first.
        whole: Those that stand for whole numbers, because they are exponents of a number that is not positive:
            `(-1)^n` has a meaning for whole n only.
        complex: Those that stand for complex numbers: all of them where the constant i occurs; else z and w inside an
            absolute value, unless x or y occurs too.
        bordered: The variables at which the expressions can change from region to region.
    """

    def __init__(self, nodes: Sequence[Node], evaluator: Evaluator) -> None:
        names = {name for node in nodes for name in variables(node)}
        self.bordered = {name for node in nodes for name in _bordered(node)}
        self.names = sorted(names, key=lambda name: (name not in self.bordered, name))
        self.whole = {name for node in nodes for name in _whole(node, evaluator)}
        imaginary = any(_has_i(node) for node in nodes)
        moduli = {name for node in nodes for name in _moduli(node)} & {"z", "w"}
        self.complex = names if imaginary else moduli if not names & {"x", "y"} else set[str]()


def first_points(domain: Domain) -> Iterator[Point]:
    """Two points that already separate most different expressions; they depend on the variables' names only."""
    for index in range(2):
        yield {name: _number(name, f"first {index}", (-2, 1), name in domain.whole) for name in domain.names}


def general_points(domain: Domain) -> Iterator[Point]:
    """Points of all signs, sizes and kinds; fewer of them for expressions that are smooth everywhere."""
    # Signs: each pattern of the first three variables; the others by their names.
    signs = _sign_patterns(domain)
    for pattern in signs if domain.bordered else (signs[0], signs[-1]):
        yield _signed(domain, pattern, f"sign {pattern}", (-2, 1))
        yield _signed(domain, pattern, f"large sign {pattern}", (3, 9))
    # Sizes: small, large, and mixed.
    rounds = 4 if domain.bordered else 1
    for index in range(rounds):
        yield _signed(domain, None, f"small {index}", (-12, -5))
        yield _signed(domain, None, f"large {index}", (4, 11))
        yield _signed(domain, None, f"mixed {index}", (-8, 9))
    # Whole numbers: all variables, then one at a time.
    for index in range(2 * rounds):
        sizes = ((0, 3), (0, 3), (3, 7), (7, 12))[index % 4]
        yield _signed(domain, None if index % 2 else 0, f"whole {index}", sizes, whole=set(domain.names))
    for name in domain.names[:_MAX_VARIABLES] if domain.bordered else ():
        yield _signed(domain, None, f"whole {name}", (0, 4), whole={name})
    # The complex plane.
    for index in range(5 if domain.complex else 0):
        real = _signed(domain, None, f"complex {index}", (-2, 2))
        part = _signed(domain, None, f"imaginary {index}", (-2, 2))
        yield {
            name: (value, part[name]) if name in domain.complex - domain.whole else value  # type: ignore[misc]
            for name, value in real.items()
        }


def border_points(domain: Domain, nodes: Sequence[Node], evaluator: Evaluator) -> Iterator[Point]:
    """Points between, and for roundings at and near, the borders of regions along several lines.

    Raises:
        OutOfWork: The borders could not all be looked for.
    """
    borders = _levelled(border for node in nodes for border in _borders(node))
    rounding = any(len(levels) == len(_LEVELS) for _, levels in borders)
    moving = sorted(domain.bordered - domain.whole)
    patterns = list(_sign_patterns(domain)) if len(moving) <= _MAX_VARIABLES else [0, None]
    for pattern in patterns:
        base = _signed(domain, pattern, f"line {pattern}", (-2, 5))
        for name in moving:
            if pattern and pattern >> domain.names.index(name) & 1:
                continue  # a line goes through both signs of its variable
            crossings = _crossings(borders, base, name, evaluator)
            for value in _between(crossings, at_them=rounding):
                yield {**base, name: value}


def _sign_patterns(domain: Domain) -> range:
    """Bit i of a pattern is the sign of the i-th variable."""
    return range(2 ** min(len(domain.names), _MAX_VARIABLES))


def _signed(
    domain: Domain, pattern: int | None, label: str, sizes: tuple[int, int], whole: set[str] | None = None
) -> dict[str, Coordinate]:
    """A point whose i-th coordinate is negative where bit i of the pattern is set, or by chance without a pattern."""
    point: dict[str, Coordinate] = {}
    for index, name in enumerate(domain.names):
        value = _number(name, label, sizes, name in domain.whole or name in (whole or ()))
        by_chance = pattern is None or index >= _MAX_VARIABLES
        negative = _digest(name, f"{label} sign") & 1 if by_chance else (pattern or 0) >> index & 1
        point[name] = -value if negative else value
    return point


def _number(name: str, label: str, sizes: tuple[int, int], whole: bool) -> Fraction:
    """A positive number between two powers of two, with 64 random bits or whole; fixed by its name and label."""
    digest = _digest(name, label)
    power = sizes[0] + digest % (sizes[1] - sizes[0] + 1)
    if whole:
        return Fraction(2 ** max(power, 0) + (digest >> 8) % 2 ** max(power, 1))
    return Fraction(2**64 + (digest >> 8) % 2**64, 2**64) * Fraction(2) ** power


def _digest(name: str, label: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{label}/{name}".encode()).digest()[:16], "big")


# What occurs in the expressions


def _has_i(node: Node) -> bool:
    return (node.kind == "const" and node.name == "i") or any(_has_i(part) for part in node.parts)


def _moduli(node: Node) -> set[str]:
    if node.kind == "func" and node.name == "abs":
        return variables(node)
    return {name for part in node.parts for name in _moduli(part)}


def _bordered(node: Node) -> set[str]:
    if (node.kind == "func" and node.name in _BORDERED) or (node.kind == "pow" and _broken_power(node)):
        return variables(node)
    return {name for part in node.parts for name in _bordered(part)}


def _broken_power(node: Node) -> bool:
    """Whether it is a power of something that varies, with an exponent that is not plainly a whole number."""
    exponent = node.parts[1].parts[0] if node.parts[1].kind == "neg" else node.parts[1]
    return bool(variables(node.parts[0])) and (exponent.kind != "num" or exponent.value.denominator != 1)


def _whole(node: Node, evaluator: Evaluator) -> set[str]:
    """The variables of exponents of numbers that are not positive."""
    found = {name for part in node.parts for name in _whole(part, evaluator)}
    if node.kind == "pow" and not variables(node.parts[0]) and (names := variables(node.parts[1])):
        try:
            base = evaluator.constant(node.parts[0]).number
        except OutOfWork:
            raise
        except TooHard:
            return found
        if base is not None and (context().im(base) != 0 or context().re(base) < 0):
            found |= names
    return found


def _borders(node: Node) -> Iterator[tuple[Node, str]]:
    """Expressions whose zeros (or whole values) may be borders, with the function they stand in."""
    if not variables(node):
        return
    power = node.kind == "pow" and _broken_power(node)
    if power or (node.kind == "func" and node.name in _BORDERED):
        yield node.parts[0], node.name
        yield from ((part, "") for part in _sums(node.parts[0]))
    for part in node.parts:
        yield from _borders(part)


def _levelled(borders: Iterable[tuple[Node, str]]) -> list[tuple[Node, tuple[int, ...]]]:
    """Each expression once, with the values at which it is a border."""
    levels: dict[Node, tuple[int, ...]] = {}
    for node, function in borders:
        mine = _LEVELS if function in _ROUNDINGS else (0, 1, -1) if function.startswith("arc") else (0,)
        levels[node] = max(mine, levels.get(node, ()), key=len)
    return list(levels.items())


def _sums(node: Node) -> Iterator[Node]:
    if node.kind == "add" and variables(node):
        yield node
    for part in node.parts:
        yield from _sums(part)


# Crossing borders


def _crossings(
    borders: Sequence[tuple[Node, tuple[int, ...]]], base: Point, name: str, evaluator: Evaluator
) -> list[Fraction]:
    """Values of one variable, the others being as in `base`, at which a border is crossed, in ascending order."""
    start = base[name]
    assert isinstance(start, Fraction)
    found = {Fraction(0)}
    not_found: list[Node] = []
    for border, levels in borders:
        if name not in variables(border):
            continue
        for level in levels:
            target = difference(border, Node("num", value=Fraction(level))) if level else border
            roots = _roots(target, base, name, (start, Fraction(-3)), evaluator, scanned=not level)
            found |= set(roots)
            if not roots:
                not_found.append(target)
    # What has no value where the search began may have one beyond the borders found.
    for target in not_found:
        found |= set(_roots(target, base, name, _between(sorted(found), at_them=False), evaluator))
    return sorted(found)


def _roots(
    node: Node, base: Point, name: str, starts: Sequence[Fraction], evaluator: Evaluator, *, scanned: bool = False
) -> list[Fraction]:
    """Values of one variable at which an expression is zero; each is divided out before the next is looked for.

    The steps of `_secant` run away from the zero of 1000 - 1/x, and are too short for those of x^2 - 10^-9. Changes of
    sign that are left are therefore looked for from size to size, if `scanned`.
    """
    found: list[Fraction] = []

    def height(value: Fraction) -> Any:
        number = evaluator.at(node, {**base, name: value}).number
        if number is None or context().im(number) != 0 or value in found:
            return None
        context().prec = BITS
        for root in found:
            number = number / _numeric(value - root)
        return number

    while len(found) < _MAX_ROOTS:
        attempts = (_secant(height, start) for start in starts)
        root = next((root for root in attempts if root is not None), None)
        if root is None:
            break
        found.append(root)
    if scanned:
        found += _changes_of_sign(height)
    return found


def _changes_of_sign(height: Callable[[Fraction], Any]) -> list[Fraction]:
    """Where a function changes its sign between two of the numbers 64^k and -64^k, to a part in a thousand."""
    sizes = [Fraction(64) ** power for power in range(-_SCANNED_POWERS, _SCANNED_POWERS + 1)]
    found = []
    for sign in (-1, 1):
        heights = [height(sign * size) for size in sizes]
        for index, (one, other) in enumerate(pairwise(heights)):
            if one is None or other is None or (one > 0) == (other > 0):
                continue
            low, high = sizes[index], sizes[index + 1]
            while high - low > high / 1000:
                middle = (low + high) / 2
                at_middle = height(sign * middle)
                if at_middle is None:
                    break
                low, high = (middle, high) if (at_middle > 0) == (one > 0) else (low, middle)
            found.append(sign * (low + high) / 2)
    return found


def _secant(height: Callable[[Fraction], Any], start: Fraction) -> Fraction | None:
    """A zero of a function, or None if the steps do not lead to one."""
    last, here = start * Fraction(9, 8) + Fraction(1, 64), start
    last_height, height_here = height(last), height(here)
    for _ in range(_SECANT_STEPS):
        if last_height is None or height_here is None:
            return None
        context().prec = BITS
        if abs(height_here) <= context().mpf(10) ** -_ROOT_DIGITS:
            return here
        if last_height == height_here:
            return None
        step = as_fraction(height_here * _numeric(here - last) / (height_here - last_height))
        last, last_height = here, height_here
        here = as_fraction(_numeric(here - step))
        height_here = height(here)
    return None


def _numeric(value: Fraction) -> Any:
    return context().mpf(value.numerator) / value.denominator


def _between(crossings: Sequence[Fraction], *, at_them: bool) -> list[Fraction]:
    """One value inside every gap and beyond both ends; the crossings and their close neighbours too where asked."""
    gaps = [(low, high) for low, high in pairwise(crossings) if high - low > max(abs(low), Fraction(1)) * _SAME]
    values = [(low + high) / 2 for low, high in gaps]
    values += [crossings[-1] + abs(crossings[-1]) / 3 + 1, crossings[0] - abs(crossings[0]) / 3 - 1]
    if at_them:
        for crossing in crossings:
            near = max(abs(crossing), Fraction(1)) / 10**6
            values += [crossing, crossing + near, crossing - near]
    return values
