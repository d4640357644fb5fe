r"""Reading an answer, LaTeX or plain, into a small tree.

A recursive descent over tokens, with bounds on length and depth; it evaluates nothing and calls nothing by name, so
text written by a model is safe to read. What it knows: numbers (mixed, scientific, with thousands separators,
repeating decimals, other bases, angles in minutes and seconds), fractions, roots, powers, common functions, lists,
tuples, sets, intervals and their unions, matrices, plus-minus, equations and inequalities, ratios and clock times,
named quantities (`P(X=2)`, `|AB|`, `f'(2)`), units, what Python prints for collections and fractions, and plain words.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from polyturn.envs.grading.reading.arithmetic import PYTHON_CALLS, RELATIONS, Arithmetic
from polyturn.envs.grading.reading.tokens import NotAnAnswer, tokenize
from polyturn.envs.grading.reading.tree import INFINITY, MINUS_INFINITY, Node
from polyturn.envs.grading.reading.units import LEADING, MEANINGFUL, MULTIPLIERS, NUMBER_WORDS

_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",), "{": ("}",), "lbrace": ("rbrace",)}
_MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"})
_LONGEST_MATRIX_NAME = 64


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Node, ...]:
    """The trees a text may stand for: more than one where a comma may separate or group digits; none if unreadable."""
    return _read(text)[0]


def why_unreadable(text: str) -> str:
    """Why a text has no reading; "" if it has one."""
    found, reason = _read(text)
    return "" if found else reason


def _read(text: str) -> tuple[tuple[Node, ...], str]:
    found: list[Node] = []
    reason = ""
    # Letters that make no sense as words are read as products, but only then: "east" is no product of variables.
    for products in (False, True):
        for join_thousands in (True, False):
            try:
                tree = _Reader(tokenize(text, join_thousands=join_thousands, products=products)).whole()
            except NotAnAnswer as error:
                reason = reason or str(error)
            except RecursionError:
                reason = "nested too deep"
            else:
                if tree not in found:
                    found.append(tree)
        if found:
            break
    return tuple(found), reason


class _Reader(Arithmetic):
    """The upper half of the reader: whole answers, relations, brackets and matrices."""

    # Lists and relations

    def whole(self) -> Node:
        items, separators = self.items()
        if self.at != len(self.tokens) or not items:
            raise NotAnAnswer(f"more than one answer, or none: unexpected {self.peek().text or 'end'!r}")
        return _listed(items, separators)

    def items(self) -> tuple[list[Node], list[str]]:
        """Relations with commas, semicolons, `and` or `or` between them, and the strongest separator of each gap."""
        found, separators = [self.relation()], list[str]()
        while True:
            gap: list[str] = []
            while self.symbol(",") or self.symbol(";") or self.peek()[:2] in (("word", "and"), ("word", "or")):
                gap.append(self.take().text)
            if not gap or self.peek().kind == "end":
                return found, separators
            separators.append(next((text for text in (";", "or", "and") if text in gap), ","))
            found.append(self.relation())

    def relation(self) -> Node:
        if self.sees("approx", "="):
            self.take()
        parts, signs = [self.side()], []
        while self.peek().kind in ("symbol", "command") and self.peek().text in RELATIONS:
            sign = RELATIONS[self.take().text]
            if sign in ("<", ">") and self.symbol("="):
                self.take()
                sign += "="
            signs.append(sign)
            parts.append(self.side())
        return parts[0] if not signs else Node("rel", tuple(parts), " ".join(signs))

    def side(self) -> Node:
        """One side of a relation: words, or an expression with money before it and a unit after it."""
        start = self.at
        words = self.words()
        # Words that stand for themselves, number words, and named quantities: "Var(X) = 5".
        if words and (self.at == len(self.tokens) or self.separator()):
            number = NUMBER_WORDS.get(words[0]) if len(words) == 1 else None
            return Node("word", name=" ".join(words)) if number is None else Node("num", value=Fraction(number))
        if words and self.symbol("(") and not set(words) & LEADING:
            inner = self.bracketed()
            self.at += len(inner) + 2
            if inner and self.separator():
                return Node("word", name=f"{' '.join(words)}({''.join(token.text for token in inner)})")
        if words and not set(words) <= LEADING:
            raise NotAnAnswer(f"the words {' '.join(words)!r} before an answer")
        if words and self.symbol(":"):  # "the solution is: 5"
            self.take()
        negative = self.symbol("-") and self.peek(1)[:2] == ("command", "dollar")
        if negative:
            self.take()
        unit = ""
        if self.command("dollar"):
            self.take()
            unit = "dollars"
        if self.at == start and not unit and self.peek().kind == "end":
            raise NotAnAnswer("nothing to read")
        # The expression, a ratio perhaps, and its unit.
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
        return token.text in (",", ";", ")", "]", "}", "&", "\\", "and", "or") or token.text in RELATIONS

    # Words and units

    def words(self) -> list[str]:
        found: list[str] = []
        while self.peek().kind == "word" and self.peek().text not in ("and", "or"):
            if self.peek().text in PYTHON_CALLS and self.peek(1)[:2] == ("symbol", "("):
                break
            found.append(self.take().text)
            if self.symbol("-") and self.peek(1).kind == "word":  # "twenty-one", "right-angled"
                self.take()
        return found

    def unit(self, node: Node, unit: str) -> Node:
        """Percent signs, words and bracketed remarks after a number."""
        if self.sees("%"):
            self.take()
            unit = unit or "percent"
        words = self.words()
        if words and words[0] in MULTIPLIERS:
            node = Node("mul", (node, Node("num", value=Fraction(MULTIPLIERS[words.pop(0)]))))
        if set(words) & (MEANINGFUL | set(MULTIPLIERS)):
            if words[0] == "base" and len(words) == 1 and node.kind == "num" and node.places < 0:
                return self.based(node.name, self.take().text)
            raise NotAnAnswer(f"words after an answer that change it: {' '.join(words)!r}")
        # Powers and quotients of units: cm^2, miles/hour, lb/in^2.
        if words and self.symbol("^"):
            words.append(self.unit_power())
        while self.symbol("/") and (words or self.peek(1).kind == "word"):
            self.take()
            words += ["per", *(self.words() or [self.variable().name])]
            if self.symbol("^"):
                words.append(self.unit_power())
        if self.symbol("(") and self.remark():
            self.at += len(self.bracketed()) + 2
            words = words or ["remark"]
        if words:
            unit = " ".join(words)
        if self.sees("pmod", "bmod"):
            self.take()
            unit = f"mod {self.argument().value}"
        return Node("unit", (node,), unit) if unit else node

    def unit_power(self) -> str:
        self.take()
        return f"^{self.script().value}"

    # Brackets

    def in_list(self, start: int) -> bool:
        """Whether the square bracket that opened at `start` and has just closed is an item of another one."""
        before, after = self.tokens[start - 1] if start else None, self.peek()
        lone = before is not None and before[:2] in (("symbol", "["), ("symbol", ","))
        return lone and bool(self.lists) and after[:2] in (("symbol", "]"), ("symbol", ","))

    def brackets(self) -> Node:
        start, opening = self.at, self.take().text
        self.down()
        bars, self.bars = self.bars, 0
        outer, self.lists = self.lists, opening == "["
        closers = _CLOSERS[opening]
        items, separators = list[Node](), list[str]()
        builder = self.set_builder() if opening in ("{", "lbrace") else None
        if builder is None and not self.sees(*closers):
            items, separators = self.items()
        closing = self.expect(*closers).text
        self.bars, self.lists = bars, outer
        self.depth -= 1
        if builder is not None:
            return builder
        if opening in ("{", "lbrace"):
            return Node("set", tuple(items))
        if len(items) == 1 and self.symbol("_") and items[0].kind == "num":
            return self.in_base(items[0].name)
        if len(items) == 1 and (opening, closing) in (("(", ")"), ("[", "]")):
            inner = items[0]
            # A row of a matrix as Python prints it: [[1], [2]] is a column, and is not [1, 2].
            if opening == "[" and (inner.kind in ("tuple", "set") or self.in_list(start)):
                return Node("tuple", (inner,), "[]")
            return inner
        if not items:
            raise NotAnAnswer("empty brackets")
        if "or" in separators:
            return _listed(items, separators)
        return Node("tuple", tuple(items), "()" if opening == "langle" else opening + closing)

    def set_builder(self) -> Node | None:
        r"""The conditions of `\{x | x > 3\}`, joined by "and"; None if the braces hold no bar or colon after a name."""
        start = self.at
        if self.peek().kind != "variable":
            return None
        variable = self.variable()
        if self.command("in") and self.peek(1)[:2] == ("command", "mathbb"):
            self.at += 2
            if self.letters() != "R":
                self.at = start
                return None
        if not self.sees("|", ":"):
            self.at = start
            return None
        self.take()
        items, separators = self.items()
        if all(item.kind == "rel" and item.name.split()[0] in ("<", "<=", ">", ">=", "!=") for item in items):
            return _listed(items, ["and" if text in (",", ";") else text for text in separators])
        return Node("builder", (variable, *items))

    def python_call(self) -> Node:
        name = self.take().text
        if name in ("fraction", "rational"):
            inner = self.brackets()
            parts = inner.parts if inner.kind == "tuple" else (inner,)
            if len(parts) > 2:
                raise NotAnAnswer(f"{name} of more than two numbers")
            return Node("div", parts) if len(parts) == 2 else parts[0]
        inner = self.brackets()
        if name.startswith(("interval", "union", "complement", "equation", "unequal")):
            return _of_two(name, inner.parts if inner.kind == "tuple" else (inner,))
        if name == "finiteset":
            return Node("set", inner.parts if inner.kind == "tuple" else (inner,))
        if name in ("matrix", "array") and inner.kind == "tuple" and all(p.kind == "tuple" for p in inner.parts):
            return Node("matrix", tuple(Node("row", part.parts) for part in inner.parts))
        return inner

    def matrix(self) -> Node:
        self.expect("{")
        name = "".join(
            self.take().text for _ in range(_LONGEST_MATRIX_NAME) if self.peek().kind in ("variable", "word")
        )
        self.expect("}")
        if name not in {kind.lower() for kind in _MATRICES} | _MATRICES:
            raise NotAnAnswer(f"unknown environment {name!r}")
        if name == "array" and self.symbol("{"):
            while self.peek().kind != "end" and not self.symbol("}"):
                self.take()
            self.expect("}")
        # Cells, row by row.
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
        # The end of the environment.
        self.expect("end")
        self.expect("{")
        while self.peek().kind in ("variable", "word"):
            self.take()
        self.expect("}")
        if not rows or len({len(row.parts) for row in rows}) != 1:
            raise NotAnAnswer("rows of different lengths")
        return Node("matrix", tuple(rows), "det" if name == "vmatrix" else "")


def _of_two(name: str, parts: tuple[Node, ...]) -> Node:
    """Intervals, their unions and differences, and relations, as sympy prints them."""
    if name == "union":
        return Node("union", parts)
    if len(parts) != 2:
        raise NotAnAnswer(f"{name} of {len(parts)} parts")
    if name == "complement":
        return Node("without", parts)
    if name in ("equation", "unequal"):
        return Node("rel", parts, "=" if name == "equation" else "!=")
    low = "(" if name in ("intervalopen", "intervallopen") or parts[0] == MINUS_INFINITY else "["
    high = ")" if name in ("intervalopen", "intervalropen") or parts[1] == INFINITY else "]"
    return Node("tuple", parts, low + high)


def _listed(items: list[Node], separators: list[str]) -> Node:
    """The only item, or a list; `p=5, q=2; p=7, q=2` is a list of two lists, since both name the same things."""
    if len(items) == 1:
        return items[0]
    kind = next((text for text in ("or", "and") if text in separators), ",")
    cuts = [index for index, text in enumerate(separators, 1) if text != ","]
    groups = [items[start:end] for start, end in pairwise([0, *cuts, len(items)])]
    names = [[item.parts[0] if item.kind == "rel" and item.name == "=" else None for item in group] for group in groups]
    named = None not in names[0] and len(set(names[0])) == len(names[0]) > 1
    if len(groups) > 1 and named and all(each == names[0] for each in names):
        return Node("list", tuple(Node("list", tuple(group), ",") for group in groups), kind)
    return Node("list", tuple(items), kind)
