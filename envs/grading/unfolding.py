r"""Sums, products, integrals and limits as trees of plain arithmetic, where that takes bounded work.

A sum or product over whole numbers is written out. An integral is that of polynomials, powers, sines, cosines and
exponentials of a line, and is replaced by the difference of an antiderivative. A limit is that of a quotient of
polynomials, or of functions that are continuous where they are defined. Nothing is found numerically, so nothing is
taken for equal that only looks so; what is of another kind, infinite or too long is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from polyturn.envs.grading.reading.tree import Node, contains, joined, variables
from polyturn.envs.grading.values import Evaluator
from polyturn.envs.grading.work import TooHard

MOST_TERMS = 1000
MOST_NODES = 6000
"""Nodes that all sums and products of an answer may have when they are written out."""
_HIGHEST_POWER = 40
_CONTINUOUS = frozenset({"sin", "cos", "tan", "sec", "csc", "cot", "arctan", "exp", "ln", "log", "abs", "root"})
_PLAIN = frozenset({"num", "const", "variable", "add", "mul", "div", "neg", "pow", "func"})


class Factor(NamedTuple):
    """A coefficient: its tree, how many nodes that has, and its value where it is a rational number."""

    node: Node
    size: int
    value: Fraction | None


Polynomial = dict[int, Factor]
"""Coefficients by power of the variable; they do not depend on it."""


def unfolded(node: Node, evaluator: Evaluator) -> Node:
    """A tree without sums, products, integrals and limits.

    Raises:
        TooHard: One of them cannot be evaluated here.
    """
    if not contains(node, "bound"):
        return node
    made = _Unfolding(evaluator).of(node)
    _check_size(made)
    return made


class _Unfolding:
    """One answer's."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.left = MOST_NODES

    def of(self, node: Node) -> Node:
        self.spend(1)
        if node.kind != "bound":
            parts = tuple(self.of(part) for part in node.parts)
            return node if parts == node.parts else Node(node.kind, parts, node.name, node.value, node.places)
        about, body, *ends = node.parts
        ends = [self.of(end) for end in ends]
        if any(about.name in variables(end) for end in ends):
            raise TooHard(f"a bound that depends on {about.name}")
        if node.name in ("sum", "prod"):
            return self.written_out(node.name, about, body, *ends)
        body = self.of(body)
        _check_size(body)
        return self.integral(about, body, *ends) if node.name == "int" else self.limit(about, body, ends[0])

    def spend(self, nodes: int) -> None:
        self.left -= nodes
        self.evaluator.work.spend(nodes)
        if self.left < 0:
            raise TooHard(f"written out it has more than {MOST_NODES} parts")

    def exact(self, node: Node) -> Fraction | None:
        return None if variables(node) or contains(node, "bound") else self.evaluator.exact(node)

    def put(self, node: Node, about: Node, value: Node) -> Node:
        """The tree with a value in the place of a name, but not within a sum over the same name."""
        self.spend(1)
        if node == about:
            return value
        kept = (
            2 if node.kind == "bound" and node.parts[0] == about else 0
        )  # its name and its body; the ends are outside
        parts = tuple(part if at < kept else self.put(part, about, value) for at, part in enumerate(node.parts))
        return Node(node.kind, parts, node.name, node.value, node.places)

    # Sums and products

    def written_out(self, name: str, about: Node, body: Node, low: Node, high: Node) -> Node:
        first, last = self.exact(low), self.exact(high)
        if first is None or last is None or first.denominator != 1 or last.denominator != 1:
            raise TooHard(f"a {name} whose bounds are no whole numbers")
        if last - first >= MOST_TERMS:
            raise TooHard(f"a {name} of more than {MOST_TERMS} terms")
        if last < first - 1:
            raise TooHard(f"a {name} from {first} to {last}")
        terms = [self.of(self.put(body, about, _number(at))) for at in range(int(first), int(last) + 1)]
        if not terms:
            return _number(name == "prod")
        return joined("add" if name == "sum" else "mul", terms)

    # Integrals

    def integral(self, about: Node, body: Node, low: Node, high: Node) -> Node:
        if _infinite(low) or _infinite(high):
            raise TooHard("an integral without bounds")
        ends = self.exact(low), self.exact(high)
        return joined("add", [self.integrated(term, about, low, high, ends) for term in self.terms(body, about)])

    def terms(self, body: Node, about: Node) -> list[Node]:
        """The summands of an integrand, minus signs within them."""
        if body.kind == "add":
            return [term for part in body.parts for term in self.terms(part, about)]
        if body.kind == "neg":
            return [Node("neg", (term,)) for term in self.terms(body.parts[0], about)]
        return [body]

    def integrated(
        self, term: Node, about: Node, low: Node, high: Node, ends: tuple[Fraction | None, Fraction | None]
    ) -> Node:
        polynomial = self.polynomial(term, about)
        if polynomial is not None:
            return self.between(lambda at: self.antiderivative(polynomial, at), low, high)
        if term.kind == "neg":
            return Node("neg", (self.integrated(term.parts[0], about, low, high, ends),))
        if term.kind in ("mul", "div"):  # constants come out
            over = [part for part in term.parts if about.name in variables(part)]
            if len(over) == 1 and (term.kind == "mul" or over[0] is term.parts[0]):
                inner = self.integrated(over[0], about, low, high, ends)
                return Node(term.kind, tuple(inner if part is over[0] else part for part in term.parts))
        power = self.power_of(term, about)
        if power is not None:
            return self.power_integral(*power, low, high, ends)
        if (turned := self.function_of_line(term, about)) is None:
            raise TooHard("an integral of another kind")
        outer, slope, inside = turned
        return self.between(lambda at: Node("div", (outer(self.put(inside, about, at)), slope)), low, high)

    def between(self, primitive: Callable[[Node], Node], low: Node, high: Node) -> Node:
        return Node("add", (primitive(high), Node("neg", (primitive(low),))))

    def antiderivative(self, polynomial: Polynomial, at: Node) -> Node:
        """Its value at a point."""
        self.spend(4 * len(polynomial) + 1)
        terms = [
            Node("mul", (factor.node, Node("div", (_powered(at, power + 1), _number(power + 1)))))
            for power, factor in sorted(polynomial.items())
        ]
        return joined("add", terms) if terms else _number(0)

    def power_of(self, term: Node, about: Node) -> tuple[Node, Fraction] | None:
        """`factor * about ** power` with a power that is no whole positive number, or None."""
        one = _number(1)
        if term.kind == "div" and about.name not in variables(term.parts[0]):
            under = self.power_of(term.parts[1], about) or self.whole_power(term.parts[1], about)
            return None if under is None else (Node("div", (term.parts[0], under[0])), -under[1])
        if term.kind == "pow" and term.parts[0] == about and (power := self.exact(term.parts[1])) is not None:
            return one, power
        if term.kind == "func" and term.name == "root" and term.parts[0] == about:
            index = self.exact(term.parts[1])
            return None if not index else (one, 1 / index)
        return None

    def whole_power(self, node: Node, about: Node) -> tuple[Node, Fraction] | None:
        polynomial = self.polynomial(node, about)
        if polynomial is None or len(polynomial) != 1:
            return None
        ((power, factor),) = polynomial.items()
        return factor.node, Fraction(power)

    def power_integral(
        self, factor: Node, power: Fraction, low: Node, high: Node, ends: tuple[Fraction | None, Fraction | None]
    ) -> Node:
        first, last = ends
        if first is None or last is None or min(first, last) < 0 or (min(first, last) == 0 and power < 0):
            raise TooHard("an integral of a power over numbers that are not known to be positive")
        if power == -1:
            whole = Node("func", (Node("div", (high, low)),), "ln")
        else:
            raised = Node("num", value=power + 1)
            whole = self.between(lambda at: Node("div", (Node("pow", (at, raised)), raised)), low, high)
        return Node("mul", (factor, whole))

    def function_of_line(self, term: Node, about: Node) -> tuple[Callable[[Node], Node], Node, Node] | None:
        """For sin, cos and exp of a line: the primitive of the function, the slope, and the line."""
        if term.kind == "func" and term.name in ("sin", "cos", "exp"):
            inside = term.parts[0]
        elif term.kind == "pow" and term.parts[0] == Node("const", name="e"):
            inside = term.parts[1]
        else:
            return None
        line = self.polynomial(inside, about)
        if line is None or set(line) - {0, 1} or 1 not in line or not line[1].value or contains(inside, "degrees"):
            return None
        name = term.name if term.kind == "func" else "exp"

        def outer(at: Node) -> Node:
            if name == "sin":
                return Node("neg", (Node("func", (at,), "cos"),))
            return Node("func", (at,), "sin" if name == "cos" else "exp")

        return outer, line[1].node, inside

    # Polynomials

    def polynomial(self, node: Node, about: Node) -> Polynomial | None:
        """The coefficients of a tree that is a polynomial in a variable, or None."""
        self.spend(1)
        if about.name not in variables(node):
            return {0: Factor(node, _check_size(node), self.exact(node))}
        if node == about:
            return {1: _known(Fraction(1))}
        if node.kind not in ("add", "neg", "mul", "div", "pow"):
            return None
        first = self.polynomial(node.parts[0], about)
        if first is None:
            return None
        if node.kind == "neg":
            return self.product([first, {0: _known(Fraction(-1))}])
        if node.kind == "div":
            under = node.parts[1]
            if about.name in variables(under) or self.exact(under) == 0:
                return None
            return self.product([first, {0: self.made("div", [_known(Fraction(1)), self.factor(under)])}])
        if node.kind == "pow":
            power = self.exact(node.parts[1])
            if power is None or power.denominator != 1 or not 0 < power <= _HIGHEST_POWER:
                return None
            return self.product([first] * int(power))
        others = [self.polynomial(part, about) for part in node.parts[1:]]
        if any(other is None for other in others):
            return None
        known = [first, *(other for other in others if other is not None)]
        return self.product(known) if node.kind == "mul" else self.added(known)

    def factor(self, node: Node) -> Factor:
        return Factor(node, _check_size(node), self.exact(node))

    def added(self, polynomials: list[Polynomial]) -> Polynomial:
        found: dict[int, list[Factor]] = {}
        for polynomial in polynomials:
            for power, factor in polynomial.items():
                found.setdefault(power, []).append(factor)
        return {power: self.made("add", factors) for power, factors in found.items()}

    def product(self, polynomials: list[Polynomial]) -> Polynomial | None:
        made = polynomials[0]
        for other in polynomials[1:]:
            if max(made) + max(other) > _HIGHEST_POWER:
                return None
            found: dict[int, list[Factor]] = {}
            for one, factor in made.items():
                for two, second in other.items():
                    found.setdefault(one + two, []).append(self.made("mul", [factor, second]))
            made = {power: self.made("add", factors) for power, factors in found.items()}
        return made

    def made(self, kind: str, factors: list[Factor]) -> Factor:
        """A sum, product or quotient of coefficients: one number, where all are."""
        values = [factor.value for factor in factors]
        if None not in values:
            known = [value for value in values if value is not None]
            result = sum(known, Fraction(0)) if kind == "add" else known[0] * math.prod(known[1:])
            if kind == "div":
                result = known[0] / known[1]
            self.spend(1 + (result.numerator.bit_length() + result.denominator.bit_length()) // 512)
            return _known(result)
        size = 1 + sum(factor.size for factor in factors)
        self.spend(2)
        if size > MOST_NODES:
            raise TooHard(f"written out it has more than {MOST_NODES} parts")
        return Factor(joined(kind, [factor.node for factor in factors]), size, None)

    # Limits

    def limit(self, about: Node, body: Node, target: Node) -> Node:
        quotient = self.quotient(body, about)
        if quotient is not None:
            return Node("num", value=self.limit_of_quotient(*quotient, target))
        if _infinite(target):
            raise TooHard("a limit at infinity of no quotient of polynomials")
        self.check_continuous(body, about)
        if variables(body) - {about.name} or variables(target):
            raise TooHard("a limit of several variables")
        value = self.put(body, about, target)
        if self.evaluator.constant(value).number is None:
            raise TooHard("a limit where the expression has no value")
        return value

    def quotient(self, body: Node, about: Node) -> tuple[dict[int, Fraction], dict[int, Fraction]] | None:
        """Numerator and denominator of a quotient of polynomials with rational coefficients, or None."""
        over, under = body.parts if body.kind == "div" else (body, _number(1))
        found = []
        for side in (over, under):
            polynomial = self.polynomial(side, about)
            if polynomial is None:
                return None
            factors = {power: factor.value for power, factor in polynomial.items()}
            if None in factors.values():
                return None
            found.append({power: value for power, value in factors.items() if value})
        return (found[0], found[1]) if found[1] else None

    def limit_of_quotient(self, over: dict[int, Fraction], under: dict[int, Fraction], target: Node) -> Fraction:
        if not over:
            return Fraction(0)
        if _infinite(target):
            if max(over) > max(under):
                raise TooHard("a limit that is infinite")
            return over[max(over)] / under[max(under)] if max(over) == max(under) else Fraction(0)
        at = self.exact(target)
        if at is None:
            raise TooHard("a limit of a quotient at no rational number")
        top, bottom = _dense(over), _dense(under)
        while True:  # each round takes the factor (x - at) off both
            self.spend(len(top) + len(bottom))
            (top, above), (bottom, below) = _divided(top, at), _divided(bottom, at)
            if below:
                return above / below
            if above:
                raise TooHard("a limit that is infinite")

    def check_continuous(self, node: Node, about: Node) -> None:
        """Refuses what may jump: rounding, binomials, factorials, and powers of zero."""
        if about.name not in variables(node):
            return
        if node.kind not in _PLAIN or (node.kind == "func" and node.name not in _CONTINUOUS):
            raise TooHard("a limit of an expression that may jump")
        if node.kind == "func" and any(about.name in variables(part) for part in node.parts[1:]):
            raise TooHard("a limit of a root or logarithm whose index or base varies")
        if node.kind == "pow" and about.name in variables(node.parts[1]):
            base = node.parts[0]
            positive = self.exact(base)
            if base != Node("const", name="e") and not (positive is not None and positive > 0):
                raise TooHard("a limit of a power whose base is not known to be positive")
        for part in node.parts:
            self.check_continuous(part, about)


def _known(value: Fraction) -> Factor:
    return Factor(Node("num", value=value), 1, value)


def _check_size(node: Node) -> int:
    """The nodes of a tree; shared ones count each time, as they will be walked.

    Raises:
        TooHard: There are more than `MOST_NODES`.
    """
    count, waiting = 0, [node]
    while waiting:
        count += 1
        if count > MOST_NODES:
            raise TooHard(f"written out it has more than {MOST_NODES} parts")
        waiting += waiting.pop().parts
    return count


def _number(value: int) -> Node:
    return Node("num", name=str(int(value)), value=Fraction(int(value)))


def _powered(base: Node, power: int) -> Node:
    return base if power == 1 else Node("pow", (base, _number(power)))


def _infinite(node: Node) -> bool:
    return (node.kind == "const" and node.name == "inf") or any(_infinite(part) for part in node.parts)


def _dense(factors: dict[int, Fraction]) -> list[Fraction]:
    """Coefficients from the highest power down."""
    return [factors.get(power, Fraction(0)) for power in range(max(factors), -1, -1)]


def _divided(factors: list[Fraction], at: Fraction) -> tuple[list[Fraction], Fraction]:
    """Quotient by (x - at), and the value at that point (Horner's scheme)."""
    quotient: list[Fraction] = []
    carried = Fraction(0)
    for factor in factors:
        carried = carried * at + factor
        quotient.append(carried)
    return quotient[:-1], carried
