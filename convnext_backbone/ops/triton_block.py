"""Computes a whole block (V1) by the Triton kernels and cuBLAS, in one function with its gradients.

Of what autograd would keep three are kept: the input, the output of the convolution, and the hidden layer
before GELU. Stochastic depth is a factor of each sample, so that no size depends on the draw. Each launch
counts: on a GPU a small map takes less time than Python needs to ask for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import depthwise, triton_kernels
from .dispatch import operator
from .mlp import WEIGHTS, Weights

_library = torch.library.Library('convnext_backbone', 'FRAGMENT')
_arguments = f'Tensor conv_weight, Tensor conv_bias, {WEIGHTS}'
_library.define(f'block(Tensor x, Tensor residual, {_arguments}, bool keep) -> (Tensor, Tensor[])')
_library.define(f'block_backward(Tensor grad, Tensor x, Tensor[] kept, {_arguments}) -> Tensor[]')


def triton_block(x: Tensor, conv: tuple[Tensor, Tensor], weights: Weights) -> Tensor:  # (N, C, H, W) -> same
    """Compute a block, ``x + scale * gain * mlp(norm(conv(x)))``; under autocast all but the sum in its type.

    Args:
        x: the result has its data type, and is in channels_last memory.
        conv: filters (C, 1, K, K) and their bias (C,).
        weights: as ``conv`` of data types of their own, which their gradients have, too.
    """
    device = x.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    given = x, *conv, *weights
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given):
        return _Block.apply(x, low, *conv, *weights)
    x, arguments = _rows_last(x), _in(low, *conv, weights)
    return operator('block', _forward, x)(x.to(low), x, *arguments, False)[0].permute(0, 3, 1, 2)


def _rows_last(x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, H, W, C)
    return x.permute(0, 2, 3, 1).contiguous()


def _in(low: torch.dtype, filters: Tensor, bias: Tensor, weights: Weights) -> tuple:
    """Return all with those that are multiplied with maps in the data type ``low``, contiguous."""
    alike = filters.dtype == weights.w1.dtype == low
    if not (alike and weights.w1.is_contiguous() and weights.w2.is_contiguous()):
        filters, bias = (t.to(low).contiguous() for t in (filters, bias))
        names = ('w1', 'b1', 'w2', 'b2')
        weights = weights._replace(**{n: getattr(weights, n).to(low).contiguous() for n in names})
    return filters, bias, *weights


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, filters, bias, *weights):
        x, weights = _rows_last(x), Weights(*weights)
        small, arguments = x.to(low), _in(low, filters, bias, weights)
        out, kept = operator('block', _forward, x)(small, x, *arguments, True)
        ctx.eps = weights.eps
        ctx.save_for_backward(small, *kept, filters, bias, *weights[:2], *weights[3:])
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, *tensors = ctx.saved_tensors
        kept, conv, weights = tensors[:3], tensors[3:5], Weights(*tensors[5:7], ctx.eps, *tensors[7:])
        dx, *found = operator('block_backward', _backward, grad)(_rows_last(grad), x, kept, *conv, *weights)
        dconv, dconv_bias, dw1, db1, dw2, db2, *rest = found
        dgain = None if weights.gain is None else rest[0]
        dnorm = (None, None) if weights.norm_weight is None else rest[-2:]
        return dx.permute(0, 3, 1, 2), None, dconv, dconv_bias, *dnorm, None, dw1, db1, dw2, db2, dgain, None


def _forward(x, residual, filters, bias, *arguments) -> tuple[Tensor, list[Tensor]]:
    """Compute the result; if ``keep``, the convolution's output, the hidden layer and the taps besides."""
    weights, keep = Weights(*arguments[:-1]), arguments[-1]
    n, height, width, c = x.shape
    narrow = c <= triton_kernels.WIDEST
    statistics = None
    if narrow:
        shape = 2, n, height, width, c // triton_kernels.CHANNELS
        statistics = x.new_empty(shape, dtype=torch.float32)
    taps = triton_kernels.taps_of(filters)
    y = triton_kernels.depthwise_conv(x, taps, bias, statistics)
    rows, out = y.view(-1, c), torch.empty_like(residual)
    sums = residual.view(-1, c), out.view(-1, c)
    norm, h = (weights.norm_weight, weights.norm_bias, weights.eps), None
    if narrow:
        h = x.new_empty(len(rows), len(weights.w1)) if keep else None
        norm = (*statistics.view(2, len(rows), -1), *norm)
        g = triton_kernels.linear_gelu(rows, weights.w1, weights.b1, h, norm)
        triton_kernels.linear_residual(g, weights.w2, weights.b2, weights.gain, weights.scale, *sums)
    else:
        h = F.linear(triton_kernels.norm(rows, *norm), weights.w1, weights.b1)
        g = F.gelu(h) if keep else torch.ops.aten.gelu_(h)
        g = F.linear(g, weights.w2, weights.b2)
        triton_kernels.branch_sum(g, weights.gain, weights.scale, *sums)
    return out, [y, h, taps] if keep else []


def _backward(grad, x, kept, filters, bias, *weights) -> list[Tensor]:
    """Compute the gradients of x, filters and their bias, w1, b1, w2, b2, gain, and both of the norm.

    The last three where they are. Of the weights in their own data types, as many as there are.
    """
    weights, (y, h, taps), c = Weights(*weights), kept, x.shape[-1]
    low, scale = x.dtype, weights.scale
    w1, w2 = weights.w1.to(low), weights.w2.to(low).contiguous()
    rows, dout = y.view(-1, c), grad.view(-1, c)
    if grad.dtype == low:
        db2 = triton_kernels.column_sums(dout, scale)
    else:
        wide, dout = dout, torch.empty_like(rows)
        db2, scale = triton_kernels.column_sums(wide, scale, dout), None
    dh = dout @ (w2 if weights.gain is None else (w2 * weights.gain[:, None]).to(low))
    g, db1 = triton_kernels.gelu_gradient(dh, h, scale)  # dh is times the derivative now
    normed = torch.empty_like(rows)
    norm = weights.norm_weight, weights.norm_bias, weights.eps
    dy, sums = triton_kernels.norm_gradient(dh @ w1, rows, *norm, normed)
    dw1, outer = dh.t() @ normed, dout.t() @ g
    dy = dy.view(x.shape)
    dx = triton_kernels.depthwise_conv(dy, taps, None, turned=True, other=grad)
    dconv = depthwise.weight_gradient(x, dy, filters)
    found = [torch.empty_like(t) for t in (bias, weights.b1, weights.w2, weights.b2)]
    dconv_bias, total_b1, dw2, total_b2 = found
    dnorm = [torch.empty_like(t) for t in weights[:2] if t is not None]
    triton_kernels.totals(sums, dconv_bias, *dnorm, more=(db1, total_b1))
    dgain = []
    if weights.gain is None:
        triton_kernels.totals(db2, total_b2)
        dw2 = outer.to(weights.w2.dtype)
    else:
        dgain = [torch.empty_like(weights.gain)]
        outs = dw2, total_b2, *dgain
        triton_kernels.gain_gradient(outer, w2, weights.b2, weights.gain, db2, outs)
    return [dx, dconv, dconv_bias, dw1.to(weights.w1.dtype), total_b1, dw2, total_b2, *dgain, *dnorm]


for _device in ('CPU', 'CUDA'):
    _library.impl('block', _forward, _device)
    _library.impl('block_backward', _backward, _device)


@torch.library.register_fake('convnext_backbone::block')
def _(x, residual, filters, bias, *arguments):
    weights, keep = Weights(*arguments[:-1]), arguments[-1]
    rows = x.numel() // x.shape[-1]
    kept = (
        torch.empty_like(x),
        x.new_empty(rows, len(weights.w1)),
        filters.new_empty(filters[0].numel(), len(filters)),
    )
    return torch.empty_like(residual), [*kept] * keep


@torch.library.register_fake('convnext_backbone::block_backward')
def _(grad, x, kept, filters, bias, *weights):
    weights = Weights(*weights)
    order = ('w1', 'b1', 'w2', 'b2', 'gain', 'norm_weight', 'norm_bias')
    found = [filters, bias, *(getattr(weights, name) for name in order)]
    return [torch.empty_like(grad), *(torch.empty_like(t) for t in found if t is not None)]
