"""Reads out of a config how long a training is and what it writes: images, steps, checkpoints."""

import math
from dataclasses import dataclass

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..config import datasets, hooks_of
from ..datasets import forget_annotations, improve
from ..measure import building
from ..registry import class_of, type_name

# Images of the training part, as published; of COCO those with objects (118,287 less 1,021).
PUBLISHED = {
    'instances_train2017': (117_266, 118_287),
    'panoptic_train2017': (118_287, 118_287),
    'ADE20KDataset': (20_210, 20_210),
    'imagenet22k': (14_197_122, 14_197_122),
    'imagenet': (1_281_167, 1_281_167),
}


@dataclass(frozen=True)
class Length:
    """Holds the length of a training.

    Attributes:
        images: of an epoch; ``None`` where neither data nor config say it.
        source: of that number, in words.
        epochs, iterations: of the config; one of them is ``None``.
        recipe_batch: images of an update that the config was made for; ``None`` if it says none.
        counts: steps whose gradients are added up before an update.
    """

    images: int | None
    source: str
    epochs: int | None
    iterations: int | None
    recipe_batch: int | None
    counts: int

    def seen(self, batch: int) -> float | None:
        """Return how many images the training sees; of iterations with the recipe's batch.

        Args:
            batch: images of a step on all GPUs, where the config names no recipe's.
        """
        if self.iterations is not None:
            return self.iterations * (self.recipe_batch / self.counts if self.recipe_batch else batch)
        return None if self.images is None else self.epochs * self.images


def length_of(cfg: Config, batch: int, gpus: int) -> Length:
    """Return the length of the training of a config.

    Args:
        cfg: of a training.
        batch: images of a step on one GPU.
        gpus: that the training has.
    """
    loop = cfg.get('train_cfg') or {}
    images, source = _images(cfg)
    recipe = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if counts == 'auto':
        counts = max(1, round((recipe or 1) / (batch * gpus)))
    iterations = loop.get('max_iters')
    return Length(images, source, None if iterations else loop.get('max_epochs'), iterations, recipe, counts)


def _images(cfg: Config) -> tuple[int | None, str]:
    """Return the number of training images and where it comes from."""
    loader = cfg.train_dataloader
    node, scope = loader['dataset'], cfg.get('default_scope')
    try:
        with building(scope, 'cpu'):
            kind = class_of(node, DATASETS)
            made = dict(node, type=improve(kind)) if isinstance(kind, type) else node
            return len(DATASETS.build(made)), 'counted in the data'
    except Exception:  # it is not there, or not whole: `convnext check` says what is wrong with it
        pass
    finally:
        forget_annotations()
    total = 0
    for _, data in datasets(cfg, ('train_dataloader',)):
        text = ' '.join([type_name(data), *(str(data.get(key, '')) for key in ('ann_file', 'data_root'))])
        known = next((numbers for name, numbers in PUBLISHED.items() if name in text), None)
        if known is None:
            return None, 'the data is not there'
        filtered = (data.get('filter_cfg') or {}).get('filter_empty_gt', False)
        total += known[0] if filtered else known[1]
    return total, 'the published number, since the data is not there'


@dataclass(frozen=True)
class Disk:
    """Holds what checkpoints need: bytes of a regular and of a best one, how many are kept, how often."""

    regular: int
    best: int
    kept: int
    bests: int
    interval: str

    @property
    def bytes(self) -> int:
        """Return the most that lies on the disk: a new one is whole before the oldest is removed."""
        return self.regular * (self.kept + 1) + self.best * (self.bests + bool(self.bests))


def averages(cfg: Config) -> bool:
    """Return whether the training keeps a moving average of its weights."""
    return any('EMAHook' in type_name(hook) for hook in hooks_of(cfg))


def disk_of(cfg: Config, length: Length, weights: int, state: int) -> Disk:
    """Return what the checkpoints of a training need.

    Args:
        cfg: of a training.
        length: of it.
        weights: bytes of parameters and buffers.
        state: bytes of the optimizer's state.
    """
    hooks = [hook for hook in hooks_of(cfg) if type_name(hook).endswith('CheckpointHook')]
    hook = hooks[0] if hooks else {}
    both = weights * (1 + averages(cfg))
    regular = both + (state if hook.get('save_optimizer', True) else 0)
    interval, keep = hook.get('interval', 1), hook.get('max_keep_ckpts', -1)
    by_epoch = hook.get('by_epoch', True)
    total = length.epochs if by_epoch else length.iterations
    written = math.ceil((total or 1) / interval) if interval > 0 else 1
    best = hook.get('save_best')
    bests = len(best) if isinstance(best, (list, tuple)) else bool(best)
    unit = 'epoch' if by_epoch else 'step'
    every = unit if interval == 1 else f'{interval} {unit}s'
    return Disk(regular, both, min(keep, written) if keep > 0 else written, int(bests), every)
