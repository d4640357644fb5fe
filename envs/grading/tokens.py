"""Cutting an answer, LaTeX or plain, into tokens."""

# ruff: noqa: RUF001  (look-alike characters are what the table below is about)

from __future__ import annotations

import re
from typing import NamedTuple

from polyturn.envs.grading.units import LETTER_UNITS, SHORT_UNITS

MAX_CHARACTERS = 4000
MAX_TOKENS = 1200
MAX_DIGITS = 1000


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


_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "⁄": "/",
        "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "°": r"\degree ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}", "θ": r"\theta ", "¢": r"\text{ cents}", "€": "", "£": "", "⟨": r"\langle ",
        "⟩": r"\rangle ", "²": "^2", "³": "^3", "⁴": "^4", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "“": "", "”": "", "’": "", "\u00a0": " ",
        "\u200b": "", "，": ",", "（": "(", "）": ")",
    }
)  # fmt: skip
# What only moves ink: sizes of brackets, styles, spacing.
_INK = re.compile(
    r"\\(?:left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|displaystyle|textstyle|limits|nolimits"
    r"|rm|bf|it|mathrm(?![A-Za-z{ ]))(?![A-Za-z])\.?"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:> ]|(?:quad|qquad|enspace|thinspace|hfill|newline)(?![A-Za-z]))|~")
_ROW_GAP = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]")
_SET_BUILDER = re.compile(r"^\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)([^|{}:]*)\\\}$")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d.])")
_TEXT = re.compile(
    r"(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|textnormal|operatorname\*?|bm"
    r"|boldsymbol|vec|hat|mathcal|emph|underline)"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d{1,4}(?![\dA-Za-z]))?|\.\d+(?:[eE][+-]?\d{1,4})?)"
    r"|(?P<command>\\(?:[A-Za-z]+\*?|.))|(?P<letters>[A-Za-z]+)|(?P<symbol>.)",
    re.DOTALL,
)
_MARKS = {"p.m.": "pm", "a.m.": "am", "P.M.": "pm", "A.M.": "am"}

_FUNCTIONS = "sin cos tan sec csc cot arcsin arccos arctan asin acos atan sinh cosh tanh ln log exp sqrt"
FUNCTIONS = frozenset(_FUNCTIONS.split())
_NAMES = FUNCTIONS | {"pi", "infinity", "inf", "infty", "oo", "lg", "theta", "alpha", "beta", "phi", "cbrt"}
_PRODUCT = re.compile(r"[abcxyznmkpqr]{2,4}|[A-Z]{2}|[A-Za-z]{2}")


def tokenize(text: str, *, join_thousands: bool = True) -> list[Token]:
    r"""Cuts an answer into tokens.

    Args:
        text: The answer; a `\boxed{}` around it must be off already.
        join_thousands: Whether "14,400" outside brackets is one number (else it is two).

    Raises:
        NotAnAnswer: Too long, too many tokens, or braces around a text that do not match.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotAnAnswer(f"longer than {MAX_CHARACTERS} characters")
    tokens: list[Token] = []
    _cut(_clean(text), tokens, plain_words=False, join_thousands=join_thousands)
    return tokens


def _clean(text: str) -> str:
    text = text.strip().translate(_UNICODE)
    for mark, plain in _MARKS.items():
        text = text.replace(mark, plain)
    text = re.sub(r"(?<=\d)\s*(?:,\s*\\!|\{,\}|\\,(?=\d{3}(?!\d)))\s*(?=\d)", "", text).replace("\\!", "")
    text = _SPACE.sub(" ", _INK.sub(" ", text))
    text = _ROW_GAP.sub(r"\\\\ ", text)
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text).strip()
    text = text.rstrip(". \n") if not text.endswith("\\.") else text
    if re.fullmatch(r"(?s)\$\$?[^$]+\$\$?", text.replace("\\$", "")):  # $ as a mathematics switch, not as money
        text = re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"\\\$|(?<![\w)}])\$(?=\s*-?[\d.])", r"\\dollar ", text).replace("$", " ")
    text = re.sub(r"(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup ", text)
    text = re.sub(rf"(?<=\d)\s+([{LETTER_UNITS}])((?:\^\{{?[23]\}}?)?)$", r"\\text{\1}\2", text)
    text = re.sub(r"(?<=\d)\s*\b((?:k|c|m)?m|ft|mi)/(s|sec|h|hr|min)(\^\{?2\}?)?$", r"\\text{ \1 per \2}\3", text)
    text = re.sub(r"(\\circ\s*\}?|\\degree)\s*[CF]$", r"\1", text)
    text = _SET_BUILDER.sub(r"\1", text)
    text = re.sub(r"\bm?\s*\\angle\s*([A-Za-z]{1,3})", r"\\text{angle \1}", text)
    text = _SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    return text.rstrip(". \n")


def _cut(text: str, tokens: list[Token], *, plain_words: bool, join_thousands: bool) -> None:
    position, brackets, spaced = 0, 0, False
    while position < len(text):
        if len(tokens) > MAX_TOKENS:
            raise NotAnAnswer(f"more than {MAX_TOKENS} tokens")
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
        if kind == "number":
            if len(piece) > MAX_DIGITS:
                raise NotAnAnswer(f"a number of more than {MAX_DIGITS} digits")
            tokens.append(Token("number", piece, spaced))
        elif kind == "command":
            name = piece[1:]
            if _TEXT.fullmatch(name):
                inner, position = _braced(text, position)
                wordy = name not in ("bm", "boldsymbol", "vec", "hat") and len(inner.strip()) > 1
                wordy = wordy or name.startswith(("text", "mbox", "hbox", "emph"))
                if inner.strip() in FUNCTIONS:
                    tokens.append(Token("command", inner.strip(), spaced))
                else:
                    _cut(inner, tokens, plain_words=wordy, join_thousands=join_thousands and brackets == 0)
            else:
                brackets += {"{": 1, "}": -1}.get(name, 0)
                tokens.append(Token("command", name, spaced))
        elif kind == "letters":
            _letters(piece, tokens, spaced, plain_words)
        else:
            brackets += {"(": 1, "[": 1, ")": -1, "]": -1}.get(piece, 0)
            tokens.append(Token("symbol", piece, spaced))
        spaced = False


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


def _letters(run: str, tokens: list[Token], spaced: bool, plain_words: bool) -> None:
    """A run of letters is a word, a known name, or a product of variables."""
    if plain_words and run.lower() != "infinity":
        tokens.append(Token("word", run.lower(), spaced))
    elif run in _NAMES or (len(run) > 1 and run.lower() in ("pi", "infinity", "sqrt")):
        tokens.append(
            Token("command", {"infinity": "infty", "inf": "infty", "oo": "infty"}.get(run.lower(), run.lower()), spaced)
        )
    elif len(run) == 1:
        tokens.append(Token("variable", run, spaced))
    elif (run.lower() in SHORT_UNITS and run != "in") or run.lower() in ("or", "is", "no", "to", "of", "in", "so"):
        tokens.append(Token("word", run.lower(), spaced))
    elif _PRODUCT.fullmatch(run):
        tokens += [Token("variable", letter, spaced and index == 0) for index, letter in enumerate(run)]
    else:
        function = next((name for name in sorted(_NAMES, key=len, reverse=True) if run.startswith(name)), None)
        if function is not None and len(run) == len(function) + 1:  # "sinx", "pir"
            tokens += [Token("command", function, spaced), Token("variable", run[-1], False)]
        else:
            tokens.append(Token("word", run.lower(), spaced))
