"""Computes LayerNorm over the channels of a map; on CUDA by Triton, where that was chosen.

PyTorch's kernel for CUDA gives each position a block of threads of its own, of which few have work while
there are few channels: it takes eight times as long as a copy of the map (96 channels, H100).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import triton_kernels
from .dispatch import operator

_library = torch.library.Library('convnext_backbone', 'FRAGMENT')
_library.define('channel_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor')
_library.define(
    'channel_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, float eps) '
    '-> (Tensor, Tensor, Tensor)'
)


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, triton: bool = False) -> Tensor:
    """Compute ``F.layer_norm`` over the last dimension; under autocast in float32, as PyTorch does.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        triton: by the Triton kernels, where they support it.
    """
    if not (triton and triton_kernels.norm_supports(x)):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _ChannelNorm.apply(x, weight, bias, eps)
    return operator('channel_norm', _forward, x)(x, weight, bias, eps)


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return operator('channel_norm', _forward, x)(x, weight, bias, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        found = operator('channel_norm_backward', _backward, grad)(grad, *ctx.saved_tensors, ctx.eps)
        return *found, None


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return triton_kernels.norm(rows, weight, bias, eps).view(x.shape)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = [t.reshape(-1, x.shape[-1]).contiguous() for t in (grad, x)]
    dx, sums = triton_kernels.norm_gradient(*rows, weight, bias, eps)
    total, dweight, dbias = (torch.empty_like(weight) for _ in range(3))
    triton_kernels.totals(sums, total, dweight, dbias)
    return dx.view(x.shape), dweight, dbias


for _device in ('CPU', 'CUDA'):
    _library.impl('channel_norm', _forward, _device)
    _library.impl('channel_norm_backward', _backward, _device)


@torch.library.register_fake('convnext_backbone::channel_norm')
def _(x, weight, bias, eps):
    return x.new_empty(x.shape)


@torch.library.register_fake('convnext_backbone::channel_norm_backward')
def _(grad, x, weight, bias, eps):
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)
