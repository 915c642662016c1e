"""Learning rate and weight decay of every parameter, by the published rules written out here once more.

Depths: "layer_decay_definition" of the published recipes: stem 0; the first two stages with the
downsampling in front 1 and 2; three blocks of the third stage share a depth, from 3 on; the fourth stage,
with its downsampling, is the last group; everything else has the full rate.
"""

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt, Roadmap
from convnext_backbone.engine import LayerDecayConstructor, layer_decay
from convnext_backbone.errors import UserError


class Detector(torch.nn.Module):
    """Anything with a backbone and something behind it."""

    def __init__(self, arch: str = 'tiny', **kwargs):
        super().__init__()
        self.backbone = ConvNeXt(arch, **kwargs)
        self.neck = torch.nn.Conv2d(3, 3, 1)


def groups(model, **paramwise) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> (learning rate, weight decay), at a base rate of 1."""
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='convnext_backbone.LayerDecayConstructor',
        paramwise_cfg=paramwise,
    )
    optimizer = build_optim_wrapper(model, cfg).optimizer
    return {
        name: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for name in group['param_names']
    }


THIRD_STAGE = {9: [3, 3, 3, 4, 4, 4, 5, 5, 5], 27: [depth for depth in range(3, 12) for _ in range(3)]}
# blocks of the third stage: depth of each downsampling layer, depth of each block of each stage
LAYER_WISE = {
    blocks: ([0, 2, 3, last], [[1, 1, 1], [2, 2, 2], THIRD_STAGE[blocks], [last] * 3])
    for blocks, last in ((9, 6), (27, 12))
}
STAGE_WISE = {blocks: ([0] * 4, [[1] * 3, [2] * 3, [3] * blocks, [4] * 3]) for blocks in (9, 27)}
BLOCK = {  # which have weight decay
    'dwconv.weight': True,
    'dwconv.bias': False,
    'norm.weight': False,
    'norm.bias': False,
    'pwconv1.weight': True,
    'pwconv1.bias': False,
    'pwconv2.weight': True,
    'pwconv2.bias': False,
}


def expected(blocks: int, num_groups: int, rate: float, table, gain: tuple[str, ...]) -> dict:
    """Name of every parameter of a four-stage network -> (learning rate, weight decay)."""

    def values(depth: int, decayed: bool):
        return pytest.approx((rate ** (num_groups + 1 - depth), 0.05 if decayed else 0.0))

    downsampling, stages = table[blocks]
    found = {'neck.weight': values(num_groups + 1, True), 'neck.bias': values(num_groups + 1, False)}
    for i, depth in enumerate(downsampling):
        conv, norm = (0, 1) if i == 0 else (1, 0)
        found[f'backbone.downsample_layers.{i}.{conv}.weight'] = values(depth, True)
        for name in (f'{conv}.bias', f'{norm}.weight', f'{norm}.bias'):
            found[f'backbone.downsample_layers.{i}.{name}'] = values(depth, False)
        for name in ('weight', 'bias'):
            found[f'backbone.norm{i}.{name}'] = values(num_groups + 1, False)
        for j, depth in enumerate(stages[i]):
            for name, decayed in {**BLOCK, **dict.fromkeys(gain, False)}.items():
                found[f'backbone.stages.{i}.{j}.{name}'] = values(depth, decayed)
    return found


@pytest.mark.parametrize(
    ('arch', 'blocks', 'num_groups'),
    [('tiny', 9, 6), ('small', 27, 12), ('base', 27, 12), ('large', 27, 12), ('xlarge', 27, 12)],
)
@pytest.mark.parametrize(('by', 'table'), [('layer_wise', LAYER_WISE), ('stage_wise', STAGE_WISE)])
def test_every_parameter_has_the_published_rate_and_decay(arch, blocks, num_groups, by, table):
    with torch.device('meta'):
        found = groups(Detector(arch), decay_rate=0.7, decay_type=by, num_layers=num_groups)
    assert found == expected(blocks, num_groups, 0.7, table, ('gamma',))


@pytest.mark.parametrize(('arch', 'blocks', 'num_groups'), [('v2_tiny', 9, 6), ('v2_huge', 27, 12)])
def test_every_parameter_of_v2_too_and_its_response_norm_is_not_decayed(arch, blocks, num_groups):
    with torch.device('meta'):
        found = groups(Detector(arch), decay_rate=0.9)
    assert found == expected(blocks, num_groups, 0.9, LAYER_WISE, ('grn.gamma', 'grn.beta'))


def test_every_parameter_of_v2_atto_block_by_block_as_the_official_fine_tuning():
    """2, 2, 6 and 2 blocks; layer ids and scale by optim_factory.py and main_finetune.py of V2 ('single')."""
    table = {12: ([1, 3, 5, 11], [[1, 2], [3, 4], [5, 6, 7, 8, 9, 10], [11, 12]])}
    with torch.device('meta'):
        found = groups(Detector('v2_atto'), decay_rate=0.9, decay_type='block_wise', num_layers=12)
    assert found == expected(12, 12, 0.9, table, ('grn.gamma', 'grn.beta'))
    assert found['backbone.downsample_layers.0.0.weight'][0] == pytest.approx(0.282429536481)  # 0.9 ** 12
    assert found['backbone.stages.3.1.dwconv.weight'][0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ('arch', 'blocks', 'num_groups', 'block'),
    [('small', 18, 6, BLOCK), ('base', 18, 6, BLOCK), ('large', 36, 12, {**BLOCK, 'gamma': False})],
    ids=['small', 'base', 'large'],
)
def test_every_parameter_of_an_isotropic_network_three_blocks_a_group(arch, blocks, num_groups, block):
    with torch.device('meta'):
        model = torch.nn.Module()
        model.backbone = IsotropicConvNeXt(arch)
        found = groups(model, decay_rate=0.7)
    rates = {'stem.weight': (0, 0.05), 'stem.bias': (0, 0.0)}
    for b in range(blocks):
        for name, decayed in block.items():
            rates[f'blocks.{b}.{name}'] = (1 + b // 3, 0.05 * decayed)
    for i in range(4):
        rates |= {f'norm{i}.{name}': (num_groups + 1, 0.0) for name in ('weight', 'bias')}
    for name, decay in (('0.0', 0.05), ('0.1', 0.0), ('0.3', 0.05), ('1', 0.05)):
        rates[f'pyramid.{name}.weight'] = (num_groups + 1, decay)
        rates[f'pyramid.{name}.bias'] = (num_groups + 1, 0.0)
    assert found == {
        f'backbone.{name}': pytest.approx((0.7 ** (num_groups + 1 - depth), decay))
        for name, (depth, decay) in rates.items()
    }


@pytest.mark.matrix
def test_tiny_by_hand_as_in_the_published_detection_recipe():
    """Six groups, rate 0.7: scale 0.7 ** (7 - depth)."""
    found = groups(Detector(), decay_rate=0.7)
    for name, values in {
        'backbone.downsample_layers.0.0.weight': (0.0823543, 0.05),
        'backbone.stages.0.0.dwconv.weight': (0.117649, 0.05),
        'backbone.stages.1.0.gamma': (0.16807, 0.0),
        'backbone.stages.2.0.pwconv1.weight': (0.2401, 0.05),
        'backbone.stages.2.8.pwconv2.bias': (0.49, 0.0),
        'backbone.stages.3.0.pwconv1.weight': (0.7, 0.05),
        'backbone.norm0.weight': (1.0, 0.0),
    }.items():
        assert found[name] == pytest.approx(values), name


def test_depth_is_found_below_any_prefix_and_equal_groups_are_merged():
    plain = groups(Detector(), decay_rate=0.7)
    for path in ('module', 'detector', 'student', 'student.detector'):  # as DDP and others wrap it
        model = Detector()
        for part in reversed(path.split('.')):
            outer = torch.nn.Module()
            outer.add_module(part, model)
            model = outer
        found = groups(model, decay_rate=0.7)
        prefix = path.removeprefix('module')  # which mmengine takes off itself
        assert found == {f'{prefix}.{name}'.lstrip('.'): values for name, values in plain.items()}
    wrapper = LayerDecayConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(decay_rate=0.7)
    )(Detector())
    pairs = [(g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups]
    assert len(pairs) == len(set(pairs)) == 8 * 2  # depths 0 ... 7, with and without weight decay


def test_frozen_parameters_are_in_no_group():
    found = groups(Detector(frozen_stages=2), decay_rate=0.7)
    assert not [name for name in found if 'stages.1' in name or 'downsample_layers.0' in name]


@pytest.mark.parametrize(
    ('model', 'paramwise', 'words'),
    [
        (Detector, dict(decay_rate=0.7, num_layers=12), 'num_layers is 12, but ConvNeXt tiny has 6'),
        (Detector, dict(decay_rate=1.2), 'must lie in (0, 1], got 1.2'),
        (Detector, dict(decay_rte=0.7, decay_rate=0.7), 'got decay_rte'),
        (Detector, dict(decay_rate=0.7, decay_type='stage'), "or 'block_wise', got 'stage'"),
        (
            Detector,
            dict(decay_rate=0.7, decay_type='block_wise', num_layers=6),
            'num_layers is 6, but ConvNeXt tiny has 18',
        ),
        (lambda: torch.nn.Linear(2, 2), dict(decay_rate=0.7), 'Linear has none'),
        (
            lambda: IsotropicConvNeXt(depth=3, dim=8),
            dict(decay_rate=0.7, decay_type='stage_wise'),
            'one stage',
        ),
    ],
)
def test_layer_decay_refuses_what_cannot_be_meant(model, paramwise, words):
    with pytest.raises(UserError) as error:
        groups(model(), **paramwise)
    assert words in str(error.value)


def test_a_learning_rate_above_the_heads_is_refused():
    class Wrong(Roadmap):
        def layer_depth(self, name, by='layer_wise'):
            return self.num_groups + 5

    words = r'would learn faster than the head \(scale 4.16\)'  # 0.7 ** -4
    with torch.device('meta'), pytest.raises(UserError, match=words):
        groups(Wrong('resnet50', 'gelu'), decay_rate=0.7)


def test_the_table_of_rates_is_logged(monkeypatch):
    texts = []
    monkeypatch.setattr(layer_decay, 'print_log', lambda text, **_: texts.append(text))
    groups(Detector('atto'), decay_rate=0.5)
    assert [text.splitlines()[2].split() for text in texts] == [
        ['0.015625', '0.01562', '0', '3', 'backbone.downsample_layers.0.0.bias']
    ]


def test_custom_keys_hold_outside_the_backbone_and_the_longest_wins():
    """As mmengine's: the rate times lr_mult, the decay times decay_mult; not in the backbone."""
    custom = {
        'neck': dict(lr_mult=0.1),
        'neck.bias': dict(lr_mult=0.5),
        'neck.weight': dict(lr_mult=0.2, decay_mult=0.5),
        'weight': dict(lr_mult=7.0, decay_mult=7.0),
    }
    found = groups(Detector(), decay_rate=0.7, custom_keys=custom)
    plain = groups(Detector(), decay_rate=0.7)
    assert found['neck.weight'] == (0.2, 0.025)
    assert found['neck.bias'] == (0.5, 0.0)
    inside = [name for name in plain if name.startswith('backbone.')]
    assert [found[name] for name in inside] == [plain[name] for name in inside]


def test_a_custom_key_that_is_in_no_name_outside_the_backbone_is_an_error():
    with pytest.raises(UserError, match='custom_keys: backbone is in the name of no trainable parameter'):
        groups(Detector(), decay_rate=0.7, custom_keys={'backbone': dict(lr_mult=0.1)})
