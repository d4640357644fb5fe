r"""The final answer of a text: the content of its last \boxed{...}."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BARE = re.compile(r"-?(?:\\[A-Za-z]+|[A-Za-z0-9.,]*[A-Za-z0-9])")
# A doubled backslash is a line break unless the box itself is escaped, as in "\\boxed{5}" inside a string.
_BRACE = re.compile(r"\\\\(?!boxed|fbox)|\\[{}]|\\(?:boxed|fbox)(?![A-Za-z])\s*\{|[{}]")


def extract_answer(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}`, braces matched.

    Escaped braces (`\{`) do not group. `\boxed 5`, which TeX reads as a box around one token, counts. A box that
    is never closed (a text cut off) is passed over in favour of the last complete one. Time is linear in the
    text, for any text.

    Returns:
        The content without surrounding white space, possibly "", or None if there is no complete box.
    """
    last = None
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    last = _BOX.match(text, start)
    if last is not None and not text.startswith("{", last.end()):
        bare = _BARE.match(text, last.end())
        if bare is not None:
            return bare.group()
    elif last is not None:
        depth = 0
        for brace in _BRACE.finditer(text, last.end()):
            if brace.group()[-1] == "{" and brace.group() != "\\{":
                depth += 1
            elif brace.group() == "}":
                depth -= 1
                if depth == 0:
                    return text[last.end() + 1 : brace.start()].strip()
    return _last_complete_box(text)


def _last_complete_box(text: str) -> str | None:
    """The slow way, one pass with a stack: for texts whose last box is broken."""
    open_braces: list[int] = []  # start of the content for a box, -1 for any other brace
    best: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        token = brace.group()
        if token == "}" and open_braces:
            start = open_braces.pop()
            if start >= 0 and (best is None or start > best[0]):
                best = (start, brace.start())
        elif token == "{":
            open_braces.append(-1)
        elif token[-1] == "{" and token != "\\{":
            open_braces.append(brace.end())
    return None if best is None else text[best[0] : best[1]].strip()
