"""Chooses optimizer, learning rate, layer decay, warm-up and stochastic depth for a swapped config."""

import re
from dataclasses import dataclass
from pathlib import PurePath

from mmengine.config import Config
from torch import nn

from ..config import task_of
from ..registry import SCOPE, type_name

RECIPES = ('paper', 'keep')
IMAGES = 16  # in a step of the published detection and segmentation recipes
RATE = 1e-4  # for as many
WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.999)
CONSTRUCTOR = f'{SCOPE}.LayerDecayConstructor'
# arch: stochastic depth and layer decay in detection, stochastic depth in segmentation; of the published
# recipes (Mask and Cascade Mask R-CNN, UPerNet). Smaller networks, for which none is published, as tiny.
DETECTION = dict(tiny=(0.4, 0.95), small=(0.6, 0.7), base=(0.7, 0.8), large=(0.7, 0.7), xlarge=(0.8, 0.7))
SEGMENTATION = dict(tiny=0.4, small=0.3, base=0.4, large=0.4, xlarge=0.4)
SEGMENTATION_DECAY = 0.9
SMALL_DROP_PATH = 0.1  # of networks smaller than tiny
WARM_UP = dict(detection=(0.001, 500), segmentation=(1e-6, 1500))  # first factor, steps
LONGEST = 20  # of so many steps at most one warms up
WARM_UPS = ('LinearLR', 'QuadraticWarmupLR', 'ConstantLR', 'LinearParamScheduler')


@dataclass(frozen=True)
class Recipe:
    """Is what a config trains by after a swap.

    Attributes:
        drop_path: stochastic depth of the backbone.
        decay: layer decay, and whether it goes ``'layer_wise'`` or ``'stage_wise'``.
        rate: learning rate of AdamW for the images of a step.
        images: of an update, and where that number is from.
    """

    drop_path: float
    decay: tuple[float, str]
    rate: float
    images: tuple[int, str]


def recipe_of(cfg: Config, arch: str, name: str = '', gpus: int = 1) -> Recipe:
    """Return the paper's recipe for a config.

    Args:
        cfg: the original config.
        arch: of the ConvNeXt that takes the backbone's place.
        name, gpus: see :func:`images_of_step`.
    """
    size = arch.removeprefix('v2_')
    segmentation = task_of(cfg.model) == 'segmentation'
    if segmentation:
        drop_path, decay = SEGMENTATION.get(size, SMALL_DROP_PATH), (SEGMENTATION_DECAY, 'stage_wise')
    else:
        drop_path, rate = DETECTION.get(size, (SMALL_DROP_PATH, DETECTION['tiny'][1]))
        decay = rate, 'layer_wise'
    images = images_of_step(cfg, name, gpus)
    return Recipe(drop_path, decay, RATE * images[0] / IMAGES, images)


def images_of_step(cfg: Config, name: str, gpus: int = 1) -> tuple[int, str]:
    """Return how many images an update of the original training has, and what says so.

    Args:
        cfg: the original config.
        name: of its file, which may say the number of GPUs (``8xb2``).
        gpus: that are assumed where nothing says their number.
    """
    wrapper = cfg.get('optim_wrapper')
    steps = wrapper.get('accumulative_counts', 1) if isinstance(wrapper, dict) else 1
    steps = steps if isinstance(steps, int) and steps > 1 else 1
    added = f', {steps} steps for an update' if steps > 1 else ''
    given = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    if isinstance(given, int) and given > 0:
        return given * steps, f'auto_scale_lr.base_batch_size{added}'
    if found := re.search(r'[_-](\d+)xb(\d+)[_-]', PurePath(name).name):
        number, each = int(found[1]), int(found[2])
        return number * each * steps, f'{number} GPUs with {each} images, by its name{added}'
    if isinstance(batch, int) and batch > 0:
        plural = 's' if gpus > 1 else ''
        return gpus * batch * steps, f'{gpus} GPU{plural} with train_dataloader.batch_size={batch}{added}'
    return IMAGES, 'as published, since the config does not say'


def optimizer_of(cfg: Config, recipe: Recipe, model: nn.Module | None, backbones: list[str]) -> dict | None:
    """Return the settings that take the place of ``optim_wrapper``; ``None`` if there are several optimizers.

    Args:
        model: the swapped model; settings of single parameters outside its backbones are carried over.
        backbones: names of the backbones in it.
    """
    old = cfg.to_dict().get('optim_wrapper') or {}
    if not isinstance(old.get('optimizer'), dict):
        return None
    new = dict(_delete_=True, type=old.get('type', 'OptimWrapper'))
    new.update({key: old[key] for key in ('dtype', 'loss_scale', 'accumulative_counts') if key in old})
    new['optimizer'] = dict(type='AdamW', lr=recipe.rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    if old.get('clip_grad'):
        new['clip_grad'] = old['clip_grad']
    new['constructor'] = CONSTRUCTOR
    new['paramwise_cfg'] = dict(decay_rate=recipe.decay[0], decay_type=recipe.decay[1])
    if kept := custom_keys(cfg, model, backbones):
        new['paramwise_cfg']['custom_keys'] = kept
    return new


def custom_keys(cfg: Config, model: nn.Module | None, backbones: list[str]) -> dict:
    """Return the ``custom_keys`` that name parameters outside the backbones."""
    given = ((cfg.to_dict().get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}
    if model is None:
        return {}
    names = [n for n, _ in model.named_parameters() if not any(n.startswith(f'{b}.') for b in backbones)]
    return {key: value for key, value in given.items() if any(key in name for name in names)}


def schedule_of(cfg: Config, recipe: Recipe) -> list[dict] | None:
    """Return the schedule with the recipe's warm-up, and with ends for its learning rate; ``None``: as it is.

    Its length stays. What the original warms up by something longer than the recipe stays, too.
    """
    given = cfg.to_dict().get('param_scheduler')
    given = [given] if isinstance(given, dict) else given
    if not isinstance(given, (list, tuple)) or not all(isinstance(entry, dict) for entry in given):
        return None
    old_rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    share = recipe.rate / old_rate if isinstance(old_rate, (int, float)) and old_rate else 0.0
    factor, steps = WARM_UP.get(task_of(cfg.model), WARM_UP['detection'])
    new = [dict(entry) for entry in given]
    for entry in new:
        if entry.get('eta_min'):  # would be more than the whole rate
            entry['eta_min'] = float(f'{entry["eta_min"] * share:.3g}')
    warms = [e for e in new if type_name(e) in WARM_UPS and not e.get('begin', 0)]
    plain = [e for e in warms if type_name(e) == 'LinearLR' and e.get('by_epoch') is False]
    total = (cfg.get('train_cfg') or {}).get('max_iters')
    if isinstance(total, int):
        steps = min(steps, max(1, total // LONGEST))
    if plain:
        end = plain[0].get('end')
        plain[0]['start_factor'] = factor
        if isinstance(end, int) and end < steps:
            plain[0]['end'] = steps
            for entry in new:
                if entry.get('by_epoch') is False and entry.get('begin') == end:
                    entry['begin'] = steps
    elif not warms:
        new.insert(0, dict(type='LinearLR', start_factor=factor, by_epoch=False, begin=0, end=steps))
    return None if new == list(given) else new
