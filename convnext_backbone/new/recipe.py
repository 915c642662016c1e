"""Chooses schedule, batch, learning rate and image size for a set of images and the machine at hand.

Each choice comes with its rule in words, which the command prints and the config repeats.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from ..labels import Labels

# Images that a training sees in all, and the fewest and most epochs: COCO's 12 epochs are 1.4 million, for
# 118 thousand images; small sets see theirs more often, though not a hundred times as often.
SEEN = dict(boxes=(100_000, 12, 150), masks=(100_000, 20, 200), classes=(300_000, 10, 100))
# Images in a step on a GPU, by the GiB of its memory; on a CPU as below 12.
BATCHES = dict(
    boxes=((12, 1), (20, 2), (40, 4), (1000, 8)),
    masks=((12, 2), (20, 4), (40, 8), (1000, 16)),
    classes=((12, 32), (20, 64), (40, 128), (1000, 256)),
)
CPU_BATCH = dict(boxes=2, masks=2, classes=16)
CLASSIFIER_RATE, CLASSIFIER_IMAGES = 2e-4, 64  # ours: for a new head on pretrained weights
SCRATCH = 5  # times the rate for random weights, ours; layers are not slowed down then
ENLARGED, SHORTEST, LONGEST = 1.5, 320, 800  # of the short side in pixels; COCO's recipe enlarges 1.67 times
MOSAIC = 640  # side of the images that RTMDet trains and is tested on
STEP = 32  # sides are multiples of it
WORKERS = 4


@dataclass(frozen=True)
class Machine:
    """Describes what trains: GPUs and the memory of one in GiB (0 on a CPU), and processors."""

    gpus: int
    memory: float
    processors: int


def machine_at_hand() -> Machine:
    """Return what torch sees here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if gpus else 0.0
    return Machine(gpus, memory, os.cpu_count() or 1)


@dataclass(frozen=True)
class Recipe:
    """Holds the numbers of a training, and the rule behind each in words.

    Attributes:
        epochs, warm_up: of the schedule; the latter in steps.
        batch: images in a step of one process.
        rate: learning rate for ``batch`` images on each of ``gpus`` processes.
        short, long: sides of the images that the model sees, in pixels. Of a segmenter ``short`` is the side
            of the crops, and ``long`` that of the whole images; of a classifier both are the same.
        workers: processes of the data loader.
        rules: by the name of what they choose.
    """

    epochs: int
    warm_up: int
    batch: int
    gpus: int
    rate: float
    short: int
    long: int
    workers: int
    rules: dict[str, str]

    def told(self) -> Iterator[tuple[str, str]]:
        """Yield what was chosen, and value and rule in words."""
        values = dict(epochs=self.epochs, batch=self.batch, rate=self.rate)
        for what, rule in self.rules.items():
            yield what, f'{values[what]:g}; {rule}' if what in values else rule


def _kind(task: str) -> str:
    return 'boxes' if task == 'segments' else task


def _multiple(side: float) -> int:
    return max(STEP, round(side / STEP) * STEP)


def _asked(size: int, side: int) -> str:
    """Return what is said of a side that was asked for."""
    return 'as asked for' if size == side else f'{size} as asked for, to a multiple of {STEP}'


def image_sides(labels: Labels, size: int | None, square: int | None = None) -> tuple[int, int, str]:
    """Return short and long side of the images that the model sees, and the rule.

    Args:
        labels: with the sizes of the images.
        size: the short side, if it is asked for.
        square: side of the images of a detector that takes them square.
    """
    if square:
        short = _multiple(size or square)
        return short, short, f'{short} x {short}, {_asked(size, short) if size else "that of the base"}'
    if labels.task == 'classes':
        short = _multiple(size or 224)
        return (
            short,
            short,
            f'{short} x {short}, {_asked(size, short)}' if size else 'that of the pretraining',
        )
    sizes = np.array([(s.width, s.height) for s in labels.samples() if s.width])
    shorts, longs = sizes.min(1), sizes.max(1)
    median, ratio = float(np.median(shorts)), float(np.quantile(longs / shorts, 0.95))
    found = f'the median of the short sides is {median:g}'
    if labels.task == 'masks':
        short = _multiple(size or min(512, max(STEP * 2, median)))
        factor = short / median if size else max(1.0, short / median)
        rule = f'crops of {short}: {found}, at most 512'
        if size:
            rule = f'images of {short} on the short side, and crops as large: {_asked(size, short)}'
        return short, max(short, round(float(np.median(longs)) * factor)), rule
    short = _multiple(size or min(LONGEST, max(SHORTEST, ENLARGED * median)))
    long = _multiple(short * min(max(ratio, 1.0), 1333 / 800 if ratio <= 1.8 else 3.0))
    why = _asked(size, short) if size else f'{found}: {ENLARGED} times, from {SHORTEST} to {LONGEST}'
    return short, max(short, long), f'{short}, at most {max(short, long)} long; {why}'


def recipe_for(
    labels: Labels,
    rate: float,
    images: int,
    machine: Machine,
    *,
    scratch: bool = False,
    epochs: int | None = None,
    batch: int | None = None,
    size: int | None = None,
    square: int | None = None,
) -> Recipe:
    """Choose everything that depends on the amount of data and on the machine.

    Args:
        labels: what was read.
        rate: learning rate of the config that is inherited from, for ``images`` of a step.
        images: see ``rate``.
        machine: that will train.
        scratch: with random weights, which learn faster.
        epochs, batch, size: in place of the rule's.
        square: see :func:`image_sides`.

    Raises:
        UserError: fewer images to train on than a step has, or a number below one.
    """
    for name, value in (('--epochs', epochs), ('--batch', batch), ('--size', size)):
        if value is not None and value < 1:
            raise UserError(f'{name} must be at least 1, got {value}')
    kind, count, rules = _kind(labels.task), len(labels.splits['train']), {}
    seen, fewest, most = SEEN[kind]
    if epochs:
        rules['epochs'] = 'as asked for'
    else:
        epochs = min(most, max(fewest, round(seen / count)))
        rules['epochs'] = f'{seen:,} images seen, {fewest} to {most} epochs; here are {count:,}'
    if batch:
        rules['batch'] = 'as asked for'
    elif machine.gpus:
        batch = next(number for memory, number in BATCHES[kind] if machine.memory < memory)
        rules['batch'] = f'for {machine.gpus} GPU{"s" * (machine.gpus > 1)} of {machine.memory:.0f} GiB'
    else:
        batch = CPU_BATCH[kind]
        rules['batch'] = 'for a CPU'
    gpus = max(1, machine.gpus)
    if batch * gpus > count:
        if rules['batch'] == 'as asked for' or count < gpus:
            most = f'give --batch {count // gpus} or less' if count >= gpus else 'train on fewer GPUs'
            raise UserError(f'a step has {batch * gpus} images, and there are {count} to train on: {most}')
        batch = count // gpus
    if labels.task == 'masks' and batch < 2 and gpus == 1:
        raise UserError('a segmenter norms over the batch, which needs 2 images: --batch 2')
    total = batch * gpus
    if kind == 'classes':
        rate, images = CLASSIFIER_RATE, CLASSIFIER_IMAGES
    rate *= SCRATCH if scratch else 1
    scaled = float(f'{rate * math.sqrt(total / images):.2g}')
    rules['rate'] = f'{rate:g} for {images} images'
    if total != images:
        rules['rate'] += f', times the root of {total} / {images} (arXiv:2205.10287)'
    rules['rate'] += f'; {SCRATCH} times the usual, for random weights' if scratch else ''
    steps = epochs * (count // total)
    warm_up = max(1, min(500, steps // 10))
    short, long, rules['size'] = image_sides(labels, size, square)
    workers = max(1, min(WORKERS, machine.processors // gpus - 1))
    return Recipe(epochs, warm_up, batch, gpus, scaled, short, long, workers, rules)


def milestones(epochs: int) -> Sequence[int]:
    """Return after which epochs the learning rate is divided by 10: 27 and 33 of the published 36.

    Never after the last, so that there is none for a single epoch.
    """
    wanted = {round(epochs * 0.75), round(epochs * 11 / 12)}
    return sorted({min(max(1, after), epochs - 1) for after in wanted} - {0})
