"""The two heavy parts of a block, each as one function, the fastest way that device and shape allow.

:func:`depthwise_conv` and :func:`norm_mlp`: plain PyTorch everywhere, and where asked for, on CUDA, Triton
kernels of our own (:mod:`.kernels`). Each gives what the ordinary layers give, gradients included.
"""

import torch

from .depthwise import depthwise_conv
from .mlp import norm_mlp

__all__ = ['available', 'depthwise_conv', 'norm_mlp']


def available(x: torch.Tensor) -> bool:
    """Whether the functions take ``x``: on a CPU or with CUDA, not while a program is traced or compiled.

    Those see the ordinary layers, which compilers fuse by themselves.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type in ('cpu', 'cuda') and not traced
