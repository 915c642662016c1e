"""Computes a ConvNeXt block and its two heavy parts, the fastest way that device and shape allow.

:func:`block_implementation` says which function computes a block, :func:`depthwise_conv` and :func:`norm_mlp`
are its parts: on a CPU by kernels in C++ (:mod:`.native`) where they can be built, elsewhere by PyTorch.
On CUDA :mod:`.triton_block` computes it as a whole, by Triton kernels (:mod:`.triton_kernels`), where
:mod:`.trial` finds them right and faster. Each gives what the ordinary layers give, gradients included.
"""

from .block import FUSED, block_implementation, has_plain_layers
from .depthwise import depthwise_conv
from .mlp import norm_mlp
from .norm import channel_norm
from .trial import chosen, expect

__all__ = [
    'FUSED',
    'block_implementation',
    'channel_norm',
    'chosen',
    'depthwise_conv',
    'expect',
    'has_plain_layers',
    'norm_mlp',
]
