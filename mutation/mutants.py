"""Small changes of a Python file, each of which a test should notice.

Changed is what functions do: comparisons, arithmetic, conditions, constants, calls for their effect, what is raised and
returned. Left alone: the words of messages, annotations, defaults of arguments, decorators, what a module does when it
is imported, and asserts, which state what the code believes anyway.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    **{
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
    },
    **{
        ast.Is: ast.IsNot,
        ast.IsNot: ast.Is,
        ast.In: ast.NotIn,
        ast.NotIn: ast.In,
        ast.And: ast.Or,
        ast.Or: ast.And,
    },
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{
        ast.Mod: ast.Mult,
        ast.Pow: ast.Mult,
        ast.BitAnd: ast.BitOr,
        ast.BitOr: ast.BitAnd,
        ast.BitXor: ast.BitAnd,
    },
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.MatMult: ast.Mult},
}
# Calls whose arguments are words or pictures of progress for people.
FOR_PEOPLE = {"tqdm", "print", "unknown_name", "UserError"}

Change = Callable[[ast.AST], ast.AST | None]  # the node, a copy of it, changed; None removes a statement


class Mutant(NamedTuple):
    """One change: which node of the file (in the order of `ast.walk`), where, in which function, and what it says."""

    node: int
    change: int
    line: int
    function: str
    about: str


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """What can be done to a node, in words and in deed."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                if type(op) in SWAPPED:
                    yield _name(op), lambda n, i=i: _with_op(n, i)  # type: ignore[misc]
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            yield _name(op), _swapped
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield f"without {type(node.op).__name__}", lambda n: n.operand  # type: ignore[attr-defined]
        case ast.Constant(value=bool()):
            yield f"{node.value} -> {not node.value}", lambda n: ast.Constant(not n.value)  # type: ignore[attr-defined]
        case ast.Constant(value=int() | float()):
            yield f"{node.value} -> {node.value + 1}", lambda n: ast.Constant(n.value + 1)  # type: ignore[attr-defined]
        case ast.Constant(value=str()):
            yield f"{node.value!r} changed", lambda n: ast.Constant(n.value + "x")  # type: ignore[attr-defined]
        case ast.If() | ast.IfExp() | ast.While():
            yield f"{type(node).__name__.lower()} not", _negated
        case ast.Expr(value=ast.Call()):
            yield "call removed", lambda n: None
        case ast.Raise():
            yield "raise removed", lambda n: None
        case ast.Return(value=ast.AST()):
            yield "returns None", lambda n: ast.Return(ast.Constant(None))
        case ast.Continue():
            yield "continue -> break", lambda n: ast.Break()
        case ast.Break():
            yield "break -> continue", lambda n: ast.Continue()


def _name(op: ast.AST) -> str:
    return f"{type(op).__name__} -> {SWAPPED[type(op)].__name__}"


def _with_op(node: ast.AST, i: int) -> ast.AST:
    assert isinstance(node, ast.Compare)
    node.ops[i] = SWAPPED[type(node.ops[i])]()  # type: ignore[call-overload]
    return node


def _swapped(node: ast.AST) -> ast.AST:
    node.op = SWAPPED[type(node.op)]()  # type: ignore[attr-defined]
    return node


def _negated(node: ast.AST) -> ast.AST:
    node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
    return node


def mutants(text: str) -> list[Mutant]:
    """Every change that can be made to a file's functions, in the order of its lines."""
    tree = ast.parse(text)
    found: list[Mutant] = []
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    _visit(tree, "", False, numbers, found)
    return sorted(found, key=lambda mutant: (mutant.line, mutant.node, mutant.change))


def _visit(node: ast.AST, function: str, inside: bool, numbers: dict[int, int], found: list[Mutant]) -> None:
    """Collect the changes below a node; `inside` a function, whose qualified name is `function`."""
    if inside:
        for number, (about, _) in enumerate(changes(node)):
            line = getattr(node, "lineno", 0)
            found.append(Mutant(numbers[id(node)], number, line, function, about))
    for child in _children(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            name = f"{function}.<locals>.{child.name}" if inside else f"{function}.{child.name}".lstrip(".")
            _visit(child, name, inside or isinstance(child, ast.FunctionDef), numbers, found)
        else:
            _visit(child, function, inside, numbers, found)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below that may be changed."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            body = node.body
            yield from body[1:] if ast.get_docstring(node) is not None else body
        case ast.Raise() | ast.JoinedStr() | ast.Assert() | ast.Import() | ast.ImportFrom():
            return
        case ast.Call(func=ast.Name(id=name)) if name in FOR_PEOPLE:
            return
        case ast.AnnAssign():
            if node.value is not None:
                yield node.value
        case ast.Lambda():
            yield node.body
        case _:
            yield from ast.iter_child_nodes(node)


def mutated(text: str, mutant: Mutant) -> ast.Module:
    """The file's tree with the one change made."""
    tree = ast.parse(text)
    target = next(node for number, node in enumerate(ast.walk(tree)) if number == mutant.node)
    change = [change for _, change in changes(target)][mutant.change]
    new = change(copy.deepcopy(target))

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if node is target:
                return ast.copy_location(new if new is not None else ast.Pass(), target)
            return self.generic_visit(node)

    whole = ast.fix_missing_locations(Replace().visit(tree))
    assert isinstance(whole, ast.Module)
    return whole
