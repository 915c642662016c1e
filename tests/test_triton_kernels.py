"""The Triton kernels against float64: on a GPU where there is one, else on a CPU in Triton's interpreter."""

import os
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import command

from convnext_backbone.backbones import ConvNeXt, fuse_for_inference
from convnext_backbone.ops import depthwise
from convnext_backbone.ops import triton_kernels as kernels

triton = pytest.importorskip('triton')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
direct = pytest.mark.skipif(
    not (kernels.INTERPRETED or DEVICE == 'cuda'), reason='no GPU: run by test_all_kernels_in_the_interpreter'
)
ROUNDING = 2**-7 if kernels.INTERPRETED else 2**-8  # of bfloat16, which the interpreter cuts off
BOUND = {torch.float32: 2e-5, torch.bfloat16: 2.1 * ROUNDING, torch.float16: 2e-3}  # of the largest number
every_dtype = pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float16)),
    ],
    ids=lambda dtype: str(dtype)[6:],
)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def close(found: torch.Tensor, exact: torch.Tensor, bound: float) -> None:
    assert found.shape == exact.shape
    assert (found.double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.long
@pytest.mark.parametrize('tests', ['not slow', pytest.param('slow', marks=pytest.mark.slow)])
def test_all_kernels_in_the_interpreter(tests):
    """The tests below, in a process where Triton interprets."""
    if kernels.INTERPRETED or DEVICE == 'cuda':
        pytest.skip('the tests run here')
    line = ('-m', 'pytest', '-q', 'tests/test_triton_kernels.py', '-m', tests)
    result = command(*line, timeout=900, TRITON_INTERPRET='1')
    counts = re.search(r'(\d+) passed, (\d+) skipped', result.stdout)
    assert result.returncode == 0, result.stdout[-3000:]
    assert counts, result.stdout[-3000:]
    assert int(counts[1]) >= 16
    assert int(counts[2]) <= 2


@direct
@every_dtype
@pytest.mark.parametrize(
    ('n', 'c', 'height', 'width'),
    [(1, 64, 7, 7), (2, 32, 9, 11), (1, 32, 20, 5), slow(3, 32, 2, 3), slow(1, 32, 1, 17)],
)
def test_depthwise_convolution(n, c, height, width, dtype):
    """Maps smaller than the kernel, of one row, higher than the rows of a program; not whole strips."""
    torch.manual_seed(0)
    x, grad = (torch.randn(n, c, height, width, device=DEVICE).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(c, 1, 7, 7) / 7).to(DEVICE, dtype), torch.randn(c).to(DEVICE, dtype)
    exact_weight = weight.double().requires_grad_()
    exact = F.conv2d(x.double(), exact_weight, bias.double(), padding=3, groups=c)
    exact.backward(grad.double())
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    found = kernels.depthwise_conv(x, weight, bias)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    close(found, exact.detach(), BOUND[dtype])
    without = kernels.depthwise_conv(x, weight, None)
    close(without, exact.detach() - bias.double()[:, None, None], BOUND[dtype])
    statistics = torch.full((2, n, height, width, c // 32), torch.nan, device=DEVICE)
    assert torch.equal(kernels.depthwise_conv(x, weight, bias, statistics), found)
    groups = found.double().permute(0, 2, 3, 1).unflatten(-1, (-1, 32))
    close(statistics[0], groups.mean(-1), 1e-5)
    close(statistics[1], groups.var(-1, correction=0) * 32, 1e-5)
    gradient = kernels.depthwise_conv_weight_gradient(x, grad, 7)
    assert gradient.dtype == torch.float32
    close(gradient, exact_weight.grad, 1e-5)
    assert torch.equal(gradient, kernels.depthwise_conv_weight_gradient(x, grad, 7))


@direct
@every_dtype
@pytest.mark.parametrize(('rows', 'dim'), [(50, 32), (1, 32), (17, 40)])
def test_linear_layers_with_what_follows(rows, dim, dtype):
    torch.manual_seed(0)
    x, residual = (torch.randn(rows, dim, device=DEVICE).to(dtype) for _ in range(2))
    w1, w2 = torch.randn(4 * dim, dim) / dim**0.5, torch.randn(dim, 4 * dim) / dim**0.5
    w1, w2 = w1.to(DEVICE, dtype), w2.to(DEVICE, dtype)
    b1, b2, gain = (torch.randn(n, device=DEVICE).to(dtype) for n in (4 * dim, dim, dim))
    hidden = torch.empty(rows, 4 * dim, device=DEVICE, dtype=dtype)
    activated = kernels.linear_gelu(x, w1, b1, hidden)
    close(hidden, F.linear(x.double(), w1.double(), b1.double()), BOUND[dtype])
    close(activated, F.gelu(F.linear(x.double(), w1.double(), b1.double())), BOUND[dtype])
    assert torch.equal(activated, kernels.linear_gelu(x, w1, b1))
    scale = torch.rand(rows, 1, device=DEVICE).to(dtype)
    for columns, across in ((gain, None), (None, None), (gain, scale), (None, scale)):
        out = torch.empty_like(residual)
        kernels.linear_residual(activated, w2, b2, columns, across, residual, out)
        exact = F.linear(activated.double(), w2.double(), b2.double())
        for factor in (columns, across):
            exact = exact if factor is None else exact * factor.double()
        close(out, residual.double() + exact, BOUND[dtype])


@direct
@every_dtype
@pytest.mark.parametrize('affine', [2, 0], ids=['affine', 'plain'])
@pytest.mark.parametrize(('rows', 'dim'), [(50, 32), (1, 96), (17, 160)])
def test_linear_layer_that_norms_what_it_reads(rows, dim, affine, dtype):
    """From the statistics of each 32 channels, whose means lie far apart; float16 beyond its squares."""
    torch.manual_seed(0)
    x = torch.randn(rows, dim, device=DEVICE) + 5 * torch.randn(rows, dim // 32, device=DEVICE).repeat(1, 32)
    x = (x * (500 if dtype == torch.float16 else 1)).to(dtype)
    weight, bias = (torch.randn(4 * dim, dim) / dim**0.5).to(DEVICE, dtype), torch.randn(4 * dim)
    bias = bias.to(DEVICE, dtype)
    norm = [torch.randn(dim, device=DEVICE).to(dtype) for _ in range(affine)] or [None, None]
    groups = x.float().unflatten(-1, (-1, 32))
    statistics = groups.mean(-1), groups.var(-1, correction=0) * 32
    found = kernels.linear_gelu(x, weight, bias, None, (*statistics, *norm, 1e-6))
    exact = F.layer_norm(x.double(), (dim,), *(None if t is None else t.double() for t in norm), 1e-6)
    exact = F.gelu(F.linear(exact, weight.double(), bias.double()))
    close(found, exact, BOUND[dtype])


@direct
@every_dtype
@pytest.mark.parametrize(('rows', 'columns'), [(50, 32), (1, 128), (300, 160)])
def test_gradient_of_gelu_and_sums_of_rows(rows, columns, dtype):
    torch.manual_seed(0)
    grad, hidden = (torch.randn(rows, columns, device=DEVICE).to(dtype) for _ in range(2))
    close(kernels.column_sums(grad), grad.double().sum(0), 2e-5)
    leaf = hidden.double().requires_grad_()
    F.gelu(leaf).backward(grad.double())
    found = grad.clone()
    activated, sums = kernels.gelu_gradient(found, hidden)
    close(found, leaf.grad, BOUND[dtype])
    close(activated, F.gelu(hidden.double()), BOUND[dtype])
    assert sums.dtype == torch.float32
    assert (sums.double() - leaf.grad.sum(0)).abs().max() <= 2e-4 * leaf.grad.abs().sum(0).max()
    assert torch.equal(kernels.gelu_gradient(grad.clone(), hidden)[1], sums)


@direct
@every_dtype
@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize(('rows', 'dim'), [(50, 32), (1, 96), (300, 40), (3, 1536)])
def test_norm_and_its_gradients(rows, dim, affine, dtype):
    """Rows that fill no program, channels that are no power of two, a mean far from zero."""
    torch.manual_seed(0)
    x = (torch.randn(rows, dim, device=DEVICE) + 3).to(dtype)
    grad = torch.randn(rows, dim, device=DEVICE).to(dtype)
    weight, bias = (torch.randn(dim, device=DEVICE).to(dtype) if affine else None for _ in range(2))
    leaves = [t if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    exact = F.layer_norm(leaves[0], (dim,), *leaves[1:], 1e-6)
    exact.backward(grad.double())
    close(kernels.norm(x, weight, bias, 1e-6), exact.detach(), BOUND[dtype])
    normed = torch.empty_like(x)
    dx, dnorm = kernels.norm_gradient(grad, x, weight, bias, 1e-6, normed)
    assert torch.equal(normed, kernels.norm(x, weight, bias, 1e-6))
    close(dx, leaves[0].grad, BOUND[dtype])
    assert (dnorm is not None) is affine
    if affine:
        assert dnorm.dtype == torch.float32
        close(dnorm[0], leaves[1].grad, 2e-5)
        close(dnorm[1], leaves[2].grad, 2e-5)
    assert torch.equal(kernels.norm_gradient(grad, x, weight, bias, 1e-6)[0], dx)


@direct
def test_gelu_of_every_bfloat16_number_is_within_a_rounding():
    """Also of large ones, whose square or exponential is infinite."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[x.isfinite()].to(DEVICE)
    x = F.pad(x, (0, -len(x) % 32)).view(-1, 32)
    one = torch.eye(32, device=DEVICE, dtype=torch.bfloat16)
    found = kernels.linear_gelu(x, one, torch.zeros(32, device=DEVICE, dtype=torch.bfloat16)).double()
    exact = F.gelu(x.double())
    assert found.isfinite().all()
    assert ((found - exact).abs() <= 1.01 * ROUNDING * exact.abs() + 2e-5).all()


@direct
@pytest.mark.parametrize('wide', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['narrow', 'wide'])
@pytest.mark.parametrize(
    ('autocast', 'bound'),
    [pytest.param(False, {'cpu': 1e-4, 'cuda': 0.05}[DEVICE], marks=pytest.mark.slow), (True, 0.05)],
)
def test_a_network_trains_by_the_kernels_as_by_the_layers(autocast, bound, wide, monkeypatch):
    """Float32 in the interpreter, or under autocast: maps and gradients, and folded inference.

    Wide: matrix products by PyTorch, as for many channels.
    """
    monkeypatch.setattr(kernels, 'WIDEST', 0 if wide else 32)
    monkeypatch.setattr(depthwise, 'LARGE', 4)
    torch.manual_seed(0)
    sizes = dict(depths=(1, 1, 1, 1), dims=(32,) * 4, layer_scale_init_value=0.5)
    model = ConvNeXt(**sizes, fused='triton').to(DEVICE)
    exact = ConvNeXt(**sizes, fused=False).to(DEVICE).double()
    exact.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 64, device=DEVICE)
    grads = [torch.randn_like(m) for m in exact(x.double())]
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        maps = model(x)
    torch.autograd.backward(maps, [g.to(m.dtype) for g, m in zip(grads, maps)])
    torch.autograd.backward(exact(x.double()), grads)
    for ours, reference in zip(model.parameters(), exact.parameters()):
        assert (ours.grad.double() - reference.grad).norm() <= bound * reference.grad.norm()
    fuse_for_inference(model.eval())
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        for ours, reference in zip(model(x), exact(x.double())):
            close(ours, reference, bound)


@direct
def test_operators_tell_torch_compile_what_they_give():
    """Shapes, data types and order in memory, forward and backward."""
    torch.manual_seed(0)
    low = dict(device=DEVICE, dtype=torch.bfloat16)
    x, grad = (torch.randn(2, 32, 5, 8, **low).contiguous(memory_format=torch.channels_last) for _ in '12')
    weight, bias = torch.randn(32, 1, 7, 7, **low), torch.randn(32, **low)
    rows, residual = (t.permute(0, 2, 3, 1) for t in (x, grad))
    mlp = [bias, bias.clone(), 1e-6, torch.randn(128, 32, **low), torch.randn(128, **low)]
    mlp += [torch.randn(32, 128, **low), bias.clone(), bias.clone(), torch.rand(2, **low), True]
    ops = torch.ops.convnext_backbone
    statistics = ops.depthwise_conv(x, weight, bias, 1, True, True)[1]
    hidden = ops.norm_mlp(rows, statistics, residual, *mlp, True, False)[1]
    for operator, arguments in (
        (ops.depthwise_conv, (x, weight, bias, 1, True, True)),
        (ops.depthwise_conv, (x, weight, None, 1, True, False)),
        (ops.depthwise_conv_gradient, (x, grad, 7, 1, True)),
        (ops.norm_mlp, (rows, statistics, residual, *mlp, True, False)),
        (ops.norm_mlp, (rows, None, residual, *mlp, False, False)),
        (ops.norm_mlp_backward, (residual, rows, hidden, *mlp)),
        (ops.channel_norm, (rows, bias, bias.clone(), 1e-6)),
        (ops.channel_norm_backward, (residual, rows, bias, bias.clone(), 1e-6)),
    ):
        checks = ('test_schema', 'test_faketensor', 'test_aot_dispatch_static')
        found = torch.library.opcheck(operator.default, arguments, test_utils=checks)
        assert set(found.values()) == {'SUCCESS'}


@pytest.mark.slow
@pytest.mark.skipif(kernels.INTERPRETED, reason='the interpreter has no compiler')
def test_kernels_compile_for_a_gpu_that_is_not_here():
    """For sm_90, without a GPU; no register spills into memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.tools.disasm import get_sass

    types = dict.fromkeys(('height', 'width', 'rows', 'strips', 'm'), 'i32')
    types |= dict(mean_ptr='*fp32', square_ptr='*fp32', sums_ptr='*fp32', eps='fp32')

    def compiled(function, constants, types=types, **options):
        names = function.arg_names
        signature = {n: 'constexpr' if n in constants else types.get(n, '*bf16') for n in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(function, signature=signature, constexprs=values)
        found = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=options).asm
        sass = get_sass(found['cubin'])
        assert 'EXIT' in sass
        assert 'STL' not in sass
        return found['ptx']

    columns, channels, _, warps = kernels.CONVOLUTION
    tile = dict(C=96, K=7, BW=columns, BC=channels)
    for statistics in (True, False):
        constants = dict(HAS_BIAS=True, STATISTICS=statistics, **tile)
        assert 'fma.rn.f32' in compiled(kernels._depthwise, constants, num_warps=warps)
    columns, channels, _, warps = kernels.WEIGHT_GRADIENT
    tile = dict(C=96, K=7, BW=columns, BC=channels)
    single = types | dict(out_ptr='*fp32')
    assert 'fma.rn.f32' in compiled(kernels._depthwise_weight_gradient, tile, single, num_warps=warps)
    for dim in (96, 1536):
        rows, columns = kernels._rows_and_columns(kernels.NORM[0], dim)
        compiled(kernels._norm, dict(C=dim, AFFINE=True, BM=rows, BC=columns), num_warps=kernels.NORM[1])
        rows, columns = kernels._rows_and_columns(kernels.NORM_GRADIENT[0], dim)
        constants = dict(C=dim, AFFINE=True, SAVE=True, BM=rows, BC=columns)
        compiled(kernels._norm_gradient, constants, num_warps=kernels.NORM_GRADIENT[2])
    rows, columns, _, warps = kernels.ELEMENTS
    for gelu in (True, False):
        constants = dict(N=384, GELU=gelu, EXACT=False, BM=rows, BN=columns)
        compiled(kernels._column_sums, constants, num_warps=warps)
    for residual, dim, norm in ((False, 96, True), (False, 256, True), (False, 96, False), (True, 96, False)):
        rows, columns, depth, warps = kernels.LINEAR[residual]
        constants = dict(N=4 * dim, K=dim, RESIDUAL=residual, HAS_GAIN=residual, HAS_SCALE=residual)
        constants |= dict(SAVE=not residual, NORM=32 if norm else 0, AFFINE=norm, EXACT=False, WIDEN=False)
        constants |= dict(BM=rows, BN=columns, BK=depth)
        assert 'wgmma' in compiled(kernels._linear, constants, num_warps=warps)  # tensor cores


def test_without_a_gpu_the_kernels_are_not_used():
    x = torch.randn(1, 32, 8, 8, device=DEVICE)
    assert kernels.supports(x, 32) is kernels.INTERPRETED
    assert not kernels.supports(x, 40)
    assert not kernels.supports(x.double(), 32)
    assert os.environ.get('TRITON_INTERPRET') == '1' or not kernels.supports(x.cpu().half(), 32)
