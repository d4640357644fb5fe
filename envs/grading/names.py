"""Names of quantities: what `x = 5`, `f'(2) = 5`, `P(X=2) = 5` or `|AB| = 1` say that something is called."""

from __future__ import annotations

from polyturn.envs.grading.reading.tree import Node

_ARGUMENTS = frozenset({"div", "add", "variable", "mul", "pow", "func"})
_UNKNOWNS = frozenset("xytnmk")
"""Letters that an equation is solved for: `|x| = 5` gives x, while `|a| = 5` gives the length of a."""
_FUNCTION_LETTERS = frozenset("fghpqrFGHPQRE")
_SIGNS = {"mul": "", "div": "/", "add": "+", "ratio": ":"}


def label(node: Node) -> str | None:
    """The name on one side of an equation, or None if that side is no name.

    Names are: letters, with subscripts and primes; `AB`; `f(x)`, `f(2)`; `dy/dx`, `AB/CD`, `V_1:V_2`; `a + b`;
    `(x, y)`; `f^{-1}(x)`; lengths and norms `|AB|`, `|a|`; words. `2x`, `x^2` and `|x|` are expressions, not names.
    """
    match node.kind:
        case "variable" | "word":
            return node.name
        case "const":
            return node.name if node.name in ("e", "i") else None
        case "unit":
            return label(node.parts[0])
        case "func":
            return _function(node)
        case "pow":
            return _power(node)
        case "tuple":
            names = [label(part) for part in node.parts]
            return ",".join(map(str, names)) if None not in names else None
        case "mul" if _applied(node):
            return f"{label(node.parts[0])}({_written(node.parts[1])})"
        case "mul" | "div" | "add" | "ratio":
            names = [label(part) for part in node.parts]
            return _SIGNS[node.kind].join(map(str, names)) if None not in names else None
    return None


def _applied(node: Node) -> bool:
    """Whether a product is a function and its argument: `f(2)`, `g(-1/2)`, `f'(x)`, `h(x + 1)`."""
    if len(node.parts) != 2 or node.parts[0].kind not in ("variable", "pow"):
        return False
    argument = node.parts[1]
    if node.parts[0].kind == "pow":
        return label(node.parts[0]) is not None
    name = node.parts[0].name
    return argument.kind in ("num", "neg") or (
        argument.kind == "tuple" or (name.rstrip("'") in _FUNCTION_LETTERS and argument.kind in _ARGUMENTS)
    )


def _function(node: Node) -> str | None:
    """`|AB|`, `|z|`, and `sin A` for an angle A; `|x|` and `sin x` are expressions."""
    inner = node.parts[0]
    name = label(inner)
    if name is None:
        return None
    if node.name == "abs":
        return None if name in _UNKNOWNS else f"|{name}|"
    angle = inner.kind == "word" or (inner.kind == "variable" and (name[:1].isupper() or len(name) > 1))
    return f"{node.name} {name}" if angle and len(node.parts) == 1 and node.name in ("sin", "cos", "tan") else None


def _power(node: Node) -> str | None:
    """`f^{-1}`, the inverse of a function; `x^{-1}` too, which is only reached before an argument."""
    exponent = node.parts[1]
    inverse = exponent.kind == "neg" and exponent.parts[0].kind == "num" and exponent.parts[0].value == 1
    return f"{label(node.parts[0])}^-1" if inverse and node.parts[0].kind == "variable" else None


def _written(node: Node) -> str:
    """A tree as text, the same for the same tree."""
    if node.kind == "num":
        return str(node.value)
    if not node.parts:
        return node.name
    return f"{node.kind}{node.name}({' '.join(_written(part) for part in node.parts)})"
