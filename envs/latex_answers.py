r"""Reading an answer, LaTeX or plain, into a small tree.

A recursive descent over tokens, with bounds on length and depth; it evaluates nothing and calls nothing by name, so
text written by a model is safe to read. What it knows: numbers (mixed, scientific, with thousands separators,
repeating decimals, other bases), fractions, roots, powers, common functions, lists, tuples, sets, intervals and their
unions, matrices, plus-minus, equations and inequalities, ratios and clock times, units, and plain words.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from turnwise.envs.latex_tokens import FUNCTIONS, NotAnAnswer, Token, tokenize
from turnwise.envs.units import LEADING, MEANINGFUL, MULTIPLIERS

MAX_DEPTH = 24


@dataclass(frozen=True, slots=True)
class Node:
    """A tree.

    Attributes:
        kind: num, const (pi, e, i, inf), variable, word, based (digits in a base), add, mul, div, pow, neg, pm, func,
            fact, degrees, tuple (name: its brackets), set, list, union, matrix (of row), row, rel (name: the
            relations, space separated), ratio, unit (name: the words).
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
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=",
    "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "in": "in", "approx": "=", "equiv": "=",
}  # fmt: skip
_TIMES = frozenset({"*", "times", "cdot", "ast"})
_FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac"})
_MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"})
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",), "{": ("}",), "lbrace": ("rbrace",)}
_CIRCLES = frozenset({"circ", "degree"})
_GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell".split()
)
_DECORATIONS = frozenset({"angle", "triangle", "boxed", "fbox", "therefore"})


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


class _Reader:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0

    def whole(self) -> Node:
        items = self.items()
        if self.at != len(self.tokens) or not items:
            raise NotAnAnswer("more than one answer, or none")
        return items[0] if len(items) == 1 else Node("list", tuple(items))

    # Tokens

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
            raise NotAnAnswer(f"expected {' or '.join(texts)}")
        return self.take()

    def down(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotAnAnswer(f"nested deeper than {MAX_DEPTH}")

    # Lists, relations, units

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
            return Node("word", name=" ".join(words))
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
            words += ["per", *self.words()]
        if words:
            unit = " ".join(words)
        return Node("unit", (node,), unit) if unit else node

    def based(self, digits: str, base: str) -> Node:
        if not base.isdigit() or not 2 <= int(base[:3]) <= 36:
            raise NotAnAnswer("a base that is none")
        return Node("based", name=f"{digits}_{int(base)}")

    # Arithmetic

    def union(self) -> Node:
        parts = [self.sum()]
        while self.command("cup"):
            self.take()
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def sum(self) -> Node:
        self.down()
        total: Node | None = None
        while total is None or self.sees("+", "-", "pm", "mp"):
            sign = "+"
            signs = 0
            while self.sees("+", "-", "pm", "mp"):
                one, signs = self.take().text, signs + 1
                if one in ("pm", "mp"):
                    sign = one
                elif one == "-" and sign in "+-":
                    sign = "-" if sign == "+" else "+"
            term = self.term()
            if sign in ("pm", "mp"):
                total = Node("pm", (total, term) if total else (term,), sign)
            else:
                term = Node("neg", (term,)) if sign == "-" else term
                total = Node("add", (total, term)) if total else term
        self.depth -= 1
        return total

    def term(self) -> Node:
        product = self.power()
        while True:
            if self.sees(*_TIMES):
                self.take()
                negative = self.symbol("-")
                if negative:
                    self.take()
                factor = self.power()
                product = Node("mul", (product, Node("neg", (factor,)) if negative else factor))
            elif self.sees("/", "div"):
                self.take()
                negative = self.symbol("-")
                if negative:
                    self.take()
                factor = self.power()
                product = Node("div", (product, Node("neg", (factor,)) if negative else factor))
            elif self.starts_factor():
                if self.peek().kind == "number" and self.tokens[self.at - 1].kind == "number":
                    raise NotAnAnswer("two numbers side by side")
                product = Node("mul", (product, self.power()))
            else:
                return product

    def starts_factor(self) -> bool:
        kind, text, _ = self.peek()
        if kind in ("number", "variable"):
            return True
        if kind == "symbol":
            return text in ("(", "[", "{") or (text == "|" and not self.bars)
        return kind == "command" and (
            text in _FRACTIONS | FUNCTIONS | _GREEK | {"pi", "sqrt", "cbrt", "infty", "binom", "dbinom", "tbinom", "{"}
            or text in ("lfloor", "lceil", "overline", "begin", "lvert", "langle", "mathbb", "lbrace")
            or (text in ("|", "vert") and not self.bars)
        )

    def power(self) -> Node:
        node = self.postfix(self.atom())
        while self.symbol("^") or (self.symbol("*") and self.peek(1)[:2] == ("symbol", "*")):
            if self.take().text == "*":
                self.take()
            if self.sees(*_CIRCLES):
                self.take()
                node = Node("degrees", (node,))
                continue
            if self.symbol("{") and self.peek(1).text in _CIRCLES and self.peek(2).text == "}":
                self.at += 3
                node = Node("degrees", (node,))
                continue
            node = self.postfix(Node("pow", (node, self.script())))
        return node

    def postfix(self, node: Node) -> Node:
        while self.symbol("!") or self.sees("degree"):
            node = Node("fact" if self.take().text == "!" else "degrees", (node,))
        return node

    def script(self) -> Node:
        """An exponent: a group, or one signed number, name or command."""
        self.down()
        if self.symbol("{"):
            node = self.group()
        elif self.symbol("-"):
            self.take()
            node = Node("neg", (self.script(),))
        else:
            node = self.power() if self.peek().kind != "variable" else self.variable()
        self.depth -= 1
        return node

    def argument(self) -> Node:
        """What a LaTeX command takes: a group, or a single digit, letter or command."""
        token = self.peek()
        if token[:2] == ("symbol", "{"):
            return self.group()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = Token("number", token.text[1:], False)
            return _number(token.text[0])
        if token.kind == "variable":
            return self.variable()
        self.down()
        node = self.atom()
        self.depth -= 1
        return node

    def group(self) -> Node:
        self.expect("{")
        bars, self.bars = self.bars, 0
        node = self.sum()
        if self.command("over"):
            self.take()
            node = Node("div", (node, self.sum()))
        self.bars = bars
        self.expect("}")
        return node

    def atom(self) -> Node:
        kind, text, _ = self.peek()
        if kind == "number":
            return self.number()
        if kind == "variable":
            return self.variable()
        if kind == "symbol":
            if text == "{":
                return self.group()
            if text in ("(", "["):
                return self.brackets()
            if text == "|":
                return self.absolute()
        if kind == "command":
            return self.special(text)
        raise NotAnAnswer(f"unexpected {text!r}")

    def number(self) -> Node:
        digits = self.take().text
        node = _number(digits)
        whole = node.places < 0
        if self.command("overline") and not whole:
            self.take()
            return _repeating(digits, self.raw_digits())
        if self.symbol("_"):
            self.take()
            bracketed = self.symbol("{")
            if bracketed:
                self.take()
            base = self.take().text if self.peek().kind in ("number", "word") else ""
            base = str({"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}.get(base, base))
            if bracketed:
                self.expect("}")
            return self.based(digits, base)
        if whole and self.peek().kind == "command" and self.peek().text in _FRACTIONS:
            part = self.special(self.peek().text)
            if part.kind == "div" and all(p.kind == "num" and p.places < 0 for p in part.parts):
                top, bottom = (p.value for p in part.parts)
                if 0 < top < bottom:
                    return Node("num", value=node.value + top / bottom)
            return Node("mul", (node, self.power_of(part)))
        ahead = [self.peek(i) for i in range(3)]
        if whole and ahead[0].kind == "number" and ahead[0].spaced and ahead[1].text == "/" and ahead[2].kind == "number":
            top, bottom = ahead[0].text, ahead[2].text
            if top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom):
                self.at += 3
                return Node("num", value=node.value + Fraction(int(top), int(bottom)))
        return node

    def power_of(self, node: Node) -> Node:
        if self.symbol("^"):
            self.take()
            return Node("pow", (node, self.script()))
        return node

    def raw_digits(self) -> str:
        self.expect("{")
        token = self.take() if self.peek().kind == "number" else Token("end", "", False)
        self.expect("}")
        if not token.text.isdigit():
            raise NotAnAnswer("a repeating part that is no number")
        return token.text

    def variable(self) -> Node:
        name = self.take().text
        if name in ("e", "i") and not self.symbol("_"):
            return Node("const", name=name)
        return Node("variable", name=name + self.subscript())

    def subscript(self) -> str:
        if not self.symbol("_"):
            return ""
        self.take()
        if not self.symbol("{"):
            token = self.take() if self.peek().kind != "end" else Token("end", "", False)
            return "_" + token.text
        self.take()
        inner = ""
        while self.peek().kind != "end" and not self.symbol("}"):
            inner += self.take().text
        self.expect("}")
        return "_" + inner

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
        if len(items) == 1 and (opening, closing) in (("(", ")"), ("[", "]")):
            inner = items[0]
            return Node("tuple", (inner,), "[]") if opening == "[" and inner.kind == "tuple" else inner
        if not items:
            raise NotAnAnswer("empty brackets")
        return Node("tuple", tuple(items), "()" if opening == "langle" else opening + closing)

    def absolute(self) -> Node:
        self.take()
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.expect("|", "vert", "rvert")
        return Node("func", (node,), "abs")

    def special(self, name: str) -> Node:
        self.take()
        if name in _FRACTIONS:
            top = self.argument()
            return Node("div", (top, self.argument()))
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name in FUNCTIONS or name == "lg":
            return self.function(name)
        if name in ("pi", "infty"):
            return Node("const", name={"infty": "inf"}.get(name, name))
        if name in _GREEK:
            return Node("variable", name=name + self.subscript())
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument()
            return Node("func", (top, self.argument()), "binom")
        if name in ("{", "langle", "lbrace"):
            self.at -= 1
            return self.brackets()
        if name in ("|", "vert", "lvert"):
            self.at -= 1
            return self.absolute()
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect("rfloor", "rceil")
            return Node("func", (node,), "floor" if name == "lfloor" else "ceil")
        if name == "begin":
            return self.matrix()
        if name in ("emptyset", "varnothing"):
            return Node("set")
        if name == "overline":
            return Node("variable", name="overline " + self.letters())
        if name == "mathbb":
            letter = self.letters()
            if letter == "R":
                return Node("tuple", (Node("neg", (INFINITY,)), INFINITY), "()")
            return Node("word", name=f"set {letter}")
        if name in _DECORATIONS:
            return self.atom()
        raise NotAnAnswer(f"unknown command {name!r}")

    def letters(self) -> str:
        self.expect("{")
        inner = ""
        while self.peek().kind in ("variable", "word", "number"):
            inner += self.take().text
        self.expect("}")
        return inner

    def root(self, name: str) -> Node:
        index = Node("num", value=Fraction(3 if name == "cbrt" else 2))
        if self.symbol("["):
            self.take()
            index = self.sum()
            self.expect("]")
        # Plain text means the whole number by sqrt 23; so does LaTeX as people write it.
        inside = self.number() if self.peek().kind == "number" else self.argument()
        return Node("func", (inside, index), "root")

    def function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self.symbol("^") or (name == "log" and self.symbol("_")):
            if self.take().text == "^":
                power = self.script()
            else:
                base = self.argument() if self.peek().kind != "number" else self.number()
        self.down()
        if self.symbol("("):
            inside = self.postfix(self.brackets())
        else:
            inside = self.power()
            while self.starts_factor() and not (self.peek().kind == "command" and self.peek().text in FUNCTIONS - {"sqrt"}):
                if self.symbol("("):
                    break
                inside = Node("mul", (inside, self.power()))
        self.depth -= 1
        if power == Node("neg", (_number("1"),)) and name in ("sin", "cos", "tan"):
            return Node("func", (inside,), "arc" + name)
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}.get(name, name)
        node = Node("func", (inside,) if base is None else (inside, base), name)
        return node if power is None else Node("pow", (node, power))

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


def _number(text: str) -> Node:
    mantissa, _, exponent = text.lower().partition("e")
    whole, dot, decimals = mantissa.partition(".")
    if exponent and abs(int(exponent)) > 400:
        raise NotAnAnswer("an exponent beyond 400")
    value = Fraction(int((whole + decimals) or "0"), 10 ** len(decimals)) * Fraction(10) ** int(exponent or 0)
    places = len(decimals) - int(exponent or 0) if dot or exponent else -1
    return Node("num", name=text, value=value, places=max(places, 0) if dot or exponent else -1)


def _repeating(digits: str, repeat: str) -> Node:
    """0.1 with 6 repeating is 0.1 + 6/90."""
    start = _number(digits)
    return Node("num", value=start.value + Fraction(int(repeat), 10**start.places * (10 ** len(repeat) - 1)))
