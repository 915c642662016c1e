"""Finds sets of images, computes their features, and writes them."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..datasets.images import SUFFIXES as IMAGES
from ..errors import UserError
from ..inputs import is_video, named_files
from .extractor import FeatureExtractor

SUFFIXES = ('.safetensors', '.npy')  # of the files that hold all features


@dataclass
class ImageSet:
    """Holds image files by name, and their classes where their folders have these names.

    Attributes:
        files: by their paths below the folder that they have in common.
        classes: names, in alphabetical order; empty where an image lies in no folder of a class.
        labels: number of the class of each image.
    """

    files: dict[str, Path]
    classes: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def image_set(paths: Sequence[str | Path], out: str | Path = '') -> ImageSet:
    """Find images in files, folders and patterns; a folder that holds none itself is searched below.

    Args:
        paths: of ``named_files``.
        out: folder of the results, in which nothing is an image.

    Raises:
        UserError: one of them is not there, or holds no image; or is a video.
    """
    folders = [path for path in map(Path, paths) if path.is_dir()]
    deep = [path for path in folders if not any(file.suffix.lower() in IMAGES for file in path.iterdir())]
    files = named_files([str(path) for path in paths], recursive=bool(deep), out=out)
    if video := next(filter(is_video, files.values()), None):
        raise UserError(f'{video} is a video: features are of images, take its frames')
    folders = [name.split('/')[:-1] for name in files]
    if len(paths) != 1 or not all(len(folder) == 1 for folder in folders):
        return ImageSet(files)
    classes = sorted({name for (name,) in folders})
    return ImageSet(files, classes, [classes.index(name) for (name,) in folders])


@dataclass
class Features:
    """Holds the features of those images of a set that could be read.

    Attributes:
        array: (N, channels) or (N, channels, height, width), float32.
        names, labels: of these images; the latter are empty where there are no classes.
        errors: of the others, a line each.
    """

    array: Tensor
    names: list[str]
    labels: list[int]
    errors: list[str]


def compute(extractor: FeatureExtractor, images: ImageSet, batch: int = 32) -> Features:
    """Compute the features of a set of images, with a bar on a terminal.

    Raises:
        UserError: no image could be read, or their maps do not fit into the memory of this machine.
    """
    names = list(images.files)
    _check_memory(extractor, len(names))
    rows, good, errors = [], [], []
    for number, feature in _with_bar(extractor, images, batch):
        if isinstance(feature, Tensor):
            rows.append(feature)
            good.append(number)
        else:
            errors.append(str(feature))
    if not rows:
        raise UserError(f'none of the {len(names)} images can be read; the first: {errors[0]}')
    labels = [images.labels[number] for number in good] if images.labels else []
    return Features(torch.stack(rows), [names[number] for number in good], labels, errors)


def _with_bar(extractor: FeatureExtractor, images: ImageSet, batch: int):
    items = extractor.batches(list(images.files.values()), batch)
    return tqdm(items, total=len(images.files), unit='image', disable=None, dynamic_ncols=True)


def _check_memory(extractor: FeatureExtractor, count: int) -> None:
    side = 1 if extractor.stage is None else extractor.size // extractor.stride
    needed = 2 * 4 * count * extractor.channels * side**2  # the rows, then the array of them
    there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > there:
        raise UserError(
            f'the features of {count} images take {needed / 2**30:.0f} GiB, this machine has '
            f'{there / 2**30:.0f}: give --out a folder, which gets a file for each image, or a later --stage'
        )


def write_each(extractor: FeatureExtractor, images: ImageSet, out: Path, batch: int = 32) -> list[str]:
    """Write the map of each image into a folder as ``NAME.npy``, and what was done into ``features.json``.

    Returns:
        A line for each image that could not be read.
    """
    names, errors = list(images.files), []
    for number, feature in _with_bar(extractor, images, batch):
        if isinstance(feature, Tensor):
            file = out / f'{names[number]}.npy'
            file.parent.mkdir(parents=True, exist_ok=True)
            with _whole(file) as part, part.open('wb') as stream:
                np.save(stream, feature.numpy())
        else:
            errors.append(str(feature))
    with _whole(out / 'features.json') as part:
        part.write_text(json.dumps(extractor.facts, indent=1) + '\n')
    return errors


def write_features(features: Features, facts: dict, classes: Sequence[str], out: Path) -> None:
    """Write all features into one file, which appears whole or not at all.

    ``.safetensors`` has the tensors ``features`` and, with classes, ``labels``; its metadata has ``names``,
    ``classes`` and what was done, as JSON. ``.npy`` has the array, and ``NAME.json`` beside it the rest.

    Raises:
        UserError: it cannot be written.
    """
    rest = dict(facts, names=features.names)
    if features.labels:
        rest |= dict(classes=list(classes), labels=features.labels)
    if out.suffix == '.npy':
        with _whole(out.with_suffix('.json')) as side, _whole(out) as part:
            side.write_text(json.dumps(rest, indent=1) + '\n')
            with part.open('wb') as stream:
                np.save(stream, features.array.numpy())
        return
    tensors = dict(features=features.array)
    if rest.pop('labels', None):
        tensors['labels'] = torch.tensor(features.labels)
    with _whole(out) as part:
        save_file(tensors, part, {key: json.dumps(value) for key, value in rest.items()})


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Give a name beside ``file`` to write to, which then becomes ``file``."""
    part = file.with_name(f'{file.name}.part')
    try:
        yield part
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        raise UserError(f'cannot write {file}: {getattr(error, "strerror", None) or error}') from error
    finally:
        part.unlink(missing_ok=True)
