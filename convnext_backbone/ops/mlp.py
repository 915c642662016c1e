"""Norm, linear, GELU, linear, layer scale and residual sum of a block (V1) in one function.

Of the four activations that autograd would keep (after the norm, before and after GELU, before the layer
scale) one is kept, the hidden layer before GELU; norm and GELU are computed again in the backward pass. On a
CPU the rows go through in chunks whose hidden layer stays in the cache: a large one would be allocated from
the system, page by page, each time.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import kernels

CHUNK_BYTES = 2**23  # of the hidden layer; measured: 4 to 16 MiB are alike, 2 is slower in training


def norm_mlp(
    x: Tensor,
    residual: Tensor,
    norm: tuple[Tensor | None, Tensor | None, float],
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    gain: Tensor | None,
    constant: bool = False,
    triton: bool = False,
) -> Tensor:
    """``residual + gain * second(gelu(first(norm(x))))``, as the layers by themselves compute it.

    Under autocast the linear layers and the norm work in its data type; norm statistics and sums over rows
    are in float32 at least.

    Args:
        x: (N, H, W, C), contiguous. Without gradients the result may be written over it.
        residual: (N, H, W, C), in its own data type, which the result has too.
        norm: weight and bias (``None``: no affine part) and eps.
        first: weight (D, C) and bias (D,).
        second: weight (C, D) and bias (C,).
        gain: (C,), or ``None``: 1.
        constant: the weights of the linear layers will not change: on a CPU they are kept, too, in the order
            in which oneDNN reads them. Without gradients only.
        triton: by our kernels, where they take it.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        x = x.to(low)
        cast = _kept_cast if constant else torch.Tensor.to
        first, second = ((cast(weight, low), cast(bias, low)) for weight, bias in (first, second))
    arguments = (x, residual, *norm, *first, *second, gain)
    if torch.is_grad_enabled():
        return _NormMLP.apply(*arguments, triton)
    linear = _packed_linear if constant and _can_pack(x) else F.linear
    return _forward(*arguments, triton, linear=linear)[0]


def _forward(
    x, residual, norm_weight, norm_bias, eps, w1, b1, w2, b2, gain, triton, keep=False, linear=F.linear
):
    """The result, and if ``keep`` mean and 1 / std of each row and the hidden layer."""
    shape, dim = residual.shape, x.shape[-1]
    x, residual = x.reshape(-1, dim), residual.reshape(-1, dim)
    rows = len(x)
    triton = triton and kernels.usable(x, dim)
    norm_weight, norm_bias = _affine(norm_weight, norm_bias, x)
    out = torch.empty_like(residual) if keep or x.dtype != residual.dtype else x
    hidden = x.new_empty(rows, len(w1)) if keep else None
    statistics = []
    with torch.autocast(x.device.type, enabled=False):
        for part in _chunks(rows, w1, x):
            normed, mean, rstd = torch.native_layer_norm(x[part], (dim,), norm_weight, norm_bias, eps)
            statistics.append((mean, rstd))
            if triton:
                g = kernels.linear_gelu(normed, w1, b1, hidden[part] if keep else None)
                kernels.linear_residual(g, w2, b2, gain, residual[part], out[part])
                continue
            if keep:
                g = F.gelu(torch.addmm(b1, normed, w1.t(), out=hidden[part]))
            else:
                g = torch.ops.aten.gelu_(linear(normed, w1, b1))
            g = linear(g, w2, b2)
            if gain is not None:  # in float32 if the gain is: 1e-6 of a small float16 would be zero
                g = g.mul_(gain) if gain.dtype == g.dtype else g * gain
            if g.dtype == residual.dtype:
                torch.add(residual[part], g, out=out[part])
            else:
                out[part] = residual[part] + g
    mean, rstd = (torch.cat(values) for values in zip(*statistics)) if keep else (None, None)
    return out.view(shape), mean, rstd, hidden


class _NormMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, norm_weight, norm_bias, eps, w1, b1, w2, b2, gain, triton):
        out, mean, rstd, hidden = _forward(
            x, residual, norm_weight, norm_bias, eps, w1, b1, w2, b2, gain, triton, keep=True
        )
        ctx.save_for_backward(x, norm_weight, norm_bias, w1, w2, b2, gain, mean, rstd, hidden)
        ctx.eps, ctx.triton = eps, triton and kernels.usable(x, x.shape[-1])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, norm_weight, norm_bias, w1, w2, b2, gain, mean, rstd, hidden = ctx.saved_tensors
        shape, dim = x.shape, x.shape[-1]
        x, flat = x.reshape(-1, dim), grad.reshape(-1, dim)
        wide = torch.promote_types(x.dtype, torch.float32)
        norm_dtype = None if norm_weight is None else norm_weight.dtype
        norm_weight, norm_bias = _affine(norm_weight, norm_bias, x)
        dx = torch.empty_like(x)
        sums: list[Tensor | None] = [None] * 6  # of norm weight, norm bias, w1, b1, outer product, b2

        def add(number: int, value: Tensor) -> None:
            """From the second chunk on in float32 at least."""
            total = sums[number]
            sums[number] = value if total is None else total.to(wide).add_(value)

        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(len(x), w1, x):
                dout = flat[part].to(x.dtype)
                h = hidden[part]
                normed = torch.native_layer_norm(x[part], (dim,), norm_weight, norm_bias, ctx.eps)[0]
                scaled = dout if gain is None else (flat[part] * gain).to(x.dtype)
                if ctx.triton:
                    dh, g = kernels.linear_gelu_backward(scaled, w2, h)
                else:
                    g = F.gelu(h)
                    dh = torch.ops.aten.gelu_backward(scaled @ w2, h)
                add(4, dout.t() @ g)
                add(5, dout.sum(0))
                add(2, dh.t() @ normed)
                add(3, dh.sum(0))
                wanted = [True, norm_weight is not None, norm_weight is not None]
                dx[part], dweight, dbias = torch.ops.aten.native_layer_norm_backward(
                    dh @ w1, x[part], (dim,), mean[part], rstd[part], norm_weight, norm_bias, wanted
                )
                if norm_weight is not None:
                    add(0, dweight)
                    add(1, dbias)
        dnorm = [total if total is None else total.to(norm_dtype) for total in sums[:2]]
        dw1, db1, outer, db2 = sums[2], sums[3], sums[4], sums[5]
        dgain = None
        if gain is not None:  # from the outer product, so that the output needs not be kept
            dgain = ((outer * w2).sum(1, dtype=wide) + db2 * b2).to(gain.dtype)
            outer, db2 = outer * gain[:, None], db2 * gain
        found = (dw1, db1, outer, db2)
        dw1, db1, dw2, db2 = (total.to(w1.dtype) for total in found)
        return dx.view(shape), grad, *dnorm, None, dw1, db1, dw2, db2, dgain, None


def _chunks(rows: int, w1: Tensor, x: Tensor):
    """Slices of the rows; one on a GPU, whose cache is no reason to split."""
    most = rows if x.device.type != 'cpu' else max(1, CHUNK_BYTES // (len(w1) * x.element_size()))
    step = -(-rows // -(-rows // most))  # all of the same length
    return [slice(i, i + step) for i in range(0, rows, step)]


# Of weights that will not change.
_packed_weights = WeakIdKeyDictionary()  # weight -> the same in oneDNN's order
_low_weights = WeakIdKeyDictionary()  # weight -> the same in the data type of autocast


def _kept_cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight.to(dtype)``, once."""
    found = _low_weights.get(weight)
    if found is None or found.dtype != dtype:
        found = _low_weights[weight] = weight.to(dtype)
    return found


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` by oneDNN with a weight that was put in its order once."""
    if (packed := _packed_weights.get(weight)) is None:
        packed = _packed_weights[weight] = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, 'none', [], '')


@cache
def _has_packing(dtype: torch.dtype) -> bool:
    """Tried once: the operators are not a public interface, and not on every machine."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((2, 16), (16, 16), (16,)))
    try:
        return torch.equal(_packed_linear(x, weight, bias), F.linear(x, weight, bias))
    except (RuntimeError, AttributeError):
        return False


def _can_pack(x: Tensor) -> bool:
    return x.device.type == 'cpu' and _has_packing(x.dtype)


def _affine(weight: Tensor | None, bias: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The affine part of the norm in a data type that its kernel takes beside that of ``x``."""
    if weight is None or weight.dtype == x.dtype or x.device.type == 'cpu':
        return weight, bias
    return weight.to(x.dtype), bias.to(x.dtype)
