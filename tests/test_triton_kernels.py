"""The Triton kernels against float64: on a GPU where there is one, else on a CPU in Triton's interpreter."""

import os
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import command

from convnext_backbone.backbones import ConvNeXt, fuse_for_inference
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
    [(1, 64, 7, 7), (2, 32, 9, 11), (1, 32, 20, 5), (3, 32, 2, 3), (1, 32, 1, 17)],
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
    grad = torch.randn(rows, dim, device=DEVICE).to(dtype)
    leaf = hidden.double().requires_grad_()
    F.linear(F.gelu(leaf), w2.double()).backward(grad.double())
    dhidden, again = kernels.linear_gelu_backward(grad, w2, hidden)
    close(dhidden, leaf.grad, BOUND[dtype])
    close(again, F.gelu(hidden.double()), BOUND[dtype])
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
@pytest.mark.parametrize(
    ('autocast', 'bound'),
    [pytest.param(False, {'cpu': 1e-4, 'cuda': 0.05}[DEVICE], marks=pytest.mark.slow), (True, 0.05)],
)
def test_a_network_trains_by_the_kernels_as_by_the_layers(autocast, bound):
    """Float32 in the interpreter, or under autocast: maps and gradients, and folded inference."""
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


@pytest.mark.slow
@pytest.mark.skipif(kernels.INTERPRETED, reason='the interpreter has no compiler')
def test_kernels_compile_for_a_gpu_that_is_not_here():
    """For sm_90, without a GPU; no register spills into memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.tools.disasm import get_sass

    types = dict.fromkeys(('height', 'width', 'rows', 'strips', 'm'), 'i32')
    types |= dict(mean_ptr='*fp32', square_ptr='*fp32', eps='fp32')

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

    tile = dict(C=96, K=7, BW=kernels.COLUMNS, BC=kernels.CHANNELS)
    for statistics in (True, False):
        constants = dict(HAS_BIAS=True, STATISTICS=statistics, **tile)
        assert 'fma.rn.f32' in compiled(kernels._depthwise, constants)
    assert 'fma.rn.f32' in compiled(kernels._depthwise_weight_gradient, tile, types | dict(out_ptr='*fp32'))
    for end, dim, norm in ((0, 96, True), (0, 2048, True), (0, 96, False), (1, 96, False), (2, 96, False)):
        constants = dict(N=4 * dim, K=dim, END=end, TRANSPOSED=end != 1, HAS_GAIN=end == 2)
        constants |= dict(HAS_SCALE=end == 2, SAVE=end != 2, NORM=32 if norm else 0, AFFINE=norm)
        constants |= dict(EXACT=False, WIDEN=False, BM=128, BN=128 if end == 0 else 64, BK=32)
        assert 'wgmma' in compiled(kernels._linear, constants, num_warps=8)  # tensor cores


def test_without_a_gpu_the_kernels_are_not_used():
    x = torch.randn(1, 32, 8, 8, device=DEVICE)
    assert kernels.supports(x, 32) is kernels.INTERPRETED
    assert not kernels.supports(x, 40)
    assert not kernels.supports(x.double(), 32)
    assert os.environ.get('TRITON_INTERPRET') == '1' or not kernels.supports(x.cpu().half(), 32)
