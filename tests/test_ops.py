"""The fast ways of a block against float64 of the ordinary layers: outputs, gradients, a training step."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import kernels_are_built
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt, fuse_for_inference
from convnext_backbone.backbones.block import Block
from convnext_backbone.errors import UserError
from convnext_backbone.ops import block as block_ops
from convnext_backbone.ops import depthwise_conv, mlp, native, norm_mlp

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
EPS = {torch.float64: 1e-15, torch.float32: 1.2e-7, torch.bfloat16: 7.9e-3, torch.float16: 9.8e-4}
every_dtype = pytest.mark.parametrize('dtype', EPS, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(params=['kernels', 'pytorch'])
def way(request, monkeypatch):
    """With our kernels for a CPU, and without."""
    if request.param == 'pytorch':
        monkeypatch.setattr(native, '_built_right', lambda: False)
    elif not kernels_are_built():
        pytest.skip('no C++ compiler, or switched off')
    else:
        assert native._built_right()


def gradients(function, inputs, grad):
    """Output and gradients of ``function(*inputs)``, of fresh leaves."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def compare(found, stock, exact, dtype) -> None:
    """Not further from float64 than the stock layers are, give or take a few roundings."""
    for i, (ours, theirs, reference) in enumerate(zip(found, stock, exact, strict=True)):
        assert ours.dtype == theirs.dtype
        assert ours.shape == reference.shape
        scale = reference.abs().max().item() + 1e-30
        error, usual = (((t.double() - reference).abs().max() / scale).item() for t in (ours, theirs))
        assert error <= 1.5 * usual + 8 * EPS[dtype], (i, error, usual)


@every_dtype
@pytest.mark.parametrize(
    'shape',
    [
        (2, 40, 7, 7),
        (3, 8, 3, 2),
        (1, 8, 1, 1),
        (2, 8, 50, 37),  # two and a half bands
        (1, 96, 33, 16),
    ],
)
def test_depthwise_convolution_and_its_gradients(way, shape, dtype):
    found, exact, stock = depthwise_gradients(shape, 1, dtype)
    compare(found, stock(), exact, dtype)
    assert all((a - b).abs().max() <= 8 * EPS[dtype] * b.abs().max() for a, b in zip(found, exact))


@every_dtype
@pytest.mark.parametrize(('shape', 'dilation'), [((2, 8, 15, 9), 2), ((1, 8, 40, 40), 4)])
def test_dilated_depthwise_convolution_and_its_gradients(way, shape, dilation, dtype):
    """The stock gradient in bfloat16 is wrong or crashes (torch 2.11, CPU): not run."""
    found, exact, _ = depthwise_gradients(shape, dilation, dtype)
    for ours, reference in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == reference.shape
        assert (ours - reference).abs().max() <= 8 * EPS[dtype] * reference.abs().max()


def depthwise_gradients(shape, dilation: int, dtype):
    """Output and gradients of our convolution, those in float64, and a function that gives the stock ones."""
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, 7, 7) / 7, torch.randn(channels)
    inputs, grad = [t.to(dtype) for t in (x, weight, bias)], torch.randn(shape).to(dtype)

    def stock(x, w, b):
        return F.conv2d(x, w, b, padding=3 * dilation, dilation=dilation, groups=channels)

    found = gradients(lambda *a: depthwise_conv(*a, dilation), inputs, grad)
    exact = gradients(stock, [t.double() for t in inputs], grad.double())
    return found, exact, lambda: gradients(stock, inputs, grad)


def test_operators_keep_the_rules_of_torch_custom_operators(way, monkeypatch):
    x = torch.randn(2, 8, 9, 11).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 1, 7, 7)
    ops = torch.ops.convnext_backbone
    checks = ('test_schema', 'test_faketensor', 'test_aot_dispatch_static')
    monkeypatch.setattr(mlp, 'CHUNK_BYTES', 5000)
    y, residual, *weights = mlp_inputs((3, 4, 5, 16))
    weights.insert(2, 1e-6)
    weights.append(torch.rand(3))  # scale
    hidden = ops.norm_mlp(y, residual, *weights, True, False)[1]
    assert len(hidden) == 4
    for operator, arguments in (
        (ops.depthwise_conv, (x, weight, None, 1, False)),
        (ops.depthwise_conv_gradient, (x, x.clone(), 7, 1, False)),
        (ops.norm_mlp, (y, residual, *weights, True, False)),
        (ops.norm_mlp, (y, residual, None, None, *weights[2:-1], None, False, True)),
        (ops.norm_mlp_backward, (residual, y, hidden, *weights)),
        (ops.norm_mlp_backward, (residual, y, hidden, *weights[:-2], None, weights[-1])),
    ):
        found = torch.library.opcheck(operator.default, arguments, test_utils=checks)
        assert set(found.values()) == {'SUCCESS'}


def layers(x, residual, weight, bias, w1, b1, w2, b2, gain):
    """What :func:`norm_mlp` stands for."""
    y = F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)
    y = F.linear(F.gelu(F.linear(y, w1, b1)), w2, b2)
    return residual + (y if gain is None else gain * y)


def fast(x, residual, weight, bias, w1, b1, w2, b2, gain):
    return norm_mlp(x, residual, (weight, bias, 1e-6), (w1, b1), (w2, b2), gain)


def mlp_inputs(shape, gain=True):
    torch.manual_seed(0)
    c = shape[-1]
    found = [torch.randn(shape) * 3 + 1, torch.randn(shape), torch.rand(c) + 0.5, torch.randn(c)]
    found += [torch.randn(4 * c, c) / c**0.5, torch.randn(4 * c), torch.randn(c, 4 * c) / c, torch.randn(c)]
    return [*found, torch.randn(c) if gain else None]


@every_dtype
@pytest.mark.parametrize('packed_rows', [1, 10**9], ids=['packed', 'not packed'])
@pytest.mark.parametrize('gain', [True, False])
@pytest.mark.parametrize('shape', [(2, 7, 7, 40), (1, 3, 1, 8), (1, 1, 1, 8), (2, 20, 13, 24)])
def test_norm_and_mlp_and_their_gradients(way, shape, gain, packed_rows, dtype, monkeypatch):
    inputs = [None if t is None else t.to(dtype) for t in mlp_inputs(shape, gain)]
    monkeypatch.setattr(mlp, 'CHUNK_BYTES', 5000)  # several chunks, the last one shorter
    monkeypatch.setattr(mlp, 'PACKED_ROWS', packed_rows)
    grad = torch.randn(shape).to(dtype)
    exact = gradients(layers, [None if t is None else t.double() for t in inputs], grad.double())
    compare(gradients(fast, inputs, grad), gradients(layers, inputs, grad), exact, dtype)
    with torch.no_grad():
        stock = [layers(*inputs)]
        compare([fast(*[None if t is None else t.clone() for t in inputs])], stock, exact[:1], dtype)


def test_norm_and_mlp_without_affine_part_as_when_folded():
    x, residual, *_, w1, b1, w2, b2, _ = [t.double() for t in mlp_inputs((2, 5, 5, 16))]
    one, zero = torch.ones(16).double(), torch.zeros(16).double()
    expected = layers(x, residual, one, zero, w1, b1, w2, b2, None)
    leaves = [t.clone().requires_grad_() for t in (x, residual, w1, b1, w2, b2)]
    found = fast(*leaves[:2], None, None, *leaves[2:], None)
    torch.testing.assert_close(found, expected)
    torch.autograd.gradcheck(lambda *a: fast(*a[:2], None, None, *a[2:], None), [t[:1, :2, :2] if t.ndim == 4
        else t for t in (t.detach().requires_grad_() for t in leaves)])  # fmt: skip


@every_dtype
def test_each_sample_can_have_its_own_scale(way, dtype, monkeypatch):
    monkeypatch.setattr(mlp, 'CHUNK_BYTES', 5000)  # chunks with rows of two samples
    inputs = [t.to(dtype) for t in mlp_inputs((3, 5, 7, 16))]
    scale, grad = torch.tensor([0.0, 1.25, 2.5]).to(dtype), torch.randn(3, 5, 7, 16).to(dtype)

    def stock(x, residual, *weights):
        return residual + scale.to(x.dtype)[:, None, None, None] * layers(x, residual * 0, *weights)

    def ours(x, residual, weight, bias, w1, b1, w2, b2, gain):
        return norm_mlp(x, residual, (weight, bias, 1e-6), (w1, b1), (w2, b2), gain, scale)

    exact = gradients(stock, [t.double() for t in inputs], grad.double())
    compare(gradients(ours, inputs, grad), gradients(stock, inputs, grad), exact, dtype)


def test_gradients_of_gradients_are_refused():
    """They would be wrong: the operators have none."""
    model, x = Block(8, layer_scale=1.0), torch.randn(1, 8, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_gives_what_the_layers_under_autocast_give(way, dtype):
    """Float32 residual, parameters and gradients; the error of the layers, not more."""
    inputs = mlp_inputs((2, 9, 9, 32))
    grad = torch.randn(2, 9, 9, 32)

    def cast(function):
        def run(*arguments):
            with torch.autocast('cpu', dtype):
                return function(*arguments)

        return run

    exact = gradients(layers, [t.double() for t in inputs], grad.double())
    compare(gradients(cast(fast), inputs, grad), gradients(cast(layers), inputs, grad), exact, dtype)


def test_float16_stays_finite_and_a_tiny_layer_scale_is_not_lost():
    inputs = [t.half() for t in mlp_inputs((1, 4, 4, 32))]
    inputs[0] *= 2000  # sum of squares far beyond 65504
    found = fast(*inputs)
    assert found.isfinite().all()
    inputs = mlp_inputs((1, 4, 4, 32))
    inputs[1].zero_()
    inputs[8] = torch.full((32,), 1e-6)
    with torch.autocast('cpu', torch.float16):
        found = fast(*inputs)
    exact = layers(*[t.double() for t in inputs])
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 5e-3 * exact.abs().max()


NETWORKS = {
    'v1': lambda **kwargs: ConvNeXt(**SMALL, layer_scale_init_value=0.5, **kwargs),
    'v2': lambda **kwargs: ConvNeXt('v2_atto', **SMALL, **kwargs),
    'dilated': lambda **kwargs: ConvNeXt(**SMALL, output_stride=8, **kwargs),
    'isotropic': lambda **kwargs: IsotropicConvNeXt(depth=3, dim=16, **kwargs),
}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('network', NETWORKS.values(), ids=NETWORKS)
def test_a_training_step_of_a_network_is_that_of_the_ordinary_layers(network, with_cp):
    torch.manual_seed(0)
    model = network(with_cp=with_cp).double()
    plain = network(fused=False).double()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)
    steps = []
    for one in (model, plain):
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-3)
        sum(m.square().mean() for m in one(x)).backward()
        steps.append([p.grad.clone() for p in one.parameters()])
        optimizer.step()
    for a, b in zip(*steps):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(model(x), plain(x)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('n', [1, 2])
def test_a_map_in_another_memory_layout_gives_the_same(way, n, grad):
    torch.manual_seed(0)
    block, plain = (Block(32, layer_scale=1.0, fused=fused) for fused in (True, False))
    plain.load_state_dict(block.state_dict())
    x = torch.randn(n, 32, 5, 6)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), plain(x))
        isotropic = IsotropicConvNeXt(depth=1, dim=32, in_channels=1)
        isotropic(torch.randn(n, 1, 64, 64))  # its one-channel image is in both layouts


def test_what_is_written_over_is_known_to_autograd(way):
    x, residual, norm_weight, norm_bias, *rest = mlp_inputs((1, 2, 3, 16))
    weight = torch.ones(16, requires_grad=True)
    total = (x * weight).sum()
    with torch.no_grad():
        fast(x, residual, norm_weight, norm_bias, *rest)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        total.backward()


def test_a_layer_without_bias_and_an_empty_map_go_the_ordinary_way(way):
    x = torch.randn(2, 32, 9, 8)
    conv = torch.nn.Conv2d(32, 32, 7, padding=3, groups=32, bias=False)
    for name, layer in dict(dwconv=conv, norm=torch.nn.LayerNorm(32, eps=1e-6, bias=False)).items():
        block, plain = (Block(32, layer_scale=1.0, fused=fused) for fused in (True, False))
        for one in (block, plain):
            setattr(one, name, copy.deepcopy(layer))
        plain.load_state_dict(block.state_dict())
        torch.testing.assert_close(block(x), plain(x))
        block(x).sum().backward()
    with pytest.raises(RuntimeError, match='[Kk]ernel size'):
        Block(32)(torch.randn(1, 32, 0, 9))


@pytest.mark.parametrize('grad', [False, True])
def test_forward_mode_derivatives_are_refused_not_dropped(grad):
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(grad):
        x = torch.autograd.forward_ad.make_dual(torch.randn(1, 32, 5, 5), torch.randn(1, 32, 5, 5))
        with pytest.raises((RuntimeError, NotImplementedError)):
            Block(32)(x)


def test_frozen_blocks_compute_as_in_inference():
    """Not by the operator that hands out the hidden layer for a backward pass."""
    block = Block(32)
    for needed in (True, False):
        with Operators() as seen:
            block.requires_grad_(needed)(torch.randn(2, 32, 8, 8))
        assert any('norm_mlp' in name for name in seen.names) is needed


@pytest.mark.parametrize('strict', [True, False])
def test_an_exported_program_consists_of_pytorchs_own_operators(strict):
    model = ConvNeXt(**SMALL).eval()
    fuse_for_inference(model)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(1, 3, 64, 64),), strict=strict)
    called = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert called
    assert not [name for name in called if 'convnext_backbone' in name or 'mkldnn' in name]


def test_what_the_backward_pass_needs_is_half_of_what_the_layers_keep():
    """x, the map after the convolution, and the hidden layer: 6 of the 12 units of a block's map."""
    sizes = []
    for fused in (True, False):
        block = Block(32, fused=fused)
        x = torch.randn(2, 32, 20, 20).contiguous(memory_format=torch.channels_last).requires_grad_()
        own = {p.data_ptr() for p in block.parameters()}
        kept = {}

        def keep(tensor, own=own, kept=kept):
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            block(x)
        sizes.append(sum(kept.values()) / x.numel())
    assert 6 <= sizes[0] < 6.2
    assert sizes[1] >= 11


def test_no_map_is_copied_from_one_layout_to_another_in_inference():
    model = ConvNeXt(**SMALL, output_norm=False).eval()
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Operators() as seen:
        maps = model(x)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    assert not [name for name in seen.names if 'clone' in name or 'contiguous' in name]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_folded_and_packed_weights_are_as_exact_as_the_layers(way, dtype):
    torch.manual_seed(0)
    model = ConvNeXt(**SMALL, layer_scale_init_value=0.5).eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        model, x = model.to(dtype), x.to(dtype)
        stock = [m.clone() for m in ConvNeXt.forward(model, x)]
        fuse_for_inference(model)
        for _ in range(2):  # packed, then from the packed ones
            compare(model(x), stock, exact, dtype)
        moved = copy.deepcopy(model)
        moved.load_state_dict({name: tensor * 0.5 for name, tensor in model.state_dict().items()})
        fuse_for_inference(moved)
        assert not torch.equal(moved(x)[3], model(x)[3])


def test_dropped_samples_are_left_out_and_the_others_scaled(monkeypatch):
    torch.manual_seed(0)
    block = Block(8, drop_path=0.4, layer_scale=0.5).double().train()
    x = torch.randn(4, 8, 9, 9, dtype=torch.double).contiguous(memory_format=torch.channels_last)
    branch = Block.forward(block.eval(), x) - x
    block.train()
    drawn = torch.tensor([0.1, 0.9, 0.39, 0.4])  # kept where not below the rate
    monkeypatch.setattr(torch, 'rand', lambda n, device: drawn[:n])
    expected = x + torch.tensor([0, 1, 0, 1]).view(4, 1, 1, 1) * branch / 0.6
    torch.testing.assert_close(block(x), expected)
    calls = []
    conv = depthwise_conv
    monkeypatch.setattr(
        'convnext_backbone.ops.block.depthwise_conv', lambda x, *a: calls.append(len(x)) or conv(x, *a)
    )
    with torch.no_grad():
        block(x)
    assert calls == [2]


def test_a_block_dropped_for_all_samples_still_has_gradients_and_they_are_zero(monkeypatch):
    """DistributedDataParallel waits for the gradient of every parameter."""
    block = Block(8, drop_path=0.5).train()
    monkeypatch.setattr(torch, 'rand', lambda n, device: torch.zeros(n))
    x = torch.randn(3, 8, 5, 5, requires_grad=True)
    out = block(x)
    torch.testing.assert_close(out, x)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_stochastic_depth_keeps_the_mean():
    """Over many draws the branch has its full weight, and each sample its own draw."""
    torch.manual_seed(0)
    block = Block(8, drop_path=0.3, layer_scale=1.0).train()
    x = torch.randn(1, 8, 3, 3).repeat(4000, 1, 1, 1)
    with torch.no_grad():
        branch = block(x) - x
        full = Block.forward(block.eval(), x[:1]) - x[:1]
    kept = (branch.flatten(1).abs().amax(1) > 0).double()
    assert abs(kept.mean().item() - 0.7) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    torch.testing.assert_close(branch[kept.bool()][:1], full / 0.7, rtol=1e-4, atol=1e-5)


def gradients_of(model, run, x, autocast) -> list[torch.Tensor]:
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        maps = run(x)
    sum(m.float().square().mean() for m in maps).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(('autocast', 'bound'), [(False, 1e-4), (True, 0.05)])
def test_compiled_in_one_graph_with_the_same_gradients(way, autocast, bound):
    """The gradient of this loss is all but cancelled by the norms: it shows a sum in bfloat16, too."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = ConvNeXt(**SMALL, layer_scale_init_value=0.5)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 3, 64, 64)
    exact = gradients_of(model, model, x, False)
    for run in (model, compiled):
        for a, b in zip(gradients_of(model, run, x, autocast), exact):
            assert (a - b).norm() <= bound * b.norm()


@pytest.mark.parametrize(('autocast', 'bound'), [(False, 1e-5), (True, 0.05)])
def test_compiled_inference_takes_the_same_operators(way, autocast, bound):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = ConvNeXt(**SMALL, layer_scale_init_value=0.5).eval()
    fuse_for_inference(model)
    seen = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(model, backend=look, fullgraph=True)
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        for a, b in zip(compiled(x), model(x)):
            torch.testing.assert_close(a, b, rtol=0, atol=bound * b.abs().max().item())
    assert seen.count('convnext_backbone.norm_mlp') == sum(SMALL['depths'])


def test_few_compiled_graphs_serve_images_of_many_sizes(way, monkeypatch):
    """As a detector's batches are."""
    model = ConvNeXt(**SMALL, layer_scale_init_value=0.5).eval()
    with torch.no_grad():
        for x, maps in maps_of_many_sizes(model, monkeypatch):
            for a, b in zip(maps, model(x)):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize('way', ['kernels', pytest.param('pytorch', marks=pytest.mark.slow)], indirect=True)
def test_few_compiled_graphs_serve_training_images_of_many_sizes(way, monkeypatch):
    model = ConvNeXt(**SMALL, drop_path_rate=0.3, layer_scale_init_value=0.5).train()
    for _, maps in maps_of_many_sizes(model, monkeypatch):
        assert all(found.requires_grad for found in maps)


def maps_of_many_sizes(model, monkeypatch):
    """Yield images of four sizes with the maps of the compiled model, which has at most two graphs."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=True)
    monkeypatch.setattr(mlp, 'CHUNK_BYTES', 20000)  # 2 or 4 chunks in the first stage
    for size in ((64, 96), (96, 64), (96, 128), (128, 96)):
        x = torch.randn(2, 3, *size)
        yield x, compiled(x)
    assert len(graphs) <= 2


def test_compiled_stochastic_depth_drops_samples_and_scales_the_others():
    """In one graph, whatever is drawn; each call draws anew."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    block = Block(8, drop_path=0.5, layer_scale=1.0).eval()
    x = torch.randn(64, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    branch = (block(x) - x).detach()
    compiled = torch.compile(block.train(), backend='aot_eager', fullgraph=True)
    draws = []
    for _ in range(2):
        added = compiled(x).detach() - x
        kept = added.flatten(1).abs().amax(1) > 0
        torch.testing.assert_close(added[kept], 2 * branch[kept], rtol=1e-4, atol=1e-5)
        assert 16 < kept.sum() < 48
        draws.append(kept)
    assert not torch.equal(*draws)


def test_fused_false_uses_ordinary_layers_only():
    for fused in (True, False):
        model = ConvNeXt(**SMALL, fused=fused)
        with Operators() as seen:
            model(torch.randn(1, 3, 64, 64))
        assert any('convnext_backbone' in name for name in seen.names) is fused


@pytest.mark.parametrize(('numbers', 'fused'), [(2**22 - 1, False), (2**22, True)])
def test_on_a_gpu_without_our_kernels_only_huge_maps_are_worth_the_launches(numbers, fused):
    x = SimpleNamespace(device=torch.device('cuda', 0), numel=lambda: numbers)
    assert block_ops._pays_without_triton(x) is fused


def test_another_way_is_refused():
    with pytest.raises(
        UserError, match="fused must be one of True, False, triton, got 'trition'; did you mean"
    ):
        ConvNeXt(**SMALL, fused='trition')


def test_replaced_and_watched_layers_are_used_and_not_folded():
    """An adapter around a linear layer, a hook: the fast way would pass them by without a word."""

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias

        def forward(self, x):
            return self.base(x) + 1

    block, x = Block(8, layer_scale=1.0).eval(), torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        before = block(x)
        seen = []
        handle = block.pwconv1.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(block(x), before)
        assert seen
        handle.remove()
        block.pwconv2 = Adapter(block.pwconv2)
        torch.testing.assert_close(block(x), before + 1)
    with pytest.raises(UserError, match='a layer of a block was replaced'):
        fuse_for_inference(block)
