"""The Triton kernels against float64: on a GPU where there is one, else on a CPU in Triton's interpreter."""

import os
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import command

from convnext_backbone.backbones.block import Block
from convnext_backbone.gpu import kernels as checked
from convnext_backbone.gpu.rows import wrong
from convnext_backbone.ops import triton_kernels as kernels

triton = pytest.importorskip('triton')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
direct = pytest.mark.skipif(
    not (kernels.INTERPRETED or DEVICE == 'cuda'), reason='no GPU: run by test_all_kernels_in_the_interpreter'
)
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
    'shape', [checked.MAPS[0], slow(checked.MAPS[1]), checked.MAPS[2], *map(slow, checked.MAPS[3:])], ids=str
)
def test_depthwise_convolution(shape, dtype):
    assert not wrong(checked.depthwise_convolution(shape, dtype, DEVICE))


@direct
@every_dtype
@pytest.mark.parametrize('shape', checked.LINEAR, ids=str)
def test_linear_layers_with_what_follows(shape, dtype):
    assert not wrong(checked.linear_layers(shape, dtype, DEVICE))


@direct
@every_dtype
@pytest.mark.parametrize('shape', checked.LINEAR, ids=str)
def test_gradients_of_gain_and_weight(shape, dtype):
    assert not wrong(checked.gradient_of_gain(shape, dtype, DEVICE))


@direct
@every_dtype
@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('shape', checked.NORMED, ids=str)
def test_linear_layer_that_norms_what_it_reads(shape, affine, dtype):
    assert not wrong(checked.linear_layer_that_norms(shape, affine, dtype, DEVICE))


@direct
@every_dtype
@pytest.mark.parametrize('shape', checked.ELEMENTS, ids=str)
def test_gradient_of_gelu_and_sums_of_rows(shape, dtype):
    assert not wrong(checked.gradient_of_gelu(shape, dtype, DEVICE))


@direct
@every_dtype
@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('shape', checked.NORMS, ids=str)
def test_norm_and_its_gradients(shape, affine, dtype):
    assert not wrong(checked.norm(shape, affine, dtype, DEVICE))


@direct
def test_gelu_of_every_bfloat16_number_is_within_a_rounding():
    assert not wrong(checked.gelu_of_every_number(DEVICE))


@direct
@pytest.mark.parametrize('wide', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['narrow', 'wide'])
@pytest.mark.parametrize(
    ('autocast', 'bound'),
    [pytest.param(False, {'cpu': 1e-4, 'cuda': 0.05}[DEVICE], marks=pytest.mark.slow), (True, 0.05)],
)
def test_a_network_trains_by_the_kernels_as_by_the_layers(autocast, bound, wide):
    """Float32 in the interpreter, or under autocast: maps and gradients, and folded inference.

    Wide: matrix products by PyTorch, as for many channels.
    """
    assert not wrong(checked.network(autocast, wide, bound, DEVICE))


@direct
def test_operators_tell_torch_compile_what_they_give():
    """Shapes, data types and order in memory, forward and backward."""
    assert not wrong(checked.operators_for_compilation(DEVICE))


@direct
@pytest.mark.parametrize('layer_scale', [0.5, slow(None)])
def test_a_compiled_training_step_is_that_of_eager_mode(layer_scale):
    """As one graph, with stochastic depth off; with a gain and without."""
    torch.manual_seed(0)
    block = Block(32, layer_scale=layer_scale, fused='triton').to(DEVICE)
    x, found = torch.randn(2, 32, 2, 3, device=DEVICE), []
    for run in (block, torch.compile(block, fullgraph=True, backend='aot_eager')):
        block.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            out = run(x)
        out.square().mean().backward()
        found.append([out, *(p.grad for p in block.parameters())])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


@direct
@pytest.mark.parametrize(
    'broken', ['linear_gelu', *map(slow, ('depthwise_conv', 'norm', 'depthwise_conv_weight_gradient'))]
)
def test_a_kernel_that_is_wrong_is_found(broken, monkeypatch):
    """Each by the comparison that is to find it: a twentieth too large."""
    right = getattr(kernels, broken)
    monkeypatch.setattr(kernels, broken, lambda *given, **named: right(*given, **named) * 1.05)
    if broken == 'norm':
        rows = checked.norm(checked.NORMS[0], True, torch.bfloat16, DEVICE)
    elif broken == 'linear_gelu':
        rows = checked.linear_layers(checked.LINEAR[0], torch.bfloat16, DEVICE)
    else:
        rows = checked.depthwise_convolution(checked.MAPS[1], torch.bfloat16, DEVICE)
    assert wrong(rows)


@pytest.mark.slow
@pytest.mark.skipif(kernels.INTERPRETED, reason='the interpreter has no compiler')
def test_kernels_compile_for_a_gpu_that_is_not_here():
    """For sm_90, without a GPU; no register spills into memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.tools.disasm import get_sass

    names = ('height', 'width', 'rows', 'strips', 'm', 'each', 'groups', 'more')
    types = dict.fromkeys(names, 'i32')
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

    columns, channels, _, ahead, warps = kernels.CONVOLUTION
    tile = dict(C=96, K=7, BW=columns, BC=channels)
    for forward in (True, False):
        constants = dict(HAS_BIAS=forward, STATISTICS=forward, TURNED=not forward, ADD=not forward)
        constants |= dict(AHEAD=ahead, **tile)
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
    for gelu, (rows, columns, _, warps) in ((True, kernels.GELU_GRADIENT), (False, kernels.ELEMENTS)):
        constants = dict(N=384, GELU=gelu, WRITE=gelu, HAS_SCALE=True, EXACT=False, BM=rows, BN=columns)
        compiled(kernels._column_sums, constants, num_warps=warps)
    constants = dict(N=384, HAS_GAIN=True, HAS_SCALE=True, BM=rows, BN=columns)
    compiled(kernels._branch_sum, constants, num_warps=warps)
    rows, columns = kernels.TOTALS
    parts = types | dict(x_ptr='*fp32', y_ptr='*fp32')
    compiled(kernels._totals, dict(N=96, STRIDE=3, COUNT=3, BM=rows, BN=columns), parts, num_warps=4)
    groups, columns = kernels.GAIN
    compiled(kernels._gain_gradient, dict(C=96, D=384, BG=groups, BD=columns), types, num_warps=4)
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


class Stand:
    """A tensor on a GPU that is not here."""

    def __init__(self, address: int, dtype=torch.bfloat16):
        self.address, self.dtype = address, dtype

    def get_device(self):
        return 3

    def data_ptr(self):
        return self.address


def test_what_triton_compiled_is_launched_with_addresses_and_looked_at_anew_where_it_must(monkeypatch):
    seen = []

    class Compiled:
        function, packed_metadata = 'function', 'metadata'

        def run(self, *given):
            seen.append(('direct', *given))

    class Kernel:
        __name__ = 'kernel'

        def __getitem__(self, grid):
            def launch(*given, num_warps):
                seen.append(('by Triton', grid, num_warps, *given))
                return Compiled()

            return launch

    monkeypatch.setattr(kernels, 'DIRECT', True)
    monkeypatch.setattr(kernels, '_compiled', {})
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3)
    active = SimpleNamespace(get_current_stream=lambda device: 70 + device)
    monkeypatch.setattr(triton.runtime, 'driver', SimpleNamespace(active=active))
    kernel, a, b = Kernel(), Stand(64), Stand(128)

    def launch(*tensors, constants=(96, True), warps=2, number=5):
        kernels._launch(kernel, (7, 2), tensors, (number,), constants, warps)
        return seen.pop()

    assert launch(a, b) == ('by Triton', (7, 2), 2, a, b, 5, 96, True)
    begin = ('direct', 7, 2, 1, 73, 'function', 'metadata', None, None, None)
    assert launch(a, b) == (*begin, 64, 128, 5, 96, True)
    assert launch(b, a, number=8) == (*begin, 128, 64, 8, 96, True)
    for tensors, options in (
        ((a, Stand(136)), {}),  # which begins at no multiple of 16
        ((a, Stand(128, torch.float32)), {}),
        ((a, b), dict(constants=(96, False))),
        ((a, b), dict(warps=4)),
    ):
        assert launch(*tensors, **options)[0] == 'by Triton'
    assert launch(a, Stand(136))[0] == 'by Triton'
    monkeypatch.setattr(kernels, 'DIRECT', False)
    kernels._compiled.clear()
    assert [launch(a, b)[0] for _ in '12'] == ['by Triton'] * 2
