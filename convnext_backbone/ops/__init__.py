"""The two heavy parts of a block, each as one function, the fastest way that device and shape allow.

:func:`depthwise_conv` and :func:`norm_mlp`: on a CPU by kernels in C++ (:mod:`.native`) where they can be
built, on CUDA where asked for by Triton kernels (:mod:`.kernels`), elsewhere in plain PyTorch. Each gives
what the ordinary layers give, gradients included.
"""

import torch

from . import kernels
from .depthwise import depthwise_conv
from .mlp import norm_mlp

__all__ = ['available', 'depthwise_conv', 'norm_mlp']


def available(x: torch.Tensor, triton: bool) -> bool:
    """Whether the functions take ``x``: on a CPU or with CUDA.

    Not while a program is traced or exported, which is to consist of PyTorch's own operators.
    ``torch.compile`` takes them as they are on a CPU, and on CUDA if our kernels do the work: else it fuses
    the ordinary layers.
    """
    # torch.compiler.is_exporting() is true in any compilation, too (torch 2.11)
    if torch.jit.is_tracing() or torch.compiler._is_exporting_flag:
        return False
    device = x.device.type
    if torch.compiler.is_compiling() and device == 'cuda':
        autocast = torch.is_autocast_enabled(device)
        return triton and kernels.fits(torch.get_autocast_dtype(device) if autocast else x.dtype, x.shape[1])
    return device in ('cpu', 'cuda')
