"""Reading expressions: sums, products, powers, fractions, roots, functions and names."""

from __future__ import annotations

from fractions import Fraction

from polyturn.envs.grading.reading.bounded import BOUNDED, bounded
from polyturn.envs.grading.reading.numerals import FRACTIONS, Numerals, plain_number
from polyturn.envs.grading.reading.tokens import CALLS, FUNCTIONS, NotAnAnswer, Token
from polyturn.envs.grading.reading.tree import REAL_LINE, Node, difference, joined
from polyturn.envs.grading.reading.units import MEANINGFUL

RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "leq": "<=", "leqslant": "<=", "leqq": "<=", "ge": ">=", "geq": ">=",
    "geqslant": ">=", "geqq": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "in": "in", "approx": "~",
    "simeq": "~", "doteq": "~", "equiv": "=",
}  # fmt: skip
_INTERVALS = ("interval", "intervalopen", "intervallopen", "intervalropen")
_COLLECTIONS = ("matrix", "array", "finiteset", "set", "list", "tuple", "union", "complement")
PYTHON_CALLS = frozenset({"fraction", "rational", "equation", "unequal", *_COLLECTIONS, *_INTERVALS})
"""What Python prints for numbers and collections: `Fraction(1, 2)`, `Matrix([[1, 2], [3, 4]])`."""

_MOST_COMPARED = 4
"""Numbers of a maximum; each more doubles its tree."""
_ATTRIBUTES = frozenset({"dim", "deg", "det", "arg"})
"""Names of what an object has: the dimension of V in `\\dim V = 3`."""
_TIMES = frozenset({"*", "times", "cdot", "ast"})
_CIRCLES = frozenset({"circ", "degree"})
_LETTERS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
_GREEK = frozenset(_LETTERS.split())
_OVERLINES = frozenset(
    {"overline", "bar", "widehat", "widetilde", "tilde", "overrightarrow", "overleftarrow", "overleftrightarrow"}
)
_DECORATIONS = frozenset({"triangle", "boxed", "fbox", "therefore"})
_STARTS = (
    FRACTIONS | FUNCTIONS | CALLS | _GREEK | _OVERLINES
    | {"pi", "sqrt", "cbrt", "infty", "binom", "dbinom", "tbinom", "{", "lg", "lfloor", "lceil", "begin", "langle"}
    | {"mathbb", "lbrace", "textcircled"} | BOUNDED
)  # fmt: skip


class Arithmetic(Numerals):
    """The lower half of the reader; brackets and matrices, which hold whole answers, are the upper half's."""

    def brackets(self) -> Node:
        """A bracketed expression, tuple or set."""
        raise NotImplementedError

    def matrix(self) -> Node:
        r"""A matrix, after its `\begin`."""
        raise NotImplementedError

    def python_call(self) -> Node:
        """A number or collection as Python prints it."""
        raise NotImplementedError

    # Sums and products

    def union(self) -> Node:
        parts = [self.sum()]
        while self.sees("cup", "setminus", "backslash"):
            if self.take().text == "cup":
                parts.append(self.sum())
            else:
                parts = [Node("without", (joined("union", parts), self.sum()))]
        return joined("union", parts)

    def sum(self) -> Node:
        self.down()
        terms: list[Node] = []
        chain = 0
        while not terms or self.sees("+", "-", "pm", "mp"):
            sign = self.sign()
            term = self.term()
            if sign in ("pm", "mp"):
                chain = self.longer(chain)
                terms = [Node("pm", (joined("add", terms), term) if terms else (term,), sign)]
            else:
                terms.append(Node("neg", (term,)) if sign == "-" else term)
        self.depth -= 1
        return joined("add", terms)

    def sign(self) -> str:
        sign = "+"
        while self.sees("+", "-", "pm", "mp"):
            one = self.take().text
            if one in ("pm", "mp"):
                sign = one
            elif one == "-" and sign in "+-":
                sign = "-" if sign == "+" else "+"
        return sign

    def term(self) -> Node:
        factors = [self.power()]
        chain = 0
        while True:
            if self.sees("/", "div"):
                if self.peek(1).kind == "word":  # a unit: ft/s
                    return joined("mul", factors)
                self.take()
                chain = self.longer(chain)
                factors = [Node("div", (joined("mul", factors), self.factor()))]
            elif self.sees(*_TIMES):
                self.take()
                factors.append(self.factor())
            elif self.starts_factor():
                if self.peek().kind == "number" and self.tokens[self.at - 1].kind == "number":
                    raise NotAnAnswer("two numbers side by side")
                factors.append(self.power())
            else:
                return joined("mul", factors)

    def factor(self) -> Node:
        """A factor after a written sign of operation, which may carry a minus: 3 * -2."""
        negative = self.symbol("-")
        if negative:
            self.take()
        node = self.power()
        return Node("neg", (node,)) if negative else node

    def starts_factor(self) -> bool:
        kind, text, _ = self.peek()
        if kind in ("number", "variable"):
            return True
        if kind == "symbol":
            if text == "(":
                return not self.remark()
            return text in ("[", "{") or (text == "|" and not self.bars)
        return kind == "command" and (text in _STARTS or (text == "|" and not self.bars))

    def remark(self) -> bool:
        """Whether the bracket at the cursor only holds words: `288 (t-shirts)`."""
        inner = self.bracketed()
        words = {token.text for token in inner if token.kind == "word"}
        return bool(words) and not words & MEANINGFUL and all(token.kind in ("word", "variable") for token in inner)

    # Powers and what follows a factor

    def power(self) -> Node:
        node = self.postfix(self.atom())
        chain = 0
        while self.symbol("^") or (self.symbol("*") and self.peek(1)[:2] == ("symbol", "*")):
            chain = self.longer(chain)
            if self.take().text == "*":
                self.take()
            if self.sees(*_CIRCLES):
                self.take()
                node = self.minutes(Node("degrees", (node,)))
                continue
            if self.symbol("{") and self.peek(1).text in _CIRCLES and self.peek(2).text == "}":
                self.at += 3
                node = self.minutes(Node("degrees", (node,)))
                continue
            node = self.postfix(Node("pow", (node, self.script())))
        return node

    def postfix(self, node: Node) -> Node:
        chain = 0
        while self.symbol("!") or self.sees("degree"):
            chain = self.longer(chain)
            node = Node("fact", (node,)) if self.take().text == "!" else self.minutes(Node("degrees", (node,)))
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

    # Groups

    def argument(self) -> Node:
        """What a LaTeX command takes: a group, or a single digit, letter or command."""
        token = self.peek()
        if token[:2] == ("symbol", "{"):
            return self.group()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = Token("number", token.text[1:], False)
            return plain_number(token.text[0])
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
        elif self.command("choose"):
            self.take()
            node = Node("func", (node, self.sum()), "binom")
        self.bars = bars
        self.expect("}")
        return node

    def braces(self) -> Node:
        """Braces that no command asked for: a group, or, with a comma or a bar in them, a set in plain text."""
        level = 0
        for index, token in enumerate(self.bracketed()):
            level += (token.text in ("{", "(", "[")) - (token.text in ("}", ")", "]"))
            if level == 0 and (token.text in (",", ";") or (token.text in ("|", ":") and index == 1)):
                return self.brackets()
        return self.group()

    def atom(self) -> Node:
        kind, text, _ = self.peek()
        if kind == "number":
            return self.number()
        if kind == "variable":
            return self.variable()
        if kind == "symbol":
            if text == "{":
                return self.braces()
            if text in ("(", "["):
                return self.brackets()
            if text == "|":
                return self.absolute()
        if kind == "command":
            return self.special(text)
        if kind == "word" and text in PYTHON_CALLS and self.peek(1)[:2] == ("symbol", "("):
            return self.python_call()
        raise NotAnAnswer(f"unexpected {text or 'end'!r}")

    # Names

    def variable(self) -> Node:
        name = self.take().text
        if name in ("e", "i") and not self.symbol("_") and name not in self.running:
            return Node("const", name=name)
        name += self.subscript()
        return Node("variable", name=name + self.event(name))

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

    def event(self, name: str) -> str:
        """What stands in brackets after a name and is no factor, as part of the name: `P(X=2)`, `P(A|B)`, `f(2)`."""
        if not self.sees("(", "["):
            return ""
        inner = self.bracketed()
        written = "".join(RELATIONS.get(token.text, token.text) for token in inner)
        related = any(
            token.kind == "word" or (token.kind in ("symbol", "command") and token.text in (*RELATIONS, "cap", "cup"))
            for token in inner
        )
        number = inner[-1:] if len(inner) == 1 or (len(inner) == 2 and inner[0].text == "-") else []
        value = number[0].text if number and number[0].kind == "number" else ""
        applied = bool(value) and (name.rstrip("'") in ("f", "g", "h") or not value.strip("0."))
        if not related and not applied and not (name in ("P", "E") and "|" in written):
            return ""
        self.at += len(inner) + 2
        return f"({written})"

    def letters(self) -> str:
        if self.peek().kind == "variable":
            return self.take().text
        self.expect("{")
        inner = ""
        while self.peek().kind in ("variable", "word", "number"):
            inner += self.take().text
        self.expect("}")
        return inner

    # Functions and other commands

    def absolute(self) -> Node:
        self.take()
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.expect("|")
        return Node("func", (node,), "abs")

    def special(self, name: str) -> Node:
        self.take()
        if name in FRACTIONS:
            top = self.argument()
            return Node("div", (top, self.argument()))
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name in FUNCTIONS or name == "lg":
            return self.function(name)
        if name in BOUNDED:
            return bounded(self, name)
        if name in CALLS:
            self.down()
            node = _called(name.lower(), self.brackets())
            self.depth -= 1
            return node
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
        if name == "|":
            self.at -= 1
            return self.absolute()
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect("rfloor", "rceil")
            return Node("func", (node,), "floor" if name == "lfloor" else "ceil")
        if name == "begin":
            return self.matrix()
        if name in ("emptyset", "varnothing", "oslash"):
            return Node("set")
        if name in _OVERLINES or name == "textcircled":
            return Node("variable", name=f"{'overline' if name == 'bar' else name} {self.letters()}")
        if name in _ATTRIBUTES and self.peek().kind == "variable":
            return Node("variable", name=f"{name} {self.variable().name}")
        if name == "Pr":
            return Node("variable", name="P" + self.event("P"))
        if name == "mathbb":
            letter = self.letters()
            if letter in ("P", "E") and self.sees("(", "["):
                return Node("variable", name=letter + self.event(letter))
            return REAL_LINE if letter == "R" else Node("word", name=f"set {letter}")
        if name in _DECORATIONS:
            return self.atom()
        raise NotAnAnswer(f"unknown command {name!r}")

    def root(self, name: str) -> Node:
        index = Node("num", value=Fraction(3 if name == "cbrt" else 2))
        if self.symbol("["):
            self.take()
            index = self.sum()
            self.expect("]")
        # sqrt 23 in plain text is the root of the whole number; so is \\sqrt 23, as it is often typed.
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
        # The argument: what is bracketed, or all factors up to the next function or sign.
        self.down()
        if self.symbol("("):
            inside = self.postfix(self.brackets())
        else:
            factors = [self.power()]
            while self.starts_factor() and not self.symbol("("):
                if self.peek().kind == "command" and self.peek().text in FUNCTIONS - {"sqrt"}:
                    break
                factors.append(self.power())
            inside = joined("mul", factors)
        self.depth -= 1
        # sin^{-1} is the inverse; any other power is of the value.
        if power == Node("neg", (plain_number("1"),)) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return Node("func", (inside,), "arc" + name)
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}.get(name, name)
        node = Node("func", (inside,) if base is None else (inside, base), name)
        if name == "cis":
            turned = Node("mul", (Node("const", name="i"), Node("func", (inside,), "sin")))
            node = Node("add", (Node("func", (inside,), "cos"), turned))
        return node if power is None else Node("pow", (node, power))


def _called(name: str, inner: Node) -> Node:
    """A function that is written with brackets: `abs(x)`, `max(3, 5)`, `binomial(5, 2)`."""
    parts = inner.parts if inner.kind == "tuple" else (inner,)
    match name:
        case "abs" | "floor" | "ceil" | "ceiling":
            return Node("func", (inner,), {"ceiling": "ceil"}.get(name, name))
        case "factorial" if len(parts) == 1:
            return Node("fact", parts)
        case "binomial" | "comb" if len(parts) == 2:
            return Node("func", parts, "binom")
        case "gcd" | "lcm" if len(parts) > 1:
            return Node("func", parts, name)
        case "max" | "min" if len(parts) == 2:  # half of the sum, and of the distance
            distance = Node("func", (difference(*parts),), "abs")
            both = (*parts, distance if name == "max" else Node("neg", (distance,)))
            return Node("div", (Node("add", both), plain_number("2")))
        case "max" | "min" if 2 < len(parts) <= _MOST_COMPARED:
            return _called(name, Node("tuple", (_called(name, Node("tuple", parts[:-1], "()")), parts[-1]), "()"))
    raise NotAnAnswer(f"{name} of {len(parts)} numbers")
