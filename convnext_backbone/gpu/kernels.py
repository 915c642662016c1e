"""Compares the Triton kernels with float64, at shapes where a mistake shows.

On a GPU, or on a CPU in Triton's interpreter.
"""

import contextlib
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F

from ..backbones import ConvNeXt, fuse_for_inference
from ..ops import depthwise
from ..ops import triton_kernels as kernels
from .rows import Row, close, same

ROUNDING = 2**-7 if kernels.INTERPRETED else 2**-8  # of bfloat16, which the interpreter cuts off
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2.1 * ROUNDING, torch.float16: 2e-3}  # of the largest number
# smaller than the kernel, of one row, higher than the rows of a program; not whole strips
MAPS = ((1, 64, 7, 7), (2, 32, 9, 11), (1, 32, 20, 5), (3, 32, 2, 3), (1, 32, 1, 17))
LINEAR = ((50, 32), (1, 32), (17, 40))  # rows, channels
NORMED = ((50, 32), (1, 96), (17, 160))
ELEMENTS = ((50, 32), (1, 128), (300, 160))
NORMS = ((50, 32), (1, 96), (300, 40), (3, 1536))


def depthwise_convolution(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Row]:
    """Compare the convolution of a map (N, C, H, W), statistics for the norm, and the gradients."""
    n, c, height, width = shape
    torch.manual_seed(0)
    x, grad, other = (torch.randn(n, height, width, c, device=device) for _ in range(3))
    x, grad = x.to(dtype), grad.to(dtype)
    weight, bias = (torch.randn(c, 1, 7, 7) / 7).to(device, dtype), torch.randn(c).to(device, dtype)
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.conv2d(exact_x.permute(0, 3, 1, 2), exact_weight, bias.double(), padding=3, groups=c)
    exact = exact.permute(0, 2, 3, 1)
    exact.backward(grad.double())
    taps = kernels.taps_of(weight)
    found = kernels.depthwise_conv(x, taps, bias)
    yield same('data type', found.dtype == dtype)
    yield same('contiguous', found.is_contiguous())
    yield close('with bias', found, exact, BOUNDS[dtype])
    without = kernels.depthwise_conv(x, taps, None)
    yield close('without bias', without, exact.detach() - bias.double(), BOUNDS[dtype])
    statistics = torch.full((2, n, height, width, c // 32), torch.nan, device=device)
    again = kernels.depthwise_conv(x, taps, bias, statistics)
    yield same('the same with statistics', torch.equal(again, found))
    groups = found.double().unflatten(-1, (-1, 32))
    yield close('means', statistics[0], groups.mean(-1), 1e-5)
    yield close('squares', statistics[1], groups.var(-1, correction=0) * 32, 1e-5)
    turned = kernels.depthwise_conv(grad, taps, None, turned=True, other=other)
    yield same("sum in the other map's data type", turned.dtype == torch.float32)
    yield close("input's gradient, with a sum", turned, exact_x.grad + other.double(), 1e-5)
    gradient = kernels.depthwise_conv_weight_gradient(x, grad, 7)
    yield same('gradient in float32', gradient.dtype == torch.float32)
    yield close("weight's gradient", gradient, exact_weight.grad, 1e-5)
    again = kernels.depthwise_conv_weight_gradient(x, grad, 7)
    yield same('the same gradient again', torch.equal(gradient, again))


def linear_layers(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Iterator[Row]:
    """Compare a linear layer with GELU, and one with gain, stochastic depth and residual."""
    rows, dim = shape
    torch.manual_seed(0)
    x, residual = (torch.randn(rows, dim, device=device).to(dtype) for _ in range(2))
    w1, w2 = torch.randn(4 * dim, dim) / dim**0.5, torch.randn(dim, 4 * dim) / dim**0.5
    w1, w2 = w1.to(device, dtype), w2.to(device, dtype)
    b1, b2, gain = (torch.randn(n, device=device).to(dtype) for n in (4 * dim, dim, dim))
    hidden = torch.empty(rows, 4 * dim, device=device, dtype=dtype)
    activated = kernels.linear_gelu(x, w1, b1, hidden)
    exact = F.linear(x.double(), w1.double(), b1.double())
    yield close('hidden', hidden, exact, BOUNDS[dtype])
    yield close('activated', activated, F.gelu(exact), BOUNDS[dtype])
    yield same('the same without hidden', torch.equal(activated, kernels.linear_gelu(x, w1, b1)))
    product_alone = F.linear(activated, w2, b2)
    for columns, across in product((gain, None), (_scale(rows, dtype, device), None)):
        what = [word for word, t in (('gain', columns), ('stochastic depth', across)) if t is not None]
        what = f'residual {" ".join(what)}'.strip()
        by_rows = None if across is None else across.repeat_interleave(rows // len(across))[:, None]
        out, exacts = torch.empty_like(residual), []
        for branch in (F.linear(activated.double(), w2.double(), b2.double()), product_alone.double()):
            for factor in (columns, by_rows):
                branch = branch if factor is None else branch * factor.double()
            exacts.append(residual.double() + branch)
        kernels.linear_residual(activated, w2, b2, columns, across, residual, out)
        yield close(what, out, exacts[0], BOUNDS[dtype])
        kernels.branch_sum(product_alone, columns, across, residual, out)
        yield close(f'{what}, after the product', out, exacts[1], BOUNDS[dtype])


def _scale(rows: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return scales of samples, of more than one row where they can be; of several one is dropped."""
    samples = next(n for n in (5, 3, 2, 1) if rows % n == 0)
    scale = 0.5 + torch.rand(samples, device=device)
    scale[1:2] = 0.0
    return scale.to(dtype)


def gradient_of_gain(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Iterator[Row]:
    """Compare the gradients of a linear layer's weight and bias and of the gain of what it gives."""
    rows, dim = shape
    torch.manual_seed(0)
    x, grad = (torch.randn(rows, n, device=device).to(dtype) for n in (4 * dim, dim))
    parameters = [torch.randn(*n, device=device).to(dtype) for n in ((dim, 4 * dim), (dim,), (dim,))]
    weight, bias, gain = (t.double().requires_grad_() for t in parameters)
    (gain * F.linear(x.double(), weight, bias)).backward(grad.double())
    outer = (grad.double().t() @ x.double()).to(dtype)
    outs = [torch.empty_like(t) for t in parameters]
    kernels.gain_gradient(outer, *parameters, kernels.column_sums(grad), outs)
    for name, found, leaf in zip(('weight', 'bias', 'gain'), outs, (weight, bias, gain)):
        yield close(f"{name}'s gradient", found, leaf.grad, 2 * BOUNDS[dtype])


def linear_layer_that_norms(
    shape: tuple[int, int], affine: bool, dtype: torch.dtype, device: str
) -> Iterator[Row]:
    """Compare a linear layer that norms what it reads, from the statistics of each 32 channels.

    Their means lie far apart; float16 has numbers whose squares it does not hold.
    """
    rows, dim = shape
    torch.manual_seed(0)
    x = torch.randn(rows, dim, device=device) + 5 * torch.randn(rows, dim // 32, device=device).repeat(1, 32)
    x = (x * (500 if dtype == torch.float16 else 1)).to(dtype)
    weight = (torch.randn(4 * dim, dim) / dim**0.5).to(device, dtype)
    bias = torch.randn(4 * dim).to(device, dtype)
    norm = [torch.randn(dim, device=device).to(dtype) if affine else None for _ in range(2)]
    groups = x.float().unflatten(-1, (-1, 32))
    statistics = groups.mean(-1), groups.var(-1, correction=0) * 32
    found = kernels.linear_gelu(x, weight, bias, None, (*statistics, *norm, 1e-6))
    exact = F.layer_norm(x.double(), (dim,), *(None if t is None else t.double() for t in norm), 1e-6)
    exact = F.gelu(F.linear(exact, weight.double(), bias.double()))
    yield close('activated', found, exact, BOUNDS[dtype])


def gradient_of_gelu(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Iterator[Row]:
    """Compare the gradient of GELU and sums over rows."""
    rows, columns = shape
    torch.manual_seed(0)
    grad, hidden = (torch.randn(rows, columns, device=device).to(dtype) for _ in range(2))
    yield close('sums', _total(kernels.column_sums(grad)), grad.double().sum(0), 2e-5)
    scale, out = _scale(rows, dtype, device), torch.empty(rows, columns, device=device, dtype=dtype)
    scaled = grad.double() * scale.double().repeat_interleave(rows // len(scale))[:, None]
    yield close('sums by scale', _total(kernels.column_sums(grad, scale, out)), scaled.sum(0), 2e-5)
    yield close('what is summed', out, scaled, BOUNDS[dtype])
    leaf = hidden.double().requires_grad_()
    F.gelu(leaf).backward(grad.double())
    found = grad.clone()
    activated, sums = kernels.gelu_gradient(found, hidden)
    sums = _total(sums)
    yield close('gradient', found, leaf.grad, BOUNDS[dtype])
    yield close('activated', activated, F.gelu(hidden.double()), BOUNDS[dtype])
    yield same('sums in float32', sums.dtype == torch.float32)
    difference = (sums.double() - leaf.grad.sum(0)).abs().max() / leaf.grad.abs().sum(0).max()
    yield Row('sums of the gradient', difference.item() <= 2e-4, f'{difference.item():.1e}, at most 2e-04')
    again = _total(kernels.gelu_gradient(grad.clone(), hidden)[1])
    yield same('the same sums again', torch.equal(again, sums))
    by_rows = scale.double().repeat_interleave(rows // len(scale))[:, None]
    found = grad.clone()
    activated, sums = kernels.gelu_gradient(found, hidden, scale)
    yield close('gradient by scale', found, leaf.grad * by_rows, BOUNDS[dtype])
    yield close('activated by scale', activated, F.gelu(hidden.double()) * by_rows, BOUNDS[dtype])
    difference = (_total(sums).double() - (leaf.grad * by_rows).sum(0)).abs().max()
    difference = (difference / (leaf.grad * by_rows).abs().sum(0).max()).item()
    yield Row('sums by scale of the gradient', difference <= 2e-4, f'{difference:.1e}, at most 2e-04')


def _total(sums: torch.Tensor) -> torch.Tensor:
    """Return the sum of (groups, N)."""
    out = torch.empty(sums.shape[-1], device=sums.device)
    kernels.totals(sums, out)
    return out


def norm(shape: tuple[int, int], affine: bool, dtype: torch.dtype, device: str) -> Iterator[Row]:
    """Compare the norm and its gradients; the mean lies far from zero."""
    rows, dim = shape
    torch.manual_seed(0)
    x = (torch.randn(rows, dim, device=device) + 3).to(dtype)
    grad = torch.randn(rows, dim, device=device).to(dtype)
    weight, bias = (torch.randn(dim, device=device).to(dtype) if affine else None for _ in range(2))
    leaves = [t if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    exact = F.layer_norm(leaves[0], (dim,), *leaves[1:], 1e-6)
    exact.backward(grad.double())
    yield close('norm', kernels.norm(x, weight, bias, 1e-6), exact, BOUNDS[dtype])
    normed = torch.empty_like(x)
    dx, sums = kernels.norm_gradient(grad, x, weight, bias, 1e-6, normed)
    dnorm = torch.empty(3, dim, device=device)
    kernels.totals(sums, *dnorm[: 3 if affine else 1])
    yield close('normed again', normed, exact, BOUNDS[dtype])
    yield close("input's gradient", dx, leaves[0].grad, BOUNDS[dtype])
    yield close("sum of the input's gradient", dnorm[0], dx.double().sum(0), 2e-5)
    if affine:
        yield close("weight's gradient", dnorm[1], leaves[1].grad, 2e-5)
        yield close("bias's gradient", dnorm[2], leaves[2].grad, 2e-5)
    again = kernels.norm_gradient(grad, x, weight, bias, 1e-6)[0]
    yield same('the same gradient again', torch.equal(again, dx))


def gelu_of_every_number(device: str) -> Iterator[Row]:
    """Compare GELU of every bfloat16 number, also of large ones, whose square or exponential is infinite."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[x.isfinite()].to(device)
    x = F.pad(x, (0, -len(x) % 32)).view(-1, 32)
    one = torch.eye(32, device=device, dtype=torch.bfloat16)
    found = kernels.linear_gelu(x, one, torch.zeros(32, device=device, dtype=torch.bfloat16)).double()
    exact = F.gelu(x.double())
    yield same('finite', found.isfinite().all())
    wrong = ((found - exact).abs() > 1.01 * ROUNDING * exact.abs() + 2e-5).sum().item()
    yield Row('within a rounding', not wrong, f'{wrong} of {x.numel()} beyond')


@contextlib.contextmanager
def _limits(wide: bool) -> Iterator[None]:
    """Have the kernels compute small maps as they do large ones; ``wide``: products as for many channels."""
    kept = kernels.WIDEST, depthwise.LARGE
    kernels.WIDEST, depthwise.LARGE = 0 if wide else 32, 4
    try:
        yield
    finally:
        kernels.WIDEST, depthwise.LARGE = kept


def network(autocast: bool, wide: bool, bound: float, device: str) -> Iterator[Row]:
    """Compare a network by the kernels with float64 layers: maps, gradients, and folded inference."""
    torch.manual_seed(0)
    sizes = dict(depths=(1, 1, 1, 1), dims=(32,) * 4, layer_scale_init_value=0.5)
    model = ConvNeXt(**sizes, fused='triton').to(device)
    exact = ConvNeXt(**sizes, fused=False).to(device).double()
    exact.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 64, device=device)
    right = exact(x.double())
    grads = [torch.randn_like(m) for m in right]
    torch.autograd.backward(right, grads)
    with _limits(wide), torch.autocast(device, torch.bfloat16, enabled=autocast):
        maps = model(x)
        torch.autograd.backward(maps, [g.to(m.dtype) for g, m in zip(grads, maps)])
        fuse_for_inference(model.eval())
        with torch.no_grad():
            folded = model(x)
    worst = max(
        ((ours.grad.double() - other.grad).norm() / other.grad.norm()).item()
        for (name, ours), other in zip(model.named_parameters(), exact.parameters())
        if ours.grad is not None
    )
    yield Row('gradients', worst <= bound, f'{worst:.1e}, at most {bound:.0e}')
    for i, (ours, other) in enumerate(zip(folded, right)):
        yield close(f'map {i}', ours, other, bound)


def operator_calls(device: str) -> list[tuple]:
    """Return operators of ours with arguments that ask for Triton, for :func:`torch.library.opcheck`."""
    torch.manual_seed(0)
    low = dict(device=device, dtype=torch.bfloat16)
    x, grad = (torch.randn(2, 32, 1, 3, **low).contiguous(memory_format=torch.channels_last) for _ in '12')
    weight, bias = torch.randn(32, 1, 7, 7, **low), torch.randn(32, **low)
    rows, residual = (t.permute(0, 2, 3, 1) for t in (x, grad))
    weights = [weight, bias, bias.clone(), bias.clone(), 1e-6, torch.randn(128, 32, **low)]
    weights += [torch.randn(128, **low), torch.randn(32, 128, **low), bias.clone(), bias.clone()]
    weights += [torch.rand(2, **low)]
    ops = torch.ops.convnext_backbone
    kept = ops.block(rows, residual, *weights, True)[1]
    return [
        (ops.depthwise_conv, (x, weight, bias, 1, True)),
        (ops.depthwise_conv, (x, weight, None, 1, True)),
        (ops.depthwise_conv_gradient, (x, grad, 7, 1, True)),
        (ops.block, (rows, residual, *weights, True)),
        (ops.block, (rows, residual.float(), *weights[:-2], None, None, False)),
        (ops.block_backward, (residual, rows, kept, *weights)),
        (ops.block_backward, (residual.float(), rows, kept, *weights[:-2], None, None)),
        (ops.channel_norm, (rows, bias, bias.clone(), 1e-6)),
        (ops.channel_norm_backward, (residual, rows, bias, bias.clone(), 1e-6)),
    ]


def operators_for_compilation(device: str) -> Iterator[Row]:
    """Compare what the operators tell ``torch.compile`` with what they give: shapes, data types, order."""
    for operator, arguments in operator_calls(device):
        checks = ('test_schema', 'test_faketensor', 'test_aot_dispatch_static')
        found = torch.library.opcheck(operator.default, arguments, test_utils=checks, raise_exception=False)
        failed = [f'{name}: {result}' for name, result in found.items() if result != 'SUCCESS']
        yield Row(operator.__name__, not failed, '; '.join(failed)[:300] or 'as they say')


def check(device: str, plain: str) -> Iterator[Row]:
    """Compare all of the above, at every shape, in the data type of this name; in bfloat16 networks too."""
    dtype = getattr(torch, plain)
    for function, shapes in (
        (depthwise_convolution, MAPS),
        (linear_layers, LINEAR),
        (gradient_of_gain, LINEAR),
        (gradient_of_gelu, ELEMENTS),
    ):
        for shape in shapes:
            name = f'{function.__name__} {"x".join(map(str, shape))} {plain}'
            yield from _named(name, function(shape, dtype, device))
    for (function, shapes), affine in product(
        ((linear_layer_that_norms, NORMED), (norm, NORMS)), (True, False)
    ):
        for shape in shapes:
            name = f'{function.__name__} {"x".join(map(str, shape))} {"affine " * affine}{plain}'
            yield from _named(name, function(shape, affine, dtype, device))
    if dtype != torch.bfloat16:
        return
    yield from _named('gelu_of_every_number', gelu_of_every_number(device))
    for wide, autocast in product((False, True), (True, False)):
        name = f'network{" autocast" * autocast}{" wide" * wide}'
        yield from _named(name, network(autocast, wide, 0.05, device))
    yield from _named('operators', operators_for_compilation(device))


def _named(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        yield Row(f'{name}: {row.what}', row.right, row.found)
