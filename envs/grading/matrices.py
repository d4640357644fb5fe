"""Sums, products, powers, transposes and determinants of matrices and vectors, as matrices of expressions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import reduce

from polyturn.envs.grading.reading.tree import Node, contains, joined
from polyturn.envs.grading.work import TooHard

_MOST_CELLS = 64
_LARGEST_DETERMINANT = 4
_LARGEST_POWER = 12
_SIZE_LIMIT = 20_000
"""Nodes a matrix of expressions may have in all."""

Cells = tuple[tuple[Node, ...], ...]


def as_array(node: Node) -> Node:
    """A matrix or vector expression as one matrix or tuple; any other tree as it is.

    Vectors are tuples in round brackets; they can be added and multiplied by numbers.

    Raises:
        TooHard: The shapes do not fit, or the result would be too large.
    """
    if not contains(node, "matrix", "tuple"):
        return node
    return _array(node)


def _array(node: Node) -> Node:
    if node.kind == "matrix":
        return determinant(node) if node.name == "det" else node
    if node.kind not in ("add", "mul", "neg", "div", "pow") or not contains(node, "matrix", "tuple"):
        return node
    parts = [_array(part) for part in node.parts]
    if not any(part.kind in ("matrix", "tuple") for part in parts):
        return Node(node.kind, tuple(parts), node.name, node.value, node.places)
    match node.kind:
        case "neg":
            return _each(parts[0], lambda cell: Node("neg", (cell,)))
        case "add":
            return reduce(_sum, parts)
        case "mul":
            return reduce(_product, parts)
        case "div" if parts[1].kind not in ("matrix", "tuple"):
            return _each(parts[0], lambda cell: Node("div", (cell, parts[1])))
        case "pow" if parts[0].kind == "matrix":
            return _power(parts[0], parts[1])
    raise TooHard("an operation that matrices do not have")


def _cells(node: Node) -> Cells:
    return tuple(row.parts for row in node.parts)


def _matrix(cells: Cells) -> Node:
    if sum(map(len, cells)) > _MOST_CELLS:
        raise TooHard(f"a matrix of more than {_MOST_CELLS} cells")
    return Node("matrix", tuple(Node("row", row) for row in cells))


def _each(node: Node, change: Callable[[Node], Node]) -> Node:
    if node.kind == "tuple":
        return Node("tuple", tuple(change(part) for part in node.parts), node.name)
    return _matrix(tuple(tuple(change(cell) for cell in row) for row in _cells(node)))


def _sum(first: Node, second: Node) -> Node:
    if first.kind == second.kind == "tuple" and first.name == second.name == "()":
        if len(first.parts) != len(second.parts):
            raise TooHard("vectors of different lengths")
        pairs = zip(first.parts, second.parts, strict=True)
        return Node("tuple", tuple(Node("add", pair) for pair in pairs), "()")
    if first.kind != "matrix" or second.kind != "matrix" or _shape(first) != _shape(second):
        raise TooHard("a sum of matrices of different shapes")
    rows = zip(_cells(first), _cells(second), strict=True)
    return _matrix(tuple(tuple(Node("add", pair) for pair in zip(*row, strict=True)) for row in rows))


def _product(first: Node, second: Node) -> Node:
    arrays = [node.kind in ("matrix", "tuple") for node in (first, second)]
    if not any(arrays):
        return Node("mul", (first, second))
    if not all(arrays):
        array, scalar = (first, second) if arrays[0] else (second, first)
        if array.kind == "tuple" and array.name != "()":
            raise TooHard("an interval times a number")
        return _each(array, lambda cell: Node("mul", (scalar, cell)))
    if first.kind != "matrix" or second.kind != "matrix" or _shape(first)[1] != _shape(second)[0]:
        raise TooHard("a product of matrices whose shapes do not fit")
    columns = tuple(zip(*_cells(second), strict=True))
    _check_size(_size(first) * len(columns) + _size(second) * len(first.parts))
    return _matrix(
        tuple(
            tuple(
                joined("add", [Node("mul", pair) for pair in zip(row, column, strict=True)]) for column in columns
            )
            for row in _cells(first)
        )
    )  # fmt: skip


def _power(matrix: Node, exponent: Node) -> Node:
    """A transpose (`^T`), an inverse, or a whole power."""
    cells = _cells(matrix)
    if exponent.kind == "variable" and exponent.name in ("T", "t"):
        return _matrix(tuple(zip(*cells, strict=True)))
    negative = exponent.kind == "neg"
    number = exponent.parts[0] if negative else exponent
    if number.kind != "num" or number.value.denominator != 1 or not 1 <= number.value <= _LARGEST_POWER:
        raise TooHard("a power that matrices do not have")
    base = _inverse(matrix) if negative else matrix
    return reduce(_product, [base] * int(number.value))


def _inverse(matrix: Node) -> Node:
    """The transposed cofactors over the determinant."""
    cells, whole = _cells(matrix), determinant(matrix)
    size = len(cells)
    _check_size(size * size * (_size(matrix) * size + _size(whole)))
    if size == 1:
        return _matrix(((Node("pow", (cells[0][0], Node("neg", (_number(1),)))),),))
    rows = []
    for column in range(size):
        row = []
        for at in range(size):
            minor = determinant(_matrix(_without(cells, at, column)))
            row.append(Node("div", (Node("neg", (minor,)) if (at + column) % 2 else minor, whole)))
        rows.append(tuple(row))
    return _matrix(tuple(rows))


def determinant(matrix: Node) -> Node:
    """The determinant, expanded along the first row.

    Raises:
        TooHard: The matrix is not square or is too large.
    """
    cells = _cells(matrix)
    if len(cells) != len(cells[0]) or len(cells) > _LARGEST_DETERMINANT:
        raise TooHard("a determinant of a matrix that is not square, or too large")
    if len(cells) == 1:
        return cells[0][0]
    _check_size(_size(matrix) * 6)  # a cell of a four by four matrix stands in six products
    terms = []
    for column, cell in enumerate(cells[0]):
        term = Node("mul", (cell, determinant(_matrix(_without(cells, 0, column)))))
        terms.append(Node("neg", (term,)) if column % 2 else term)
    return Node("add", tuple(terms))


def _without(cells: Cells, at: int, column: int) -> Cells:
    return tuple(row[:column] + row[column + 1 :] for index, row in enumerate(cells) if index != at)


def _shape(matrix: Node) -> tuple[int, int]:
    return len(matrix.parts), len(matrix.parts[0].parts)


def _number(value: int) -> Node:
    return Node("num", name=str(value), value=Fraction(value))


def _check_size(nodes: int) -> None:
    if nodes > _SIZE_LIMIT:
        raise TooHard("a matrix of very large expressions")


def _size(node: Node) -> int:
    return 1 + sum(_size(part) for part in node.parts)
