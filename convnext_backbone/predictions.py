"""Writes predictions: a picture and JSON for each image, COCO results, label maps.

A file is there as a whole or not at all.
"""

import contextlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import PIL.Image

from .datasets.annotations import Listing, without_collecting
from .errors import UserError, some, suggest


@dataclass
class Image:
    """Names an image that is predicted.

    Attributes:
        name: its path below the folder of images, by which results are named.
        number: its id in COCO results.
    """

    file: Path
    name: str
    number: int


class Writer:
    """Writes the results of a run in one format.

    ``encode`` computes what is to be written and may fail because of the image; ``write`` writes it and
    fails for want of space or permission only, by a :class:`UserError`.
    """

    def start(self, stack: contextlib.ExitStack) -> None:
        """Begin; files opened in ``stack`` appear under their names when it ends without an error."""

    def encode(self, image: Image, sample) -> dict[Path, bytes]:
        """Return the content of each file for an image."""
        raise NotImplementedError

    def write(self, encoded) -> None:
        """Write what :meth:`encode` gave.

        Raises:
            UserError: a file cannot be written.
        """
        for file, content in encoded.items():
            write_whole(file, content)

    def finish(self) -> str:
        """Write what belongs to all images; return a warning, if there is one."""
        return ''


class PictureAndJson(Writer):
    """Writes ``NAME.png``, the image with what was found drawn into it, and ``NAME.json``.

    Args:
        predictor: a :class:`~convnext_backbone.inference.Predictor`.
        out: folder of the results.
        min_score: least score of an object.
    """

    def __init__(self, predictor, out: Path, min_score: float):
        self.predictor, self.out, self.min_score = predictor, out, min_score

    def encode(self, image: Image, sample) -> dict[Path, bytes]:
        """Return the PNG with what was found drawn into it, and the JSON."""
        result = dict(image=str(image.file), **self.predictor.to_json(sample, self.min_score))
        picture = self.predictor.draw(image.file, sample, self.min_score)
        # the whole name, suffix included: a.jpg and a.png do not overwrite each other
        return {
            self.out / f'{image.name}.json': json.dumps(result, indent=1).encode(),
            self.out / f'{image.name}.png': png(picture[..., ::-1]),
        }


class LabelMaps(Writer):
    """Writes ``labels/NAME.png`` with the number of its class at each pixel, and ``labels/classes.json``.

    Up to 256 classes these are 8-bit PNGs with a palette, which viewers show in the classes' colours;
    above, 16-bit PNGs.
    """

    def __init__(self, meta: dict, out: Path):
        self.classes, self.folder = list(meta['classes']), out / 'labels'
        self.zero_is_left_out = bool(meta.get('reduce_zero_label'))
        palette = meta.get('palette')
        has_palette = np.ndim(palette) == 2 and len(self.classes) <= 256
        self.palette = np.asarray(palette, np.uint8)[: len(self.classes)] if has_palette else None

    def start(self, stack: contextlib.ExitStack) -> None:
        """Write ``classes.json``: names, colours, and what the value of a pixel means."""
        rule = 'the value of a pixel is the place of its class in this list, counted from 0'
        if self.zero_is_left_out:
            rule += '; in the annotations of the training it is one more (reduce_zero_label)'
        facts = dict(rule=rule, classes=self.classes)
        if self.palette is not None:
            facts['palette'] = self.palette.tolist()
        write_whole(self.folder / 'classes.json', json.dumps(facts, indent=1).encode())

    def encode(self, image: Image, sample) -> dict[Path, bytes]:
        """Return the PNG of class numbers, 8 bits up to 256 classes, else 16."""
        labels = class_numbers(sample)
        if len(self.classes) > 256:
            content = png(labels.astype(np.uint16))
        else:
            picture = PIL.Image.fromarray(labels.astype(np.uint8))
            if self.palette is not None:
                picture.putpalette(self.palette.tobytes())
            stream = io.BytesIO()
            picture.save(stream, 'png')
            content = stream.getvalue()
        return {self.folder / f'{image.name}.png': content}


class CocoResults(Writer):
    """Writes ``predictions.json``, a list of objects as ``pycocotools.coco.COCO.loadRes`` reads it.

    Each has ``image_id``, ``category_id``, ``bbox`` (x y width height), ``score`` and, if the model
    predicts masks, ``segmentation`` (RLE). Without an annotation file categories are numbered from 1, and
    ``images.json`` has images and categories.

    Args:
        classes: names of the model's classes.
        out: folder of the results.
        min_score: least score of an object.
        annotations: the file whose numbers are taken, if there is one.
    """

    def __init__(self, classes, out: Path, min_score: float, annotations: 'AnnotationFile | None' = None):
        self.classes, self.out, self.min_score = list(classes), out, min_score
        self.annotations, self.images = annotations, []
        self.categories = [*range(1, len(self.classes) + 1)]
        if annotations:
            self.categories = annotations.categories_of(self.classes)

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open ``predictions.json``, which appears under its name when ``stack`` ends without an error."""
        self._add = stack.enter_context(json_list(self.out / 'predictions.json'))

    def encode(self, image: Image, sample) -> tuple[dict, list[dict]]:
        """Return the record of the image, and its objects from the least score on."""
        found = sample.pred_instances
        found = found[found.scores >= self.min_score]
        results = []
        for i, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
            result = dict(
                image_id=image.number,
                category_id=self.categories[int(found.labels[i])],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=float(found.scores[i]),
            )
            if 'masks' in found:
                result['segmentation'] = rle(found.masks[i])
            results.append(result)
        height, width = image_size(sample)
        return dict(id=image.number, file_name=image.name, width=width, height=height), results

    def write(self, encoded: tuple[dict, list[dict]]) -> None:
        """Append the objects to ``predictions.json``, so that they need no memory."""
        image, results = encoded
        for result in results:
            self._add(result)
        self.images.append(image)

    def finish(self) -> str:
        """Write ``images.json``, unless there is an annotation file.

        Returns:
            A warning if images had another size than the annotation file says, else empty.
        """
        if self.annotations:
            return self.annotations.other_sizes(self.images)
        categories = [dict(id=i, name=name) for i, name in zip(self.categories, self.classes)]
        content = dict(images=self.images, categories=categories, annotations=[])
        write_whole(self.out / 'images.json', json.dumps(content, indent=1).encode())
        return ''


class AnnotationFile:
    """Holds the numbers that a COCO annotation file gives to images and categories.

    Raises:
        UserError: it cannot be read, or its images and categories are not in the format.
    """

    def __init__(self, file: str | Path):
        self.file = file
        try:
            with without_collecting():
                listing = Listing(file)
        except UserError as error:
            raise UserError(f'--ann-file {error}') from error
        self.images, self.categories = listing.images, listing.categories
        self._by_parts = {}
        for number, image in self.images.items():
            self._by_parts.setdefault(_parts(image['file_name']), []).append(number)

    def numbers_of(self, files: dict[str, Path]) -> dict[str, int]:
        """Return the id of each image by its name; ``file_name`` is the end of the path of its file.

        Raises:
            UserError: an image is not listed, or twice, or two are the same.
        """
        found, absent = {}, []
        for name, file in files.items():
            parts = _parts(os.path.abspath(file))
            ends = (parts[i:] for i in range(len(parts)))  # the longest first
            numbers = next((self._by_parts[end] for end in ends if end in self._by_parts), [])
            if len(numbers) > 1:
                raise UserError(f'--ann-file {self.file} lists {file} {len(numbers)} times: ids {numbers}')
            if numbers:
                found[name] = numbers[0]
            else:
                absent.append(file)
        if absent:
            example = next((image['file_name'] for image in self.images.values()), 'none')
            raise UserError(
                f'{len(absent)} of {len(files)} images are not in --ann-file {self.file}, the first: '
                f'{absent[0]}; it lists {len(self.images)}, such as {example}: predict on the images it '
                'lists, or leave it out'
            )
        owner = {}
        for name, number in found.items():
            if (other := owner.setdefault(number, name)) != name:
                raise UserError(
                    f'{files[other]} and {files[name]} are both {self.images[number]["file_name"]} of '
                    f'--ann-file {self.file}: predict on one of their folders'
                )
        return found

    def categories_of(self, classes) -> list[int]:
        """Return the category id of each class by its name.

        Raises:
            UserError: a class is not there.
        """
        ids = {name: number for number, name in self.categories.items()}
        if absent := [name for name in classes if name not in ids]:
            raise UserError(
                f'--ann-file {self.file} has no category {absent[0]!r}, a class of the model; it lists '
                f'{some(ids)}{suggest(str(absent[0]), ids)}; give one with the classes of the training, or '
                'none'
            )
        return [ids[name] for name in classes]

    def other_sizes(self, images: list[dict]) -> str:
        """Return a line about the images that were predicted in another size than the file says."""
        other = []
        for image in images:
            listed = self.images[image['id']]
            sizes = [(i.get('width'), i.get('height')) for i in (listed, image)]
            if sizes[0] != sizes[1] and None not in sizes[0]:
                other.append((listed['file_name'], *sizes))
        if not other:
            return ''
        name, (w, h), (width, height) = other[0]
        return (
            f'warning: {len(other)} of {len(images)} images have another size than {self.file} says, the '
            f'first: {name}, {width} x {height}, there {w} x {h}; boxes and masks are in the image as it '
            'was predicted (photos: turned upright)'
        )


def _parts(path: str) -> tuple[str, ...]:
    parts = PurePosixPath(path.replace('\\', '/')).parts
    return tuple(part for part in parts if part != '/')


def image_size(sample) -> tuple[int, int]:
    """Return height and width of the image as it was predicted, before any step that resized it."""
    if 'pred_sem_seg' in sample:
        return tuple(sample.pred_sem_seg.shape[-2:])
    return tuple(int(side) for side in sample.metainfo['ori_shape'][:2])


def class_numbers(sample) -> np.ndarray:
    """Return a segmenter's class numbers, (height, width) int64."""
    return sample.pred_sem_seg.data.squeeze(0).numpy().astype(np.int64)  # one output channel: float


def rle(mask) -> dict:
    """Return a mask, (height, width), as COCO's compressed run lengths, in plain types."""
    from pycocotools import mask as coding

    encoded = coding.encode(np.asfortranarray(np.asarray(mask).astype(np.uint8)))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def png(image: np.ndarray) -> bytes:
    """Return an image as a PNG file; colours in OpenCV's order."""
    return cv2.imencode('.png', image)[1].tobytes()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, and its folder, under another name first.

    Raises:
        UserError: it cannot be written; nothing is left of it.
    """
    with replacing(file) as write:
        write(content)


@contextlib.contextmanager
def json_list(file: Path) -> Iterator[Callable[[dict], None]]:
    """Give a function that adds an entry to a list in a JSON file; the list is never in memory."""
    with replacing(file) as write:
        between = b'[\n'

        def add(entry: dict) -> None:
            nonlocal between
            write(between + json.dumps(entry).encode())
            between = b',\n'

        yield add
        write(b'\n]\n' if between == b',\n' else b'[]\n')


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Callable[[bytes], None]]:
    """Give a function that writes; ``file`` is replaced when the block ends without an error."""
    # no longer than the name of the file, which may have all the characters that the file system allows
    part = file.with_name(f'.{zlib.crc32(os.fsencode(file.name)):08x}-{os.getpid()}.part')
    with _one_line(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = part.open('wb')

    def write(content: bytes) -> None:
        with _one_line(file):
            stream.write(content)

    try:
        yield write
        with _one_line(file):
            stream.close()
            os.replace(part, file)
    finally:
        with contextlib.suppress(OSError):
            stream.close()
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{file} cannot be written ({error.strerror or error}): make room, or choose another --out'
        ) from error
