"""From a config file and the options of a command line to a config that runs on this machine.

What is changed is returned as notes, one line each, which the tools put into the log. What cannot
work raises a one-line :class:`~convnext_backbone.errors.UserError` before anything is built.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mmengine.device.utils
import torch
from mmengine.config import Config

from ..checkpoint import zoo
from ..checkpoint.read import close_unsafe_reader
from ..checkpoint.write import checkpoints_in
from ..cli import message
from ..errors import UserError
from ..registry import type_name
from . import launch
from .config_check import apply_options, check_keys, dicts, hooks_of

PRETRAINED = 'convnext_backbone.Pretrained'
DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def run_config(args, splits) -> tuple[Config, list[str]]:
    """What every run needs: the config of ``args`` with its work dir, data, device and processes.

    Sets ``args.device`` where it was left open.

    Args:
        args: the options of :meth:`convnext_backbone.cli.Parser.add_run_options`, and ``config``.
        splits: the data loaders that will be used; their files must exist.
    """
    if args.launcher == 'slurm':
        launch.slurm_environment()
    args.device = choose_device(args.device)
    cfg = read_config(args.config, args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    check_work_dir(cfg.work_dir)
    needed = [*splits, *(['train_cfg', 'optim_wrapper'] if 'train_dataloader' in splits else ['test_cfg'])]
    if absent := [key for key in needed if not cfg.get(key) and key != 'val_dataloader']:
        raise UserError(f'{args.config} has no {", ".join(absent)}, which this needs')
    if args.data_root:
        set_data_root(cfg, args.data_root)
    notes = check_data(cfg, splits)
    if args.device == 'cpu' or args.launcher == 'none':
        notes += use_plain_batch_norm(cfg)
    start_processes(cfg, args.launcher, args.device)
    return cfg, notes


def read_config(path: str, options: dict | None = None) -> Config:
    """The config at ``path`` with ``--cfg-options`` merged; every key of it is read by something.

    Raises:
        UserError: no such file, no valid config, a key that nothing reads.
    """
    close_unsafe_reader()
    if not Path(path).is_file():
        raise UserError(f'no config file at {path}; the ones that come along lie below configs/')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        text = ' '.join(message(error).split())
        raise UserError(f'{path} is no valid config: {type(error).__name__}: {text}') from error
    if 'model' not in cfg:
        raise UserError(f'{path} has no model: it is a part of a config (a _base_), not one to run')
    apply_options(cfg, options or {})
    check_keys(cfg)
    return cfg


def set_data_root(cfg: Config, data_root: str) -> None:
    """Put ``data_root`` in the place of the config's, in datasets and evaluators alike.

    Raises:
        UserError: the config's datasets have no common root.
    """
    roots = {d['data_root'] for _, d in datasets(cfg) if d.get('data_root')}
    if len(roots) != 1:
        found = ', '.join(sorted(roots)) or 'none'
        raise UserError(f'--data-root: the datasets of the config have no single data_root ({found})')
    old = roots.pop()
    for key in (*DATALOADERS, 'val_evaluator', 'test_evaluator', 'data_root'):
        if cfg.get(key) is not None:
            cfg[key] = _replace_prefix(cfg[key], old, os.path.join(data_root, ''))


def _replace_prefix(value, old: str, new: str):
    if isinstance(value, dict):
        return type(value)({k: _replace_prefix(v, old, new) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_prefix(v, old, new) for v in value)
    if isinstance(value, str) and value.startswith(old):
        return new + value[len(old) :].lstrip('/')
    return value


def datasets(cfg: Config, splits=DATALOADERS) -> Iterator[tuple[str, dict]]:
    """(data loader, dataset) for each dataset in the config, those inside wrappers included."""
    for split in splits:
        stack = [(cfg.get(split) or {}).get('dataset')]
        while stack:
            dataset = stack.pop()
            if not isinstance(dataset, dict):
                continue
            inner = dataset.get('dataset') or dataset.get('datasets')
            if inner:
                stack += inner if isinstance(inner, (list, tuple)) else [inner]
            else:
                yield split, dataset


def check_data(cfg: Config, splits) -> list[str]:
    """Folders and annotation files exist, and annotations and config speak of the same classes.

    Raises:
        UserError: naming the path or the category.
    """
    notes = []
    for split, dataset in datasets(cfg, splits):
        root = dataset.get('data_root') or ''
        if root and '://' not in root and not os.path.isdir(root):
            raise UserError(
                f'no data at {root} ({split}): give the folder with --data-root DIR, '
                'or put a link to it there'
            )
        paths = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
        for path in filter(None, paths):
            if isinstance(path, str) and not os.path.exists(os.path.join(root, path)):
                raise UserError(f'{os.path.join(root, path)} does not exist ({split}, data root {root!r})')
        if type_name(dataset) == 'CocoDataset':
            notes += _check_coco(os.path.join(root, dataset['ann_file']), dataset)
    return notes


def _check_coco(file: str, dataset: dict) -> list[str]:
    from mmdet.datasets import CocoDataset

    try:
        content = json.loads(Path(file).read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        counts = dict.fromkeys(names, 0)
        for annotation in content['annotations']:
            counts[annotation['category_id']] = counts.get(annotation['category_id'], 0) + 1
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{file} is no COCO annotation file: {type(error).__name__} {error}') from error
    if unknown := sorted(set(counts) - set(names)):
        raise UserError(
            f'{file}: {counts[unknown[0]]} annotations have category_id {unknown[0]}, which its '
            f'"categories" do not list (they list {_some(names)})'
        )
    chosen = (dataset.get('metainfo') or {}).get('classes')
    classes = chosen or CocoDataset.METAINFO['classes']
    if isinstance(classes, str):  # the name of a file of names, as mmengine reads it
        classes = Path(classes).read_text().splitlines() if Path(classes).is_file() else [classes]
    if absent := [name for name in classes if name not in names.values()]:
        raise UserError(
            f'{file} has no category {absent[0]!r}, a class of the config '
            f'({len(absent)} of {len(classes)} classes are not in the file, which lists '
            f'{_some(names.values())}): set metainfo=dict(classes=...) in every dataset of the config'
        )
    if other := {name: counts[i] for i, name in names.items() if name not in classes}:
        text = ', '.join(f'{name} ({n} annotations)' for name, n in other.items())
        if not chosen:
            raise UserError(
                f'{file} has categories that the config does not name: {text}; set '
                'metainfo=dict(classes=...) in every dataset of the config, without them if they are to '
                'be left out'
            )
        return [f'{file}: left out, since metainfo.classes does not name them: {text}']
    return []


def _some(values) -> str:
    values = [str(v) for v in values]
    return ', '.join(values[:8]) + (f', ... ({len(values)})' if len(values) > 8 else '')


def check_classes(cfg: Config, classes) -> None:
    """The heads that predict the dataset's classes count as many as it has.

    Raises:
        UserError: naming the head and both numbers.
    """
    for path, number in num_classes(cfg.model, 'model'):
        if number != len(classes):
            raise UserError(
                f'{path} is {number}, but the training data has {len(classes)} classes '
                f'({_some(classes)}): set every num_classes of the model to {len(classes)}'
            )


def num_classes(node, path: str) -> Iterator[tuple[str, int]]:
    """``num_classes`` of the heads; not of RPN, nor of heads that predict something else beside."""
    if isinstance(node, dict):
        others = ('rpn_head', 'semantic_head', 'glbctx_head')
        boundary = type_name(node) == 'STDCHead'
        for key, value in node.items():
            if key == 'num_classes' and not boundary:
                yield f'{path}.{key}', value
            elif key not in others:
                yield from num_classes(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from num_classes(value, f'{path}.{index}')


def set_pretrained(cfg: Config, choice: str | None, weights: str | None = None) -> list[str]:
    """``--pretrained``: path, URL or released name of the backbone's weights; ``none``: from scratch.

    Args:
        weights: ``'final'`` or ``'ema'``; see :func:`~convnext_backbone.checkpoint.load_checkpoint`.
    """
    if choice is None:
        given = [init for node in dicts(cfg.model) for init in _inits(node) if type_name(init) == PRETRAINED]
        if weights and not given:
            raise UserError(f'--pretrained-weights {weights}: the config loads no pretrained weights')
        for init in given:
            init['weights'] = weights or init.get('weights', 'final')
        return []
    model = cfg.model
    own = any(type_name(init) == PRETRAINED for init in _inits(model))  # a classifier is loaded as a whole
    node = model if own or 'backbone' not in model else model.backbone
    given = _inits(node)
    others = [init for init in given if type_name(init) not in (PRETRAINED, 'Pretrained')]
    if choice.lower() == 'none':
        node.init_cfg = others or None
        return ['no pretrained weights: --pretrained none']
    remote = choice in zoo.RELEASED or choice.startswith(('http://', 'https://'))
    if not remote and not Path(choice).is_file():
        raise UserError(f'--pretrained: no file of weights at {choice}{zoo.nearest(choice)}')
    kept = next((init for init in given if type_name(init) == PRETRAINED), {})
    chosen = {**kept, 'type': PRETRAINED, 'checkpoint': choice, 'weights': weights or 'final'}
    node.init_cfg = [*others, chosen]
    return []


def _inits(node: dict) -> list[dict]:
    """The entries of ``init_cfg``, which may be one or a list."""
    given = node.get('init_cfg') or []
    return [given] if isinstance(given, dict) else list(given)


def start_from(
    cfg: Config, resume: str | None, pretrained: str | None, weights: str | None = None
) -> list[str]:
    """Where the weights come from: ``--resume``, ``load_from`` of the config, or ``--pretrained``.

    A checkpoint that is resumed or named by ``load_from`` has every weight: pretrained ones are not
    read then.

    Args:
        resume: path of a checkpoint, ``'auto'`` for the newest of the work dir, ``None``.
        pretrained, weights: see :func:`set_pretrained`.

    Raises:
        UserError: a file is missing, or both are given.
    """
    begun = bool(checkpoints_in(Path(cfg.work_dir)))
    restarts = [os.environ.get(name, '0') for name in ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT')]
    if (begun or resume is None) and any(map(int, restarts)):
        resume = 'auto'  # torchrun or Slurm starts the job again: it goes on from what it has done itself
    if resume is None and cfg.get('resume') and not cfg.get('load_from'):
        resume = 'auto'
    if resume not in (None, 'auto'):
        if not Path(resume).is_file():
            raise UserError(f'--resume: no checkpoint at {resume}')
        cfg.resume, cfg.load_from = True, resume
    elif resume == 'auto':
        cfg.resume = begun  # the first start of a job that is always started with --resume
        if begun:
            cfg.load_from = None
    notes = [f'nothing to resume in {cfg.work_dir}: starting anew'] if resume == 'auto' and not begun else []
    source, going_on = cfg.get('load_from'), cfg.get('resume', False)
    if begun and not going_on:
        raise UserError(
            f'{cfg.work_dir} has checkpoints of a training, which this one would replace: go on with '
            '--resume, choose another --work-dir, or remove them'
        )
    if isinstance(source, str) and not going_on and pretrained not in (None, 'none'):
        raise UserError(f'--pretrained {pretrained} would be overwritten by load_from {source}: give one')
    if not going_on and (not source or isinstance(source, dict)):
        return notes + set_pretrained(cfg, pretrained, weights)  # a dict names parts that start afresh
    if weights:
        raise UserError(f'--pretrained-weights {weights}: another checkpoint has all the weights')
    drop_pretrained(cfg)
    return notes


def drop_pretrained(cfg: Config) -> None:
    """Take every pretrained ``init_cfg`` out of the model: its weights come from a checkpoint."""
    for node in dicts(cfg.model):
        if any(type_name(init) in (PRETRAINED, 'Pretrained') for init in _inits(node)):
            node['init_cfg'] = None


def use_plain_batch_norm(cfg: Config) -> list[str]:
    """SyncBN to BN: for a single process, or on a CPU."""
    count = 0
    for node in dicts(cfg.model):
        if type_name(node) in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
            count += 1
    return [f'SyncBN became BN in {count} places: a single process or a CPU'] if count else []


def set_batch(cfg: Config, scale_lr: bool = False) -> list[str]:
    """The images per update: what they are, and what the recipe (``auto_scale_lr.base_batch_size``) has.

    ``optim_wrapper.accumulative_counts='auto'`` becomes the number of steps that reaches the recipe's, on
    however many processes; an ``EMAHook`` then averages once per update.

    Args:
        scale_lr: change the learning rate in proportion, if the batch is another than the recipe's.

    Raises:
        UserError: ``'auto'``, or ``scale_lr``, where the config names no ``base_batch_size``.
    """
    wrapper, scaling = cfg.optim_wrapper, cfg.get('auto_scale_lr') or {}
    recipe, optimizer = scaling.get('base_batch_size'), wrapper.get('optimizer') or {}
    scale_lr = scale_lr or scaling.get('enable', False)
    processes = int(os.environ.get('WORLD_SIZE', 1)) if cfg.get('launcher', 'none') != 'none' else 1
    step = cfg.train_dataloader.get('batch_size', 1) * processes  # images
    if (scale_lr or wrapper.get('accumulative_counts') == 'auto') and not recipe:
        raise UserError('the config has no auto_scale_lr.base_batch_size, the batch its recipe was made for')
    if wrapper.get('accumulative_counts') == 'auto':
        wrapper.accumulative_counts = max(1, round(recipe / step))
    counts = wrapper.get('accumulative_counts', 1)
    for hook in hooks_of(cfg):
        if type_name(hook) == 'EMAHook':
            hook.setdefault('interval', counts)
    batch, notes = step * counts, []
    if recipe and batch != recipe and 'lr' in optimizer:
        fitting = optimizer['lr'] * batch / recipe
        if scale_lr:
            notes = [f'learning rate {optimizer["lr"]:g}, for {recipe} images, scaled to {fitting:g}']
            optimizer['lr'] = fitting
        else:
            notes = [_batch_warning(cfg, batch, recipe, processes, fitting)]
    if scaling:
        cfg.auto_scale_lr = None  # mmengine's own scaling knows nothing of accumulated steps
    rate = f', learning rate {optimizer["lr"]:g}' if 'lr' in optimizer else ''
    how = f'{processes} x {cfg.train_dataloader.batch_size}' + f' x {counts} accumulated' * (counts > 1)
    return [f'effective batch: {batch} images per update ({how}){rate}', *notes]


def _batch_warning(cfg: Config, batch: int, recipe: int, processes: int, lr: float) -> str:
    per_process = [n for n in range(1, recipe + 1) if recipe % (n * processes) == 0]
    text = f'warning: the recipe has {recipe} images per update, this run {batch}: '
    if per_process:
        size = min(per_process, key=lambda n: abs(n - cfg.train_dataloader.batch_size))
        counts = recipe // (size * processes)
        text += (
            f'for the same training, train_dataloader.batch_size={size} '
            f'optim_wrapper.accumulative_counts={counts}; '
        )
    return text + f'in proportion, the learning rate would be {lr:g} (--auto-scale-lr)'


def choose_views(cfg: Config, tta: bool) -> list[str]:
    """One view of each image, or those of the config's ``tta_pipeline``; a segmenter's metrics say which.

    ``tta_model`` is built around the model, as in mmdet and mmseg; what it says of ``module`` changes the
    model itself, for example ``module=dict(test_cfg=dict(mode='whole'))``.

    Raises:
        UserError: ``tta`` is asked and the config has no ``tta_pipeline``.
    """
    name = 'single_scale'
    if tta:
        if not cfg.get('tta_pipeline') or not cfg.get('tta_model'):
            raise UserError(f'--tta: {cfg.filename} has no tta_model and tta_pipeline; test without --tta')
        steps = [node for node in dicts(cfg.tta_pipeline) if 'TestTimeAug' in type_name(node)]
        if len(steps) != 1:
            raise UserError(f'--tta: tta_pipeline has {len(steps)} steps of type TestTimeAug, expected one')
        views = steps[0]['transforms']
        scales = max(sum('Resize' in type_name(step) for step in steps) for steps in views)
        flip = any('Flip' in type_name(step) and step.get('prob', 1) for steps in views for step in steps)
        name = ('multi_scale' if scales > 1 else name) + '_flip' * flip
        for _, dataset in datasets(cfg, ('test_dataloader',)):
            dataset['pipeline'] = cfg.tta_pipeline
        wrapper = dict(cfg.tta_model)
        cfg.merge_from_dict(dict(model=wrapper.pop('module', {})))
        cfg.model = dict(**wrapper, module=cfg.model)
    named = [node for node in dicts(cfg.get('test_evaluator')) if type_name(node) == 'IoUMetric']
    for evaluator in named:
        evaluator.setdefault('prefix', name)
    if not (tta or named):
        return []
    how = cfg.model.get('module', cfg.model).get('test_cfg') or {}
    slide = how.get('mode') == 'slide'
    window = f'sliding window {how.crop_size}, stride {how.stride}' if slide else 'whole image'
    return [f'testing: {name.replace("_", " ")}, {window}']


def divide_model(cfg: Config, launcher: str) -> None:
    """``--fsdp``: parameters, gradients and optimizer states divided among the processes.

    Raises:
        UserError: a single process, or a config with a moving average of the weights.
    """
    if launcher == 'none':
        raise UserError(
            '--fsdp divides the model among several processes: start them with tools/dist_train.sh'
        )
    if any('EMAHook' in type_name(hook) for hook in hooks_of(cfg)):
        raise UserError(
            '--fsdp: the config keeps a moving average of the weights (EMAHook), which is not divided; '
            'train without --fsdp, or with custom_hooks=[]'
        )
    cfg.fsdp = True


def write_details(cfg: Config) -> None:
    """A classifier's accuracy of each class and its confusions go into the work dir."""
    for evaluator in dicts(cfg.test_evaluator):
        if type_name(evaluator) == 'convnext_backbone.Accuracy':
            evaluator.setdefault('out_dir', cfg.work_dir)


def for_testing(cfg: Config, checkpoint: str) -> None:
    """Test the weights of ``checkpoint`` as they are: its ``state_dict`` is the moving average already."""
    name_unreadable_images(cfg)
    drop_pretrained(cfg)
    cfg.load_from, cfg.resume = checkpoint, False
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) != 'EMAHook']
    for name in [
        name for name, hook in (cfg.get('default_hooks') or {}).items() if type_name(hook) == 'EMAHook'
    ]:
        del cfg.default_hooks[name]


def choose_precision(cfg: Config, amp: bool, device: str) -> list[str]:
    """Mixed precision where the config or ``--amp`` asks for it and the device has it.

    On CUDA bf16 where the device computes it and every operator of the model knows it (mmcv's RoIAlign
    knows fp16 only in some builds), else fp16 with loss scaling; on a CPU none.
    """
    wrapper = cfg.optim_wrapper
    if type_name(wrapper) != 'AmpOptimWrapper' and not amp:
        return []
    if device == 'cpu':
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
        return ['mixed precision is off: it is for GPUs, this runs on a CPU in float32']
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')
    given = wrapper.get('dtype')
    if given is None:
        wrapper.dtype = 'bfloat16' if _bf16_works(cfg, device) else 'float16'
    return [f'mixed precision in {wrapper.dtype}' + ('' if given else f', chosen for this {device} device')]


def _bf16_works(cfg: Config, device: str) -> bool:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    if 'roi_head' not in cfg.model:
        return True
    from mmcv.ops import roi_align

    maps = torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16, device=device)
    boxes = torch.tensor([[0, 0, 0, 4, 4]], dtype=torch.bfloat16, device=device)
    try:
        roi_align(maps, boxes, 2)
    except RuntimeError:
        return False
    return True


def name_unreadable_images(cfg: Config, skip_corrupt: bool = False) -> None:
    """Put our ``LoadImage``, which names the file, in the place of ``LoadImageFromFile``."""

    for key in (*DATALOADERS, 'tta_pipeline'):
        for node in dicts(cfg.get(key)):
            if type_name(node) == 'LoadImageFromFile':
                node['type'] = 'convnext_backbone.LoadImage'
            elif type_name(node) not in ('convnext_backbone.ImageDataset', 'convnext_backbone.ImageStream'):
                continue
            if skip_corrupt and key == 'train_dataloader':
                node['skip_corrupt'] = True


def image_format(cfg: Config) -> dict:
    """What a network takes: order of the channels, range of their values before ``mean`` and ``std``."""
    source = cfg.model.get('data_preprocessor') or {}
    given = dict(channels='RGB' if source.get('bgr_to_rgb') else 'BGR', range=[0, 255])
    if 'mean' not in source:  # a classifier, whose dataset gives normalised images
        loader = cfg.get('test_dataloader') or cfg.get('train_dataloader') or {}
        source = loader.get('dataset', {}).get('transform') or {}
        given = dict(channels='RGB', range=[0, 1])
    return dict(**given, mean=source.get('mean'), std=source.get('std'))


def check_work_dir(work_dir: str, option: str = '--work-dir') -> None:
    """Raise :class:`UserError` unless a file can be written into ``work_dir``."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UserError(
            f'cannot write into {work_dir} ({error.strerror}): choose another {option}'
        ) from error


def choose_device(wanted: str | None) -> str:
    """``cuda`` or ``cpu``; the processes that were started must find a GPU each.

    Raises:
        UserError: fewer GPUs than processes.
    """
    if wanted == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        mmengine.device.utils.DEVICE = 'cpu'  # mmengine looked for GPUs when it was imported
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = wanted or ('cuda' if gpus or processes > 1 else 'cpu')
    if device == 'cuda' and gpus < processes:
        raise UserError(
            f'{processes} GPU{"s" * (processes > 1)} asked for, this machine has {gpus}: start at most '
            f'{max(gpus, 1)} process{"es" * (gpus > 1)}, or add --device cpu'
        )
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    return device


def start_processes(cfg: Config, launcher: str, device: str) -> None:
    """Set the launcher; on a CPU join the process group here, since mmengine can with GPUs only."""
    started = int(os.environ.get('WORLD_SIZE', 1))
    if launcher == 'none' and started > 1:
        raise UserError(
            f'{started} processes were started, but --launcher is none, and each would train alone: use '
            'tools/dist_train.sh, or add --launcher pytorch'
        )
    launch.die_with_launcher()
    cfg.launcher = 'none' if launcher == 'none' else 'pytorch'
    if device == 'cpu' and launcher != 'none':
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
        )
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
