"""Computes depthwise convolution with a weight gradient that is not the slow part of training.

PyTorch's (oneDNN's) weight gradient of a depthwise convolution on a CPU takes several times as long as the
convolution. Where our kernels (:mod:`.native`) do not support it, the batch is folded into the channels and
the gradient of the output is the kernel: one depthwise convolution with a large kernel and a 7 x 7 output, in
bands of rows.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native, triton_kernels
from .dispatch import operator

BAND = 16  # rows of the gradient that make a kernel; a taller one is slower and less exact
WHOLE = 32  # rows of a map that is taken as one band
LARGE = 10000  # positions of a map from which on Triton's weight gradient is faster than cuDNN's (H100)

_library = torch.library.Library('convnext_backbone', 'FRAGMENT')
_library.define('depthwise_conv(Tensor x, Tensor weight, Tensor? bias, int dilation, bool triton) -> Tensor')
_library.define(
    'depthwise_conv_gradient(Tensor x, Tensor grad, int kernel, int dilation, bool triton) '
    '-> (Tensor, Tensor)'
)


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, triton: bool = False
) -> Tensor:
    """Compute ``F.conv2d`` with one filter a channel and a map of the same size.

    Under autocast in its data type, as a convolution.

    Args:
        x: (N, C, H, W) in channels_last memory; on a CPU without gradients of any data type.
        weight: (C, 1, K, K), K odd; the result has its data type.
        bias: (C,).
        triton: by the Triton kernels, where they support it.

    Returns:
        (N, C, H, W) in channels_last memory.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        weight, bias = weight.to(low), bias.to(low)
        if triton or device != 'cpu' or torch.is_grad_enabled():  # else read as it is; what is kept is small
            x = x.to(low)
    arguments = x, weight, bias, dilation, triton
    if torch.is_grad_enabled():
        return _DepthwiseConv.apply(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.convnext_backbone.depthwise_conv(*arguments)
    return _forward(*arguments)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dilation, triton):
        ctx.save_for_backward(x, weight)
        ctx.options = dilation, triton
        return operator('depthwise_conv', _forward, x)(x, weight, bias, dilation, triton)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:  # the same convolution with the filters turned round
            dx = operator('depthwise_conv', _forward, grad)(grad, weight.flip(2, 3), None, *ctx.options)
        if any(ctx.needs_input_grad[1:3]):
            gradient = operator('depthwise_conv_gradient', _gradient, grad)
            found = gradient(x, grad, weight.shape[-1], *ctx.options)
            dw, db = (
                t.to(weight.dtype) if wanted else None for t, wanted in zip(found, ctx.needs_input_grad[1:])
            )
        return dx, dw, db, None, None


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, triton: bool) -> Tensor:
    if _triton_supports(x, dilation, triton):
        rows = x.permute(0, 2, 3, 1).contiguous()
        return triton_kernels.depthwise_conv(rows, triton_kernels.taps_of(weight), bias).permute(0, 3, 1, 2)
    if x.numel() and _native_supports(weight.shape[-1], dilation, x, weight):
        return native.convolution(x, weight, bias)
    pad = weight.shape[-1] // 2 * dilation
    with _without_search(x):
        out = F.conv2d(x.to(weight.dtype), weight, bias, padding=pad, dilation=dilation, groups=x.shape[1])
    return out.contiguous(memory_format=torch.channels_last)


def _without_search(x: Tensor) -> contextlib.AbstractContextManager:
    """Keep cuDNN from timing its algorithms for each new size of a map: it finds none that is faster."""
    if x.device.type != 'cuda' or not torch.backends.cudnn.benchmark or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, False, deterministic=cudnn.deterministic, allow_tf32=cudnn.allow_tf32)


def _triton_supports(x: Tensor, dilation: int, triton: bool) -> bool:
    return triton and dilation == 1 and triton_kernels.supports(x, x.shape[1])


def _native_supports(kernel: int, dilation: int, *tensors: Tensor) -> bool:
    return dilation == 1 and kernel == native.KERNEL and native.supports(*tensors)


def _gradient(x: Tensor, grad: Tensor, kernel: int, dilation: int, triton: bool) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the weight (C, 1, K, K) and the bias (C,), in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if _triton_supports(x, dilation, triton):
        x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad))
        weight, bias = (x.new_empty(n, dtype=wide) for n in ((x.shape[3], 1, kernel, kernel), (x.shape[3],)))
        triton_kernels.totals(triton_kernels.column_sums(grad.view(-1, x.shape[3])), bias)
        return weight_gradient(x, grad, weight), bias
    if _native_supports(kernel, dilation, x, grad):
        return native.convolution_gradient(x, grad)
    bias = grad.sum((0, 2, 3), dtype=wide)
    return _weight_gradient(x, grad, kernel, dilation, wide), bias


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of ``weight`` (C, 1, K, K) by Triton or, of small maps, by cuDNN.

    ``x`` and ``grad``: (N, H, W, C), contiguous.
    """
    kernel = weight.shape[-1]
    if x.shape[1] * x.shape[2] >= LARGE:
        return triton_kernels.depthwise_conv_weight_gradient(x, grad, kernel).to(weight.dtype)
    return _weight_gradient(x.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2), kernel, 1, weight.dtype)


def _weight_gradient(x: Tensor, grad: Tensor, kernel: int, dilation: int, dtype: torch.dtype) -> Tensor:
    """Compute the gradient of the weight in a data type, by PyTorch's operators."""
    n, c, height, width = x.shape
    if x.device.type != 'cpu':
        weight = x.new_empty(c, 1, kernel, kernel)
        pad = [kernel // 2 * dilation] * 2
        options = ([1, 1], pad, [dilation] * 2, False, [0, 0], c, [False, True, False])
        with _without_search(x):
            found = torch.ops.aten.convolution_backward(grad, x, weight, None, *options)[1]
        return found.to(dtype, memory_format=torch.contiguous_format)
    pad = kernel // 2 * dilation
    padded = x.new_zeros(n, c, height + 2 * pad, width)  # NCHW memory: each (sample, channel) is a group
    padded[:, :, pad : pad + height].copy_(x)
    bands = 1 if height <= WHOLE else -(-height // BAND)
    band = -(-height // bands)
    total = None
    for top in range(0, height, band):
        filters = grad[:, :, top : top + band].reshape(n * c, 1, -1, width)
        rows = padded[:, :, top : top + filters.shape[2] + 2 * pad].reshape(1, n * c, -1, width)
        found = F.conv2d(rows, filters, padding=(0, pad), stride=dilation, groups=n * c)
        found = found.view(n, c, 1, kernel, kernel).sum(0, dtype=dtype)
        total = found if total is None else total + found
    return total


for _device in ('CPU', 'CUDA'):
    _library.impl('depthwise_conv', _forward, _device)
    _library.impl('depthwise_conv_gradient', _gradient, _device)


@torch.library.register_fake('convnext_backbone::depthwise_conv')
def _(x, weight, bias, dilation, triton):
    return torch.empty_like(x, dtype=weight.dtype, memory_format=torch.channels_last)


@torch.library.register_fake('convnext_backbone::depthwise_conv_gradient')
def _(x, grad, kernel, dilation, triton):
    wide = torch.promote_types(x.dtype, torch.float32)
    channels = x.shape[1]
    return x.new_empty(channels, 1, kernel, kernel, dtype=wide), x.new_empty(channels, dtype=wide)
