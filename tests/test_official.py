"""Each value of the official detection and segmentation configs, beside our config for the same row.

``tests/data/official_downstream.json`` has them under the names of mmdet 2.x and mmseg 0.x. NAMES and WORDS
say what they are called in version 3; EXCEPTIONS are those with nothing of the same name and meaning there. A
value that none of the three reads fails the test, and so does one of ours that is neither official nor in
OURS_ALONE or OF_THE_LIBRARIES.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_backbone.config import choose_views, dicts, read_config

DATA = json.loads((ROOT / 'tests/data/official_downstream.json').read_text())
OFFICIAL = {
    name: {k: v for group in config['shared'] for k, v in DATA['shared'][group].items()} | config['values']
    for name, config in DATA['configs'].items()
}
MULTI_SCALE = ' multi-scale'  # an official config of its own; ours says in tta_model what is other

# Official name: ours, one or several. A star stands for anything, the same on both sides; the first that
# fits holds. The value is the same, but for WORDS.
NAMES = {
    'model.backbone.in_chans': 'model.backbone.in_channels',
    'model.*.rpn*.nms_post': 'model.*.rpn*.max_per_img',
    'model.*': 'model.*',
    'optimizer.constructor': 'optim_wrapper.constructor',
    'optimizer.paramwise_cfg.num_layers': 'model.backbone.num_groups',
    'optimizer.paramwise_cfg.*': 'optim_wrapper.paramwise_cfg.*',
    'optimizer.*': 'optim_wrapper.optimizer.*',
    'lr_config.warmup': 'param_scheduler.0.type',
    'lr_config.warmup_ratio': 'param_scheduler.0.start_factor',
    'lr_config.warmup_iters': 'param_scheduler.0.end',
    'lr_config.policy': 'param_scheduler.1.type',
    'lr_config.step': 'param_scheduler.1.milestones',
    'lr_config.power': 'param_scheduler.1.power',
    'lr_config.min_lr': 'param_scheduler.1.eta_min',
    'lr_config.by_epoch': ('param_scheduler.0.by_epoch', 'param_scheduler.1.by_epoch'),
    'runner.max_epochs': ('train_cfg.max_epochs', 'param_scheduler.1.end'),
    'data.samples_per_gpu': ('train_dataloader.batch_size', 'auto_scale_lr.base_batch_size / 8 GPUs'),
    'data.train.pipeline.4.to_rgb': 'model.data_preprocessor.bgr_to_rgb',
    'data.train.pipeline.4.*': 'model.data_preprocessor.*',
    'data.train.pipeline.5.size_divisor': 'model.data_preprocessor.pad_size_divisor',
    'data.train.pipeline.*.flip_ratio': 'train_dataloader.dataset.pipeline.*.prob',
    'data.train.pipeline.*.policies.*.img_scale': 'train_dataloader.dataset.pipeline.*.transforms.*.scales',
    'data.train.pipeline.*.policies.*': 'train_dataloader.dataset.pipeline.*.transforms.*',
    'data.train.pipeline.*': 'train_dataloader.dataset.pipeline.*',
}
WORDS = {
    'ConvNeXt': 'convnext_backbone.ConvNeXt',
    'LearningRateDecayOptimizerConstructor': 'convnext_backbone.LayerDecayConstructor',
    'linear': 'LinearLR',
    'poly': 'PolyLR',
    'AutoAugment': 'RandomChoice',
    'Resize': 'RandomChoiceResize',
}
AMP = (
    "mixed precision is PyTorch's, not apex O1. The official configs of L and XL switch it off in "
    'optimizer_config.use_fp16, which is not among the values'
)
# Official name, official value, what we have in its place, and why.
EXCEPTIONS = [
    (
        'runner.type',
        'EpochBasedRunnerAmp',
        {'train_cfg.type': 'EpochBasedTrainLoop', 'optim_wrapper.type': 'AmpOptimWrapper'},
        AMP,
    ),
    (
        'runner.type',
        'IterBasedRunnerAmp',
        {'train_cfg.type': 'IterBasedTrainLoop', 'optim_wrapper.type': 'AmpOptimWrapper'},
        AMP,
    ),
    ('model.pretrained', None, {}, 'given on the command line there; here init_cfg names the weights'),
    ('model.*.nms_across_levels', False, {}, 'no option any more: RPNHead suppresses within each level'),
    ('data.train.pipeline.3.*.multiscale_mode', 'value', {}, 'what RandomChoiceResize does'),
    ('data.train.pipeline.3.*.override', True, {}, 'a second resize needs no permission any more'),
    ('data.train.pipeline.4.type', 'Normalize', {}, 'done by the data preprocessor'),
    ('data.train.pipeline.5.type', 'Pad', {}, 'done by the data preprocessor'),
    ('data.train.pipeline.6.type', 'DefaultFormatBundle', {}, 'part of PackDetInputs'),
    (
        'data.train.pipeline.7.type',
        'Collect',
        {'train_dataloader.dataset.pipeline.4.type': 'PackDetInputs'},
        'the last step, as the data preprocessor does two of the eight',
    ),
    (
        'data.train.pipeline.7.keys',
        ['img', 'gt_bboxes', 'gt_labels', 'gt_masks'],
        {},
        'PackDetInputs packs whatever the steps before it have loaded',
    ),
]
# Our name: why no official value stands beside it.
OURS_ALONE = {
    'model.backbone.arch': 'a name for depths and dims; those of the built backbone are compared',
    'model.backbone.init_cfg.*': 'the weights, see test_configs.py',
    'model.data_preprocessor.type': 'see the exceptions',
    'model.data_preprocessor.pad_mask': 'as Pad did',
}
# Our name: what the official configs take from mmdet and mmseg, see the last test.
OF_THE_LIBRARIES = {
    'detection': (
        'param_scheduler.*',
        'train_cfg.val_interval',
        'train_dataloader.batch_size',
        'auto_scale_lr.*',
    ),
    'segmentation': (
        'param_scheduler.*.begin',
        'param_scheduler.1.end',
        'train_cfg.max_iters',
        'train_cfg.val_interval',
        'train_dataloader.dataset.pipeline.*',
        'model.data_preprocessor.*',
    ),
}


def fits(pattern: str, name: str) -> re.Match | None:
    return re.fullmatch(re.escape(pattern).replace(r'\*', '(.*)'), name)


def flat(value, path: str = '') -> dict:
    """Dotted names; a list is one value unless there are dicts in it."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)) and dicts(value):
        items = enumerate(value)
    else:
        return {path: json.loads(json.dumps(value))}  # a tuple becomes a list
    return {k: v for key, child in items for k, v in flat(child, f'{path}.{key}' if path else key).items()}


def ours(official: str) -> str:
    """Our config for an official one."""
    task = 'segmentation' if official.startswith('upernet') else 'detection'
    return f'{task}/{official.removesuffix(MULTI_SCALE)}'


def read(name: str) -> Config:
    return read_config(f'{ROOT}/configs/{name}.py')


@functools.cache
def values_of_ours(official: str) -> dict:
    """What is compared of our config; of the backbone what it is when built, not what it is made from."""
    cfg = read(ours(official))
    if official.endswith(MULTI_SCALE):
        choose_views(cfg, tta=True)
        cfg.model = cfg.model.module
        for key in ('crop_size', 'stride'):  # of the sliding window, which mode='whole' does not have
            del cfg.model.test_cfg[key]
    values = flat({key: cfg[key] for key in ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg')})
    values |= flat(cfg.train_dataloader.dataset.pipeline, 'train_dataloader.dataset.pipeline')
    values['train_dataloader.batch_size'] = cfg.train_dataloader.batch_size
    values['auto_scale_lr.base_batch_size / 8 GPUs'] = cfg.auto_scale_lr.base_batch_size / 8
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    for key in ('depths', 'dims', 'in_channels', 'out_indices', 'num_groups'):
        values |= flat(getattr(backbone, key), f'model.backbone.{key}')
    return values


def translate(official: dict) -> tuple[dict, list[str]]:
    """Official values under our names; and a line for each that nothing reads or another contradicts."""
    found, lines = {}, []
    for key, value in flat(official).items():
        for pattern, excepted, instead, _ in EXCEPTIONS:
            if fits(pattern, key) and value == excepted:
                pairs = instead.items()
                break
        else:
            pattern = next((pattern for pattern in NAMES if fits(pattern, key)), None)
            if pattern is None:
                lines.append(f'official {key} = {value}: nothing here reads it')
                continue
            names = NAMES[pattern] if isinstance(NAMES[pattern], tuple) else (NAMES[pattern],)
            parts = fits(pattern, key).groups()
            value = WORDS.get(value, value) if isinstance(value, str) else value
            pairs = [(name.replace('*', '{}').format(*parts), value) for name in names]
        for name, expected in pairs:
            if found.setdefault(name, expected) != expected:
                lines.append(f'official {key} = {expected}: by another key {name} = {found[name]}')
    return found, lines


@pytest.mark.parametrize('official', OFFICIAL)
def test_config_has_every_official_value(official):
    expected, lines = translate(OFFICIAL[official])
    values = values_of_ours(official)
    for key, value in expected.items():
        if key not in values:
            lines.append(f'{key} = {value}, and ours has none')
        elif values[key] != value:
            lines.append(f'{key} = {value}, and ours is {values[key]}')
    known = (*OURS_ALONE, *OF_THE_LIBRARIES[ours(official).split('/')[0]])
    for key in values.keys() - expected.keys():
        if not any(fits(pattern, key) for pattern in known):
            lines.append(f'{key} = {values[key]} is ours alone')
    assert not lines, '\n'.join([f'{ours(official)} is not the official one:', *lines])


def spoilt(value) -> Iterator:
    """The value with a part of it changed, once for each part."""
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from ([*value[:i], other, *value[i + 1 :]] for other in spoilt(part))
        yield value[:-1]
    elif isinstance(value, str):
        yield value + 'x'
    else:
        yield not value if isinstance(value, bool) else (value or 0) + 1


@pytest.mark.parametrize('official', OFFICIAL)
def test_no_official_value_is_translated_away(official):
    for key, value in flat(OFFICIAL[official]).items():
        right = translate({key: value})
        assert all(translate({key: other}) != right for other in spoilt(value)), key


def test_tables_of_the_translation_have_no_idle_entry():
    values = [(key, value) for config in OFFICIAL.values() for key, value in flat(config).items()]
    assert {next((p for p in NAMES if fits(p, key)), None) for key, _ in values} - {None} == set(NAMES)
    assert set(WORDS) < {value for _, value in values if isinstance(value, str)}
    for pattern, excepted, _, why in EXCEPTIONS:
        assert why, pattern
        assert any(fits(pattern, key) and value == excepted for key, value in values), pattern
    have = {key for official in OFFICIAL for key in values_of_ours(official)}
    for pattern in [*OURS_ALONE, *(p for patterns in OF_THE_LIBRARIES.values() for p in patterns)]:
        assert any(fits(pattern, key) for key in have), pattern


def library(package, name: str) -> Config:
    return Config.fromfile(Path(package.__file__).parent / f'.mim/configs/_base_/{name}.py')


def names_of(task: str) -> list[str]:
    return sorted({ours(official) for official in OFFICIAL if ours(official).startswith(task)})


@pytest.mark.parametrize('name', names_of('detection'))
def test_config_has_what_the_official_ones_take_from_mmdet(name):
    """In its version 3, of which the names are ours: schedule but for its steps, data, tests."""
    cfg = read(name)
    schedule, data = library(mmdet, 'schedules/schedule_1x'), library(mmdet, 'datasets/coco_instance')
    warm_up, drops = schedule.param_scheduler
    assert cfg.param_scheduler == [warm_up, dict(drops, end=36, milestones=[27, 33])]
    assert cfg.train_cfg == dict(schedule.train_cfg, max_epochs=36)
    data.train_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline  # is official
    has_the_data(cfg, data)


@pytest.mark.parametrize(
    ('name', 'crop', 'dataset'),
    [
        *((name, 512, 'ade20k') for name in names_of('segmentation') if 'in22k' not in name),
        *((name, 640, 'ade20k_640x640') for name in names_of('segmentation') if 'in22k' in name),
    ],
)
def test_config_has_what_the_official_ones_take_from_mmseg(name, crop, dataset):
    """In its version 3, as above; crops are larger with weights from ImageNet-22K."""
    cfg = read(name)
    schedule, data = library(mmseg, 'schedules/schedule_160k'), library(mmseg, f'datasets/{dataset}')
    data.train_dataloader.batch_size = 2  # is official
    assert [(part.begin, part.end) for part in cfg.param_scheduler] == [(0, 1500), (0, 160000)]
    assert cfg.train_cfg == schedule.train_cfg
    preprocessor = library(mmseg, 'models/upernet_r50').data_preprocessor
    assert cfg.model.data_preprocessor == dict(preprocessor, size=(crop, crop))
    has_the_data(cfg, data)


def has_the_data(cfg: Config, data: Config) -> None:
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'):
        theirs = {k: v for k, v in flat(data[key]).items() if not k.endswith('backend_args')}
        assert flat(cfg[key]) == theirs, key
