"""The network: reference outputs, sizes, freezing, memory layout, and what the rest asks it."""

import pytest
import torch
from conftest import command, largest_difference, last_line, reference_input, reference_weights
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.backbones.layers import DropPath
from convnext_backbone.classification import Classifier
from convnext_backbone.errors import UserError

SMALL = dict(depths=(2, 2, 4, 2), dims=(8, 16, 24, 32))


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


@pytest.mark.parametrize(
    ('arch', 'millions'),
    # paper, Table 1
    [('tiny', 29), ('small', 50), ('base', 89), ('large', 198), ('xlarge', 350)],
)
def test_classifier_has_the_published_size(arch, millions):
    with torch.device('meta'):
        model = Classifier(dict(type='convnext_backbone.ConvNeXt', arch=arch), 1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_sizes_are_those_of_timm():
    import timm

    for arch in ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'xlarge'):
        with torch.device('meta'):
            theirs = timm.create_model(f'convnext_{arch}')
            ours = Classifier(dict(type='convnext_backbone.ConvNeXt', arch=arch), 1000)
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,), (1, 2), (0,)])
def test_every_parameter_gets_a_gradient_whatever_is_emitted(out_indices):
    model = ConvNeXt(**SMALL, out_indices=out_indices)
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


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = ConvNeXt(**SMALL, with_cp=with_cp, drop_path_rate=0.3, layer_scale_init_value=1.0).double()
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


def test_emitted_maps_lie_in_nchw_memory_since_mmcvs_roi_align_reads_nothing_else():
    import torchvision
    from mmcv.ops import roi_align

    model = ConvNeXt(**SMALL).eval()
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
    ],
)
def test_wrong_arguments_are_told_in_words(arguments, words):
    with pytest.raises(UserError) as error:
        ConvNeXt(**arguments)
    assert words in str(error.value)


def test_layer_depths_of_tiny_and_base():
    """Written out from the published recipes: 6 groups for 9 blocks in the third stage, 12 for 27."""
    with torch.device('meta'):
        tiny, base = ConvNeXt('tiny'), ConvNeXt('base')
    assert (tiny.num_groups, base.num_groups) == (6, 12)
    expected = {
        'downsample_layers.0.0.weight': (0, 0, 0),  # tiny layer-wise, base layer-wise, stage-wise
        'downsample_layers.1.1.bias': (2, 2, 0),
        'downsample_layers.2.1.weight': (3, 3, 0),
        'downsample_layers.3.0.weight': (6, 12, 0),
        'stages.0.2.gamma': (1, 1, 1),
        'stages.1.0.norm.bias': (2, 2, 2),
        'stages.2.0.dwconv.weight': (3, 3, 3),
        'stages.2.2.dwconv.weight': (3, 3, 3),
        'stages.2.3.dwconv.weight': (4, 4, 3),
        'stages.2.8.pwconv2.bias': (5, 5, 3),
        'stages.3.2.pwconv1.weight': (6, 12, 4),
        'norm3.weight': (7, 13, None),
    }
    for name, (tiny_depth, base_depth, stage) in expected.items():
        assert tiny.layer_depth(name) == tiny_depth, name
        assert base.layer_depth(name) == base_depth, name
        assert tiny.layer_depth(name, 'stage_wise') == (7 if stage is None else stage), name
    assert base.layer_depth('stages.2.26.gamma') == 11


def test_reading_the_backbone_imports_no_detection_library():
    code = (
        'import sys; from convnext_backbone.backbones import ConvNeXt; import convnext_backbone.checkpoint; '
        'print([m for m in sys.modules if m.split(".")[0] in ("mmcv", "mmdet", "mmseg")])'
    )
    assert command('-c', code).stdout.strip().endswith('[]')


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_backbone_is_found_from_any_scope_without_custom_imports(scope):
    code = (
        f'import {scope}; from mmengine.registry import init_default_scope, MODELS; '
        f'init_default_scope("{scope}"); '
        'b = MODELS.build(dict(type="convnext_backbone.ConvNeXt", arch="atto")); '
        'print("built", b.out_channels)'
    )
    assert last_line(command('-c', code)) == 'built (40, 80, 160, 320)'
