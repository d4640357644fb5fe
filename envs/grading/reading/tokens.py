"""Cutting an answer, LaTeX or plain, into tokens."""

from __future__ import annotations

import re
from typing import NamedTuple

from polyturn.envs.grading.reading.cleaning import clean
from polyturn.envs.grading.reading.units import KNOWN_WORDS, LETTER_UNITS, SHORT_UNITS

MAX_CHARACTERS = 4000
MAX_TOKENS = 1200
MAX_DIGITS = 1000
_LONGEST_PRODUCT = 4
"""Letters of a run that may be a product of variables where a word makes no sense: `def` in `\\frac{def}{de+df+ef}`."""


class NotAnAnswer(ValueError):
    """The text is not mathematics this reader knows, or is larger than it accepts."""


class Token(NamedTuple):
    """A token.

    Attributes:
        kind: "number", "variable", "word" (text), "command" (LaTeX, without its backslash) or "symbol".
        text: What stands there; words in lower case.
        spaced: Whether white space stands before it.
    """

    kind: str
    text: str
    spaced: bool


_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")
_TEXT = re.compile(
    r"(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|textnormal|operatorname\*?|bm"
    r"|boldsymbol|vec|hat|mathcal|emph|underline)"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d{1,4}(?![\dA-Za-z]))?|\.\d+(?:[eE][+-]?\d{1,4})?)"
    r"|(?P<command>\\(?:[A-Za-z]+\*?|.))|(?P<letters>[A-Za-z]+)|(?P<symbol>.)",
    re.DOTALL,
)

_FUNCTIONS = """
sin cos tan sec csc cot arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh ln log exp sqrt cis
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
_NAMES = FUNCTIONS | {"pi", "infinity", "inf", "infty", "oo", "lg", "theta", "alpha", "beta", "phi", "cbrt"}
_CALLS = "abs Abs floor ceil ceiling max min Max Min gcd lcm factorial binomial comb"
CALLS = frozenset(_CALLS.split())
"""Functions of plain text that are names only before a bracket: `abs(x)`, but the third floor."""
_INFINITIES = {"infinity": "infty", "inf": "infty", "oo": "infty"}
_PRODUCT = re.compile(r"[abcxyznmkpqr]{2,4}|[A-Z]{2}|[A-Za-z]{2}")
_SMALL_WORDS = frozenset({"or", "is", "no", "to", "of", "in", "so", "at", "by", "if"})


def tokenize(text: str, *, join_thousands: bool = True, products: bool = False) -> list[Token]:
    r"""Cuts an answer into tokens.

    Args:
        text: The answer; a `\boxed{}` around it must be off already.
        join_thousands: Whether "14,400" outside brackets is one number (else it is two).
        products: Whether short unknown runs of letters are products of variables (else they are words).

    Raises:
        NotAnAnswer: Too long, too many tokens, or braces around a text that do not match.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotAnAnswer(f"longer than {MAX_CHARACTERS} characters")
    cutter = _Cutter(products)
    cutter.cut(clean(text), wordy=False, join_thousands=join_thousands)
    return cutter.tokens


class _Cutter:
    """Collects tokens; `wordy` text is what stands inside `\\text{}`, where letters are words."""

    def __init__(self, products: bool) -> None:
        self.tokens: list[Token] = []
        self.products = products

    def cut(self, text: str, *, wordy: bool, join_thousands: bool) -> None:
        position, brackets, spaced = 0, 0, False
        while position < len(text):
            if len(self.tokens) > MAX_TOKENS:
                raise NotAnAnswer(f"more than {MAX_TOKENS} tokens")
            # Take the next piece: white space, a number, a command, letters or a symbol.
            joined = _THOUSANDS.match(text, position) if join_thousands and brackets == 0 else None
            match = _TOKEN.match(text, position)
            assert match is not None  # the last alternative takes any character
            kind, piece = str(match.lastgroup), match.group()
            position = match.end()
            if kind == "space":
                spaced = True
                continue
            if joined is not None:
                fraction = re.compile(r"\.\d+").match(text, joined.end())
                position = fraction.end() if fraction else joined.end()
                piece = text[joined.start() : position].replace(",", "")
            # Turn it into tokens.
            if kind == "number":
                if len(piece) > MAX_DIGITS:
                    raise NotAnAnswer(f"a number of more than {MAX_DIGITS} digits")
                self.tokens.append(Token("number", piece, spaced))
            elif kind == "command" and _TEXT.fullmatch(piece[1:]):
                inner, position = _braced(text, position)
                self.font(piece[1:], inner, spaced, join_thousands and brackets == 0)
            elif kind == "command":
                brackets += {"{": 1, "}": -1}.get(piece[1:], 0)
                bar = piece in ("\\mid", "\\vert", "\\lvert", "\\rvert")
                self.tokens.append(Token("symbol", "|", spaced) if bar else Token("command", piece[1:], spaced))
            elif kind == "letters":
                if piece in CALLS and text.startswith("(", position):
                    self.tokens.append(Token("command", piece, spaced))
                elif piece == "sec" and self.tokens and not text[position:].strip():  # a secant of nothing
                    self.tokens.append(Token("word", piece, spaced))
                else:
                    self.letters(piece, spaced, wordy)
            elif not self.mark(piece, spaced):
                brackets += {"(": 1, "[": 1, ")": -1, "]": -1}.get(piece, 0)
                self.tokens.append(Token("symbol", piece, spaced))
            spaced = False

    def font(self, name: str, inner: str, spaced: bool, join_thousands: bool) -> None:
        r"""What stands in `\text{...}`, `\mathrm{...}` and the like."""
        worded = name.startswith(("text", "mbox", "hbox", "emph"))
        # A single letter is a variable, unless a gap before it says that it is a unit: \\mathrm{~m}, \\,\\mathrm{m}.
        gap = inner[:1].isspace() or (spaced and name == "mathrm" and inner in LETTER_UNITS)
        long = len(inner.strip()) > 1 or (gap and bool(self.tokens))
        wordy = worded or (name not in ("bm", "boldsymbol", "vec", "hat") and long)
        if inner.strip() in FUNCTIONS or (name.startswith("operatorname") and inner.strip() in CALLS):
            self.tokens.append(Token("command", inner.strip(), spaced))
            return
        before = len(self.tokens)
        self.cut(inner, wordy=wordy and (worded or not self.products), join_thousands=join_thousands)
        if spaced and len(self.tokens) > before:
            self.tokens[before] = self.tokens[before]._replace(spaced=True)

    def mark(self, piece: str, spaced: bool) -> bool:
        """Whether a symbol belongs to the token before it: the prime of `f'`, the dot or apostrophe of a word."""
        if not self.tokens or spaced:
            return False
        kind, text, _ = last = self.tokens[-1]
        if piece == "'" and kind in ("variable", "word"):
            self.tokens[-1] = last._replace(text=text + "'" if kind == "variable" else text)
            return True
        return piece == "." and kind == "word"

    def letters(self, run: str, spaced: bool, wordy: bool) -> None:
        """A run of letters is a word, a known name, or a product of variables."""
        lower = run.lower()
        if wordy and lower != "infinity":
            self.tokens.append(Token("word", lower, spaced))
        elif run in _NAMES or (len(run) > 1 and lower in ("pi", "infinity", "sqrt")):
            self.tokens.append(Token("command", _INFINITIES.get(lower, lower), spaced))
        elif len(run) == 1:
            self.tokens.append(Token("variable", run, spaced))
        elif (lower in SHORT_UNITS and run != "in") or (lower in _SMALL_WORDS and (run != run.upper() or run == "OR")):
            self.tokens.append(Token("word", lower, spaced))
        elif _PRODUCT.fullmatch(run) or self.product(run, spaced):
            self.tokens += [Token("variable", letter, spaced and index == 0) for index, letter in enumerate(run)]
        else:
            function = next((name for name in sorted(_NAMES, key=len, reverse=True) if run.startswith(name)), None)
            if function is not None and len(run) == len(function) + 1:  # "sinx", "pir"
                self.tokens += [Token("command", function, spaced), Token("variable", run[-1], False)]
            else:
                self.tokens.append(Token("word", lower, spaced))

    def product(self, run: str, spaced: bool) -> bool:
        """Whether an unknown run is a product of variables: where words make no sense, or right after a number."""
        glued = len(run) <= 3 and not spaced and bool(self.tokens) and self.tokens[-1].kind == "number"
        if not (self.products or glued) or len(run) > _LONGEST_PRODUCT:
            return False
        return run.lower() not in KNOWN_WORDS or (self.products and run == run.upper())


def _braced(text: str, position: int) -> tuple[str, int]:
    """The content of the braces that open at `position` (white space before them allowed), and where they end."""
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] != "{":
        return text[position : position + 1], position + 1
    depth = 0
    for index in range(position, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return text[position + 1 : index], index + 1
    raise NotAnAnswer("braces that do not match")
