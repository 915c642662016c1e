"""Chooses how an operator of ours is called."""

from collections.abc import Callable

import torch


def operator(name: str, function: Callable) -> Callable:
    """Return the operator of PyTorch's registry, which ``torch.compile`` takes as it is, or its function.

    The registry takes longer to call than a small map to compute.
    """
    return getattr(torch.ops.convnext_backbone, name) if torch.compiler.is_compiling() else function
