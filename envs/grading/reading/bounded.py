r"""Reading `\sum_{k=1}^{9} k`, `\prod`, `\int_0^1 x\,dx` and `\lim_{x\to0}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyturn.envs.grading.reading.numerals import plain_number
from polyturn.envs.grading.reading.tokens import NotAnAnswer, Token
from polyturn.envs.grading.reading.tree import Node

if TYPE_CHECKING:
    from polyturn.envs.grading.reading.arithmetic import Arithmetic

BOUNDED = frozenset({"sum", "prod", "int", "lim"})
_SIDES = ("^+", "^-", "^{+}", "^{-}")
_ARROWS = ("to", "rightarrow", "longrightarrow")


def bounded(reader: Arithmetic, name: str) -> Node:
    """A node of kind "bound" with name, body and ends, after the command."""
    reader.down()
    while reader.sees("limits", "nolimits", "displaystyle"):
        reader.take()
    about, ends = _ends(reader, name)
    if name == "int":
        about, body = _integrand(reader)
    else:
        assert about is not None
        body = _body(reader, about)
    reader.depth -= 1
    return Node("bound", (about, body, *ends), name)


def _ends(reader: Arithmetic, name: str) -> tuple[Node | None, list[Node]]:
    """What stands below and above: the name that runs (but for an integral), and where from and to."""
    about: Node | None = None
    low = high = None
    while reader.symbol("_") or reader.symbol("^"):
        if reader.take().text == "^":
            if high is not None or name == "lim":
                raise NotAnAnswer(f"{name} with two upper ends")
            high = _end(reader)
        elif low is not None:
            raise NotAnAnswer(f"{name} with two lower ends")
        elif name == "int":
            low = _end(reader)
        else:
            reader.expect("{")
            about = _name(reader)
            reader.expect(*(_ARROWS if name == "lim" else ("=",)))
            if name == "lim":
                _drop_side(reader)
            low = reader.sum()
            reader.expect("}")
    if low is None or (high is None) != (name == "lim"):
        raise NotAnAnswer(f"{name} without its ends")
    return about, [low] if high is None else [low, high]


def _end(reader: Arithmetic) -> Node:
    if reader.peek().kind != "number":
        return reader.argument()
    if len(reader.peek().text) > 1:
        raise NotAnAnswer("an end of several digits without braces")
    return plain_number(reader.take().text)  # else `\\int_0^1 \\frac12` would end at a mixed number


def _drop_side(reader: Arithmetic) -> None:
    """Takes off the sign of a limit from one side, `0^+`: what is evaluated here is the same from both."""
    level = 0
    for index in range(reader.at, len(reader.tokens)):
        text = reader.tokens[index].text
        level += (text == "{") - (text == "}")
        if level < 0:
            tail = "".join(token.text for token in reader.tokens[reader.at : index])
            length = next((len(side) for side in _SIDES if tail.endswith(side)), 0)
            del reader.tokens[index - length : index]
            return


def _name(reader: Arithmetic) -> Node:
    token = reader.peek()
    if token.kind != "variable" or "'" in token.text:
        raise NotAnAnswer(f"expected a letter that runs, got {token.text or 'the end'!r}")
    return Node("variable", name=reader.take().text)


def _body(reader: Arithmetic, about: Node) -> Node:
    outer = reader.running
    reader.running = outer | {about.name}
    try:
        return reader.term()
    finally:
        reader.running = outer


def _integrand(reader: Arithmetic) -> tuple[Node, Node]:
    """The name after the d, and what stands before it."""
    end = _differential(reader)
    about = Node("variable", name=reader.tokens[end + 1].text)
    outer, tokens = reader.running, reader.tokens
    reader.running, reader.tokens = outer | {about.name}, tokens[:end]
    try:
        body = reader.sum() if reader.at < end else Node("num", name="1", value=Node("num").value + 1)
        if reader.at != end:
            raise NotAnAnswer("an integral that ends before its d")
    finally:
        reader.running, reader.tokens = outer, tokens
    reader.at = end + 2
    return about, body


def _differential(reader: Arithmetic) -> int:
    """Where the d of this integral stands; those of integrals within it come first."""
    level = inner = 0
    for index in range(reader.at, len(reader.tokens) - 1):
        token, after = reader.tokens[index : index + 2]
        level += (token.text in ("{", "(", "[")) - (token.text in ("}", ")", "]"))
        if level < 0:
            break
        if token[:2] == ("command", "int"):
            inner += 1
        elif level == 0 and _is_d(token) and after.kind == "variable":
            if not inner:
                return index
            inner -= 1
    raise NotAnAnswer("an integral without its d")


def _is_d(token: Token) -> bool:
    return token[:2] == ("variable", "d")
