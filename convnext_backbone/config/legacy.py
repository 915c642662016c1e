"""Recognises configs of mmdet 2.x and mmseg 0.x, and says for every old key what takes its place."""

import ast
import os
from collections.abc import Iterator

from mmengine.config import Config

from ..errors import UserError
from ..registry import SCOPE, type_name
from .data import DATALOADERS, datasets
from .keys import dicts, unread
from .literals import value_of
from .task import task_of

# Old key at the top level: what takes its place. Keys inside them are in INSIDE.
TOP = {
    'data': 'train_dataloader, val_dataloader, test_dataloader',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'lr_config': 'param_scheduler',
    'momentum_config': 'param_scheduler',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'total_iters': 'train_cfg.max_iters',
    'evaluation': 'train_cfg.val_interval and val_evaluator',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'workflow': 'train_cfg.val_interval',
    'dist_params': 'env_cfg.dist_cfg',
    'cudnn_benchmark': 'env_cfg.cudnn_benchmark',
    'opencv_num_threads': 'env_cfg.mp_cfg.opencv_num_threads',
    'mp_start_method': 'env_cfg.mp_cfg.mp_start_method',
    'fp16': "optim_wrapper.type='AmpOptimWrapper' and optim_wrapper.loss_scale",
    'img_norm_cfg': 'model.data_preprocessor (mean, std, bgr_to_rgb)',
    'resume_from': 'load_from with resume=True, or --resume',
    'auto_resume': 'resume=True, or --resume',
    'seed': 'randomness.seed, or --seed',
    'deterministic': 'randomness.deterministic, or --deterministic',
    'gpus': 'the number of processes: tools/dist_train.sh CONFIG GPUS',
    'gpu_ids': 'the number of processes: tools/dist_train.sh CONFIG GPUS',
    'device': '--device',
}
INSIDE = {  # of an old key: keys in it, and what takes their place; where none is there, TOP's line is shown
    'data': {
        'samples_per_gpu': 'train_dataloader.batch_size',
        'workers_per_gpu': 'num_workers of train_, val_ and test_dataloader (persistent_workers=False for 0)',
        'train': 'train_dataloader.dataset',
        'val': 'val_dataloader.dataset',
        'test': 'test_dataloader.dataset',
        'train_dataloader': 'train_dataloader',
        'val_dataloader': 'val_dataloader',
        'test_dataloader': 'test_dataloader',
    },
    'optimizer': {
        'constructor': 'optim_wrapper.constructor',
        'paramwise_cfg': 'optim_wrapper.paramwise_cfg',
    },
    'optimizer_config': {
        'grad_clip': 'optim_wrapper.clip_grad',
        'update_interval': 'optim_wrapper.accumulative_counts',
        'cumulative_iters': 'optim_wrapper.accumulative_counts',
        'use_fp16': "optim_wrapper.type='AmpOptimWrapper'",
        'loss_scale': 'optim_wrapper.loss_scale',
    },
    'lr_config': {
        'step': "an entry dict(type='MultiStepLR', milestones=[...], by_epoch=...)",
        'warmup': "an entry dict(type='LinearLR', start_factor=..., begin=0, end=..., by_epoch=False)",
        'min_lr': 'eta_min of its entry',
    },
    'runner': {'max_epochs': 'train_cfg.max_epochs', 'max_iters': 'train_cfg.max_iters'},
    'evaluation': {
        'interval': 'train_cfg.val_interval',
        'metric': 'metric of val_evaluator (CocoMetric) or iou_metrics (IoUMetric)',
        'save_best': 'default_hooks.checkpoint.save_best',
    },
    'checkpoint_config': {
        'interval': 'default_hooks.checkpoint.interval',
        'max_keep_ckpts': 'default_hooks.checkpoint.max_keep_ckpts',
    },
    'log_config': {'interval': 'default_hooks.logger.interval', 'hooks': 'visualizer.vis_backends'},
}
WITHOUT_OWN = {'data', 'checkpoint_config'}  # whose own line says nothing once those of their keys are there
DATASET = {  # of a dataset
    'img_prefix': 'data_prefix=dict(img=...)',
    'seg_prefix': 'data_prefix=dict(seg=...)',
    'img_dir': 'data_prefix=dict(img_path=...)',
    'ann_dir': 'data_prefix=dict(seg_map_path=...)',
    'classes': 'metainfo=dict(classes=...)',
    'palette': 'metainfo=dict(palette=...)',
    'samples_per_gpu': 'batch_size of the data loader',
    'workers_per_gpu': 'num_workers of the data loader',
}
STEPS = {  # of a pipeline, which are not there any more: PACK stands for PackDetInputs and its like
    'DefaultFormatBundle': 'PACK',
    'Collect': 'PACK',
    'ImageToTensor': 'PACK',
    'MultiScaleFlipAug': 'Resize alone in the pipeline, and tta_model with tta_pipeline for several views',
}
IN_OLD = {  # steps that are still there, but whose place in an old pipeline is the preprocessor
    'Normalize': 'model.data_preprocessor (mean, std, bgr_to_rgb)',
    'Pad': 'model.data_preprocessor (pad_size_divisor, or size)',
}
ARGUMENTS = {  # of a step: argument, what takes its place
    'Resize': {
        'img_scale': 'scale; several: RandomChoiceResize(scales=...)',
        'multiscale_mode': 'RandomChoiceResize or RandomResize',
        'ratio_range': 'RandomResize(ratio_range=...)',
    },
    'RandomFlip': {'flip_ratio': 'prob'},
}
TEST_CFG = {'rpn', 'rcnn', 'nms', 'score_thr', 'nms_pre', 'max_per_img', 'mode', 'crop_size'}
TRAIN_CFG = {'rpn', 'rcnn', 'rpn_proposal', 'assigner'}
GUIDE = {
    'segmentation': 'https://mmsegmentation.readthedocs.io/en/latest/migration/interface.html',
    'detection': 'https://mmdetection.readthedocs.io/en/latest/migration/config_migration.html',
}
NEW = {'train_dataloader', 'optim_wrapper', 'default_hooks', 'default_scope'}  # no old config has one
LIBRARY = {'segmentation': 'mmseg 0.x', 'detection': 'mmdet 2.x', 'classification': 'mmcls 0.x'}


def check_legacy(cfg: Config, path: str, backbone: str = '') -> None:
    """Stop at a config of mmdet 2.x or mmseg 0.x, or one that has old keys on top of a new one.

    Args:
        cfg: as it was read.
        path: what the config is called in messages.
        backbone: what takes the place of a backbone that is another library's ConvNeXt, if it has one.

    Raises:
        UserError: with the new names of all old keys that are there.
    """
    given = cfg.to_dict()  # the config's own ``items`` imports the classes of a new-style one
    off = {key for key in given if given[key] is None} if NEW & set(given) else set()  # in a swapped config
    tops = {key for key in given if key in TOP} - off
    if tops:
        tops &= {key for key, _, _ in unread(cfg)} | {key for key in given if given[key] is None}
    _report(given, tops, path, backbone)


def is_old(cfg: Config) -> bool:
    """Return whether a whole config is one of mmdet 2.x or mmseg 0.x, not a new one with an old key left."""
    given = cfg.to_dict().keys()
    return bool(given & set(TOP) - {'device', 'seed', 'gpus'}) and not NEW & given


def check_source(path: str) -> None:
    """Stop at a file that cannot be read (its ``_base_`` is not there) and has old keys.

    Raises:
        UserError: with the new names of the old keys that the file itself has.
    """
    given = own_values(path)
    _report(given, {key for key in given if key in TOP}, path, '')


def _report(given: dict, tops: set[str], path: str, backbone: str) -> None:
    new = dict(_new_names(given, tops))
    if not new:
        return
    if 'img_norm_cfg' in given and any(kind in STEPS or kind in IN_OLD for kind in new):
        new.setdefault('img_norm_cfg', TOP['img_norm_cfg'])
    if backbone:
        new['model.backbone'] = backbone
    task = old_task(given)
    library = LIBRARY.get(task, 'mmdet 2.x or mmseg 0.x')
    pack = {'detection': 'PackDetInputs', 'segmentation': 'PackSegInputs'}.get(task, 'the last step, Pack...')
    names = ', '.join(f'{old} -> {text.replace("PACK", pack)}' for old, text in new.items())
    whole = not NEW & set(given)
    kind = f'is a config of {library}' if whole else f'has keys of {library}'
    raise UserError(
        f'{path} {kind}, which are called otherwise now and would not hold: {names}; '
        f'more: {GUIDE.get(task, GUIDE["detection"])}'
    )


def old_task(given: dict) -> str:
    """Return what an old config is for: by its model, or by what it evaluates."""
    model = given.get('model')
    task = task_of(model) if isinstance(model, dict) else 'other'
    if task != 'other':
        return task
    scope = given.get('default_scope')
    if scope in ('mmdet', 'mmseg'):
        return dict(mmdet='detection', mmseg='segmentation')[scope]
    metric = str((given.get('evaluation') or {}).get('metric', ''))
    if 'mIoU' in metric or any('ann_dir' in node for node in dicts(given.get('data'))):
        return 'segmentation'
    if 'bbox' in metric or any('img_prefix' in node for node in dicts(given.get('data'))):
        return 'detection'
    return 'other'


def _new_names(given: dict, tops: set[str]) -> Iterator[tuple[str, str]]:
    """Yield each old key and what takes its place."""
    for key in (key for key in TOP if key in tops):
        value = given[key] if isinstance(given[key], dict) else {}
        inner = [(f'{key}.{name}', text) for name, text in INSIDE.get(key, {}).items() if name in value]
        if not (inner and key in WITHOUT_OWN):
            yield key, TOP[key]
        yield from inner
    model = given.get('model')
    if isinstance(model, dict) and isinstance(model.get('pretrained'), str) and not _takes_it(model, given):
        yield (
            'model.pretrained',
            f"model.backbone.init_cfg=dict(type='{SCOPE}.Pretrained', checkpoint=...), or --pretrained",
        )
    for key, marks in (('train_cfg', TRAIN_CFG), ('test_cfg', TEST_CFG)):
        if isinstance(given.get(key), dict) and marks & set(given[key]):
            yield key, f'model.{key}'
    old = given.get('data') if 'data' in tops else None
    yield from _data_names(old, {key: given.get(key) for key in DATALOADERS})


def _takes_it(model: dict, given: dict) -> bool:
    """Return whether ``pretrained`` of the model is read: by mmseg 1.x, for backbones that take it, too."""
    ours = type_name(model.get('backbone')).startswith(f'{SCOPE}.')
    return task_of(model) == 'segmentation' and not ours and bool(NEW & set(given))


def _data_names(old, loaders: dict) -> Iterator[tuple[str, str]]:
    """Yield old keys of datasets and old steps of pipelines."""
    for node in dicts(old):
        yield from _of_dataset(node, 'data')
        yield from _of_step(node, old=True)
    for key, loader in loaders.items():
        if not isinstance(loader, dict):
            continue
        for name in ('samples_per_gpu', 'workers_per_gpu'):
            if name in loader:
                new = {'samples_per_gpu': 'batch_size', 'workers_per_gpu': 'num_workers'}[name]
                yield f'{key}.{name}', f'{key}.{new}'
        for _, dataset in datasets({key: loader}, (key,)):
            if '.' not in type_name(dataset):  # mmdet's or mmseg's: another package's may take such arguments
                yield from _of_dataset(dataset, key)
            pipeline = dataset.get('pipeline')
            bundled = any(type_name(step) in ('DefaultFormatBundle', 'Collect') for step in dicts(pipeline))
            for step in dicts(pipeline):
                yield from _of_step(step, old=bundled)


def _of_dataset(node: dict, split: str) -> Iterator[tuple[str, str]]:
    if 'type' not in node:
        return
    for name, new in DATASET.items():
        if name in node and not (name in ('classes', 'palette') and 'metainfo' in node):
            yield f'{split}...{name}', new


def _of_step(step: dict, old: bool) -> Iterator[tuple[str, str]]:
    kind = type_name(step)
    if kind in ('DefaultFormatBundle', 'Collect') or (old and kind in STEPS):
        yield kind, STEPS[kind]
    elif old and kind in IN_OLD:
        yield kind, IN_OLD[kind]
    for name, new in ARGUMENTS.get(kind, {}).items():
        if name in step and (old or name != 'ratio_range'):
            yield f'{kind}.{name}', new


def own_values(path: str | os.PathLike) -> dict:
    """Return what a Python config sets itself, as far as it stands there in so many words.

    Nothing is run and no ``_base_`` is read: a value that would have to be computed is ``...``.
    """
    try:
        with open(path, encoding='utf-8') as stream:
            tree = ast.parse(stream.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    values = {}

    def other(node: ast.expr):
        return values.get(node.id, ...) if isinstance(node, ast.Name) else ...

    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    values[target.id] = value_of(statement.value, other)
    return values
