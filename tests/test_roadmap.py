"""The roadmap from ResNet to ConvNeXt: its ends are networks that others wrote, its steps what they say."""

import dataclasses

import pytest
import torch
import torchvision

from convnext_backbone.backbones import ConvNeXt, Roadmap
from convnext_backbone.backbones.roadmap import STEPS, design
from convnext_backbone.classification import Classifier


def classifier(start: str, step: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(dict(type='convnext_backbone.Roadmap', start=start, step=step), 1000).double().eval()


def copy_in_order(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Every tensor in turn; a 1x1 convolution may stand where the other has a linear layer."""
    for (name, a), (_, b) in zip(source.state_dict().items(), target.state_dict().items(), strict=True):
        assert [n for n in a.shape if n > 1] == [n for n in b.shape if n > 1], name
        b.copy_(a.view_as(b))


@pytest.mark.parametrize('step', ['resnet', 'enhanced_recipe'])
def test_the_first_step_is_torchvisions_resnet50(step):
    ours, theirs = classifier('resnet50', step), torchvision.models.resnet50().double().eval()
    for module in theirs.modules():  # statistics that a fresh network does not have
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    shapes = [[tuple(v.shape) for v in m.state_dict().values()] for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    copy_in_order(theirs, ours)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
        maps = Roadmap('resnet50', step).double().eval()
        maps.load_state_dict(ours.backbone.state_dict())
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for i, found in enumerate(maps(x)):
            y = getattr(theirs, f'layer{i + 1}')(y)
            torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)


def test_the_last_step_is_convnext_tiny():
    ours, convnext = (
        Roadmap('resnet50', 'separate_downsampling').double().eval(),
        ConvNeXt('tiny').double().eval(),
    )
    assert ours.out_channels == convnext.out_channels
    with torch.no_grad():
        for name, parameter in convnext.named_parameters():
            if name.endswith('gamma'):
                parameter.normal_()
        copy_in_order(convnext, ours)
        x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
        for a, b in zip(ours(x), convnext(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_last_step_from_resnet200_is_convnext_base():
    with torch.device('meta'):
        ours, base = Roadmap('resnet200', 'separate_downsampling'), ConvNeXt('base')
    sizes = [[v.numel() for v in m.state_dict().values()] for m in (ours, base)]
    assert sizes[0] == sizes[1]
    assert ours.out_channels == base.out_channels


def test_a_step_changes_what_its_name_says_and_nothing_else():
    """Read off the paper, Sec. 2 and Tables 10 and 11."""
    changed = {
        'resnet50': {'stage_ratio': {'depths'}, 'width': {'width'}},
        'resnet200': {'stage_ratio': {'depths', 'width'}, 'width': {'width'}},
    }
    common = dict(
        enhanced_recipe=set(),
        patchify_stem={'patchify'},
        depthwise={'depthwise'},
        inverted={'inverted'},
        moved_up={'moved_up'},
        kernel_5={'kernel'},
        kernel_7={'kernel'},
        kernel_9={'kernel'},
        kernel_11={'kernel'},
        gelu={'kernel', 'activation'},
        fewer_activations={'fewer_activations'},
        fewer_norms={'fewer_norms'},
        layer_norm={'norm'},
        separate_downsampling={'separate'},
    )
    names = list(STEPS)
    for start, own in changed.items():
        for before, step in zip(names, names[1:]):
            a, b = (dataclasses.asdict(design(start, name)) for name in (before, step))
            assert {key for key in a if a[key] != b[key]} == {**common, **own}[step], step


def count(model, *kinds) -> int:
    return sum(isinstance(module, kinds) for module in model.modules())


def test_activations_and_norms_of_the_late_steps():
    """Per block: three activations and norms, then one of each (18 blocks); 3 shortcuts and a stem."""
    gelu, activations, norms, last = (
        Roadmap('resnet50', step)
        for step in ('gelu', 'fewer_activations', 'fewer_norms', 'separate_downsampling')
    )
    assert count(gelu, torch.nn.GELU) == 3 * 18 + 1
    assert count(gelu, torch.nn.ReLU) == 0
    assert count(activations, torch.nn.GELU) == 18
    assert count(activations, torch.nn.BatchNorm2d) == 3 * 18 + 3 + 1
    assert count(norms, torch.nn.BatchNorm2d) == 18 + 3 + 1
    assert count(last, torch.nn.LayerNorm) == 18 + 3 + 1 + 4  # stem, downsampling, output norms


@pytest.mark.parametrize('step', STEPS)
def test_every_step_emits_four_maps_and_gives_every_parameter_a_gradient(step):
    model = Roadmap('resnet50', step, drop_path_rate=0.1, with_cp=True)
    maps = model(torch.randn(2, 3, 64, 64))
    sum(m.square().sum() for m in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 64 // s) for c, s in zip(model.out_channels, model.out_strides)
    ]
    assert all(m.is_contiguous() for m in maps)
    last = len(model.stages[2]) - 1
    assert model.layer_depth(f'stages.2.{last}.branch.0.weight') == model.num_groups - 1
