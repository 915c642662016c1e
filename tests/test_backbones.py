"""The network: reference outputs, sizes, freezing, memory layout, and what the rest asks it."""

import re

import pytest
import torch
from conftest import command, largest_difference, last_line, reference_input, reference_weights
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt, Roadmap, fuse_for_inference
from convnext_backbone.backbones.block import Block
from convnext_backbone.backbones.convnext import ARCHITECTURES
from convnext_backbone.backbones.layers import DropPath, GlobalResponseNorm
from convnext_backbone.classification import Classifier
from convnext_backbone.errors import UserError

SMALL = dict(depths=(2, 2, 4, 2), dims=(8, 16, 24, 32))
NETWORKS = {  # each kind once, small
    'v1': lambda **kwargs: ConvNeXt(**SMALL, **kwargs),
    'v2': lambda **kwargs: ConvNeXt('v2_atto', **SMALL, **kwargs),
    'dilated': lambda **kwargs: ConvNeXt(**SMALL, output_stride=8, **kwargs),
    'isotropic': lambda **kwargs: IsotropicConvNeXt(depth=4, dim=16, **kwargs),
    'isotropic with layer scale': lambda **kwargs: IsotropicConvNeXt('large', depth=4, dim=16, **kwargs),
}
every_network = pytest.mark.parametrize('network', NETWORKS.values(), ids=NETWORKS)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_dense_backbone_gives_the_outputs_of_the_official_network(golden, dtype, tolerance):
    reference = golden['tiny_backbone']
    model = ConvNeXt('tiny', layer_scale_init_value=1.0).double()
    assert sum(p.numel() for p in model.parameters()) == reference['params']
    reference_weights(model)
    with torch.no_grad():
        maps = model.to(dtype).eval()(reference_input(reference['input']).to(dtype))
    for found, expected in zip(maps, reference['features'], strict=True):
        assert largest_difference(found, expected) < tolerance


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_classifier_gives_the_logits_of_the_official_network(golden, dtype, tolerance):
    reference = golden['tiny_classifier']
    model = Classifier(dict(type='convnext_backbone.ConvNeXt', arch='tiny'), 1000).double()
    assert sum(p.numel() for p in model.parameters()) == reference['params']
    reference_weights(model, prefix='backbone.')
    with torch.no_grad():
        logits = model.to(dtype).eval()(reference_input(reference['input']).to(dtype))
    assert largest_difference(logits, reference['logits']) < tolerance


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_isotropic_classifier_gives_the_logits_of_the_official_network(golden, dtype, tolerance):
    reference = golden['isotropic_small']
    model = Classifier(dict(type='convnext_backbone.IsotropicConvNeXt', arch='small'), 1000).double()
    assert sum(p.numel() for p in model.parameters()) == reference['params']
    reference_weights(model, prefix='backbone.')
    with torch.no_grad():
        logits = model.to(dtype).eval()(reference_input(reference['input']).to(dtype))
    assert largest_difference(logits, reference['logits']) < tolerance


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_sizes_are_those_of_timm(arch):
    import timm

    theirs = arch.replace('v2_', 'v2@').split('@')
    with torch.device('meta'):
        theirs = timm.create_model(f'convnext{theirs[0]}_{theirs[1]}' if theirs[1:] else f'convnext_{arch}')
        ours = Classifier(dict(type='convnext_backbone.ConvNeXt', arch=arch), 1000)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize('arch', ['atto', 'v2_atto'])
def test_outputs_are_those_of_timm(arch):
    """Weights copied in timm's order of parameters, response norms (which start at zero) drawn at random."""
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(f'convnext{"v2" * arch.startswith("v2")}_atto').double().eval()
    ours = Classifier(dict(type='convnext_backbone.ConvNeXt', arch=arch), 1000).double().eval()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    renamed = {}
    for name, value in theirs.state_dict().items():
        name = name.replace('stem.', 'downsample_layers.0.').replace('.blocks.', '.')
        name = re.sub(r'stages\.(\d)\.downsample', r'downsample_layers.\1', name)
        name = name.replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv').replace('mlp.grn', 'grn')
        name = name.replace('head.norm', 'norm').replace('head.fc', 'head')
        name = name.replace('grn.weight', 'grn.gamma').replace('grn.bias', 'grn.beta')
        renamed[name if name.startswith(('norm', 'head')) else f'backbone.{name}'] = value
    with torch.no_grad():
        for name, mine in ours.state_dict().items():
            given = renamed.pop(name)
            if 'grn' in name or 'gamma' in name:
                given.copy_(torch.randn_like(given))
            mine.copy_(given.view_as(mine))
        assert not renamed
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)


def test_response_norm_by_hand():
    """Two positions, two channels: norms 5 and 0.5, mean 2.75."""
    norm = GlobalResponseNorm(2).double()
    x = torch.tensor([[3.0, 0.3], [4.0, 0.4]], dtype=torch.float64).view(1, 1, 2, 2)
    torch.testing.assert_close(norm(x), x)  # starts as the identity
    norm.gamma.data[..., :] = torch.tensor([1.0, 2.0])
    norm.beta.data[..., :] = torch.tensor([0.0, 1.0])
    share = torch.tensor([5 / 2.750001, 2 * 0.5 / 2.750001], dtype=torch.float64)
    torch.testing.assert_close(norm(x), x + x * share + torch.tensor([0.0, 1.0], dtype=torch.float64))
    large = torch.full((1, 64, 64, 2), 2000.0, dtype=torch.float16)
    assert norm.half()(large).isfinite().all()  # the sum of squares is beyond float16


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,), (1, 2), (0,)])
@every_network
def test_every_parameter_gets_a_gradient_whatever_is_emitted(network, out_indices):
    model = network(out_indices=out_indices)
    maps = model(torch.randn(2, 3, 64, 64))
    sum(m.square().sum() for m in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [m.shape[1] for m in maps] == list(model.out_channels)
    assert [64 // m.shape[2] for m in maps] == list(model.out_strides)


def test_output_norms_exist_for_emitted_stages_only():
    names = {name.split('.')[0] for name, _ in ConvNeXt(**SMALL, out_indices=(1, 3)).named_parameters()}
    assert names == {'downsample_layers', 'stages', 'norm1', 'norm3'}


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages_mean_what_they_mean_in_mmdets_resnet(frozen):
    """Stage k of a ResNet has its downsampling inside; frozen parts stay in eval mode under train()."""
    model = ConvNeXt(**SMALL, frozen_stages=frozen, drop_path_rate=0.5)
    assert model.train() is model
    for name, parameter in model.named_parameters():
        part, number = name.split('.')[:2]
        if part == 'downsample_layers':
            frozen_here = frozen >= 0 and int(number) < max(frozen, 1)
        else:
            frozen_here = part == 'stages' and int(number) < frozen
        assert parameter.requires_grad is not frozen_here, name
    modes = [all(m.training for m in stage.modules()) for stage in model.stages]
    assert modes == [i >= frozen for i in range(4)]
    assert model.downsample_layers[0].training is (frozen < 0)


def test_frozen_part_computes_the_same_in_train_and_eval_mode():
    model = ConvNeXt(**SMALL, frozen_stages=4, drop_path_rate=0.9)
    x = torch.randn(4, 3, 64, 64)
    trained = model.train()(x)
    for a, b in zip(trained, model.eval()(x)):
        torch.testing.assert_close(a, b)


@every_network
def test_gradient_checkpointing_gives_the_same_gradients(network):
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = network(with_cp=with_cp, drop_path_rate=0.3).double()
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        torch.manual_seed(1)  # the same paths are dropped
        sum(m.square().sum() for m in model(x)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


class _Copies(TorchDispatchMode):
    """Counts the operators that move a whole activation."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ('clone', 'contiguous', 'copy_', '_to_copy', 'copy'):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_activations_stay_nhwc_and_permutes_copy_nothing():
    x = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), _Copies() as copies:
        (last,) = ConvNeXt(**SMALL, out_indices=(3,), output_norm=False).eval()(x)
    assert copies.names == []
    assert last.is_contiguous(memory_format=torch.channels_last)


@every_network
def test_emitted_maps_lie_in_nchw_memory_since_mmcvs_roi_align_reads_nothing_else(network):
    import torchvision
    from mmcv.ops import roi_align

    model = network().eval()
    image = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), _Copies() as copies:
        maps = model(image)
    assert copies.names == ['clone'] * 4  # one per map, none inside
    boxes = torch.tensor([[0, 1.0, 2.0, 9.0, 10.0], [1, 3.0, 3.0, 12.0, 14.0]])
    for x in maps:
        ours = roi_align(x, boxes, (7, 7), 1.0, 2, 'avg', True)
        torch.testing.assert_close(ours, torchvision.ops.roi_align(x, boxes, (7, 7), 1.0, 2, True))


def test_drop_path_keeps_the_expectation_and_drops_whole_samples():
    drop = DropPath(0.25).train()
    x = torch.ones(40_000, 2, 1, 1, dtype=torch.float64)
    torch.manual_seed(0)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert (y[:, 0] == y[:, 1]).all()
    assert abs(y.mean().item() - 1) < 0.02  # 6 standard deviations
    assert drop.eval()(x) is x


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(arch='tny'), "got 'tny'; did you mean 'tiny'?"),
        (dict(dims=(8, 16, 32)), 'dims must be 4 positive integers'),
        (dict(out_indices=(0, 4)), 'out_indices must be ascending stage numbers from 0 to 3'),
        (dict(out_indices=(2, 1)), 'out_indices must be ascending'),
        (dict(out_indices=(0, 1), frozen_stages=3), 'frozen_stages must lie between -1'),
        (dict(drop_path_rate=1.0), 'drop_path_rate must lie in [0, 1), got 1.0'),
        (dict(output_stride=4), 'output_stride must be 8, 16 or 32, got 4'),
        (dict(arch='v2_atto', layer_scale_init_value=1.0), 'v2_atto has no layer scale'),
        (dict(arch='v2_small'), "got 'v2_small'; did you mean"),
        (dict(kind=IsotropicConvNeXt, arch='tiny'), 'arch must be one of small, base, large'),
        (dict(dims=(True, 16, 24, 32)), 'dims must be 4 positive integers'),
        (dict(depths=3), 'depths must be 4 positive integers, got 3'),
        (dict(out_indices=3), 'out_indices must be ascending stage numbers from 0 to 3, got 3'),
        (dict(in_channels=0), 'in_channels must be 1 positive integers, got [0]'),
        (dict(drop_path_rate='0.1'), 'drop_path_rate must lie in [0, 1), got 0.1'),
        (dict(output_stride=16.0), 'output_stride must be 8, 16 or 32, got 16.0'),
        (dict(kind=IsotropicConvNeXt, dim=30), 'dim must be a multiple of 4, got 30'),
        (dict(kind=IsotropicConvNeXt, depth=0), 'depth and dim must be 2 positive integers, got [0, 384]'),
        (dict(kind=IsotropicConvNeXt, depth=4, frozen_stages=5), 'frozen_stages must lie between -1'),
        (dict(kind=Roadmap, start='resnet50', step='stage_ration'), "did you mean 'stage_ratio'?"),
        (dict(kind=Roadmap, start='resnet101', step='resnet'), 'start must be one of resnet50, resnet200'),
    ],
)
def test_wrong_arguments_are_told_in_words(arguments, words):
    with pytest.raises(UserError) as error:
        arguments.pop('kind', ConvNeXt)(**arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(('stride', 'steps'), [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
def test_output_stride_gives_the_ordinary_values_at_the_ordinary_positions(stride, steps):
    """Dilation in place of halving: every second (fourth) position is that of the ordinary network."""
    torch.manual_seed(0)
    ordinary = ConvNeXt(**SMALL, layer_scale_init_value=1.0).double().eval()
    dilated = ConvNeXt(**SMALL, layer_scale_init_value=1.0, output_stride=stride).double().eval()
    dilated.load_state_dict(ordinary.state_dict(), strict=True)
    x = torch.randn(1, 3, 128, 192, dtype=torch.float64)
    assert dilated.out_strides == tuple(min(s, stride) for s in (4, 8, 16, 32))
    with torch.no_grad():
        for step, fine, coarse in zip(steps, dilated(x), ordinary(x), strict=True):
            assert fine.shape[2:] == (coarse.shape[2] * step, coarse.shape[3] * step)
            torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-10)


def test_isotropic_pyramid_has_the_strides_of_a_backbone_and_leaves_the_middle_map_alone():
    model = IsotropicConvNeXt(depth=4, dim=16).eval()
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 24), (8, 8, 12), (16, 4, 6), (16, 2, 3)]
    assert model.out_channels == (4, 8, 16, 16)
    assert model.out_strides == (4, 8, 16, 32)
    alone = IsotropicConvNeXt(depth=4, dim=16, out_indices=(2,)).eval()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if k in alone.state_dict()})
    torch.testing.assert_close(alone(torch.ones(1, 3, 64, 64))[0], model(torch.ones(1, 3, 64, 64))[2])


def test_isotropic_coarsest_map_is_the_maximum_of_the_middle_one():
    *_, middle, coarse = IsotropicConvNeXt(depth=1, dim=8, output_norm=False)(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(coarse, middle.unflatten(2, (2, 2)).unflatten(4, (2, 2)).amax((3, 5)))


def test_stochastic_depth_grows_linearly_from_zero_over_all_blocks():
    isotropic = IsotropicConvNeXt(depth=5, dim=8, drop_path_rate=0.4)
    assert [block.drop_path.rate for block in isotropic.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    with torch.device('meta'):
        staged = [ConvNeXt(**SMALL, drop_path_rate=0.9), Roadmap('resnet50', 'resnet', drop_path_rate=0.75)]
    for model, last, blocks in zip(staged, (0.9, 0.75), (10, 16)):
        found = [block.drop_path.rate for stage in model.stages for block in stage]
        assert found == pytest.approx([last * i / (blocks - 1) for i in range(blocks)])


def test_layer_scale_starts_as_published():
    """Table 5: 1e-6, in isotropic networks only in the large one."""
    with torch.device('cpu'):
        large = IsotropicConvNeXt('large', depth=2, dim=8)
        last = Roadmap('resnet50', 'separate_downsampling', out_indices=(0,))
    gains = [block.gamma for block in (*ConvNeXt(**SMALL).stages[2], *large.blocks, *last.stages[0])]
    assert all((gain == 1e-6).all() for gain in gains)
    assert len(gains) == 4 + 2 + 3
    assert ConvNeXt(**SMALL, layer_scale_init_value=1).stages[0][0].gamma.dtype == torch.float32
    for model in (IsotropicConvNeXt(depth=2, dim=8), ConvNeXt('v2_atto', **SMALL)):
        assert not [
            name for name, _ in model.named_parameters() if name.endswith('.gamma') and 'grn' not in name
        ]


def test_isotropic_frozen_stages_are_blocks():
    model = IsotropicConvNeXt(depth=4, dim=16, frozen_stages=2, drop_path_rate=0.5).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(('stem', 'blocks.0.', 'blocks.1.'))
    }
    assert [block.training for block in model.blocks] == [False, False, True, True]


def test_reading_the_backbone_imports_no_detection_library():
    code = (
        'import sys; from convnext_backbone.backbones import ConvNeXt; import convnext_backbone.checkpoint; '
        'print([m for m in sys.modules if m.split(".")[0] in ("mmcv", "mmdet", "mmseg")])'
    )
    assert command('-c', code).stdout.strip().endswith('[]')


@pytest.mark.parametrize('scope', ['mmdet', pytest.param('mmseg', marks=pytest.mark.slow)])
def test_backbone_is_found_from_any_scope_without_custom_imports(scope):
    code = (  # mmcv's operators first: without a compiled mmcv neither scope can be imported
        'from convnext_backbone.mmcv_ops import install; install(); '
        f'import {scope}; from mmengine.registry import init_default_scope, MODELS; '
        f'init_default_scope("{scope}"); '
        'b = MODELS.build(dict(type="convnext_backbone.ConvNeXt", arch="atto")); '
        'print("built", b.out_channels)'
    )
    assert last_line(command('-c', code)) == 'built (40, 80, 160, 320)'


@every_network
def test_folded_weights_give_the_same_maps_and_are_undone(network):
    """In float64 to the last digits; parameters, state_dict and gradients as if nothing had been folded."""
    torch.manual_seed(0)
    model = network().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # affine norms, layer scale and GRN that matter
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)
    names = list(model.state_dict())
    with torch.no_grad():
        plain = model(x)
        assert fuse_for_inference(model) == sum(isinstance(m, Block) for m in model.modules()) > 0
        folded = model(x)
    for a, b in zip(plain, folded):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert not torch.equal(a, b)  # another order of rounding: the folded path was taken
    assert list(model.state_dict()) == names
    sum(m.sum() for m in model(x)).backward()  # with gradients, the parameters themselves are used
    assert all(p.grad is not None for p in model.parameters())
    weights = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    for undo in (lambda: model.train(), lambda: model.load_state_dict(weights)):
        model.eval()
        fuse_for_inference(model)
        undo()
        assert all(m.folded_w1 is None for m in model.modules() if isinstance(m, Block))


def test_folding_is_refused_in_training_mode():
    with pytest.raises(UserError, match='call eval'):
        fuse_for_inference(ConvNeXt(**SMALL).train())
