"""Finds heads of mmdet and mmseg that compute as those libraries wrote them, and gives them other methods."""

import sys
from collections.abc import Callable

from torch import nn


def heads_of(model: nn.Module, name: str, *methods: str) -> list[nn.Module]:
    """Return the parts of a model that are of a class, or of one that has these methods from it.

    Args:
        model: any; none of the libraries is imported for it.
        name: of the class, with its package, as ``'mmdet.models.dense_heads.RPNHead'``.
        methods: those that are to be the class's own.
    """
    return [part for part in model.modules() if computes_as(part, name, *methods)]


def computes_as(part: nn.Module, name: str, *methods: str) -> bool:
    """Return whether a part is of a class, see :func:`heads_of`, and has these methods from it."""
    module, _, kind = name.rpartition('.')
    base = getattr(sys.modules.get(module), kind, None)
    if base is None or not isinstance(part, base):
        return False
    return all(getattr(type(part), method) is getattr(base, method) for method in methods)


def override(head: nn.Module, **methods: Callable) -> None:
    """Give one head other methods; its class goes by the same name, and is the class of which it is one."""
    kind = type(head)
    body = dict(methods, __module__=kind.__module__, __doc__=kind.__doc__)
    head.__class__ = type(kind.__name__, (kind,), body)
