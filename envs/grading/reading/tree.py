"""The tree an answer is read into, and a cursor over its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from polyturn.envs.grading.reading.tokens import NotAnAnswer, Token

MAX_DEPTH = 24
MAX_CHAIN = 12
"""Divisions, plus-minus signs or factorials in a row: these nest in the tree, sums and products do not."""


@dataclass(frozen=True, slots=True)
class Node:
    """A tree.

    Attributes:
        kind: num, const (pi, e, i, inf), variable, word, based (digits in a base), add, mul, div, pow, neg, pm, func,
            fact, degrees, tuple (name: its brackets), set, builder (a set by conditions), list (name: the word or sign
            between its parts), union, without (a set and what is taken out of it), matrix (of row; name "det" for its
            determinant), row, rel (name: the relations, space separated), ratio, unit (name: the words), bound (name:
            sum, prod, int or lim; the variable that runs, the body, from, to: see `unfolding`).
        parts: The children.
        name: What the kind says.
        value: The value of a num, else 0.
        places: Decimals a num was written with, -1 for a whole number.
    """

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    places: int = -1


INFINITY = Node("const", name="inf")
MINUS_INFINITY = Node("neg", (INFINITY,))
REAL_LINE = Node("tuple", (MINUS_INFINITY, INFINITY), "()")


def joined(kind: str, parts: Sequence[Node]) -> Node:
    """The only part, or a node of this kind with all of them."""
    return parts[0] if len(parts) == 1 else Node(kind, tuple(parts))


def difference(first: Node, second: Node) -> Node:
    return Node("add", (first, Node("neg", (second,))))


def variables(node: Node) -> set[str]:
    """The names of a tree's variables."""
    return {node.name} if node.kind == "variable" else {name for part in node.parts for name in variables(part)}


def contains(node: Node, *kinds: str) -> bool:
    """Whether a node of one of these kinds stands anywhere in the tree."""
    return node.kind in kinds or any(contains(part, *kinds) for part in node.parts)


class Cursor:
    """Where a reader stands in a list of tokens, and how deep in brackets."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0
        self.lists = False  # whether the innermost bracket around the cursor is a square one
        self.running: frozenset[str] = frozenset()  # the letters of sums and integrals around the cursor

    def peek(self, ahead: int = 0) -> Token:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else Token("end", "", False)

    def sees(self, *texts: str) -> bool:
        token = self.peek()
        return token.kind in ("symbol", "command") and token.text in texts

    def symbol(self, text: str) -> bool:
        return self.peek()[:2] == ("symbol", text)

    def command(self, text: str) -> bool:
        return self.peek()[:2] == ("command", text)

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, *texts: str) -> Token:
        if not self.sees(*texts):
            raise NotAnAnswer(f"expected {' or '.join(texts)}, got {self.peek().text or 'the end'!r}")
        return self.take()

    def down(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotAnAnswer(f"nested deeper than {MAX_DEPTH}")

    def longer(self, chain: int) -> int:
        if chain >= MAX_CHAIN:
            raise NotAnAnswer(f"more than {MAX_CHAIN} operations nested in a row")
        return chain + 1

    def bracketed(self) -> list[Token]:
        """The tokens between the bracket at the cursor and the one that closes it; none if it never closes."""
        level = 0
        for index in range(self.at, len(self.tokens)):
            text = self.tokens[index].text if self.tokens[index].kind in ("symbol", "command") else ""
            level += (text in ("{", "(", "[")) - (text in ("}", ")", "]"))
            if level == 0:
                return self.tokens[self.at + 1 : index]
        return []
