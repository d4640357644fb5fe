"""An answer's text before it is cut into tokens: the many ways of typing the same thing are reduced to one."""

# ruff: noqa: RUF001  (look-alike characters are what the table below is about)

from __future__ import annotations

import re

from polyturn.envs.grading.reading.printed import rewritten
from polyturn.envs.grading.reading.units import LETTER_UNITS

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": r"\div ",
        "⁄": "/", "√": r"\sqrt ", "∛": r"\cbrt ", "π": r"\pi ", "∞": r"\infty ", "°": r"\degree ", "º": r"\degree ",
        "∘": r"\degree ", "′": "'", "″": "''", "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ",
        "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ",
        "≈": r"\approx ", "≅": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ",
        "θ": r"\theta ", "¢": r"\text{ cents}", "€": "", "£": "", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ",
        "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅙": r"\frac{1}{6}",
        "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "“": "", "”": "",
        "‘": "'", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "", "，": ",",
        "；": ";", "：": ":", "＝": "=", "（": "(", "）": ")",
    }
)  # fmt: skip
# What changes only the look: sizes of brackets, styles.
_LOOK = re.compile(
    r"\\(?:left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|displaystyle|textstyle"
    r"|limits|nolimits|rm|bf|it|mathrm(?![A-Za-z{ ]))(?![A-Za-z])\.?"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:> ]|(?:quad|qquad|enspace|thinspace|hfill|newline)(?![A-Za-z]))|~")
_ROW_GAP = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]")
_PRIMES = re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*|'\s*)+)\}|(\\prime))(?![A-Za-z])")
_THOUSANDS_GAP = re.compile(r"(?<=\d)\s*(?:,\s*\\!|\{\s*,\s*\}|\\,(?=\d{3}(?!\d)))\s*(?=\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d.])(?:\s*/\s*(\d+))?")
_RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_RAISED_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_LETTER_X = re.compile(r"(?<=\d)\s*x\s*(?=10\s*(?:\^|\*\*))")  # 3.2 x 10^5
_MODULUS = re.compile(r"\(\s*(?:mod|\\bmod|\\text\{\s*mod\s*\})\s*(\d+)\s*\)")
_LOGIC = {r"\wedge": "and", r"\land": "and", r"\vee": "or", r"\lor": "or"}
_LOGIC_SIGN = re.compile(r"\\(?:wedge|land|vee|lor)(?![A-Za-z])")
_MARKS = {"p.m.": "pm", "a.m.": "am", "P.M.": "pm", "A.M.": "am"}
# 5 = 5 is `=` and `x!=3` is `\ne`, while `5!=120` and `n! = 6` are factorials.
_NOT_EQUAL = re.compile(r"(?:(?<=[\sA-Za-z])|^)!=(?!=)|\\not\s*=|=\s*/\s*=")
_GLUED_WORD = re.compile(r"(?<=[\d)\]])(or|and)(?=[\d(\\-]|[A-Za-z]\w?\s*[=(<>])")
_HYPHENATED = re.compile(r"(?<![\\\w])([A-Za-z])-(?!(?:sqrt|sinh|cosh|tanh|arc|infty|infinity))([A-Za-z]{4,})\b")
_PYTHON_MODULE = re.compile(
    r"(?<![\w\\])(?:np|numpy|math|cmath|sympy|sp)\.(?:(?:float|int)(?:16|32|64)(?=\())?(?=[A-Za-z(])"
)
# Parameters that a general solution names after its formula: "..., k \in \mathbb{Z}", "... for any integer n".
_PARAMETER = re.compile(
    r"(?:\s|,|\\text\{|\(){0,8}(?:(?:and|where|for|with)\b[\s}]{0,4})?"
    r"(?:[a-zA-Z]\s*\\in\s*\\(?:mathbb|mathbf)\s*\{?\s*Z\s*\}?"
    r"|(?:(?:all|any|every|some|an)\s+)?integers?\b[\s}]{0,4}\$?\s*[a-zA-Z]\$?"
    r"|\$?[a-zA-Z]\$?[\s}]{0,4}(?:\\text\{\s*)?(?:is|are)\s+(?:any\s+|an\s+|all\s+)?integers?\}?)\s*\)?\.?\s*$"
)
_ANGLE = re.compile(r"(?:\bm\s*)?\\angle\s*((?:[A-Za-z]\s?){1,3}(?![A-Za-z]))")
_SPEED = re.compile(r"(?<=\d)\s*\b((?:k|c|m)?m|ft|mi)/(s|sec|h|hr|min)(\^\{?2\}?)?$")


def clean(text: str) -> str:
    """The text with one way of writing for each thing the reader knows; it says the same as before."""
    # Characters, primes and comparison signs.
    text = _RAISED.sub(lambda match: f"^{{{match.group().translate(_RAISED_DIGITS)}}}", rewritten(text.strip()))
    text = text.translate(_UNICODE)
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    text = re.sub(r'(?<=\d)"', "''", text)  # seconds of an angle
    text = _LOGIC_SIGN.sub(lambda match: rf"\text{{ {_LOGIC[match.group()]} }}", text)
    text = _MODULUS.sub(r"\\pmod{\1}", _LETTER_X.sub(r"\\times ", text))
    for mark, plain in _MARKS.items():
        text = text.replace(mark, plain)
    text = _PRIMES.sub(lambda match: "'" * max(len(re.findall(r"\\prime|'", match.group())), 1), text)
    text = _NOT_EQUAL.sub(r"\\ne ", text).replace("==", "=")
    # Thousands separators go, then commands that only change the layout.
    text = _THOUSANDS_GAP.sub("", text).replace("\\!", "")
    text = _SPACE.sub(" ", _LOOK.sub(" ", text))
    text = _ROW_GAP.sub(r"\\\\ ", text)
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text).strip()
    text = text.rstrip(". \n") if not text.endswith("\\.") else text
    # A dollar sign is money before a number, else a switch to mathematics.
    if re.fullmatch(r"(?s)\$\$?[^$]+\$\$?", text.replace("\\$", "")):
        text = re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"\\\$|(?<![\w)}])\$(?=\s*-?[\d.])", r"\\dollar ", text).replace("$", " ")
    # Unions written U, units written as letters, temperatures, angles.
    text = re.sub(r"(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup ", text)
    text = re.sub(rf"(?<=\d)\s+([{LETTER_UNITS}])((?:\^\{{?[23]\}}?)?)$", r"\\text{\1}\2", text)
    text = _SPEED.sub(r"\\text{ \1 per \2}\3", text)
    text = re.sub(r"(\\circ\s*\}?|\\degree)\s*[CF]$", r"\1", text)
    text = _ANGLE.sub(lambda match: f"\\text{{angle {match.group(1).replace(' ', '')}}}", text)
    # Words that stand too close to mathematics, and Python's module names.
    text = _GLUED_WORD.sub(r" \1 ", text)
    text = _HYPHENATED.sub(r"\1\2", text)
    text = _PYTHON_MODULE.sub("", text)
    text = _PARAMETER.sub("", text) or text
    text = _SPACED_THOUSANDS.sub(_joined_thousands, text)
    return text.rstrip(". \n")


def _joined_thousands(match: re.Match[str]) -> str:
    """`1 000 000` as one number, and `10 000/3`; but `3 283/999` is 3 and a proper fraction."""
    written, under = match.group(), match.group(1)
    over = written.partition("/")[0].split()
    if under is not None and len(over) == 2 and 0 < int(over[1]) < int(under):
        return written
    return written.replace(" ", "")
