"""Wrong settings, unknown types, older configs, other libraries' backbones: named, with what is right.

The other direction counts as much: what mmdet, mmseg and our own configs say is never an error.
"""

import copy
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tool
from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_backbone.backbones.convnext import ARCHITECTURES
from convnext_backbone.checkpoint.zoo import RELEASED
from convnext_backbone.checks.types import check_types
from convnext_backbone.checks.values import check_values
from convnext_backbone.config import read_config
from convnext_backbone.config.foreign import foreign_backbones, released_name
from convnext_backbone.config.legacy import TOP, check_legacy, own_values
from convnext_backbone.errors import UserError, message, report_build_errors
from convnext_backbone.findings import Findings

pytestmark = pytest.mark.xdist_group('values')  # importing mmdet and mmseg in one process is enough

NAN, INF = float('nan'), float('inf')
DET, SEG, CLS = 'mask_rcnn_shapes', 'upernet_shapes', 'classifier_shapes'
EPOCHS = 'mask_rcnn_convnext_t'  # trains by epochs: 36 of them
DATA = 'train_dataloader.dataset'


@cache
def _read(name: str) -> Config:
    return read_config(name)


def changed(name: str, changes: dict) -> Config:
    """A config of ours with entries changed or added, by their dotted names."""
    cfg = copy.deepcopy(_read(name))
    for dotted, value in changes.items():
        *path, last = dotted.split('.')
        node = cfg
        for part in path:
            if isinstance(node, list):
                node = node[int(part)]
            elif part not in node or node[part] is None:
                node[part] = {}
                node = node[part]
            else:
                node = node[part]
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    return cfg


def found(name: str, changes: dict, check=check_values) -> Findings:
    findings = Findings()
    check(changed(name, changes), findings)
    return findings


# config, key, wrong values, what the message says beside key and value, values that are right
RULES = [
    (
        SEG,
        'train_cfg.max_iters',
        [0, -5, 1.5, '100', None, NAN, INF, True],
        ['whole number', '1'],
        [1, 100.0],
    ),
    (EPOCHS, 'train_cfg.max_epochs', [0, -1, 0.5, '12', None, [12]], ['whole number', '1'], [12]),
    (SEG, 'train_cfg.val_interval', [0, -1, 'x', None], ['whole number', '1'], [1, 10**9]),
    (SEG, 'train_cfg.val_begin', [-1, 'x'], ['whole number', '0'], [0, 5]),
    (SEG, 'train_cfg.dynamic_intervals', [5, [3], [(1, 0)]], ['(from, interval)'], [[(2, 1)]]),
    (SEG, 'train_dataloader.batch_size', [0, -2, 2.5, '2', None], ['whole number', '1'], [1, 64]),
    (SEG, 'val_dataloader.batch_size', [0], ['whole number', '1'], [1]),
    (SEG, 'train_dataloader.num_workers', [-1, 1.5, '4'], ['whole number', '0'], [4]),
    (SEG, 'train_dataloader.drop_last', ['yes', 2], ['True or False'], [True]),
    (
        SEG,
        'default_hooks.checkpoint.interval',
        [0, '1', 2.5, None],
        ['at least 1', '-1 writes none'],
        [1, -1],
    ),
    (
        SEG,
        'default_hooks.checkpoint.max_keep_ckpts',
        [0, 'all', 1.5],
        ['at least 1', '-1 keeps all'],
        [3, -1],
    ),
    (SEG, 'default_hooks.checkpoint.rule', ['bigger'], ['greater', 'less'], ['greater', None]),
    (SEG, 'default_hooks.logger.interval', [0, -1, 2.5, 'x'], ['whole number', '1'], [50]),
    (SEG, 'default_hooks.hang.timeout', [0, -1], ['above 0'], [60]),
    (SEG, 'log_level', ['LOUD', 'info', None], ['DEBUG', 'INFO', 'WARNING'], ['INFO', 'DEBUG', 20]),
    (SEG, 'randomness.seed', [-1, 1.5, '0', 2**32, True], ['whole number', 'None'], [0, 42, None]),
    (SEG, 'randomness.deterministic', ['yes', 1], ['True or False'], [True]),
    (SEG, 'optim_wrapper.optimizer.lr', [0, -1e-4, NAN, INF, '1e-4', None], ['above 0'], [1e-4, 1]),
    (SEG, 'optim_wrapper.optimizer.weight_decay', [-0.05, '0.05', NAN], ['at least 0'], [0, 0.05]),
    (SEG, 'optim_wrapper.optimizer.betas', [0.9, (0.9,), (0.9, 1.0), ('a', 'b')], ['[0, 1)'], [(0.9, 0.999)]),
    (SEG, 'optim_wrapper.optimizer.momentum', [1.0, -0.1, '0.9'], ['[0, 1)'], [0, 0.9]),
    (SEG, 'optim_wrapper.clip_grad.max_norm', [0, -1, '1', NAN, None], ['above 0'], [0.1, 35]),
    (SEG, 'optim_wrapper.accumulative_counts', [0, -1, 1.5, '2', 'all'], ["'auto'"], [1, 4, 'auto']),
    (SEG, 'optim_wrapper.loss_scale', [0, 'dynamical', -1], ["'dynamic'"], ['dynamic', 512.0]),
    (SEG, 'optim_wrapper.dtype', ['half', 'fp16'], ['bfloat16'], ['bfloat16', None]),
    (SEG, 'optim_wrapper.paramwise_cfg.decay_rate', [0, 1.1, '0.9'], ['(0, 1]'], [0.9, 1.0]),
    (
        SEG,
        'optim_wrapper.paramwise_cfg.decay_type',
        ['layerwise'],
        ['layer_wise'],
        ['stage_wise', 'block_wise'],
    ),
    (SEG, 'param_scheduler.0.begin', [-1, 'x', 0.5], ['whole number', '0'], [0]),
    (SEG, 'param_scheduler.0.end', [0, -3, 'x'], ['whole number'], [2]),
    (SEG, 'param_scheduler.0.start_factor', [-0.1, 1.5, NAN, '0.1'], ['[0, 1]'], [0, 1e-6, 1]),
    (SEG, 'param_scheduler.0.gamma', [0, -1], ['above 0'], [0.1]),
    (SEG, 'param_scheduler.0.T_max', [0, 1.5], ['whole number'], [10]),
    (SEG, 'param_scheduler.0.eta_min', [-1], ['at least 0'], [0, 1e-6]),
    (SEG, 'param_scheduler.0.milestones', [[8, 3], [], 8, ['8']], ['ascending'], [[8, 11]]),
    (DET, 'model.test_cfg.rcnn.score_thr', [-0.1, 1.5, '0.05', NAN, None], ['[0, 1]'], [0, 0.05, 1]),
    (DET, 'model.test_cfg.rcnn.nms.iou_threshold', [-0.5, 50, '0.5'], ['[0, 1]'], [0.5]),
    (DET, 'model.test_cfg.rcnn.max_per_img', [-2, 1.5, 'all'], ['whole number'], [100, -1]),
    (DET, 'model.train_cfg.rpn.assigner.pos_iou_thr', [1.2, -1, '0.7'], ['[0, 1]'], [0.7]),
    (DET, 'model.train_cfg.rpn.assigner.neg_iou_thr', [1.2, (0.3, 7)], ['[0, 1]'], [0.3, (0.3, 0.7)]),
    (DET, 'model.train_cfg.rpn.assigner.min_pos_iou', [-1, 2], ['[0, 1]'], [0.3]),
    (DET, 'model.train_cfg.rpn.sampler.pos_fraction', [25, -0.5], ['[0, 1]'], [0.25]),
    (DET, 'model.rpn_head.anchor_generator.strides', [[0, 8], [-4], 'x'], ['above 0'], [[4, 8, 16, 32, 64]]),
    (DET, 'model.backbone.drop_path_rate', [1, 1.5, -0.1, '0.4', NAN], ['[0, 1)'], [0, 0.4]),
    (DET, 'model.backbone.layer_scale_init_value', [-1, 'x', NAN], ['at least 0', 'None'], [1e-6, None, 0]),
    (DET, 'model.roi_head.bbox_head.num_classes', [0, -1, 2.5, '3', None], ['whole number', '1'], [3]),
    (DET, 'model.roi_head.bbox_head.loss_cls.loss_weight', [NAN, INF, '1', None], ['finite'], [0, 1.0]),
    (DET, 'model.data_preprocessor.std', [[1, 1], [1, 0, 1], [1, -1, 1], 'x'], ['std'], [[58.4, 57.1, 57.4]]),
    (DET, 'model.data_preprocessor.mean', [[0, 0], ['a'], [NAN, 0, 0]], ['mean'], [[0, 0, 0]]),
    (DET, 'model.data_preprocessor.pad_size_divisor', [0, -32, 1.5], ['whole number'], [1, 32]),
    (SEG, 'model.decode_head.dropout_ratio', [1.5, '0.1'], ['[-1, 1]'], [0.1, -1]),
    (SEG, 'model.test_cfg.mode', ['slides', 'full'], ['whole', 'slide'], ['whole']),
    (CLS, 'model.label_smoothing', [1.0, -0.1, '0.1'], ['[0, 1)'], [0.1]),
    (DET, 'auto_scale_lr.base_batch_size', [0, -16, 1.5], ['whole number'], [16]),
    (DET, 'val_evaluator.metric', ['bboxes', ['bbox', 'mask']], ['bbox', 'segm'], ['bbox', ['bbox', 'segm']]),
    (SEG, 'val_evaluator.iou_metrics', ['miou', ['mIoU', 'iou']], ['mIoU', 'mDice'], [['mIoU', 'mDice']]),
    (SEG, 'env_cfg.mp_cfg.mp_start_method', ['threads'], ['fork', 'spawn'], ['fork']),
    (SEG, 'find_unused_parameters', ['maybe'], ['True or False'], [True]),
    (SEG, 'log_processor.window_size', [0, 'x'], ['whole number'], [10]),
    (CLS, f'{DATA}.transform.re_prob', [-1, 2, '0.25'], ['[0, 1]'], [0.25]),
    (CLS, f'{DATA}.transform.input_size', [0, -1, 'x', 1.5], ['whole number'], [224]),
]
STEPS = {  # of a pipeline: type, argument, wrong values, what the message says, right values
    'flip': ('RandomFlip', 'prob', [1.5, -0.1, 'x', [0.9, 0.3]], '1', [0.5, [0.5, 0.3]]),
    'resize': (
        'Resize',
        'scale',
        [(0, 800), (1333, -800), '1333', (1, 2, 3), NAN],
        'scale',
        [(1333, 800), 512],
    ),
    'choice': ('RandomChoiceResize', 'scales', [[0], [(480, 0)], 'x', []], 'above 0', [[(480, 1333)]]),
    'ratio': ('RandomResize', 'ratio_range', [(0, 2), (2.0, 0.5), (1,), 'x'], 'ratio_range', [(0.5, 2.0)]),
    'crop': ('RandomCrop', 'crop_size', [0, (0, 512), (-1, 5), '512'], 'above 0', [(512, 512), 64]),
    'cat': ('RandomCrop', 'cat_max_ratio', [0, 1.5, '0.75'], '(0, 1]', [0.75, 1.0]),
    'std': ('Normalize', 'std', [[1, 2], [0, 1, 1], 'x'], 'std', [[1, 1, 1]]),
    'interpolation': ('Resize', 'interpolation', ['linear', None], 'bilinear', ['bicubic']),
    'keep': ('Resize', 'keep_ratio', ['yes', 1], 'True or False', [True]),
}
HOOKS = [
    ('EMAHook', 'momentum', [0, 1, 1.5, -0.1, '0.1', NAN], '(0, 1)', [0.0001, 0.3]),
    ('EMAHook', 'interval', [0, 1.5], 'whole number', [1]),
    ('EMAHook', 'begin_iter', [-1, 'x'], 'whole number', [0]),
    ('EarlyStoppingHook', 'patience', [-1, 1.5], 'whole number', [5]),
    ('EMAHook', 'priority', ['TOP', 101, -1], '', ['VERY_LOW', 49]),
]


def wrong_values():
    for name, key, wrong, says, _ in RULES:
        for value in wrong:
            yield pytest.param(name, {key: value}, key, says, id=f'{key}={value!r}')
    for kind, key, wrong, says, _ in STEPS.values():
        for value in wrong:
            step = (
                {'type': kind, 'mean': [0, 0, 0], key: value} if key == 'std' else {'type': kind, key: value}
            )
            where = f'{DATA}.pipeline.0.{key}'
            yield pytest.param(SEG, {f'{DATA}.pipeline': [step]}, where, [says], id=f'{kind}.{key}={value!r}')
    for kind, key, wrong, says, _ in HOOKS:
        for value in wrong:
            change = {'custom_hooks': [{'type': kind, key: value}]}
            yield pytest.param(SEG, change, f'custom_hooks.0.{key}', [says], id=f'{kind}.{key}={value!r}')


def right_values():
    for name, key, _, _, right in RULES:
        for value in right:
            yield pytest.param(name, {key: value}, id=f'{key}={value!r}')
    for kind, key, _, _, right in STEPS.values():
        for value in right:
            step = (
                {'type': kind, 'mean': [0, 0, 0], key: value} if key == 'std' else {'type': kind, key: value}
            )
            yield pytest.param(SEG, {f'{DATA}.pipeline': [step]}, id=f'{kind}.{key}={value!r}')
    for kind, key, _, _, right in HOOKS:
        for value in right:
            change = {'custom_hooks': [{'type': kind, key: value}]}
            yield pytest.param(SEG, change, id=f'{kind}.{key}={value!r}')


@pytest.mark.parametrize(('name', 'changes', 'key', 'says'), wrong_values())
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(name, changes, key, says):
    errors = found(name, changes).of('error')
    named = [error for error in errors if error.where == key or error.where.startswith(f'{key}.')]
    if key.endswith('.mean'):  # as many as std has is said of std
        named = [error for error in errors if error.where.startswith(key.removesuffix('mean'))]
    assert named, [str(error) for error in errors]
    value = changes.get(key, MISSING)
    texts = ' '.join(map(str, named))
    if value is not MISSING and not isinstance(value, (list, tuple)) and value is not None:
        assert repr(value).strip('"\'')[:40] in texts
    assert all(word in texts for word in says), texts
    assert '\n' not in texts
    assert all(error.kind == 'value' for error in named)


MISSING = object()


@pytest.mark.parametrize(('name', 'changes'), right_values())
def test_a_right_value_is_no_error(name, changes):
    assert [str(error) for error in found(name, changes).of('error')] == []


# config, changes, level, key, words of the message, changes that make it right
TOGETHER = {
    'persistent workers': (
        SEG,
        {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': True},
        'error',
        'train_dataloader.persistent_workers',
        'num_workers=0',
        {'train_dataloader.persistent_workers': False},
    ),
    'prefetch': (
        SEG,
        {
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
            'val_dataloader.prefetch_factor': 4,
        },
        'error',
        'val_dataloader.prefetch_factor',
        'None',
        {'val_dataloader.prefetch_factor': None},
    ),
    'end before begin': (
        SEG,
        {'param_scheduler': [dict(type='LinearLR', by_epoch=False, begin=10, end=5)]},
        'error',
        'param_scheduler.0.end',
        'begin=10',
        {'param_scheduler': [dict(type='ConstantLR', by_epoch=False, begin=1, end=5)]},
    ),
    'begin beyond the end': (
        EPOCHS,
        {'param_scheduler': [dict(type='CosineAnnealingLR', begin=40, end=50)]},
        'warning',
        'param_scheduler.0.begin',
        'ends at 36 epochs',
        {'param_scheduler': [dict(type='CosineAnnealingLR', begin=0, end=36)]},
    ),
    'schedule too short': (
        EPOCHS,
        {'param_scheduler': [dict(type='CosineAnnealingLR', end=12)]},
        'warning',
        'param_scheduler.0.end',
        '36 epochs',
        {'param_scheduler': [dict(type='CosineAnnealingLR', end=36)]},
    ),
    'schedule too long': (
        EPOCHS,
        {'param_scheduler': [dict(type='PolyLR', end=100)]},
        'warning',
        'param_scheduler.0.end',
        '36 epochs',
        {'param_scheduler': [dict(type='PolyLR', end=36)]},
    ),
    'milestones beyond the end': (
        EPOCHS,
        {'train_cfg.max_epochs': 12},
        'warning',
        'param_scheduler.1.milestones',
        '27, 33',
        {'param_scheduler.1.milestones': [8, 11]},
    ),
    'schedule by epoch in iterations': (
        SEG,
        {'param_scheduler': [dict(type='MultiStepLR', milestones=[8])]},
        'warning',
        'param_scheduler.0.by_epoch',
        'by_epoch=False',
        {'param_scheduler': [dict(type='MultiStepLR', milestones=[8], by_epoch=False)]},
    ),
    'epochs in a loop of iterations': (
        SEG,
        {'train_cfg.max_epochs': 12},
        'error',
        'train_cfg.max_epochs',
        '_delete_=True',
        {'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=12)},
    ),
    'no length': (
        EPOCHS,
        {'train_cfg': dict(type='EpochBasedTrainLoop')},
        'error',
        'train_cfg.max_epochs',
        'missing',
        {'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=36)},
    ),
    'class weights': (
        SEG,
        {'model.decode_head.loss_decode.class_weight': [1.0, 2.0]},
        'error',
        'model.decode_head.loss_decode.class_weight',
        'num_classes',
        {'model.decode_head.loss_decode.class_weight': None},
    ),
    'negative class weight': (
        DET,
        {'model.roi_head.bbox_head.loss_cls.class_weight': [1.0, -1.0, 1.0, 1.0, 1.0, 1.0]},
        'error',
        'model.roi_head.bbox_head.loss_cls.class_weight',
        'at least 0',
        {'model.roi_head.bbox_head.loss_cls.class_weight': [1.0] * 6},
    ),
    'a constant rate after the warm-up': (
        EPOCHS,
        {'param_scheduler': [dict(type='LinearLR', end=2), dict(type='PolyLR', begin=2, end=12)]},
        'warning',
        'param_scheduler.1.end',
        'goes on to 36 epochs',
        {'param_scheduler': [dict(type='LinearLR', end=2)]},
    ),
    'flips': (
        SEG,
        {
            f'{DATA}.pipeline': [
                dict(type='RandomFlip', prob=[0.7, 0.7], direction=['horizontal', 'vertical'])
            ]
        },
        'error',
        f'{DATA}.pipeline.0.prob',
        'sum',
        {
            f'{DATA}.pipeline': [
                dict(type='RandomFlip', prob=[0.5, 0.5], direction=['horizontal', 'vertical'])
            ]
        },
    ),
    'window': (
        SEG,
        {'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(96, 96))},
        'error',
        'model.test_cfg.stride',
        'crop_size=(64, 64)',
        {'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(42, 42))},
    ),
    'window without size': (
        SEG,
        {'model.test_cfg': dict(mode='slide')},
        'error',
        'model.test_cfg.crop_size',
        'missing',
        {'model.test_cfg': dict(mode='whole')},
    ),
    'mean without std': (
        DET,
        {'model.data_preprocessor': dict(type='DetDataPreprocessor', mean=[0, 0, 0])},
        'error',
        'model.data_preprocessor.std',
        'mean',
        {'model.data_preprocessor': dict(type='DetDataPreprocessor', mean=[0, 0, 0], std=[1, 1, 1])},
    ),
    'decay as momentum': (
        SEG,
        {'custom_hooks': [dict(type='EMAHook', momentum=0.9999)]},
        'warning',
        'custom_hooks.0.momentum',
        '0.0001',
        {'custom_hooks': [dict(type='EMAHook', momentum=0.0001)]},
    ),
    'clipping without a norm': (
        SEG,
        {'optim_wrapper.clip_grad': dict(norm_type=2)},
        'error',
        'optim_wrapper.clip_grad.max_norm',
        'clip_grad=None',
        {'optim_wrapper.clip_grad': dict(type='value', clip_value=0.5)},
    ),
    'negative loss weight': (
        DET,
        {'model.rpn_head.loss_cls.loss_weight': -1.0},
        'warning',
        'model.rpn_head.loss_cls.loss_weight',
        'negative',
        {'model.rpn_head.loss_cls.loss_weight': 1.0},
    ),
    'text for a truth value': (
        SEG,
        {'model.backbone.with_cp': 'False'},
        'error',
        'model.backbone.with_cp',
        'without quotes',
        {'model.backbone.with_cp': False},
    ),
    'nan anywhere': (
        SEG,
        {'model.decode_head.align_corners': NAN},
        'error',
        'model.decode_head.align_corners',
        'nan',
        {'model.decode_head.align_corners': False},
    ),
}


@pytest.mark.parametrize('case', TOGETHER)
def test_settings_that_do_not_go_together(case):
    name, changes, level, key, words, repaired = TOGETHER[case]
    named = [str(finding) for finding in found(name, changes).of(level) if finding.where == key]
    assert named, [str(finding) for finding in found(name, changes)]
    assert words in ' '.join(named)
    assert [str(f) for f in found(name, {**changes, **repaired}) if f.where == key] == []


def test_what_is_text_says_what_to_write():
    (error,) = found(SEG, {'train_dataloader.batch_size': '8'}).of('error')
    assert error.where == 'train_dataloader.batch_size'
    assert error.text == "got the text '8', needs a whole number of at least 1: write 8 without quotes"
    (error,) = found(SEG, {'log_level': 'info'}).of('error')
    assert str(error).endswith("did you mean 'INFO'?")


def test_all_wrong_settings_are_found_at_once():
    changes = {'train_dataloader.batch_size': 0, 'log_level': 'LOUD', 'optim_wrapper.optimizer.lr': -1}
    assert {error.where for error in found(SEG, changes).of('error')} == set(changes)


# config, key, a name that is not there, the one that is meant
TYPES = [
    (DET, 'train_dataloader.sampler.type', 'InfinteSampler', 'InfiniteSampler'),
    (DET, 'train_dataloader.batch_sampler.type', 'AspectRatioBatchSamplr', 'AspectRatioBatchSampler'),
    (DET, f'{DATA}.type', 'CoCoDataset', 'CocoDataset'),
    (DET, f'{DATA}.pipeline.0.type', 'LoadImageFromFiles', 'LoadImageFromFile'),
    (DET, f'{DATA}.pipeline.0.type', 'convnext_backbone.LoadImages', 'convnext_backbone.LoadImage'),
    (DET, 'train_cfg.type', 'IterBasedTrainingLoop', 'IterBasedTrainLoop'),
    (DET, 'optim_wrapper.type', 'OptimWraper', 'OptimWrapper'),
    (DET, 'optim_wrapper.optimizer.type', 'ADAMW', 'AdamW'),
    (
        DET,
        'optim_wrapper.constructor',
        'convnext_backbone.LayerDecay',
        'convnext_backbone.LayerDecayConstructor',
    ),
    (DET, 'param_scheduler.0.type', 'LinearLr', 'LinearLR'),
    (DET, 'default_hooks.logger.type', 'LogerHook', 'LoggerHook'),
    (DET, 'default_hooks.hang.type', 'convnext_backbone.HangHok', 'convnext_backbone.HangHook'),
    (DET, 'val_evaluator.type', 'CocoMetrics', 'CocoMetric'),
    (SEG, 'val_evaluator.type', 'IOUMetric', 'IoUMetric'),
    (DET, 'model.type', 'MaskRcnn', 'MaskRCNN'),
    (DET, 'model.backbone.type', 'convnext_backbone.ConvNext', 'convnext_backbone.ConvNeXt'),
    (DET, 'model.neck.type', 'FPNs', 'FPN'),
    (DET, 'model.rpn_head.loss_cls.type', 'CrossEntropy', 'CrossEntropyLoss'),
    (DET, 'model.train_cfg.rpn.assigner.type', 'MaxIOUAssigner', 'MaxIoUAssigner'),
    (DET, 'model.test_cfg.rcnn.nms.type', 'softnms', 'soft_nms'),
    (DET, 'model.roi_head.bbox_roi_extractor.roi_layer.type', 'ROIAlign', 'RoIAlign'),
    (DET, 'model.neck.init_cfg.type', 'Xaver', 'Xavier'),
    (SEG, 'model.decode_head.type', 'UperHead', 'UPerHead'),
    (SEG, 'model.decode_head.norm_cfg.type', 'SyncBn', 'SyncBN'),
    (DET, 'model.bbox_head.type', 'UPerHead', 'mmseg.UPerHead'),
    (DET, 'visualizer.type', 'DetLocalVisualiser', 'DetLocalVisualizer'),
    (DET, 'visualizer.vis_backends.0.type', 'TensorboardBackend', 'TensorboardVisBackend'),
]


@pytest.mark.parametrize(('name', 'key', 'wrong', 'right'), TYPES)
def test_a_type_that_no_registry_knows_is_named_with_the_nearest(name, key, wrong, right):
    changes = {key: wrong}
    if key.startswith('visualizer'):
        changes = {'visualizer': dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])}
        changes[key] = wrong
    errors = found(name, changes, check_types).of('error')
    assert [error.where for error in errors] == [key]
    assert repr(wrong) in errors[0].text
    assert f'did you mean {right!r}?' in errors[0].text
    assert found(name, {**changes, key: right}, check_types) == []


def test_a_type_of_a_package_that_is_not_installed_says_so():
    (error,) = found(DET, {'model.neck.type': 'nopackage.FPN'}, check_types).of('error')
    assert error.where == 'model.neck.type'
    assert 'nopackage, which is not installed' in error.text


def test_classes_and_functions_as_types_are_no_error():
    from mmdet.models.necks import FPN
    from torch.optim import AdamW

    types = {'model.neck.type': FPN, 'optim_wrapper.optimizer.type': AdamW}
    assert found(DET, types, check_types) == []
    assert found(DET, {'model.neck.type': 'mmdet.models.necks.FPN'}, check_types) == []


def test_a_missing_or_misspelt_scope_is_one_error():
    (error,) = found(SEG, {'default_scope': None}, check_types).of('error')
    assert error.where == 'default_scope'
    assert "default_scope='mmseg'" in error.text
    (error,) = found(SEG, {'default_scope': 'mmsegg'}, check_types).of('error')
    assert "did you mean 'mmseg'?" in error.text


# what the libraries ship


def shipped() -> list[str]:
    """The configs that mmdet and mmseg ship and that can be run: not the parts of them."""
    files = []
    for package in ('mmdet', 'mmseg'):
        folder = Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs'
        files += [str(file) for file in sorted(folder.rglob('*.py')) if '_base_' not in file.parts]
    return files


# What is wrong as it is shipped: a metric that mmdet does not have, keys that nothing reads any more.
NO_SUCH_METRIC = "test_evaluator.type: 'MOTChallengeMetrics' is not known"
LEFT_OVER = {
    'clrnet': 'gpu_ids',
    'ga-fast-rcnn_r50-caffe_fpn_1x_coco': 'data.train',
    'ssd': 'cudnn_benchmark',
    'mae-base_upernet': 'fp16',
    'mobilenet-v3-d8': 'runner',
}
SAMPLE = 40


def errors_of(file: str) -> list[str] | None:
    """What is found in a config; None for one that cannot be loaded here."""
    try:
        cfg = Config.fromfile(file)
    except (ImportError, OSError):  # of mmpretrain; of a base that is not there
        return None
    if 'model' not in cfg:
        return None
    findings = Findings()
    check_values(cfg, findings)
    check_types(cfg, findings)
    texts = [str(f) for f in findings.of('error') if 'not installed' not in f.text]
    try:
        check_legacy(cfg, file)
    except UserError as error:
        left_over = [key for name, key in LEFT_OVER.items() if Path(file).stem.startswith(name)]
        texts += [str(error)] if not any(f'{key} -> ' in str(error) for key in left_over) else []
    if not any('not installed' in whose for _, whose, _ in foreign_backbones(cfg)):
        texts += [line for _, _, line in foreign_backbones(cfg)]
    return [text for text in texts if not text.startswith(NO_SUCH_METRIC)]


def check_all(files: list[str]) -> int:
    found_in = {file: errors_of(file) for file in files}
    assert {file: texts for file, texts in found_in.items() if texts} == {}
    return sum(texts is not None for texts in found_in.values())


def test_a_sample_of_the_configs_that_mmdet_and_mmseg_ship_has_no_error():
    files = shipped()
    assert check_all(files[:: len(files) // SAMPLE]) >= SAMPLE * 0.9


@pytest.mark.slow
def test_no_config_that_mmdet_and_mmseg_ship_has_an_error():
    assert check_all(shipped()) > 1400


OWN = [file for file in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in file.parts]


def check_own(files: list[Path]) -> None:
    for file in files:
        findings = Findings()
        cfg = read_config(file)
        check_values(cfg, findings)
        check_types(cfg, findings)
        assert findings == [], file


def test_our_own_configs_have_neither_errors_nor_warnings():
    check_own([file for file in OWN if file.stem[-1] in 'tsni'])


@pytest.mark.slow
def test_none_of_our_own_configs_has_errors_or_warnings():
    check_own(OWN)


# other libraries' backbones


def written(tmp_path, text: str) -> Path:
    file = tmp_path / 'config.py'
    file.write_text(text)
    return file


def refusal(tmp_path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read_config(written(tmp_path, text))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def backbone_in(text: str) -> dict:
    """The ``dict(...)`` that a message proposes, as Python reads it."""
    start = text.index('backbone=dict(') + len('backbone=')
    end = next(
        i for i in range(start, len(text) + 1) if text[start:i].count('(') == text[start:i].count(')') > 0
    )
    return eval(text[start:end])


ON_DETECTOR = f"_base_ = '{ROOT}/configs/demo/mask_rcnn_shapes.py'\n"
ON_RECIPE = f"_base_ = '{ROOT}/configs/detection/mask_rcnn_convnext_t_1x.py'\n"
MMPRETRAIN = 'https://download.openmmlab.com/mmclassification/v0/convnext/'
FBAI = 'https://dl.fbaipublicfiles.com/convnext/'
V1_SMALL = f'{MMPRETRAIN}downstream/convnext-small_3rdparty_32xb128-noema_in1k_20220301-303e75e3.pth'
V2_BASE = 'https://x/convnext-v2-base_3rdparty-fcmae_in1k_20230104-8a798eaf.pth'
TINY = dict(depths=[3, 3, 9, 3], dims=[96, 192, 384, 768])
ALL = [0, 1, 2, 3]


def from_file(checkpoint: str) -> dict:
    return dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')


BACKBONES = {  # what is given, what is proposed, the weights that are proposed
    'official': (
        dict(
            type='ConvNeXt',
            in_chans=3,
            **TINY,
            drop_path_rate=0.4,
            layer_scale_init_value=1.0,
            out_indices=ALL,
            pretrained='convnext_tiny_1k_224.pth',
        ),
        dict(arch='tiny', drop_path_rate=0.4, layer_scale_init_value=1.0, out_indices=tuple(ALL)),
        'convnext_tiny_1k_224',
    ),
    'official, four channels, a URL': (
        dict(
            type='ConvNeXt',
            in_chans=4,
            depths=[3, 3, 27, 3],
            dims=[128, 256, 512, 1024],
            pretrained=f'{FBAI}convnext_base_22k_224.pth',
        ),
        dict(arch='base', in_channels=4),
        'convnext_base_22k_224',
    ),
    'official, own sizes': (
        dict(type='ConvNeXt', depths=[2, 2, 2, 2], dims=[32, 64, 128, 256]),
        dict(arch='tiny', depths=(2, 2, 2, 2), dims=(32, 64, 128, 256)),
        None,
    ),
    'official, from scratch': (dict(type='ConvNeXt', pretrained=None), dict(arch='tiny'), None),
    'official, V2': (
        dict(type='ConvNeXtV2', depths=[2, 2, 6, 2], dims=[40, 80, 160, 320]),
        dict(arch='v2_atto'),
        None,
    ),
    'mmpretrain': (
        dict(
            type='mmpretrain.ConvNeXt',
            arch='small',
            out_indices=[1, -1],
            drop_path_rate=0.6,
            layer_scale_init_value=1.0,
            gap_before_final_norm=False,
            init_cfg=from_file(V1_SMALL),
        ),
        dict(arch='small', out_indices=(1, 3), drop_path_rate=0.6, layer_scale_init_value=1.0),
        'convnext_small_1k_224',
    ),
    'mmcls': (
        dict(type='mmcls.ConvNeXt', arch='base', out_indices=3, frozen_stages=0, with_cp=True),
        dict(arch='base', out_indices=(3,), with_cp=True),
        None,
    ),
    'mmpretrain, by scope': (dict(_scope_='mmpretrain', type='ConvNeXt'), dict(arch='tiny'), None),
    'mmpretrain, V2': (
        dict(
            type='mmpretrain.ConvNeXt',
            arch='base',
            use_grn=True,
            layer_scale_init_value=0.0,
            frozen_stages=2,
            out_indices=ALL,
            init_cfg=from_file(V2_BASE),
        ),
        dict(arch='v2_base', frozen_stages=2, out_indices=tuple(ALL)),
        'convnextv2_base_1k_224_fcmae',
    ),
    'mmpretrain, sizes': (
        dict(type='mmpretrain.ConvNeXt', arch=dict(depths=TINY['depths'], channels=TINY['dims'])),
        dict(arch='tiny'),
        None,
    ),
    'mmpretrain, a size of V2 only': (
        dict(type='mmpretrain.ConvNeXt', arch='huge'),
        dict(arch='tiny', depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)),
        None,
    ),
    'own weights': (
        dict(type='ConvNeXt', arch='tiny', init_cfg=from_file('my_own.pth')),
        dict(arch='tiny'),
        'my_own.pth',
    ),
    'timm': (
        dict(
            type='mmpretrain.TIMMBackbone',
            model_name='convnext_tiny.fb_in22k',
            features_only=True,
            pretrained=True,
            out_indices=ALL,
        ),
        dict(arch='tiny', out_indices=tuple(ALL)),
        'convnext_tiny_22k_224',
    ),
    'ours, with an official argument': (
        dict(type='convnext_backbone.ConvNeXt', arch='tiny', in_chans=5),
        dict(arch='tiny', in_channels=5),
        None,
    ),
}


@pytest.mark.parametrize('case', BACKBONES)
def test_another_librarys_convnext_is_answered_with_the_line_that_is_the_same_here(case, tmp_path):
    given, expected, weights = BACKBONES[case]
    backbone = dict(given, _delete_=True)
    text = refusal(tmp_path, f'{ON_DETECTOR}model = dict(backbone={backbone})')
    new = backbone_in(text)
    assert new.pop('_delete_') is True  # the base's backbone has other arguments
    init = new.pop('init_cfg', None)
    assert init == (weights and dict(type='convnext_backbone.Pretrained', checkpoint=weights))
    assert new == dict(type='convnext_backbone.ConvNeXt', **expected)
    assert 'model.backbone' in text
    depths, dims = ARCHITECTURES[new['arch']]
    with torch.device('meta'):
        built = MODELS.build(new)
    assert built.depths == tuple(given.get('depths') or new.get('depths') or depths)
    assert built.dims == tuple(given.get('dims') or new.get('dims') or dims)


def test_the_line_that_is_proposed_is_read_without_complaint(tmp_path):
    official = dict(BACKBONES['official'][0], _delete_=True)
    line = backbone_in(refusal(tmp_path, f'{ON_DETECTOR}model = dict(backbone={official})'))
    read_config(written(tmp_path, f'{ON_DETECTOR}model = dict(backbone={line})'))


def test_custom_imports_of_mmpretrain_goes_away(tmp_path):
    backbone = "model = dict(backbone=dict(_delete_=True, type='mmpretrain.ConvNeXt', arch='tiny'))\n"

    def with_imports(names: str, model: str = backbone) -> str:
        imports = f'custom_imports = dict(imports={names}, allow_failed_imports=False)'
        return refusal(tmp_path, f'{ON_DETECTOR}{model}{imports}')

    for names in ("['mmpretrain.models']", "'mmpretrain.models'"):
        text = with_imports(names)
        assert backbone_in(text)['arch'] == 'tiny'
        assert 'custom_imports of mmpretrain.models goes away' in text
        assert 'sys.path' not in text
    assert "leave only ['json']" in with_imports("['mmpretrain.models', 'json']")
    text = with_imports("['no_such_module']", model='')
    assert 'custom_imports names no_such_module' in text
    assert "No module named 'no_such_module'" in text


@pytest.mark.parametrize('old', [False, True])
def test_pretrained_of_the_model_goes_into_the_line(old, tmp_path):
    base = f"_base_ = '{ROOT}/configs/demo/upernet_shapes.py'\n"
    extra = 'optimizer = dict(lr=1e-4)\n' if old else ''
    text = refusal(
        tmp_path,
        f"{base}{extra}model = dict(pretrained='{FBAI}convnext_tiny_1k_224_ema.pth', "
        "backbone=dict(_delete_=True, type='ConvNeXt', depths=[3, 3, 9, 3], dims=[96, 192, 384, 768]))",
    )
    assert "checkpoint='convnext_tiny_1k_224_ema'" in text
    assert 'model.pretrained' in text
    assert ('optimizer -> optim_wrapper.optimizer' in text) is old


def test_a_convnext_that_the_user_has_registered_is_left_alone(tmp_path):
    from mmdet.registry import MODELS as DETECTORS

    from convnext_backbone.backbones import ConvNeXt

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS.module_dict, 'ConvNeXt', ConvNeXt)
        backbone = dict(_delete_=True, type='ConvNeXt', arch='atto')
        file = written(tmp_path, f'{ON_DETECTOR}model = dict(backbone={backbone})')
        assert read_config(file).model.backbone.type == 'ConvNeXt'


# As mmpretrain's metafile.yml has them: what each of its files was converted from.
CONVERTED = {
    'convnext-tiny_3rdparty_32xb128_in1k_20220124-18abde00.pth': 'convnext_tiny_1k_224_ema',
    'convnext-large_3rdparty_64xb64_in1k_20220124-f8a0ded0.pth': 'convnext_large_1k_224_ema',
    'convnext-base_3rdparty_32xb128-noema_in1k_20220301-2a0ee547.pth': 'convnext_base_1k_224',
    'convnext-base_3rdparty_in21k_20220124-13b83eec.pth': 'convnext_base_22k_224',
    'convnext-base_in21k-pre-3rdparty_32xb128_in1k_20220124-eb2d6ada.pth': 'convnext_base_22k_1k_224',
    'convnext-xlarge_in21k-pre-3rdparty_64xb64_in1k_20220124-76b6863d.pth': 'convnext_xlarge_22k_1k_224_ema',
    'convnext-base_in21k-pre_3rdparty_in1k-384px_20221219-4570f792.pth': 'convnext_base_22k_1k_384',
    'convnext-v2-atto_3rdparty-fcmae_in1k_20230104-07514db4.pth': 'convnextv2_atto_1k_224_fcmae',
    'convnext-v2-atto_fcmae-pre_3rdparty_in1k_20230104-23765f83.pth': 'convnextv2_atto_1k_224_ema',
    'convnext-v2-nano_fcmae-in21k-pre_3rdparty_in1k_20230104-91fa8ae2.pth': 'convnextv2_nano_22k_224_ema',
    'convnext-v2-tiny_fcmae-in21k-pre_3rdparty_in1k-384px_20230104-d8579f84.pth': (
        'convnextv2_tiny_22k_384_ema'
    ),
    'convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth': '',  # mmpretrain's own training
    'my_own.pth': '',
}


def test_files_of_mmpretrain_have_the_names_under_which_they_were_released():
    assert {name: released_name(f'{MMPRETRAIN}{name}') for name in CONVERTED} == CONVERTED
    assert all(name in RELEASED for name in CONVERTED.values() if name)
    for name, weights in RELEASED.items():
        assert released_name(weights.url) == name


# older configs

OLD_DETECTOR = """
model = dict(
    type='MaskRCNN',
    pretrained='torchvision://resnet50',
    backbone=dict(type='ResNet', depth=50),
    rpn_head=dict(type='RPNHead'), roi_head=dict(type='StandardRoIHead'))
train_cfg = dict(rpn=dict(), rcnn=dict())
test_cfg = dict(rpn=dict(), rcnn=dict())
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]
classes = ('cat',)
data = dict(
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(type='CocoDataset', ann_file='a.json', img_prefix='a/', classes=classes,
        pipeline=train_pipeline),
    val=dict(type='CocoDataset', ann_file='b.json', img_prefix='b/', pipeline=train_pipeline),
    test=dict(type='CocoDataset', ann_file='b.json', img_prefix='b/', pipeline=train_pipeline))
optimizer = dict(type='AdamW', lr=1e-4, paramwise_cfg=dict(custom_keys=dict()))
optimizer_config = dict(grad_clip=None, update_interval=2)
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
total_epochs = 12
evaluation = dict(metric=['bbox', 'segm'], interval=1, save_best='bbox_mAP')
checkpoint_config = dict(interval=1, max_keep_ckpts=3)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
dist_params = dict(backend='nccl')
workflow = [('train', 1)]
fp16 = dict(loss_scale=512.)
resume_from = None
log_level = 'INFO'
"""
NEW_NAMES = {
    'data.samples_per_gpu': 'train_dataloader.batch_size',
    'data.workers_per_gpu': 'num_workers',
    'data.train': 'train_dataloader.dataset',
    'data.val': 'val_dataloader.dataset',
    'data.test': 'test_dataloader.dataset',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer.paramwise_cfg': 'optim_wrapper.paramwise_cfg',
    'optimizer_config.grad_clip': 'optim_wrapper.clip_grad',
    'optimizer_config.update_interval': 'optim_wrapper.accumulative_counts',
    'lr_config': 'param_scheduler',
    'runner.max_epochs': 'train_cfg.max_epochs',
    'total_epochs': 'train_cfg.max_epochs',
    'evaluation.interval': 'train_cfg.val_interval',
    'evaluation.metric': 'metric of val_evaluator',
    'evaluation.save_best': 'default_hooks.checkpoint.save_best',
    'checkpoint_config.interval': 'default_hooks.checkpoint.interval',
    'log_config.interval': 'default_hooks.logger.interval',
    'workflow': 'train_cfg.val_interval',
    'dist_params': 'env_cfg.dist_cfg',
    'fp16': "optim_wrapper.type='AmpOptimWrapper'",
    'img_norm_cfg': 'model.data_preprocessor',
    'resume_from': 'load_from',
    'model.pretrained': 'model.backbone.init_cfg',
    'train_cfg': 'model.train_cfg',
    'test_cfg': 'model.test_cfg',
    'data...img_prefix': 'data_prefix=dict(img=...)',
    'data...classes': 'metainfo=dict(classes=...)',
    'Resize.img_scale': 'scale',
    'RandomFlip.flip_ratio': 'prob',
    'Normalize': 'model.data_preprocessor',
    'Pad': 'model.data_preprocessor',
    'DefaultFormatBundle': 'PackDetInputs',
    'Collect': 'PackDetInputs',
}


def test_a_config_of_mmdet_2_gets_the_new_name_of_every_old_key(tmp_path):
    text = refusal(tmp_path, OLD_DETECTOR)
    assert 'is a config of mmdet 2.x' in text
    for old, new in NEW_NAMES.items():
        assert f'{old} -> {new}' in text, old
    assert 'remove' not in text


def test_a_config_of_mmseg_0_is_called_so(tmp_path):
    text = refusal(
        tmp_path,
        """
norm_cfg = dict(type='SyncBN')
model = dict(type='EncoderDecoder', pretrained='x', backbone=dict(type='ResNetV1c', norm_cfg=norm_cfg),
    decode_head=dict(type='UPerHead'))
train_cfg = dict()
test_cfg = dict(mode='whole')
data = dict(samples_per_gpu=4, train=dict(type='ADE20KDataset', img_dir='i', ann_dir='a', pipeline=[
    dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])]))
runner = dict(type='IterBasedRunner', max_iters=160000)
evaluation = dict(interval=16000, metric='mIoU')
lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)
""",
    )
    assert 'is a config of mmseg 0.x' in text
    for old, new in {
        'data...img_dir': 'data_prefix=dict(img_path=...)',
        'data...ann_dir': 'data_prefix=dict(seg_map_path=...)',
        'runner.max_iters': 'train_cfg.max_iters',
        'Collect': 'PackSegInputs',
        'test_cfg': 'model.test_cfg',
        'lr_config.min_lr': 'eta_min',
    }.items():
        assert f'{old} -> {new}' in text, old


def test_a_file_whose_old_bases_are_not_there_is_recognised_too(tmp_path):
    text = refusal(tmp_path, "_base_ = ['../_base_/models/no_such.py']\n" + OLD_DETECTOR)
    assert 'is a config of mmdet 2.x' in text
    assert 'data.samples_per_gpu -> train_dataloader.batch_size' in text


VALUES = {'data': 'dict(samples_per_gpu=2)', 'optimizer': 'dict(lr=1e-4)', 'lr_config': 'dict(step=[8])'}


@pytest.mark.parametrize('key', TOP)
def test_an_old_key_on_top_of_a_new_config_gets_its_new_name(key, tmp_path):
    text = refusal(tmp_path, f'{ON_RECIPE}{key} = {VALUES.get(key, "dict(x=1)")}')
    assert 'has keys of mmdet 2.x' in text
    assert f'{key}.samples_per_gpu -> ' in text if key == 'data' else f'{key} -> {TOP[key]}' in text
    assert 'remove' not in text


def test_old_names_within_new_data_loaders_are_found(tmp_path):
    text = refusal(
        tmp_path,
        f"{ON_RECIPE}train_dataloader = dict(samples_per_gpu=2, dataset=dict(img_prefix='x', pipeline=["
        "dict(type='RandomFlip', flip_ratio=0.5), dict(type='Collect', keys=['img'])]))",
    )
    assert 'train_dataloader.samples_per_gpu -> train_dataloader.batch_size' in text
    assert 'train_dataloader...img_prefix -> data_prefix=dict(img=...)' in text
    assert 'RandomFlip.flip_ratio -> prob' in text
    assert 'Collect -> PackDetInputs' in text


def test_variables_of_a_new_config_that_are_called_like_old_keys_are_none(tmp_path):
    optimizer = "optimizer = dict(type='SGD', lr=0.1)"
    file = written(tmp_path, f'{ON_RECIPE}{optimizer}\noptim_wrapper = dict(optimizer=optimizer)')
    assert read_config(file).optim_wrapper.optimizer.lr == 0.1


# errors while building


def reported(error_or_call, *args) -> str:
    def build(*_):
        if callable(error_or_call):
            return error_or_call()
        raise error_or_call

    with pytest.raises(UserError) as caught:
        report_build_errors(build)(*args)
    return str(caught.value)


def test_a_missing_key_and_an_assertion_without_text_say_what_and_where(tmp_path):
    levels = {}
    text = reported(lambda: levels['LOUD'])
    assert "the key 'LOUD' is missing, looked up by `" in text
    assert "levels['LOUD']" in text
    assert re.search(r'raised in \S*tests/test_values\.py:\d+', text)

    # in a file of its own: pytest gives texts to the assertions of this one
    file = tmp_path / 'assertion.py'
    file.write_text('def check(levels):\n    assert (levels\n            and len(levels) == 3)\n')
    scope = {}
    exec(compile(file.read_text(), str(file), 'exec'), scope)
    text = reported(lambda: scope['check']([]))
    assert 'AssertionError: `assert (levels and len(levels) == 3)` does not hold (raised in' in text
    assert reported(KeyError('X is not in the registry')).startswith(
        'KeyError: X is not in the registry (raised'
    )
    assert message(KeyError('x')) == "the key 'x' is missing"
    assert message(KeyError(3)) == 'the key 3 is missing'
    assert 'division by zero' in reported(lambda: 1 / 0)
    assert 'list index out of range' in reported(lambda: [][1])


def test_what_was_being_built_is_named_by_its_key():
    cfg = changed(DET, {'model.roi_head.bbox_roi_extractor.roi_layer.type': 'RoIAlignn'})
    with pytest.raises(UserError) as caught:
        report_build_errors(lambda cfg: build_model(cfg))(cfg)
    text = str(caught.value)
    assert text.startswith('model.roi_head.bbox_roi_extractor (SingleRoIExtractor): AssertionError: ')
    assert 'hasattr(ops, layer_type)' in text


def build_model(cfg):
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


def test_the_commands_stop_at_what_comes_from_elsewhere(tmp_path):
    """Before anything else complains: there is no data here."""
    file = written(tmp_path, OLD_DETECTOR)
    with pytest.raises(UserError, match='is a config of mmdet 2.x'):
        tool('train').main([str(file), '--device', 'cpu', '--work-dir', str(tmp_path / 'w')])


def test_values_are_read_out_of_a_file_without_running_it(tmp_path):
    """The values are Python's, but lists for tuples and ``...`` for what would have to be run."""
    (tmp_path / 'a.py').write_text(
        'norm = dict(mean=(1.5, -2), to_rgb=True)\n'
        "a = dict(dict(x=1), type='A', **norm, **{'b.c': {3: None}})\n"
        'b = [a, 2 * 3, __import__("os").system("false"), -norm, norm["mean"], unknown]\n'
        'c = dict(**unknown, d={**norm, "e": {1}})\n'
    )
    norm = dict(mean=[1.5, -2], to_rgb=True)
    a = {'x': 1, 'type': 'A', **norm, 'b.c': {'3': None}}
    expected = dict(norm=norm, a=a, b=[a, ..., ..., ..., ..., ...], c=dict(d={**norm, 'e': [1]}))
    assert own_values(tmp_path / 'a.py') == expected
