"""Chooses how an operator of ours is called."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def operator(name: str, function: Callable, x: Tensor) -> Callable:
    """Return the operator of PyTorch's registry, or on CUDA the function that computes it.

    The registry takes longer to call than a GPU needs for a small map. ``torch.compile`` takes the operator
    as it is, and so does what watches operators: it is to see one, not what it consists of.

    Args:
        name: of the operator.
        function: with its arguments.
        x: one of them.
    """
    if x.is_cuda and not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None:
        return function
    return getattr(torch.ops.convnext_backbone, name)
