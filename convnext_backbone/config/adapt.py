"""Fits a config to the machine and the run: device, processes, batch, precision, test-time views."""

import os

import mmengine.device.utils
import torch
from mmengine.config import Config

from ..errors import UserError
from ..registry import type_name
from .data import datasets
from .keys import dicts, hooks_of
from .stand_ins import loads_mask
from .task import task_of
from .weights import drop_pretrained


def choose_device(wanted: str | None) -> str:
    """Return ``cuda`` or ``cpu``; the processes that were started must find a GPU each.

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


def use_plain_batch_norm(cfg: Config) -> list[str]:
    """Replace SyncBN by BN: for a single process, or on a CPU.

    Returns:
        A line for the log; none if there was no SyncBN.
    """
    count = 0
    for node in dicts(cfg.model):
        if type_name(node) in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
            count += 1
    return [f'SyncBN became BN in {count} places: a single process or a CPU'] if count else []


def set_batch(cfg: Config, scale_lr: bool = False) -> list[str]:
    """Report the images per update: what they are, and what the recipe has.

    The recipe's number is ``auto_scale_lr.base_batch_size``.

    ``optim_wrapper.accumulative_counts='auto'`` becomes the number of steps that reaches the recipe's, on
    however many processes; an ``EMAHook`` then averages once per update.

    Args:
        scale_lr: change the learning rate in proportion, if the batch differs from the recipe's.

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
    resumed = ', not of a training that is resumed without --new-lr' if cfg.get('resume') else ''
    if recipe and batch != recipe and 'lr' in optimizer:
        fitting = optimizer['lr'] * batch / recipe
        if scale_lr:
            notes = [
                f'learning rate {optimizer["lr"]:g}, for {recipe} images, scaled to {fitting:g}{resumed}'
            ]
            optimizer['lr'] = fitting
        else:
            notes = [_batch_warning(cfg, batch, recipe, processes, fitting) + resumed]
    if scaling:
        cfg.auto_scale_lr = None  # mmengine's own scaling knows nothing of accumulated steps
    # That of a training that is resumed is the checkpoint's; engine/resume_settings.py logs it.
    rate = f', learning rate {optimizer["lr"]:g}' if 'lr' in optimizer and not resumed else ''
    how = f'{processes} x {cfg.train_dataloader.get("batch_size", 1)}' + f' x {counts} accumulated' * (
        counts > 1
    )
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


def choose_precision(cfg: Config, amp: bool, device: str) -> list[str]:
    """Set mixed precision where the config or ``--amp`` asks for it and the device has it.

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


def divide_model(cfg: Config, launcher: str) -> None:
    """Divide parameters, gradients and optimizer states among the processes (``--fsdp``).

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


def choose_views(cfg: Config, tta: bool) -> list[str]:
    """Choose one view of each image, or those of the config's ``tta_pipeline``.

    A segmenter's metrics say which.

    ``tta_model`` is built around the model, as in mmdet and mmseg; its entries of ``module`` change the
    model itself, for example ``module=dict(test_cfg=dict(mode='whole'))``.

    Raises:
        UserError: ``tta`` is asked and the config has no ``tta_pipeline``.
    """
    name = 'single_scale'
    if tta:
        if not cfg.get('tta_pipeline') or not cfg.get('tta_model'):
            raise UserError(
                f'--tta: {cfg.filename or "the config"} has no tta_model and tta_pipeline; test without --tta'
            )
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


def choose_tiles(cfg: Config, tile: int, overlap: float) -> list[str]:
    """Test by tiles: the data gives images as they are loaded, the model cuts them up.

    Raises:
        UserError: the config is neither a detector's nor a segmenter's, or has no pipeline that is one list.
    """
    steps = [dataset.get('pipeline') for _, dataset in datasets(cfg, ('test_dataloader',))]
    if task_of(cfg.model) not in ('detection', 'segmentation') or len(steps) != 1 or not steps[0]:
        raise UserError(
            f'--tile is for detectors and segmenters with one dataset to test, which '
            f'{cfg.filename or "the config"} is not'
        )
    loads = [step for step in steps[0] if type_name(step).rpartition('.')[2].startswith('Load')]
    rest = [step for step in steps[0] if step not in loads]
    packs = dict(rest[-1], meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'reduce_zero_label'))
    for _, dataset in datasets(cfg, ('test_dataloader',)):
        dataset['pipeline'] = [*loads, packs]
    cfg.model = dict(
        type='convnext_backbone.TiledModel', module=cfg.model, pipeline=rest, tile=tile, overlap=overlap
    )
    return [f'testing: tiles of {tile} pixels, overlap {overlap:g}']


def write_details(cfg: Config) -> None:
    """Make a classifier's accuracy of each class and its confusions go into the work dir."""
    for evaluator in dicts(cfg.get('test_evaluator')):
        if type_name(evaluator) == 'convnext_backbone.Accuracy':
            evaluator.setdefault('out_dir', cfg.work_dir)


def for_testing(cfg: Config, checkpoint: str, prefix: str | None = None) -> None:
    """Make a test load the weights of ``checkpoint`` as they are.

    Its ``state_dict`` is the moving average already.

    Args:
        prefix: what is in front of the names of the network to take, of a file with several.
    """
    drop_pretrained(cfg)
    cfg.load_from = checkpoint if prefix is None else dict(checkpoint=checkpoint, prefix=prefix)
    cfg.resume = False
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) != 'EMAHook']
    for name in [
        name for name, hook in (cfg.get('default_hooks') or {}).items() if type_name(hook) == 'EMAHook'
    ]:
        del cfg.default_hooks[name]


def skip_corrupt_images(cfg: Config) -> None:
    """Let the training data leave out unreadable images and masks, naming and counting them."""
    ours = ('LoadImage', 'LoadMask', 'ImageDataset', 'ImageStream')
    readers = ('LoadImageFromFile', *(f'convnext_backbone.{name}' for name in ours))
    for node in dicts(cfg.train_dataloader):
        if type_name(node) in readers or loads_mask(cfg, node):
            node['skip_corrupt'] = True
