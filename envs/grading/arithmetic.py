"""Reading the arithmetic of an answer: sums, products, powers, fractions, roots, functions, numbers and names."""

from __future__ import annotations

from fractions import Fraction

from polyturn.envs.grading.tokens import FUNCTIONS, NotAnAnswer, Token
from polyturn.envs.grading.tree import INFINITY, Cursor, Node
from polyturn.envs.grading.units import NUMBER_WORDS

_TIMES = frozenset({"*", "times", "cdot", "ast"})
_FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac"})
_CIRCLES = frozenset({"circ", "degree"})
_LETTERS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
_GREEK = frozenset(_LETTERS.split())
_DECORATIONS = frozenset({"triangle", "boxed", "fbox", "therefore"})


class Arithmetic(Cursor):
    """The lower half of the reader; brackets and matrices, which hold whole answers, are the upper half's."""

    def brackets(self) -> Node:
        """A bracketed expression, tuple or set."""
        raise NotImplementedError

    def matrix(self) -> Node:
        r"""A matrix, behind its `\begin`."""
        raise NotImplementedError

    def union(self) -> Node:
        parts = [self.sum()]
        while self.command("cup"):
            self.take()
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def sum(self) -> Node:
        self.down()
        terms: list[Node] = []
        chain = 0
        while not terms or self.sees("+", "-", "pm", "mp"):
            sign = self.sign()
            term = self.term()
            if sign in ("pm", "mp"):
                chain = self.longer(chain)
                terms = [Node("pm", (_joined("add", terms), term) if terms else (term,), sign)]
            else:
                terms.append(Node("neg", (term,)) if sign == "-" else term)
        self.depth -= 1
        return _joined("add", terms)

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
                self.take()
                chain = self.longer(chain)
                factors = [Node("div", (_joined("mul", factors), self.factor()))]
            elif self.sees(*_TIMES):
                self.take()
                factors.append(self.factor())
            elif self.starts_factor():
                if self.peek().kind == "number" and self.tokens[self.at - 1].kind == "number":
                    raise NotAnAnswer("two numbers side by side")
                factors.append(self.power())
            else:
                return _joined("mul", factors)

    def factor(self) -> Node:
        """A factor behind a written sign of operation, which may carry a minus of its own: 3 * -2."""
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
            return text in ("(", "[", "{") or (text == "|" and not self.bars)
        return kind == "command" and (
            text in _FRACTIONS | FUNCTIONS | _GREEK | {"pi", "sqrt", "cbrt", "infty", "binom", "dbinom", "tbinom", "{"}
            or text in ("lfloor", "lceil", "overline", "begin", "lvert", "langle", "mathbb", "lbrace")
            or (text in ("|", "vert") and not self.bars)
        )

    def power(self) -> Node:
        node = self.postfix(self.atom())
        chain = 0
        while self.symbol("^") or (self.symbol("*") and self.peek(1)[:2] == ("symbol", "*")):
            chain = self.longer(chain)
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
        chain = 0
        while self.symbol("!") or self.sees("degree"):
            chain = self.longer(chain)
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

    def braces(self) -> Node:
        """Braces that no command asked for: a group, or, with a comma in them, a set as plain text writes it."""
        level = 0
        for _, text, _ in self.tokens[self.at :]:
            level += (text in ("{", "(", "[")) - (text in ("}", ")", "]"))
            if level == 0:
                break
            if level == 1 and text in (",", ";"):
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
        raise NotAnAnswer(f"unexpected {text!r}")

    def number(self) -> Node:
        digits = self.take().text
        node = _number(digits)
        if node.places >= 0:
            if self.sees("overline", "bar"):
                self.take()
                return _repeating(digits, self.raw_digits())
            return self.in_base(digits) if self.symbol("_") else node
        if self.symbol("_"):
            return self.in_base(digits)
        return self.mixed(node)

    def in_base(self, digits: str) -> Node:
        self.expect("_")
        bracketed = self.symbol("{")
        if bracketed:
            self.take()
        base = self.take().text if self.peek().kind in ("number", "word") else ""
        if bracketed:
            self.expect("}")
        return self.based(digits, str(NUMBER_WORDS.get(base, base)))

    def mixed(self, whole: Node) -> Node:
        """A whole number, with the proper fraction behind it if there is one: 1\\frac12, 1 1/2."""
        if self.peek().kind == "command" and self.peek().text in _FRACTIONS:
            part = self.special(self.peek().text)
            if part.kind == "div" and all(p.kind == "num" and p.places < 0 for p in part.parts):
                top, bottom = (p.value for p in part.parts)
                if 0 < top < bottom:
                    return Node("num", value=whole.value + top / bottom)
            return Node("mul", (whole, self.power_of(part)))
        over, slash, under = (self.peek(ahead) for ahead in range(3))
        proper = over.text.isdigit() and under.text.isdigit() and 0 < int(over.text) < int(under.text)
        if proper and over.spaced and slash.text == "/":
            self.at += 3
            return Node("num", value=whole.value + Fraction(int(over.text), int(under.text)))
        return whole

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
        if name in ("overline", "bar"):
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
            factors = [inside]
            while self.starts_factor() and not self.symbol("("):
                if self.peek().kind == "command" and self.peek().text in FUNCTIONS - {"sqrt"}:
                    break
                factors.append(self.power())
            inside = _joined("mul", factors)
        self.depth -= 1
        if power == Node("neg", (_number("1"),)) and name in ("sin", "cos", "tan"):
            return Node("func", (inside,), "arc" + name)
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}.get(name, name)
        node = Node("func", (inside,) if base is None else (inside, base), name)
        return node if power is None else Node("pow", (node, power))

    def based(self, digits: str, base: str) -> Node:
        if not base.isdigit() or not 2 <= int(base[:3]) <= 36:
            raise NotAnAnswer("a base that is none")
        return Node("based", name=f"{digits}_{int(base)}")


def _joined(kind: str, parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Node(kind, tuple(parts))


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
