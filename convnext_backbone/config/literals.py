"""Reads values out of the text of a config without running it."""

import ast
from collections.abc import Callable
from typing import Any


def value_of(node: ast.expr, other: Callable[[ast.expr], Any]) -> Any:
    """Return the value of an expression of constants, lists, dicts and ``dict(...)``; nothing of it is run.

    Tuples and sets become lists, as in a config that was written and read again; keys become text. What is
    unpacked into a dict and is none is left out.

    Args:
        other: gives the value of any other expression, such as a name or a call.
    """

    def inner(each: ast.expr) -> Any:
        return value_of(each, other)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [inner(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        pairs = list(zip(node.keys, node.values))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        pairs = [(None, each) for each in node.args]
        pairs += [(each.arg and ast.Constant(each.arg), each.value) for each in node.keywords]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = inner(node.operand)
        return -value if isinstance(value, (int, float)) else other(node)
    else:
        return other(node)
    found = {}
    for key, each in pairs:
        value = inner(each)
        if key is not None:
            found[str(inner(key))] = value
        elif isinstance(value, dict):
            found.update(value)
    return found
