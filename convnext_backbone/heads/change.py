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
    """Give one head other methods, functions of a module; its class goes by the name of its own, its base."""
    base, known = getattr(head, 'overridden', (type(head), {}))
    methods = {**known, **methods}
    body = dict(overridden=(base, methods), __reduce_ex__=_reduce, __module__=base.__module__)
    head.__class__ = type(base.__name__, (base,), {**body, **methods, '__doc__': base.__doc__})


def _reduce(head: nn.Module, protocol: int) -> tuple:  # pickle and deepcopy cannot find the class by its name
    return _rebuild, head.overridden, head.__dict__


def _rebuild(base: type, methods: dict[str, Callable]) -> nn.Module:
    head = base.__new__(base)
    override(head, **methods)
    return head
