"""Translates configs of mmdet 2.x and mmseg 0.x, and compares with what mmdet 3 and mmseg 1 ship.

Their authors have moved their own configs to the new form: that is what a translation of the old one has to
give. The old ones are in tests/data/old_configs; a model that did not change is taken from the new one.
"""

import copy
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS

from convnext_backbone.commands import swap
from convnext_backbone.errors import UserError
from convnext_backbone.measure import try_training
from convnext_backbone.swap.source import read_source, shipped_configs
from convnext_backbone.swap.translate import translated

OLD = ROOT / 'tests' / 'data' / 'old_configs'
MASK = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
CASCADE = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
TINY = 'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
UPER = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
# What every pair may differ in: defaults that are written or not, processes, the log.
SAME = re.compile(r'drop_last|format_only|num_workers|^log_processor\.(type|window_size)|log_metric_by_epoch')
VIEWS = {'auto_scale_lr', 'tta_model', 'tta_pipeline'}  # the old files have none
OURS = {  # of the authors' ConvNeXt: our backbone and constructor, weights by their released name
    'model.backbone.type': 'convnext_backbone.ConvNeXt',
    'model.backbone.gap_before_final_norm': None,
    'model.backbone.init_cfg': None,  # given by --cfg-options model.pretrained=... in the official code
    'optim_wrapper.constructor': 'convnext_backbone.LayerDecayConstructor',
    'optim_wrapper.paramwise_cfg.num_layers': None,  # the backbone knows it
}
VAL = ('val_dataloader', 'test_dataloader')
# (old config, shipped one, whether the model is the shipped one's, {key: ours where it differs}, why)
PAIRS = [
    ('retinanet_r50_fpn_1x_coco', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', False, {}),
    ('mask_rcnn_r50_fpn_1x_coco', MASK, True, {}),
    ('mask_rcnn_r50_fpn_1x_coco', CASCADE, True, {}),
    # the shipped one warms up longer, and leaves the scale of losses to its default
    (
        'cascade_mask_rcnn_convnext_tiny_3x',
        TINY,
        True,
        OURS | {'param_scheduler.0.end': 500, 'optim_wrapper.loss_scale': 'dynamic'},
    ),
    # steps are counted in epochs of 0.x, and both are half precision there
    (
        'retinanet_r50_fpn_90k_coco',
        'mmdet::retinanet/retinanet_r50_fpn_90k_coco.py',
        False,
        {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 512.0},
    ),
    (
        'retinanet_r50_fpn_crop640_50e_coco',
        'mmdet::nas_fpn/retinanet_r50_fpn_crop640-50e_coco.py',
        False,
        {},
    ),
    # an evaluation of one image; images of 640 pixels need no divisor; the rate's end as a share of its start
    (
        'yolox_s_8x8_300e_coco',
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        True,
        {f'{split}.batch_size': 1 for split in VAL}
        | {
            'model.data_preprocessor.pad_size_divisor': None,
            'param_scheduler.1.eta_min': None,
            'param_scheduler.1.eta_min_ratio': 0.05,
            'train_cfg.dynamic_intervals': [(285, 1)],
            'default_hooks.checkpoint.save_best': 'auto',
            'default_hooks.checkpoint.max_keep_ckpts': None,
        },
    ),
    # all images have 300 x 300 pixels, so how they are grouped does not matter; the hook counts classes
    (
        'ssd300_coco',
        'mmdet::ssd/ssd300_coco.py',
        True,
        {f'{split}.batch_size': 1 for split in VAL}
        | {
            'model.data_preprocessor.pad_size_divisor': None,
            'train_dataloader.batch_sampler': dict(type='AspectRatioBatchSampler'),
            'custom_hooks': [dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW')],
        },
    ),
    # the old data set leaves out no small boxes by itself
    (
        'faster_rcnn_r50_fpn_1x_voc0712',
        'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
        True,
        {f'train_dataloader.dataset.dataset.datasets.{i}.filter_cfg.bbox_min_size': None for i in range(2)},
    ),
    # a filter in an evaluation has no effect; the weights are named here, and not in this old file
    (
        'faster_rcnn_r50_fpn_1x_cityscapes',
        'mmdet::cityscapes/faster-rcnn_r50_fpn_1x_cityscapes.py',
        True,
        {f'{split}.dataset.filter_cfg': None for split in VAL} | {'load_from': None},
    ),
    (
        'pspnet_r50-d8_512x1024_40k_cityscapes',
        'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        False,
        {},
    ),
    (
        'upernet_r50_512x512_160k_ade20k',
        'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
        False,
        {},
    ),
    # the old rate falls from the first step on: see the test of the rates
    ('upernet_convnext_tiny_512_160k_ade20k', UPER, False, OURS | {'param_scheduler.1.begin': 0}),
    # pads the images to the size to which the preprocessor pads them anyway
    (
        'pspnet_r50-d8_512x512_20k_voc12aug',
        'mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py',
        False,
        {f'train_dataloader.dataset.datasets.{i}.pipeline': ... for i in range(2)},
    ),
]


def shipped(name: str) -> dict:
    package, _, file = name.partition('::')
    return Config.fromfile(shipped_configs(package)[file], import_custom_modules=False).to_dict()


def old_config(name: str, model: str = '', **more) -> Config:
    """An old config, with the model of a new one if that is named: its own keys of the model stay."""
    cfg = Config.fromfile(OLD / f'{name}.py').to_dict()
    cfg = {key: value for key, value in cfg.items() if not key.endswith('_pipeline')}  # variables of the file
    if model:
        new = shipped(model)['model']
        del new['data_preprocessor']
        own = cfg.get('model', {})
        keys = {
            key: own[key] for key in ('input_size', 'random_size_range', 'random_size_interval') if key in own
        }
        ours = {'backbone': own['backbone']} if own.get('backbone', {}).get('type') == 'ConvNeXt' else {}
        cfg['model'] = new | keys | ours
    return Config(cfg | more)


def differences(ours, theirs, place='') -> dict:
    """What differs, by dotted key: (ours, theirs); None stands for a key that is not there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = {**ours, **theirs}
        parts = [differences(ours.get(key), theirs.get(key), f'{place}.{key}'.lstrip('.')) for key in keys]
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        parts = [differences(*pair, f'{place}.{index}') for index, pair in enumerate(zip(ours, theirs))]
    else:
        return {} if ours == theirs else {place: (ours, theirs)}
    return {key: pair for part in parts for key, pair in part.items()}


@pytest.mark.parametrize(
    ('old', 'new', 'models', 'differing'), PAIRS, ids=[f'{p[0]}-{p[1][:12]}' for p in PAIRS]
)
def test_a_translation_is_the_config_that_is_shipped_now(old, new, models, differing):
    cfg, lines = translated(old_config(old, new if models else ''))
    there = shipped(new)
    ours = {key: value for key, value in cfg.to_dict().items() if key not in VIEWS}
    theirs = {key: value for key, value in there.items() if key in ours}
    assert {'model', 'param_scheduler', 'optim_wrapper', 'train_cfg', 'val_evaluator', 'env_cfg'} <= set(
        theirs
    )
    found = {key: pair for key, pair in differences(ours, theirs).items() if not SAME.search(key)}
    assert {
        key: ours if differing.get(key) is not ... else ... for key, (ours, _) in found.items()
    } == differing
    assert lines == []


# -- what no shipped config says ---------------------------------------------------------------

STEPS = 30  # of an epoch


def old_rates(config: dict, epochs: int, base: float = 1.0) -> list[float]:
    """By the definition of mmcv 1.x: a factor of the warm-up on the rate of the schedule at that step."""
    rates, end = [], epochs * STEPS
    warm = config.get('warmup_iters', 0) * (STEPS if config.get('warmup_by_epoch') else 1)
    for step in range(end):
        by_epoch = config.get('by_epoch', True)
        progress = (step // STEPS) / epochs if by_epoch else step / end
        low = config.get('min_lr', config.get('min_lr_ratio', 0) * base)
        if config['policy'] == 'step':
            rate = base * 0.1 ** sum(step // STEPS >= s for s in config['step'])
        elif config['policy'] == 'poly':
            rate = (base - low) * (1 - progress) ** config['power'] + low
        else:
            rate = low + 0.5 * (base - low) * (1 + math.cos(math.pi * progress))
        if step < warm:
            rest = {'linear': (1 - step / warm) * (1 - config['warmup_ratio'])}
            rate *= 1 - rest.get(config['warmup'], 1 - config['warmup_ratio'])
        rates.append(rate)
    return rates


def new_rates(schedule: list[dict], epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    built = []
    for entry in copy.deepcopy(schedule):
        cls = PARAM_SCHEDULERS.get(entry.pop('type'))
        make = cls
        if entry.pop('convert_to_iter_based', False):
            make, entry['epoch_length'] = cls.build_iter_from_epoch, STEPS
        built.append(make(optimizer, **entry))
    rates = []
    for step in range(epochs * STEPS):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in built:
            if not scheduler.by_epoch or (step + 1) % STEPS == 0:
                scheduler.step()
    return rates


WARM = dict(warmup='linear', warmup_iters=100, warmup_ratio=0.01)


@pytest.mark.parametrize(
    ('config', 'runner'),
    [
        (dict(policy='step', step=[6, 9], **WARM), 'Epoch'),
        (dict(policy='poly', power=0.9, min_lr=0.01, by_epoch=False, **WARM), 'Iter'),
        (dict(policy='poly', power=1.0, min_lr=0.0, by_epoch=False, **WARM), 'Epoch'),
        (dict(policy='CosineAnnealing', min_lr=0.05, **WARM), 'Epoch'),
        (dict(policy='CosineAnnealing', min_lr_ratio=0.05, by_epoch=False), 'Epoch'),
        (dict(policy='step', step=[8], **dict(WARM, warmup_iters=3, warmup_by_epoch=True)), 'Epoch'),
        (dict(policy='step', step=[8], **dict(WARM, warmup='constant')), 'Epoch'),
    ],
    ids=lambda value: value['policy'] if isinstance(value, dict) else value,
)
def test_learning_rates_are_the_old_ones_at_every_step(config, runner):
    length = dict(max_epochs=12) if runner == 'Epoch' else dict(max_iters=12 * STEPS)
    old = old_config(
        'retinanet_r50_fpn_1x_coco', lr_config=config, runner=dict(type=f'{runner}BasedRunner', **length)
    )
    cfg, lines = translated(old)
    # mmengine's warm-up and schedule end a step before the old ones: a hundredth of the rate here
    assert new_rates(cfg.to_dict()['param_scheduler'], 12) == pytest.approx(old_rates(config, 12), abs=0.014)
    assert lines == []


def pipeline_of(*steps, name: str = 'mask_rcnn_r50_fpn_1x_coco', **more) -> tuple[list, list[str], dict]:
    """What comes of steps in an old training pipeline, the lines, and the whole config."""
    cfg = old_config(name, MASK if name.startswith('mask') else '', **more)
    given = cfg.data.train.pipeline
    cfg.data.train.pipeline = [*given[:2], *steps, *given[-2:]]
    new, lines = translated(cfg)
    new = new.to_dict()
    return new['train_dataloader']['dataset']['pipeline'][2:-1], lines, new


def test_sizes_of_a_crop_keep_their_order_in_the_image():
    """Height and width were exchanged between the versions: the image is what counts."""
    for size, kind in (((30, 60), 'absolute'), ((0.3, 0.6), 'relative')):
        (step,), _, _ = pipeline_of(dict(type='RandomCrop', crop_size=size, crop_type=kind))
        with TRANSFORMS.switch_scope_and_registry('mmdet') as registry:
            results = dict(img=np.zeros((100, 100, 3), np.uint8), img_shape=(100, 100))
            assert registry.build(step)(results)['img'].shape[:2] == (30, 60)
    (step,), _, _ = pipeline_of(dict(type='RandomCrop', crop_size=(384, 600), crop_type='absolute_range'))
    assert step['crop_size'] == (384, 600)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (dict(img_scale=(640, 480)), dict(type='Resize', scale=(640, 480))),
        (dict(img_scale=[(640, 480)]), dict(type='Resize', scale=(640, 480))),
        (
            dict(img_scale=[(640, 480), (800, 600)], multiscale_mode='value'),
            dict(type='RandomChoiceResize', scales=[(640, 480), (800, 600)]),
        ),
        (
            dict(img_scale=[(640, 480), (800, 600)]),
            dict(type='RandomResize', scale=[(640, 480), (800, 600)]),
        ),
        (
            dict(img_scale=(640, 480), ratio_range=(0.5, 2)),
            dict(type='RandomResize', scale=(640, 480), ratio_range=(0.5, 2)),
        ),
        (
            dict(img_scale=(640, 480), bbox_clip_border=False),
            dict(type='Resize', scale=(640, 480), clip_object_border=False),
        ),
    ],
)
def test_forms_of_resizing(old, new):
    (step,), lines, _ = pipeline_of(dict(type='Resize', **old))
    assert step == dict(new, keep_ratio=True) and lines == []  # which is not the default any more


def test_settings_of_augmentations():
    albu = dict(
        type='Albu',
        transforms=[dict(type='HorizontalFlip')],
        bbox_params=dict(type='BboxParams', format='pascal_voc', label_fields=['gt_labels']),
        update_pad_shape=False,
    )
    found = [step for step in pipeline_of(albu)[0] if step['type'] == 'Albu']
    if found:  # else albumentations are not known to mmdet here
        assert found[0]['bbox_params']['label_fields'] == ['gt_bboxes_labels', 'gt_ignore_flags']
    steps, lines, _ = pipeline_of(
        dict(type='Mosaic', img_scale=(400, 600), pad_val=114.0),
        dict(type='RandomAffine', border=(-200, -300)),
        dict(type='RandomShift', shift_ratio=0.5),
        dict(type='Pad', size=(400, 600), pad_to_square=False),
        dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False),
        dict(type='Pad', size=(400, 600)),
    )
    assert steps == [
        dict(type='Mosaic', img_scale=(600, 400), pad_val=114.0),
        dict(type='RandomAffine', border=(-300, -200)),
        dict(type='RandomShift', prob=0.5),
        dict(type='Pad', size=(600, 400), pad_to_square=False),
    ]
    assert [line.partition('=')[0] for line in lines] == [
        f'data.{s}.pipeline.Normalize' for s in ('val', 'test')
    ]


def test_meta_keys_have_the_id_that_metrics_need():
    keys = ['filename', 'ori_shape', 'img_norm_cfg', 'scale_factor']
    cfg = old_config('mask_rcnn_r50_fpn_1x_coco', MASK)
    cfg.data.test.pipeline[1].transforms[-1].meta_keys = keys
    step = translated(cfg)[0].test_dataloader.dataset.pipeline[-1]
    assert step.meta_keys == ('img_id', 'img_path', 'ori_shape', 'scale_factor')


def test_several_views_of_an_image_become_test_time_augmentation():
    cfg = old_config('upernet_r50_512x512_160k_ade20k')
    cfg.data.test.pipeline[1].update(img_ratios=[0.5, 1.75], flip=True)
    new, lines = translated(cfg)
    assert new.test_dataloader == new.val_dataloader  # one view
    sizes, flips, *rest = new.tta_pipeline[1].transforms
    assert [size.scale for size in sizes] == [(1024, 256), (3584, 896)]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert [step[0].type for step in rest] == ['LoadAnnotations', 'PackSegInputs']
    assert new.tta_model == dict(type='SegTTAModel')
    assert len(lines) == 1 and lines[0].startswith("data.test.pipeline.MultiScaleFlipAug='2 sizes")


def test_optimizer_precision_and_averages():
    new, lines = translated(
        old_config(
            'retinanet_r50_fpn_1x_coco',
            optimizer_config=dict(
                type='GradientCumulativeFp16OptimizerHook',
                cumulative_iters=4,
                grad_clip=dict(max_norm=35, norm_type=2),
                loss_scale=128.0,
            ),
            custom_hooks=[dict(type='ExpMomentumEMAHook', total_iter=500, momentum=0.001, priority=49)],
            log_config=dict(interval=10, hooks=[dict(type='TensorboardLoggerHook')]),
            evaluation=dict(interval=2, metric='bbox', save_best='bbox_mAP', classwise=True),
            checkpoint_config=dict(interval=3, max_keep_ckpts=2, create_symlink=False),
            resume_from='epoch_3.pth',
            seed=7,
            cudnn_benchmark=True,
        )
    )
    assert new.optim_wrapper == dict(
        type='AmpOptimWrapper',
        loss_scale=128.0,
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
        clip_grad=dict(max_norm=35, norm_type=2),
        accumulative_counts=4,
    )
    average = dict(ema_type='ExpMomentumEMA', momentum=0.001, gamma=500, update_buffers=True, priority=49)
    assert new.custom_hooks == [dict(type='EMAHook', **average)]
    assert [backend.type for backend in new.visualizer.vis_backends] == [
        'LocalVisBackend',
        'TensorboardVisBackend',
    ]
    checkpoint = dict(interval=3, max_keep_ckpts=2, save_best='coco/bbox_mAP')
    assert new.default_hooks.checkpoint == dict(type='CheckpointHook', **checkpoint)
    assert new.default_hooks.logger.interval == 10 and new.val_evaluator.classwise
    assert (new.load_from, new.resume, new.randomness.seed) == ('epoch_3.pth', True, 7)
    assert new.env_cfg.cudnn_benchmark and lines == []


# -- what has no counterpart -------------------------------------------------------------------

UNTRANSLATABLE = {  # key at the beginning of the line: what is set
    'momentum_config': dict(momentum_config=dict(policy='cyclic')),
    'gpu_ids': dict(gpu_ids=[0, 3]),
    'workflow': dict(workflow=[('train', 2), ('val', 1)]),
    'custom_hooks': dict(custom_hooks=[dict(type='MyHook', every=3)]),
    'custom_hooks.EMAHook.warm_up': dict(custom_hooks=[dict(type='EMAHook', warm_up=20)]),
    'lr_config.warmup': dict(lr_config=dict(policy='step', step=[8], warmup='exp', warmup_iters=9)),
    'lr_config.policy': dict(lr_config=dict(policy='cyclic', target_ratio=10)),
    'lr_config.min_lr': dict(lr_config=dict(policy='step', step=[8], min_lr=1e-5)),
    'log_config.hooks': dict(log_config=dict(hooks=[dict(type='DvcliveLoggerHook')])),
    'optimizer_config.type': dict(optimizer_config=dict(type='MyOptimizerHook')),
    'optimizer': dict(optimizer=dict(backbone=dict(type='SGD', lr=1), neck=dict(type='SGD', lr=1))),
    'runner.type': dict(runner=dict(type='MyRunner', max_epochs=3)),
    'runner': dict(runner=dict(type='EpochBasedRunner')),
    'evaluation.metric': dict(evaluation=dict(metric=['bbox', 'mine'])),
    'dist_params.port': dict(dist_params=dict(backend='nccl', port=29515)),
    'custom_imports.imports': dict(custom_imports=dict(imports=['torch'], allow_failed_imports=True)),
    'my_setting': dict(my_setting=dict(unheard=1)),
}


@pytest.mark.parametrize('key', UNTRANSLATABLE)
def test_what_has_no_counterpart_is_named(key):
    _, lines = translated(old_config('retinanet_r50_fpn_1x_coco', **UNTRANSLATABLE[key]))
    assert any(line.startswith(f'{key}=') and ': ' in line for line in lines), lines


@pytest.mark.parametrize(
    ('key', 'step'),
    [
        ('MyTransform', dict(type='MyTransform', strength=3)),
        ('Resize.ratio_range', dict(type='Resize', ratio_range=(0.5, 2))),
        ('Resize.min_size', dict(type='Resize', img_scale=(640, 480), min_size=512)),
        ('RandomFlip.nobody', dict(type='RandomFlip', flip_ratio=0.5, nobody=1)),
    ],
)
def test_steps_without_counterpart_are_named(key, step):
    _, lines, _ = pipeline_of(step)
    assert [line.partition('=')[0] for line in lines] == [f'data.train.pipeline.{key}']


def test_a_step_behind_the_normalisation_is_named():
    cfg = old_config('retinanet_r50_fpn_1x_coco')
    cfg.data.train.pipeline.insert(6, dict(type='CutOut', n_holes=2, cutout_shape=(8, 8)))
    assert translated(cfg)[1][0].startswith('data.train.pipeline.CutOut=')


DONE_ELSEWHERE = {  # whose arguments are all known: what does their work now has the same
    *(
        'Normalize',
        'Pad',
        'DefaultFormatBundle',
        'ImageToTensor',
        'Collect',
        'MultiScaleFlipAug',
        'RandomFlip',
    ),
    *('TextLoggerHook', 'SyncNormHook', 'NumClassCheckHook'),
}


@pytest.mark.parametrize('name', ['yolox_s_8x8_300e_coco', 'pspnet_r50-d8_512x512_20k_voc12aug'])
def test_nothing_is_lost_in_silence(name):
    """A setting that no version knows, in every old dict: each is there afterwards, or in a line."""
    cfg, marks = old_config(name).to_dict(), []

    def mark(node, place):
        if isinstance(node, dict):
            for key, value in list(node.items()):
                mark(value, f'{place}.{key}')
            if node.get('type') not in DONE_ELSEWHERE:
                marks.append(f'mark_{len(marks)}')
                node[marks[-1]] = 'here'
        elif isinstance(node, (list, tuple)):
            for index, value in enumerate(node):
                mark(value, f'{place}.{index}')

    given = ('data', 'optimizer', 'optimizer_config', 'lr_config', 'runner', 'evaluation', 'log_config')
    for key in (*given, 'checkpoint_config', 'custom_hooks'):
        mark(cfg.get(key), key)
    new, lines = translated(Config(cfg))
    text = f'{new.to_dict()} {lines}'
    gone = [name for name in marks if not re.search(rf'\b{name}\b', text)]
    assert len(marks) >= 20 and gone == []


# -- the whole swap ----------------------------------------------------------------------------

WHOLE = [
    ('retinanet_r50_fpn_1x_coco', '', 'atto', 'paper'),
    *[
        pytest.param(*row, marks=pytest.mark.slow)
        for row in [
            ('upernet_convnext_tiny_512_160k_ade20k', '', 'tiny', 'keep'),
            ('mask_rcnn_r50_fpn_1x_coco', MASK, 'atto', 'paper'),
            ('mask_rcnn_r50_fpn_1x_coco', CASCADE, 'atto', 'keep'),
            ('pspnet_r50-d8_512x1024_40k_cityscapes', '', 'atto', 'paper'),
            ('upernet_r50_512x512_160k_ade20k', '', 'atto', 'paper'),
            ('cascade_mask_rcnn_convnext_tiny_3x', TINY, 'tiny', 'paper'),
            ('yolox_s_8x8_300e_coco', '', 'atto', 'paper'),
            ('ssd300_coco', 'mmdet::ssd/ssd300_coco.py', 'atto', 'paper'),
        ]
    ],
]


@pytest.mark.parametrize(('name', 'model', 'arch', 'recipe'), WHOLE)
def test_an_old_config_is_swapped_and_trains(tmp_path, capsys, name, model, arch, recipe):
    old, out = tmp_path / 'old.py', tmp_path / 'new.py'
    old_config(name, model, gpu_ids=[1]).dump(old)
    swap.main([str(old), '--arch', arch, '--recipe', recipe, '--out', str(out)])
    printed, text = capsys.readouterr().out, out.read_text()
    assert 'all finite, a gradient everywhere' in printed
    assert '_base_ =' not in text and 'gpu_ids=[1]: choose by CUDA_VISIBLE_DEVICES' in ' '.join(text.split())
    assert max(map(len, text.splitlines())) <= 110
    new, source = Config.fromfile(out, import_custom_modules=False), read_source(old)
    assert new.model.backbone.type == 'convnext_backbone.ConvNeXt' and new.model.backbone.arch == arch
    assert new.train_dataloader == source.cfg.train_dataloader  # nothing else changed
    size = source.cfg.model.data_preprocessor.get('size')
    assert new.model.data_preprocessor.get('size') == size
    assert ('LayerDecayConstructor' in text) == (recipe == 'paper' or 'convnext' in name)


def test_a_training_step_leaves_the_config_as_it_is():
    cfg = translated(old_config('pspnet_r50-d8_512x1024_40k_cityscapes'))[0]
    cfg.model.backbone = dict(type='convnext_backbone.ConvNeXt', arch='atto')
    cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = 320, 160
    before = copy.deepcopy(cfg.to_dict())
    try_training(cfg)
    assert cfg.to_dict() == before


def test_an_old_config_that_nothing_can_be_made_of_is_one_line(tmp_path):
    old = tmp_path / 'old.py'
    old_config('retinanet_r50_fpn_1x_coco', data=dict(train=dict(type='CocoDataset', pipeline=3))).dump(old)
    with pytest.raises(UserError, match='mmdet 2.x or mmseg 0.x that could not be translated: TypeError'):
        read_source(old)
