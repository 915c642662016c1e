"""Counts what the data of a config holds: objects or pixels of each class, sizes of images and boxes."""

import contextlib
import copy
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from pycocotools import mask as rle

from ..checks.files import sampled
from ..config import datasets, use_stand_ins
from ..datasets import improve
from ..datasets.images import header
from ..datasets.masks import ListsImages, read_mask, to_labels
from ..errors import UserError
from ..registry import class_of, type_name


@dataclass
class Statistics:
    """Holds what one split has.

    Attributes:
        images: how many there are.
        classes: their names.
        what: that is counted: ``objects``, ``images`` or ``pixels``; empty if nothing is known.
        counts: of each class.
        share: of all pixels that each class has in masks; ``None`` without masks.
        ignored: share of the pixels that no class has and the loss passes over.
        sizes: (n, 2) width and height of images.
        boxes: (n, 2) width and height of boxes in the files.
        per_image: number of boxes of each image.
        looked: what was read, in words.
        files: of the images, as far as they are files.
    """

    images: int
    classes: tuple[str, ...]
    what: str = ''
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    share: np.ndarray | None = None
    ignored: float | None = None
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    boxes: np.ndarray | None = None
    per_image: np.ndarray | None = None
    looked: str = ''
    files: list[str] = field(default_factory=list)


def build(cfg: Config, split: str):
    """Build the dataset of a split as a run does, with its pipeline.

    Args:
        cfg: stays as it is.
        split: key of a data loader.
    """
    cfg = copy.deepcopy(cfg)
    use_stand_ins(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    for _, node in datasets(cfg, (split,)):
        if isinstance(kind := class_of(node, DATASETS), type):
            node['type'] = improve(kind)
    built = DATASETS.build(cfg[split]['dataset'])
    if hasattr(built, 'full_init'):
        built.full_init()
    return built


def parts(dataset) -> list:
    """Return the datasets within wrappers; the dataset itself if it is none."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    return [part for one in inner if one is not None for part in parts(one)] or [dataset]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make random numbers those of ``seed``, and afterwards those that they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  pipelines draw from it
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def count(dataset, amount: str) -> Statistics:
    """Count what a dataset holds; lists and annotations in full, images and masks by ``amount``.

    Args:
        dataset: as :func:`build` returns it.
        amount: see :data:`convnext_backbone.checks.AMOUNTS`.
    """
    found = [_of_part(part, amount) for part in parts(dataset)]
    first = found[0]
    if len(found) == 1 or len({(one.classes, one.what) for one in found}) > 1:
        return first
    pixels = np.array([max(one.sizes.prod(1).sum(), 1) for one in found])

    def joined(name: str):
        values = [getattr(one, name) for one in found]
        return None if any(value is None for value in values) else np.concatenate(values)

    def mean(values: list):
        return None if any(value is None for value in values) else np.average(values, 0, pixels)

    return Statistics(
        images=sum(one.images for one in found),
        classes=first.classes,
        what=first.what,
        counts=sum(one.counts for one in found),
        share=mean([one.share for one in found]),
        ignored=mean([one.ignored for one in found]),
        sizes=joined('sizes'),
        boxes=joined('boxes'),
        per_image=joined('per_image'),
        looked='; '.join(one.looked for one in found),
        files=[file for one in found for file in one.files],
    )


def _of_part(dataset, amount: str) -> Statistics:
    meta = getattr(dataset, 'metainfo', None) or {}
    classes = tuple(map(str, meta.get('classes') or ()))
    if isinstance(dataset, ListsImages):
        return _of_masks(dataset, classes, amount)
    if hasattr(dataset, 'get_data_info'):
        return _of_objects(dataset, classes)
    return _of_images(dataset, classes, amount)


def _of_objects(dataset, classes: tuple) -> Statistics:
    counts, area, total = np.zeros(len(classes), np.int64), np.zeros(len(classes)), 0
    sizes, boxes, per_image, files, masks = [], [], [], [], False
    for number in range(len(dataset)):
        info = dataset.get_data_info(number)
        files.append(info.get('img_path') or '')
        size = info.get('width') or 0, info.get('height') or 0
        sizes.append(size)
        total += size[0] * size[1]
        own = [i for i in info.get('instances') or () if not i.get('ignore_flag')]
        per_image.append(len(own))
        for instance in own:
            x0, y0, x1, y1 = instance['bbox']
            label = instance['bbox_label']
            boxes.append((x1 - x0, y1 - y0))
            counts[label] += 1
            if mask := instance.get('mask'):
                masks = True
                area[label] += _area(mask, size)
    return Statistics(
        images=len(files),
        classes=classes,
        what='objects',
        counts=counts,
        share=area / total if masks and total else None,
        sizes=np.array(sizes).reshape(-1, 2),
        boxes=np.array(boxes).reshape(-1, 2),
        per_image=np.array(per_image),
        looked=f'the annotations of all {len(files)} images',
        files=files,
    )


def _area(mask, size: tuple) -> float:
    """Return the pixels of a mask: run lengths, or polygons by the shoelace formula."""
    if isinstance(mask, dict):
        return float(
            rle.area(rle.frPyObjects(mask, *mask['size']) if isinstance(mask['counts'], list) else mask)
        )
    area = 0.0
    for polygon in mask:
        x, y = np.asarray(polygon, float).reshape(-1, 2).T
        area += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return area


def _of_masks(dataset, classes: tuple, amount: str) -> Statistics:
    infos = [dataset.get_data_info(number) for number in range(len(dataset))]
    counts, ignored, sizes, read = np.zeros(len(classes), np.int64), 0, [], 0
    for info in sampled([info for info in infos if info.get('seg_map_path')], amount):
        try:
            mask = read_mask(info['seg_map_path'])
        except UserError:
            continue  # the check names it
        read += 1
        values, numbers = np.unique(mask, return_counts=True)
        labels = to_labels(values, dataset.reduce_zero_label, dataset.label_map, dataset.ignore_index)
        fits = (labels >= 0) & (labels < len(classes))
        np.add.at(counts, labels[fits], numbers[fits])
        ignored += int(numbers[labels == dataset.ignore_index].sum())
        sizes.append(mask.shape[::-1])
    pixels = sum(w * h for w, h in sizes)
    return Statistics(
        images=len(infos),
        classes=classes,
        what='pixels' if read else '',
        counts=counts,
        share=counts / pixels if pixels else None,
        ignored=ignored / pixels if pixels else None,
        sizes=np.array(sizes).reshape(-1, 2),
        looked=f'{read} of {len(infos)} masks',
        files=[info['img_path'] for info in infos],
    )


def _of_images(dataset, classes: tuple, amount: str) -> Statistics:
    labels = getattr(dataset, 'labels', None)
    number = len(dataset)
    files = [dataset.filename(i) for i in range(number)] if labels is not None else []
    files = files if files and os.path.isfile(files[0]) else []  # not within a tar file
    sizes = []
    for file in sampled(files, amount):
        with contextlib.suppress(OSError):
            sizes.append(header(file).upright)
    if labels is None:
        return Statistics(number, classes, looked='the images are read one after the other and not listed')
    return Statistics(
        images=number,
        classes=classes,
        what='images',
        counts=np.bincount(labels, minlength=len(classes)),
        sizes=np.array(sizes).reshape(-1, 2),
        looked=f'the list of all {number} images' + f', the sizes of {len(sizes)}' * bool(sizes),
        files=files,
    )


def boxes_as_seen(dataset, amount: str) -> tuple[np.ndarray, str]:
    """Return the boxes that the network is trained on, after the pipeline's resizing and cropping.

    The pipeline runs on blank images of the annotated sizes, without masks, where that works, else on the
    images.

    Args:
        dataset: of a detector.
        amount: see :data:`convnext_backbone.checks.AMOUNTS`.

    Returns:
        (n, 2) width and height in pixels; what was looked at, in words.
    """
    if not _mixes(dataset):
        gets = [(_blank(part), len(part)) for part in parts(dataset)]
        blank = [(get, number) for get, count in gets for number in range(count)]
        with contextlib.suppress(Exception):  # of a step that needs pixels or masks
            return _collect(blank, 'all' if amount == 'all' else 'sample', '')
    whole = [(dataset.__getitem__, number) for number in range(len(dataset))]
    return _collect(whole, amount, ' with their pixels')


def _mixes(dataset) -> bool:
    """Return whether a wrapper has a pipeline beside that of what it holds (mosaic, mixup)."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    inner = [one for one in inner if one is not None]
    return bool(inner) and (hasattr(dataset, 'pipeline') or any(map(_mixes, inner)))


def _collect(numbered: list[tuple], amount: str, how: str) -> tuple[np.ndarray, str]:
    sizes, looked = [np.zeros((0, 2))], 0
    with seeded(0):
        for get, number in sampled(numbered, amount):
            sample = get(number)
            looked += 1
            if sample is not None:
                boxes = sample['data_samples'].gt_instances.bboxes
                boxes = getattr(boxes, 'tensor', boxes).numpy()
                sizes.append(boxes[:, 2:] - boxes[:, :2])
    return np.concatenate(sizes), f'{looked} of {len(numbered)} images{how}'


def _blank(dataset):
    """Return a function that gives a sample of a dataset without reading its image."""

    def load(results: dict) -> dict:
        shape = (int(results['height']), int(results['width']))
        results.update(img=np.zeros((*shape, 3), np.uint8), img_shape=shape, ori_shape=shape)
        return results

    steps = []
    for step in dataset.pipeline.transforms:
        name = type_name(type(step)).rpartition('.')[2]
        if name in ('LoadImage', 'LoadImageFromFile'):
            step = load
        elif getattr(step, 'with_mask', False):
            step = copy.copy(step)
            step.with_mask = False
        steps.append(step)
    pipeline = Compose(steps)
    return lambda number: pipeline(dataset.get_data_info(number))
