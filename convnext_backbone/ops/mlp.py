"""Computes norm, linear, GELU, linear, layer scale and residual sum of a block (V1) in one function.

Of the four activations that autograd would keep (after the norm, before and after GELU, before the layer
scale) one is kept, the hidden layer before GELU; norm and GELU are computed again in the backward pass.

On a CPU the rows go through in chunks whose hidden layer stays in the cache: a large one would be allocated
from the system, page by page, each time. Products are oneDNN's, which are faster than those of the library
that PyTorch takes for float32, the more so with weights in the order in which it reads them; what is between
them is done by our kernels (:mod:`.native`), or by PyTorch's.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import native
from .dispatch import operator

CHUNK_BYTES = 2**23  # of the hidden layer; measured: 4 to 16 MiB are alike, 2 is slower in training
PACKED_ROWS = 4096  # from which on it pays to reorder a weight for a single use; measured: 1000 to 4000

_library = torch.library.Library('convnext_backbone', 'FRAGMENT')
WEIGHTS = (  # in an operator's schema
    'Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor w1, Tensor b1, Tensor w2, Tensor b2, '
    'Tensor? gain, Tensor? scale'
)
_library.define(
    f'norm_mlp(Tensor x, Tensor residual, {WEIGHTS}, bool keep, bool constant) -> (Tensor, Tensor[])'
)
_library.define(f'norm_mlp_backward(Tensor grad, Tensor x, Tensor[] hidden, {WEIGHTS}) -> Tensor[]')


class Weights(NamedTuple):
    """Holds what norm and MLP of a block compute with, in the order of the operators' arguments.

    Attributes:
        norm_weight: (C,); norm_bias too; ``None``: no affine part.
        eps: of the norm.
        w1: (D, C); b1 (D,).
        w2: (C, D); b2 (C,).
        gain: (C,), or ``None``: 1.
        scale: (N,), of stochastic depth, without gradient, or ``None``: 1.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    eps: float
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gain: Tensor | None
    scale: Tensor | None


def norm_mlp(
    x: Tensor,
    residual: Tensor,
    norm: tuple[Tensor | None, Tensor | None, float],
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    gain: Tensor | None,
    scale: Tensor | None = None,
    constant: bool = False,
) -> Tensor:
    """Compute ``residual + scale * gain * second(gelu(first(norm(x))))``, as the layers by themselves do.

    Under autocast the linear layers and the norm work in its data type; norm statistics and sums over rows
    are in float32 at least.

    Args:
        x: (N, H, W, C). Without gradients the result may be written over it.
        residual: (N, H, W, C), in its own data type, which the result has too.
        norm: weight and bias (``None``: no affine part) and eps.
        first: weight (D, C) and bias (D,).
        second: weight (C, D) and bias (C,).
        gain: (C,), or ``None``: 1.
        scale: (N,), without gradient, or ``None``: 1.
        constant: the weights of the linear layers will not change: on a CPU they are kept, too, in the order
            in which oneDNN reads them. Without gradients only.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        x = x.to(low)
        if not constant:
            first, second = ((weight.to(low), bias.to(low)) for weight, bias in (first, second))
    x, residual = x.contiguous(), residual.contiguous()
    arguments = (x, residual, *Weights(*norm, *first, *second, gain, scale))
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in arguments):
        return _NormMLP.apply(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.convnext_backbone.norm_mlp(*arguments, False, constant)[0]
    return _forward(*arguments, False, constant, out=x if x.dtype == residual.dtype else None)[0]


class _NormMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, *weights):
        out, hidden = operator('norm_mlp', _forward, x)(x, residual, *weights, True, False)
        ctx.eps = weights[2]
        ctx.save_for_backward(x, *weights[:2], *weights[3:], *hidden)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, *tensors = ctx.saved_tensors
        weights, hidden = Weights(*tensors[:2], ctx.eps, *tensors[2:8]), tensors[8:]
        found = operator('norm_mlp_backward', _backward, grad)(grad, x, hidden, *weights)
        dx, dw1, db1, dw2, db2 = found[:5]
        dgain = None if weights.gain is None else found[5]
        dnorm = (None, None) if weights.norm_weight is None else found[-2:]
        return dx, grad, *dnorm, None, dw1, db1, dw2, db2, dgain, None


def _forward(x, residual, *arguments, out=None):
    """Compute the result, into ``out`` if given, and if ``keep`` the hidden layer; the rows in chunks."""
    weights, keep, constant = Weights(*arguments[:-2]), *arguments[-2:]
    shape, dim = residual.shape, x.shape[-1]
    x, residual = x.reshape(-1, dim), residual.reshape(-1, dim)
    out = residual.new_empty(residual.shape) if out is None else out.view(-1, dim)
    if constant and weights.w1.dtype != x.dtype:
        names = ('w1', 'b1', 'w2', 'b2')
        weights = weights._replace(**{n: _kept_cast(getattr(weights, n), x.dtype) for n in names})
    with torch.autocast(x.device.type, enabled=False):
        chunks = _chunks(len(x), weights.w1, x)
        linears = [_linear(weight, x, constant) for weight in (weights.w1, weights.w2)]
        way = _natively if native.supports(x, residual) else _plainly
        hidden = way(x, residual, weights, chunks, *linears, keep, out)
        if not out.is_inference():  # the kernels bypass autograd, so bump the version counter
            torch.autograd.graph.increment_version(out)
    return out.view(shape), hidden


def _natively(x, residual, weights, chunks, first, second, keep, out) -> list[Tensor]:
    norm_weight, norm_bias, eps, w1, b1, _, b2, gain, scale = weights
    longest, of_sample = _sizes(chunks, scale)
    normed, hidden = x.new_empty(longest, x.shape[1]), []
    activated = x.new_empty(longest, len(w1)) if keep else None
    for part in chunks:
        rows = part.stop - part.start
        h = first(native.norm(x[part], norm_weight, norm_bias, eps, normed[:rows]), b1)
        if keep:
            hidden.append(h)
        g = second(native.gelu(h, activated[:rows] if keep else h), b2)
        native.branch_sum(residual[part], g, gain, scale, out[part], part.start, of_sample)
    return hidden


def _plainly(x, residual, weights, chunks, first, second, keep, out) -> list[Tensor]:
    norm_weight, norm_bias, eps, _, b1, _, b2, gain, scale = weights
    affine, scale = _affine(norm_weight, norm_bias, x), _of_rows(scale, len(x))
    hidden = []
    for part in chunks:
        g = first(torch.native_layer_norm(x[part], x.shape[1:], *affine, eps)[0], b1)
        if keep:
            hidden.append(g)
        g = second(F.gelu(g) if keep else torch.ops.aten.gelu_(g), b2)
        _add_branch(residual[part], g, gain, None if scale is None else scale[part], out[part])
    return hidden


def _add_branch(residual, g, gain, scale, out) -> None:
    """Compute ``residual + scale * gain * g`` into ``out``; ``g`` may be overwritten."""
    if gain is not None:  # in float32 if the gain is: 1e-6 of a small float16 would be zero
        g = g.mul_(gain) if gain.dtype == g.dtype else g * gain
    if scale is not None:
        g = g.mul_(scale)
    if g.dtype == residual.dtype:
        torch.add(residual, g, out=out)
    else:
        out.copy_(residual + g)


def _backward(grad, x, hidden, *weights):
    """Compute the gradients of x, w1, b1, w2, b2, and of the gain and of both of the norm, where they are."""
    weights = Weights(*weights)
    shape, dim = x.shape, x.shape[-1]
    x, grad = x.reshape(-1, dim), grad.contiguous().view(-1, dim)
    chunks = list(zip(_chunks(len(x), weights.w1, x), hidden, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        way = _natively_back if native.supports(x, grad) else _plainly_back
        dx, sums = way(grad, x, weights, chunks)
    dw1, db1, outer, db2, *dnorm = sums
    w1, w2, b2, gain = weights.w1, weights.w2, weights.b2, weights.gain
    dw2, dgain = outer, []
    if gain is not None:  # from the outer product, so that the output needs not be kept
        if native.supports(outer, w2):
            dots, dw2 = native.gain_gradient(outer, w2, gain)
        else:
            wide = torch.promote_types(x.dtype, torch.float32)
            dots, dw2 = (outer * w2).sum(1, dtype=wide), outer * gain[:, None]
        dgain, db2 = [(dots + db2 * b2).to(gain.dtype)], db2 * gain
    dweights = [total.to(w1.dtype) for total in (dw1, db1, dw2, db2)]
    dnorm = [] if weights.norm_weight is None else [t.to(weights.norm_weight.dtype) for t in dnorm]
    return [dx.view(shape), *dweights, *dgain, *dnorm]


def _natively_back(grad, x, weights, chunks) -> tuple[Tensor, list[Tensor]]:
    """Compute the gradient of x; of w1, b1, w2 and b2 without gain, of the norm's, by kernels for a CPU."""
    norm_weight, norm_bias, eps, w1, _, w2, _, gain, scale = weights
    through_second, through_first = (_linear(w.t(), x) for w in (w2, w1))
    longest, of_sample = _sizes([part for part, _ in chunks], scale)
    dim = x.shape[1]
    ready = scale is None and grad.dtype == x.dtype  # for products, as it is
    dx = torch.empty_like(x)
    normed, scaled, gained = (x.new_empty(longest, dim) for _ in range(3))
    activated = x.new_empty(longest, len(w1))
    db1, db2, dnorm = (x.new_zeros(n, dtype=torch.float32) for n in (len(w1), dim, 2 * dim))
    dw1, outer = _Total(), _Total()
    for part, h in chunks:
        rows, options = part.stop - part.start, (x.dtype, db2, part.start, of_sample)
        dout = grad[part] if ready else scaled[:rows]
        times_gain = None if gain is None else gained[:rows]
        native.branch_gradient(grad[part], gain, scale, None if ready else dout, times_gain, *options)
        dh = through_second(dout if gain is None else times_gain)
        g = native.gelu_gradient(dh, h, activated[:rows], db1)
        outer.add(dout.t() @ g)
        dw1.add(dh.t() @ native.norm(x[part], norm_weight, norm_bias, eps, normed[:rows]))
        native.norm_gradient(through_first(dh), x[part], norm_weight, eps, dx[part], dnorm)
    dnorm = [t.clone() for t in dnorm.view(2, dim)]  # results of an operator share no memory
    return dx, [dw1.value, db1, outer.value, db2, *dnorm]


def _plainly_back(grad, x, weights, chunks) -> tuple[Tensor, list[Tensor]]:
    """Compute what :func:`_natively_back` does, by PyTorch."""
    norm_weight, norm_bias, eps, w1, _, w2, _, gain, scale = weights
    norm_weight, norm_bias = _affine(norm_weight, norm_bias, x)
    dx, scale = x.new_empty(x.shape), _of_rows(scale, len(x))
    through_second, through_first = (_linear(w.t(), x) for w in (w2, w1))
    wanted = [True, norm_weight is not None, norm_weight is not None]
    sums = [_Total() for _ in range(6)]
    for part, h in chunks:
        dout = grad[part] if scale is None else grad[part] * scale[part]
        statistics = torch.native_layer_norm(x[part], x.shape[1:], norm_weight, norm_bias, eps)
        scaled = (dout if gain is None else dout * gain).to(x.dtype)
        dout = dout.to(x.dtype)
        g = F.gelu(h)
        dh = torch.ops.aten.gelu_backward(through_second(scaled), h)
        dx[part], *dnorm = torch.ops.aten.native_layer_norm_backward(
            through_first(dh), x[part], x.shape[1:], *statistics[1:], norm_weight, norm_bias, wanted
        )
        found = dh.t() @ statistics[0], dh.sum(0), dout.t() @ g, dout.sum(0), *dnorm
        for total, value in zip(sums, found, strict=True):
            total.add(value)
    return dx, [total.value for total in sums]


class _Total:
    """Sums over chunks, from the second on in float32 at least."""

    value: Tensor | None = None

    def add(self, value: Tensor | None) -> None:
        if self.value is None:
            self.value = value
        else:
            self.value = self.value.to(torch.promote_types(value.dtype, torch.float32)).add_(value)


for _device in ('CPU', 'CUDA'):
    _library.impl('norm_mlp', _forward, _device)
    _library.impl('norm_mlp_backward', _backward, _device)


@torch.library.register_fake('convnext_backbone::norm_mlp')
def _(x, residual, *arguments):
    weights, keep, _ = Weights(*arguments[:-2]), *arguments[-2:]
    n, height, width, _ = x.shape
    chunks = _chunks(n * height * width, weights.w1, x) if keep else []
    hidden = [x.new_empty(part.stop - part.start, len(weights.w1)) for part in chunks]
    return residual.new_empty(residual.shape), hidden


@torch.library.register_fake('convnext_backbone::norm_mlp_backward')
def _(grad, x, hidden, *weights):
    weights = Weights(*weights)
    always = [x, weights.w1, weights.b1, weights.w2, weights.b2]
    found = [*always, *(t for t in (weights.gain, weights.norm_weight, weights.norm_bias) if t is not None)]
    return [t.new_empty(t.shape) for t in found]


def _sizes(chunks: list[slice], scale: Tensor | None) -> tuple[int, int]:
    """Return the rows of the longest chunk, and of a sample that has a scale of its own."""
    longest = max(part.stop - part.start for part in chunks)
    return longest, 1 if scale is None else chunks[-1].stop // len(scale)


def _of_rows(scale: Tensor | None, rows: int) -> Tensor | None:
    """Expand (N,) to (rows, 1): the scale of the sample that each row is of."""
    return None if scale is None else scale.repeat_interleave(rows // len(scale))[:, None]


def _chunks(rows: int, w1: Tensor, x: Tensor) -> list[slice]:
    """Divide the rows into slices, as long as each other; one on a GPU.

    A GPU's cache is no reason to split. Their number is a power of two, so that few graphs serve maps of many
    sizes: a compiled one holds for a number of chunks.
    """
    most = max(1, CHUNK_BYTES // (len(w1) * x.element_size()))
    count = 1
    while x.device.type == 'cpu' and count * most < rows:
        count *= 2
    return [slice(i * rows // count, (i + 1) * rows // count) for i in range(count)]


# Of weights that will not change.
_packed_weights = WeakIdKeyDictionary()  # weight -> the same in oneDNN's order
_low_weights = WeakIdKeyDictionary()  # weight -> the same in the data type of autocast


def _kept_cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``weight.to(dtype)``, computed once on a CPU.

    On a GPU it may be part of a graph that is being captured.
    """
    if weight.device.type != 'cpu':
        return weight.to(dtype)
    found = _low_weights.get(weight)
    if found is None or found.dtype != dtype:
        found = _low_weights[weight] = weight.to(dtype)
    return found


def _linear(weight: Tensor, x: Tensor, constant: bool = False) -> Callable:
    """Return ``F.linear`` with ``weight``: of input and bias, for all rows of ``x`` or a part at a time."""
    if x.device.type != 'cpu' or not (torch.backends.mkldnn.enabled and _onednn_supports(x.dtype)):
        return lambda part, bias=None: F.linear(part, weight, bias)
    if constant:
        if weight not in _packed_weights:
            _packed_weights[weight] = _packed(weight, len(x))
        weight = _packed_weights[weight]
    elif len(x) >= PACKED_ROWS:
        weight = _packed(weight, len(x))
    elif x.dtype != torch.float32 and not weight.is_contiguous():  # there PyTorch takes the faster product
        return lambda part, bias=None: F.linear(part, weight, bias)
    return lambda part, bias=None: torch.ops.mkldnn._linear_pointwise(part, weight, bias, 'none', [], '')


def _packed(weight: Tensor, rows: int) -> Tensor:
    """Return ``weight`` in the order in which oneDNN reads it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


@cache
def _onednn_supports(dtype: torch.dtype) -> bool:
    """Try once whether oneDNN's products are there: they are no public interface, nor on every machine."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.arange(n, device='cpu') % 7 for n in (2 * 16, 16 * 48, 48))  # exact in bfloat16
    x, weight, bias = x.view(2, 16).to(dtype), weight.view(48, 16).to(dtype), bias.to(dtype)
    turned = weight.t().contiguous().t()
    expected = (x.double() @ weight.double().t() + bias.double()).to(dtype)
    try:
        return all(
            torch.equal(torch.ops.mkldnn._linear_pointwise(x, w, bias, 'none', [], ''), expected)
            for w in (weight, turned, _packed(weight, 2), _packed(turned, 2))
        )
    except (RuntimeError, AttributeError):
        return False


def _affine(weight: Tensor | None, bias: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the affine part of the norm in a data type that its kernel takes beside that of ``x``."""
    if weight is None or weight.dtype == x.dtype or x.device.type == 'cpu':
        return weight, bias
    return weight.to(x.dtype), bias.to(x.dtype)
