"""Draws conclusions from measured steps: other batches, cards of other sizes, changes that would help."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from mmengine.config import Config

from ..config import dicts
from ..registry import SCOPE, type_name
from .steps import MARGIN, Sheet

CARDS = (24, 48, 80)  # GiB
PIXELS = 2_200_000  # that are measured at once on a CPU: two images of 800 x 1344
SCALE = 0.75
BATCH_NORMS = ('BN', 'BN2d', 'SyncBN', 'MMSyncBN')


@dataclass(frozen=True)
class Line:
    """Is the memory of a step as a function of the batch: ``fixed`` bytes, and some ``per_image``."""

    fixed: float
    per_image: float

    @classmethod
    def through(cls, low: int, low_bytes: float, high: int, high_bytes: float) -> 'Line':
        """Return the line through the bytes at two batches."""
        slope = (high_bytes - low_bytes) / (high - low)
        return cls(high_bytes - slope * high, slope)

    def __call__(self, batch: int) -> float:
        return self.fixed + self.per_image * batch

    def largest(self, memory: float, step: int = 1) -> int:
        """Return the largest batch, a multiple of ``step``, that leaves :data:`MARGIN` of the memory."""
        fitting = (memory * (1 - MARGIN) - self.fixed) / self.per_image
        return max(0, math.floor(fitting / step) * step)


def batches(batch: int, size: tuple[int, int], least: int = 1, step: int = 1) -> tuple[int, int]:
    """Return the two batches that are measured on a CPU: the training's or what is not too slow, and another.

    Args:
        batch: of the training.
        size: height and width of the images.
        least: that the model can be trained with.
        step: both are multiples of it.
    """
    most = max(PIXELS // (size[0] * size[1]), least)
    first = max(min(batch, most), least, step) // step * step
    half = first // 2 // step * step
    return first, half if half >= max(least, step) else 2 * first


def least_batch(cfg: Config) -> int:
    """Return the least batch of a model: 2 if it has batch norms, which may see one value of each image."""
    return 2 if any(type_name(node) in BATCH_NORMS for node in dicts(cfg.model)) else 1


def variants(cfg: Config, size: tuple[int, int], device: str) -> Iterator[tuple[str, Config, tuple]]:
    """Yield changes that may help: name, changed config and size of the images."""
    backbone = cfg.model.get('backbone') or {}
    if type_name(backbone).startswith(f'{SCOPE}.') and not backbone.get('with_cp'):
        changed = copy.deepcopy(cfg)
        changed.model.backbone.with_cp = True
        yield 'model.backbone.with_cp=True', changed, size
    mixed = device != 'cuda' or type_name(cfg.optim_wrapper) == 'AmpOptimWrapper'  # none on a CPU, or there
    if not mixed and torch.cuda.is_bf16_supported(including_emulation=False):
        changed = copy.deepcopy(cfg)
        changed.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic')
        yield 'bfloat16 (--amp)', changed, size
    side = cfg.model.get('patch_size', 32)
    smaller = tuple(math.ceil(n * SCALE / side) * side for n in size)
    if smaller != size:
        changed = copy.deepcopy(cfg)
        processor = changed.model.get('data_preprocessor') or {}
        for part in (processor, *(processor.get('batch_augments') or ())):
            if part.get('size') is not None:
                part['size'] = smaller
        yield f'images of {smaller[0]} x {smaller[1]} (scale {SCALE:g})', changed, smaller


def helps(sheet: Sheet, base: Sheet, least: float = 0.02) -> bool:
    """Return whether a change saves a share of the memory or of the time."""
    return sheet.peak < base.peak * (1 - least) or sheet.seconds < base.seconds * (1 - least)
