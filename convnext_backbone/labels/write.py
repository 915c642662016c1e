"""Writes what was read in the form that datasets take, into a folder of its own, each file as a whole."""

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..checkpoint.write import write_bytes, write_text
from ..datasets.images import each
from ..datasets.masks import read_mask
from ..errors import UserError
from .masks import read_colours
from .structure import IGNORED, Labels, MaskValues, Object, RunLengths, Sample


@dataclass(frozen=True)
class CocoSplit:
    """Holds what a COCO dataset of one split is given.

    Attributes:
        ann_file: its JSON file.
        image_folder: where the images lie, ``data_prefix=dict(img=...)``.
        written: the file is new; otherwise it is the user's own, used where it lies.
    """

    ann_file: Path
    image_folder: Path
    written: bool


@dataclass(frozen=True)
class MaskSplit:
    """Holds what ``BaseSegDataset`` of one split is given.

    Attributes:
        ann_file: list of the images, without their suffix.
        image_folder, mask_folder: where they lie, ``data_prefix=dict(img_path=..., seg_map_path=...)``.
        img_suffix, seg_map_suffix: what is added to each name.
        written: the masks are new; otherwise they are the user's own, used where they lie.
    """

    ann_file: Path
    image_folder: Path
    mask_folder: Path
    img_suffix: str
    seg_map_suffix: str
    written: bool


@dataclass(frozen=True)
class ClassSplit:
    """Holds what ``ImageDataset`` of one split is given.

    Attributes:
        data_root: folder of the classes, or of the splits.
        split: folder of the split; empty where the list alone says which images belong to it.
        images: list of the images, or ``None`` for all of the folder.
        class_index: folder of each class -> its number.
    """

    data_root: Path
    split: str
    images: Path | None
    class_index: dict[str, int]


def _check_task(labels: Labels, *tasks: str) -> None:
    if labels.task not in tasks:
        raise UserError(f'{labels.root} has labels for {labels.task}, expected {" or ".join(tasks)}')


def _make_folder(labels: Labels, folder: str | os.PathLike) -> Path:
    """Make the folder to write to.

    Raises:
        UserError: it lies in the folder of the labels, where nothing is written, or cannot be made.
    """
    target = Path(folder).absolute()
    if labels.root.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(f'{target} lies in {labels.root}, where nothing is written: choose another folder')
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{target} cannot be made: {error.strerror}') from error
    return target


# -- COCO ----------------------------------------------------------------


def write_coco(labels: Labels, folder: str | os.PathLike) -> dict[str, CocoSplit]:
    """Write a COCO file for each split, ``train.json`` and so on.

    A COCO file that a dataset would read the same from is used where it lies: the order of the classes is
    that of ``metainfo.classes``, by name. Names of images are relative to the innermost folder that holds
    those of the split, so that copies of one set in different formats give the same files.

    Args:
        labels: of the task ``boxes`` or ``segments``.
        folder: where to write; made if it is not there, and only if something is written.

    Raises:
        UserError: the labels are of another task, or the folder lies within theirs.
    """
    _check_task(labels, 'boxes', 'segments')
    found = {}
    for split, samples in labels.splits.items():
        if split in labels.files:
            found[split] = CocoSplit(*labels.files[split], written=False)
            continue
        file = _make_folder(labels, folder) / f'{split or "all"}.json'
        images = labels.image_folder(split)
        write_text(file, json.dumps(_coco(labels.classes, samples, images)))
        found[split] = CocoSplit(file, images, written=True)
    return found


def _coco(classes: tuple[str, ...], samples: Iterable[Sample], folder: Path) -> dict:
    images, annotations = [], []
    for number, sample in enumerate(samples, 1):
        name = sample.image.relative_to(folder).as_posix()
        images.append(dict(id=number, file_name=name, width=sample.width, height=sample.height))
        for item in sample.objects:
            annotations.append(dict(id=len(annotations) + 1, image_id=number, **_annotation(item, sample)))
    categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _annotation(item: Object, sample: Sample) -> dict:
    x1, y1, x2, y2 = item.box
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    record = dict(
        category_id=item.label + 1,
        bbox=[_short(v) for v in (x1, y1, width, height)],
        area=_short(round(width * height, 2)),
        iscrowd=int(item.crowd),
    )
    if isinstance(item.mask, RunLengths):
        counts = item.mask.counts if isinstance(item.mask.counts, str) else list(item.mask.counts)
        given = dict(size=list(item.mask.size), counts=counts)
        encoded = given if isinstance(counts, str) else rle.frPyObjects(given, *item.mask.size)
        record.update(segmentation=given, area=int(rle.area(encoded)))
    elif item.mask is not None:
        polygons = [[_short(v) for v in polygon] for polygon in item.mask]
        record.update(segmentation=polygons, area=_short(round(sum(map(_area, item.mask)), 2)))
    return record


def _short(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _area(polygon: tuple[float, ...]) -> float:
    xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
    return float(abs((xs * np.roll(ys, -1) - np.roll(xs, -1) * ys).sum()) / 2)


# -- masks ---------------------------------------------------------------


def write_masks(labels: Labels, folder: str | os.PathLike) -> dict[str, MaskSplit]:
    """Write the list of the images of each split, and where it is needed masks of class numbers.

    Masks that hold the numbers already are used where they lie, if their names follow those of the images;
    otherwise gray PNGs are written below ``masks/``.

    Args:
        labels: of the task ``masks``.
        folder: where to write; made if it is not there.

    Raises:
        UserError: the labels are of another task, a mask cannot be read any more, or the folder lies within
            theirs.
    """
    _check_task(labels, 'masks')
    target = _make_folder(labels, folder)
    found = {}
    for split, samples in labels.splits.items():
        name = split or 'all'
        images = labels.image_folder(split)
        names = [sample.image.relative_to(images).as_posix() for sample in samples]
        suffixes = {sample.image.suffix for sample in samples}
        img_suffix = suffixes.pop() if len(suffixes) == 1 else ''
        stems = [name.removesuffix(img_suffix) for name in names]
        beside = _beside(samples, stems) if labels.values.usable else None
        if beside is None:
            masks = target / 'masks' / name
            _write_masks(labels.values, samples, [masks / f'{stem}.png' for stem in stems])
        mask_folder, seg_map_suffix = beside or (masks, '.png')
        write_text(target / f'{name}.txt', ''.join(f'{stem}\n' for stem in stems))
        found[split] = MaskSplit(
            target / f'{name}.txt', images, mask_folder, img_suffix, seg_map_suffix, written=beside is None
        )
    return found


def _beside(samples: tuple[Sample, ...], stems: list[str]) -> tuple[Path, str] | None:
    """Return the folder and the ending of masks whose names follow those of the images."""
    parents = {str(sample.mask.parent) for sample in samples}
    folder = Path(os.path.commonpath(parents))
    first = samples[0].mask.relative_to(folder).as_posix()
    ending = first.removeprefix(stems[0])
    regular = all(
        sample.mask == folder / f'{stem}{ending}' and stem == stem.strip()
        for sample, stem in zip(samples, stems)
    )
    return (folder, ending) if regular else None


def _write_masks(values: MaskValues, samples: tuple[Sample, ...], files: list[Path]) -> None:
    def write(sample: Sample, file: Path) -> None:
        pixels = read_colours(sample.mask) if values.colour else read_mask(sample.mask)
        stream = io.BytesIO()
        Image.fromarray(_numbers(pixels, values)).save(stream, 'PNG')
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, stream.getvalue())

    each(lambda pair: write(*pair), list(zip(samples, files)), 'masks')


def _numbers(pixels: np.ndarray, values: MaskValues) -> np.ndarray:
    """Return the class number of each pixel, (H, W) uint8."""
    found, which = np.unique(pixels, return_inverse=True)
    keys = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) if values.colour else int(v) for v in found]
    table = np.array([values.numbers.get(key, IGNORED) for key in keys], np.uint8)
    return table[which.reshape(pixels.shape)]


# -- classes -------------------------------------------------------------


def write_lists(labels: Labels, folder: str | os.PathLike) -> dict[str, ClassSplit]:
    """Write the list of the images of each split, where the folder has none.

    Args:
        labels: of the task ``classes``.
        folder: where to write; made if it is not there, and only if something is written.

    Raises:
        UserError: the labels are of another task, or the folder lies within theirs.
    """
    _check_task(labels, 'classes')
    index = {name: i for i, name in enumerate(labels.classes)}
    found = {}
    for split, samples in labels.splits.items():
        names = [sample.image.relative_to(labels.root).as_posix() for sample in samples]
        tops = {name.split('/')[0] for name in names}
        whole = labels.given and len(tops) == 1
        if whole and {path.name for path in (labels.root / min(tops)).iterdir() if path.is_dir()} <= set(
            index
        ):
            found[split] = ClassSplit(labels.root, min(tops), None, index)
            continue
        file = _make_folder(labels, folder) / f'{split or "all"}.txt'
        write_text(file, ''.join(f'{name}\n' for name in names))
        found[split] = ClassSplit(labels.root, '', file, index)
    return found
