r"""Reading an answer, LaTeX or plain, into a small tree.

A recursive descent over tokens, with bounds on length and depth; it evaluates nothing and calls nothing by name, so
text written by a model is safe to read. What it knows: numbers (mixed, scientific, with thousands separators,
repeating decimals, other bases), fractions, roots, powers, common functions, lists, tuples, sets, intervals and their
unions, matrices, plus-minus, equations and inequalities, ratios and clock times, units, and plain words.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from polyturn.envs.grading.arithmetic import Arithmetic
from polyturn.envs.grading.tokens import NotAnAnswer, tokenize
from polyturn.envs.grading.tree import Node
from polyturn.envs.grading.units import LEADING, MEANINGFUL, MULTIPLIERS, NUMBER_WORDS

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=",
    "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "in": "in", "approx": "=", "equiv": "=",
}  # fmt: skip
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",), "{": ("}",), "lbrace": ("rbrace",)}
_MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"})


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Node, ...]:
    """The trees a text may stand for: more than one where a comma may separate or group digits; none if unreadable."""
    found: list[Node] = []
    for join_thousands in (True, False):
        try:
            tree = _Reader(tokenize(text, join_thousands=join_thousands)).whole()
        except (NotAnAnswer, RecursionError):
            continue
        if tree not in found:
            found.append(tree)
    return tuple(found)


class _Reader(Arithmetic):
    def whole(self) -> Node:
        items = self.items()
        if self.at != len(self.tokens) or not items:
            raise NotAnAnswer("more than one answer, or none")
        return items[0] if len(items) == 1 else Node("list", tuple(items))

    def items(self) -> list[Node]:
        found = [self.relation()]
        while True:
            separated = False
            while self.symbol(",") or self.symbol(";") or self.peek()[:2] in (("word", "and"), ("word", "or")):
                self.take()
                separated = True
            if not separated or self.peek().kind == "end":
                return found
            found.append(self.relation())

    def relation(self) -> Node:
        parts, signs = [], []
        if self.sees("approx", "="):
            self.take()
        parts.append(self.side())
        while self.peek().kind in ("symbol", "command") and self.peek().text in _RELATIONS:
            sign = _RELATIONS[self.take().text]
            if sign in ("<", ">") and self.symbol("="):
                self.take()
                sign += "="
            signs.append(sign)
            parts.append(self.side())
        return parts[0] if not signs else Node("rel", tuple(parts), " ".join(signs))

    def side(self) -> Node:
        start = self.at
        words = self.words()
        if words and (self.at == len(self.tokens) or self.separator()):
            number = NUMBER_WORDS.get(words[0]) if len(words) == 1 else None
            return Node("word", name=" ".join(words)) if number is None else Node("num", value=Fraction(number))
        if words and not set(words) <= LEADING:
            raise NotAnAnswer("words before an answer")
        negative = self.symbol("-") and self.peek(1)[:2] == ("command", "dollar")
        if negative:
            self.take()
        unit = ""
        if self.command("dollar"):
            self.take()
            unit = "dollars"
        if self.at == start and not unit and self.peek().kind == "end":
            raise NotAnAnswer("nothing")
        node = self.union()
        if self.symbol(":"):
            parts = [node]
            while self.symbol(":"):
                self.take()
                parts.append(self.sum())
            node = Node("ratio", tuple(parts))
        elif self.peek()[:2] == ("word", "to") and self.peek(1).kind == "number":
            self.take()
            node = Node("ratio", (node, self.sum()))
        node = Node("neg", (node,)) if negative else node
        return self.unit(node, unit)

    def separator(self) -> bool:
        token = self.peek()
        return token.text in (",", ";", ")", "]", "}", "&", "\\", "and", "or") or token.text in _RELATIONS

    def words(self) -> list[str]:
        found: list[str] = []
        while self.peek().kind == "word" and (self.peek().text not in ("and", "or") or not found):
            if self.peek().text in ("and", "or"):
                break
            found.append(self.take().text)
            if self.symbol("-") and self.peek(1).kind == "word":  # "twenty-one", "right-angled"
                self.take()
        return found

    def unit(self, node: Node, unit: str) -> Node:
        """Percent signs and words behind a number."""
        if self.sees("%"):
            self.take()
            unit = unit or "percent"
        words = self.words()
        if words and words[0] in MULTIPLIERS:
            node = Node("mul", (node, Node("num", value=Fraction(MULTIPLIERS[words.pop(0)]))))
        if set(words) & (MEANINGFUL | set(MULTIPLIERS)):
            if words[0] == "base" and len(words) == 1 and node.kind == "num" and node.places < 0:
                return self.based(node.name, self.take().text)
            raise NotAnAnswer("words behind an answer that change it")
        if words and self.symbol("^"):
            self.take()
            power = self.script()
            words.append(f"^{power.value}")
        if words and self.symbol("/"):  # miles/hour
            self.take()
            words += ["per", *(self.words() or [self.variable().name])]
        if words:
            unit = " ".join(words)
        if self.sees("pmod", "bmod"):
            self.take()
            unit = f"mod {self.argument().value}"
        return Node("unit", (node,), unit) if unit else node

    def brackets(self) -> Node:
        opening = self.take().text
        self.down()
        bars, self.bars = self.bars, 0
        closers = _CLOSERS[opening]
        if self.sees(*closers):
            closing, items = self.take().text, []
        else:
            items = self.items()
            closing = self.expect(*closers).text
        self.bars = bars
        self.depth -= 1
        if opening in ("{", "lbrace"):
            return Node("set", tuple(items))
        if len(items) == 1 and self.symbol("_") and items[0].kind == "num":
            return self.in_base(items[0].name)
        if len(items) == 1 and (opening, closing) in (("(", ")"), ("[", "]")):
            inner = items[0]
            return Node("tuple", (inner,), "[]") if opening == "[" and inner.kind == "tuple" else inner
        if not items:
            raise NotAnAnswer("empty brackets")
        return Node("tuple", tuple(items), "()" if opening == "langle" else opening + closing)

    def matrix(self) -> Node:
        self.expect("{")
        name = "".join(self.take().text for _ in range(64) if self.peek().kind in ("variable", "word"))
        self.expect("}")
        if name not in {kind.lower() for kind in _MATRICES} | _MATRICES:
            raise NotAnAnswer(f"unknown environment {name!r}")
        if name == "array" and self.symbol("{"):
            while self.peek().kind != "end" and not self.symbol("}"):
                self.take()
            self.expect("}")
        self.down()
        rows: list[Node] = []
        cells: list[Node] = []
        while True:
            if self.command("end") and not cells:
                break
            cells.append(self.relation())
            if self.symbol("&"):
                self.take()
                continue
            rows.append(Node("row", tuple(cells)))
            cells = []
            if self.command("\\"):
                self.take()
            elif not self.command("end"):
                raise NotAnAnswer("a matrix that does not end")
        self.depth -= 1
        self.expect("end")
        self.expect("{")
        while self.peek().kind in ("variable", "word"):
            self.take()
        self.expect("}")
        if not rows or len({len(row.parts) for row in rows}) != 1:
            raise NotAnAnswer("rows of different lengths")
        return Node("matrix", tuple(rows))
