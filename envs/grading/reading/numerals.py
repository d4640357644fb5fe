"""Reading numbers: mixed numbers, repeating decimals, other bases, degrees with minutes and seconds."""

from __future__ import annotations

from fractions import Fraction

from polyturn.envs.grading.reading.tokens import NotAnAnswer, Token
from polyturn.envs.grading.reading.tree import Cursor, Node
from polyturn.envs.grading.reading.units import NUMBER_WORDS

FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac"})
_LARGEST_EXPONENT = 400


class Numerals(Cursor):
    """The part of the reader that knows numbers; expressions around them are `Arithmetic`'s."""

    def special(self, name: str) -> Node:
        r"""What a command such as `\frac` stands for."""
        raise NotImplementedError

    def script(self) -> Node:
        """An exponent."""
        raise NotImplementedError

    def number(self) -> Node:
        digits = self.take().text
        node = plain_number(digits)
        if node.places >= 0:
            if self.sees("overline", "bar"):
                self.take()
                return _repeating(digits, self.raw_digits())
            return self.in_base(digits) if self.symbol("_") else node
        if self.symbol("_"):
            return self.in_base(digits)
        return self.mixed(node)

    def in_base(self, digits: str) -> Node:
        """Digits with a subscript: `12_5`, `12_{\\text{five}}`."""
        self.expect("_")
        bracketed = self.symbol("{")
        if bracketed:
            self.take()
        base = self.take().text if self.peek().kind in ("number", "word") else ""
        if bracketed:
            self.expect("}")
        return self.based(digits, str(NUMBER_WORDS.get(base, base)))

    def based(self, digits: str, base: str) -> Node:
        if not base.isdigit() or not 2 <= int(base[:3]) <= 36:
            raise NotAnAnswer("a base that is none")
        return Node("based", name=f"{digits}_{int(base)}")

    def mixed(self, whole: Node) -> Node:
        """A whole number, with the proper fraction after it if there is one: 1\\frac12, 1 1/2."""
        if self.peek().kind == "command" and self.peek().text in FRACTIONS:
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

    def minutes(self, degrees: Node) -> Node:
        """An angle, with the minutes (one prime) and seconds (two) after it if there are any."""
        added: list[Node] = []
        for marks, share in ((1, 60), (2, 3600)):
            number, primes = self.peek(), 0
            while self.peek(1 + primes)[:2] == ("symbol", "'"):
                primes += 1
            if number.kind == "number" and primes == marks:
                added.append(Node("num", value=plain_number(number.text).value / share))
                self.at += 1 + marks
        if not added:
            return degrees
        return Node("degrees", (Node("add", (degrees.parts[0], *added)),))


def plain_number(text: str) -> Node:
    """A num node from digits, with a decimal point and an exponent perhaps."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, dot, decimals = mantissa.partition(".")
    if exponent and abs(int(exponent)) > _LARGEST_EXPONENT:
        raise NotAnAnswer(f"an exponent beyond {_LARGEST_EXPONENT}")
    value = Fraction(int((whole + decimals) or "0"), 10 ** len(decimals)) * Fraction(10) ** int(exponent or 0)
    places = len(decimals) - int(exponent or 0) if dot or exponent else -1
    return Node("num", name=text, value=value, places=max(places, 0) if dot or exponent else -1)


def _repeating(digits: str, repeat: str) -> Node:
    """0.1 with 6 repeating is 0.1 + 6/90."""
    start = plain_number(digits)
    return Node("num", value=start.value + Fraction(int(repeat), 10**start.places * (10 ** len(repeat) - 1)))
