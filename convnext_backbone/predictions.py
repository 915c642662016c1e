"""Writes predictions: a picture and JSON for each image or video, tables, COCO results, label maps.

A file is there as a whole or not at all.
"""

import contextlib
import csv
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
from .tiles.maps import MapFile
from .tiles.masks import rle


@dataclass
class Image:
    """Names an image that is predicted, or a frame of a video.

    Attributes:
        file: of the image or the video.
        name: its path below the folder of images, by which results are named; a frame's is that of its video
            and its number, ``clip.mp4/000001``.
        number: its id in COCO results.
        pixels: what was predicted, (H, W, channels) as OpenCV reads it, or :class:`~.tiles.Reduced`.
        time: of a frame, in seconds from the beginning of its video.
        rate: frames per second of its video.
    """

    file: Path
    name: str
    number: int
    pixels: object = None
    time: float | None = None
    rate: float | None = None


class Writer:
    """Writes the results of a run in one format.

    ``encode`` computes what is to be written and may fail because of the image; ``write`` writes it and
    fails for want of space or permission only, by a :class:`UserError`.

    Attributes:
        min_score: least score of an object that is written.
    """

    min_score: float = 0.0

    def start(self, stack: contextlib.ExitStack) -> None:
        """Begin; files opened in ``stack`` appear under their names when it ends without an error."""

    def pictures(self, name: str, video: bool) -> list[Path]:
        """Return the images and videos that are written for an image or a video of a name."""
        return []

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

    Of a video these are ``NAME.mp4`` and ``NAME.json``, a list with an entry for each frame.

    Args:
        predictor: a :class:`~convnext_backbone.inference.Predictor`.
        out: folder of the results.
        min_score: least score of an object.
    """

    def __init__(self, predictor, out: Path, min_score: float):
        self.predictor, self.out, self.min_score = predictor, out, min_score
        self._video, self._writing = None, contextlib.ExitStack()

    def start(self, stack: contextlib.ExitStack) -> None:
        """Let the files of a video that is not at its end when there is an error go away."""
        self._outer = stack

    def pictures(self, name: str, video: bool) -> list[Path]:
        """Return the PNG, or the MP4: ``a.mp4`` of ``a.mp4``, ``a.avi.mp4`` of ``a.avi``."""
        if not video:
            return [self.out / f'{name}.png']
        film = self.out / name
        return [film.with_suffix('.mp4' if film.suffix.lower() == '.mp4' else f'{film.suffix}.mp4')]

    def encode(self, image: Image, sample) -> dict[Path, bytes] | tuple[Image, dict, np.ndarray]:
        """Return the PNG with what was found drawn into it, and the JSON; of a frame both as they are."""
        result = self.predictor.to_json(sample, self.min_score)
        pixels = image.file if image.pixels is None else image.pixels
        picture = self.predictor.draw(pixels, sample, self.min_score)[..., ::-1]
        if image.time is not None:
            return image, dict(frame=image.name, time=round(image.time, 4), **result), picture
        # the whole name, suffix included: a.jpg and a.png do not overwrite each other
        return {
            self.out / f'{image.name}.json': json.dumps(
                dict(image=str(image.file), **result), indent=1
            ).encode(),
            self.pictures(image.name, False)[0]: png(picture),
        }

    def write(self, encoded: dict[Path, bytes] | tuple[Image, dict, np.ndarray]) -> None:
        """Write the files of an image, or append a frame to those of its video."""
        if isinstance(encoded, dict):
            super().write(encoded)
            return
        image, result, picture = encoded
        name = image.name.rpartition('/')[0]
        if name != self._video:
            self._close()
            self._video = name
            self._outer.enter_context(self._writing)
            self._add = self._writing.enter_context(json_list(self.out / f'{name}.json'))
            (film,) = self.pictures(name, True)
            self._show = self._writing.enter_context(film_of(film, picture.shape[:2], image.rate))
        self._add(result)
        self._show(picture)

    def finish(self) -> str:
        """Close the last video."""
        self._close()
        return ''

    def _close(self) -> None:
        """Let the files of the video appear under their names."""
        writing, self._writing = self._writing, contextlib.ExitStack()
        writing.close()


class Table(Writer):
    """Writes ``predictions.csv``: a line for each object of an image, or for each class.

    Columns, by what the model is for: image, label, score, x1, y1, x2, y2 (pixels); image, label, share of
    the pixels (0 to 1); or image, label, score of the five best classes.

    Args:
        predictor: a :class:`~convnext_backbone.inference.Predictor` or its counterpart of classifiers.
        out: folder of the result.
        min_score: least score of an object.
    """

    columns = dict(
        detection=('score', 'x1', 'y1', 'x2', 'y2'), segmentation=('share',), classification=('score',)
    )

    def __init__(self, predictor, out: Path, min_score: float):
        self.predictor, self.out, self.min_score = predictor, out, min_score

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open the file, which appears under its name when ``stack`` ends without an error."""
        self._add = stack.enter_context(replacing(self.out / 'predictions.csv'))
        self._add(self._lines([('image', 'label', *self.columns[self.predictor.task])]))

    def encode(self, image: Image, sample) -> bytes:
        """Return the lines of an image."""
        found = self.predictor.to_json(sample, self.min_score)
        rows = [(name, share) for name, share in found.get('share_of_pixels', {}).items()]
        for each in found.get('objects') or found.get('classes') or []:
            rows.append((each['label'], each['score'], *each.get('bbox', ())))
        return self._lines((image.name, *row) for row in rows)

    def write(self, encoded: bytes) -> None:
        """Append the lines."""
        self._add(encoded)

    @staticmethod
    def _lines(rows) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows(rows)
        return text.getvalue().encode()


class LabelMaps(Writer):
    """Writes ``labels/NAME.png`` with the number of its class at each pixel, and ``labels/classes.json``.

    Up to 256 classes these are 8-bit PNGs with a palette, which viewers show in the classes' colours;
    above, 16-bit PNGs. Of an image that is read by rows it is ``labels/NAME.tif``, in tiles, at the place of
    the earth where the image is.
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

    def pictures(self, name: str, video: bool) -> list[Path]:
        """Return the PNG of an image; those of frames are in a folder that has the video's name."""
        return [] if video else [self.folder / f'{name}.png']

    def encode(self, image: Image, sample) -> dict[Path, bytes]:
        """Return the PNG of class numbers, 8 bits up to 256 classes, else 16."""
        if isinstance(sample, MapFile):
            return {self.folder / f'{image.name}.tif': sample}
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
        return dict.fromkeys(self.pictures(image.name, False), content)

    def write(self, encoded: dict[Path, bytes | MapFile]) -> None:
        """Write the file of an image."""
        for file, content in encoded.items():
            if not isinstance(content, MapFile):
                write_whole(file, content)
                continue
            with part_of(file) as part, _one_line(file):
                content.write_tiff(part, self.palette)


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
    if isinstance(sample, MapFile):
        return sample.shape
    if 'pred_sem_seg' in sample:
        return tuple(sample.pred_sem_seg.shape[-2:])
    return tuple(int(side) for side in sample.metainfo['ori_shape'][:2])


def class_numbers(sample) -> np.ndarray:
    """Return a segmenter's class numbers, (height, width) int64."""
    return sample.pred_sem_seg.data.squeeze(0).numpy().astype(np.int64)  # one output channel: float


def class_shares(sample) -> dict[int, float] | None:
    """Return the share of pixels of each class that is there; ``None`` of a detector's sample."""
    if isinstance(sample, MapFile):
        counts = sample.counts
    elif 'pred_sem_seg' in sample:
        counts = np.bincount(class_numbers(sample).ravel())
    else:
        return None
    return {int(n): float(counts[n] / counts.sum()) for n in np.flatnonzero(counts)}


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
    with part_of(file) as part:
        with _one_line(file):
            stream = part.open('wb')

        def write(content: bytes) -> None:
            with _one_line(file):
                stream.write(content)

        try:
            yield write
            with _one_line(file):
                stream.close()
        finally:
            with contextlib.suppress(OSError):
                stream.close()


@contextlib.contextmanager
def part_of(file: Path) -> Iterator[Path]:
    """Give the name of a file to write, which replaces ``file`` when the block ends without an error."""
    # no longer than the name of the file, which may have all the characters that the file system allows
    part = file.with_name(f'.{zlib.crc32(os.fsencode(file.name)):08x}-{os.getpid()}.part')
    with _one_line(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with _one_line(file):
            os.replace(part, file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def film_of(file: Path, size: tuple[int, int], rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that adds a frame, (H, W, 3) uint8 BGR, to an MP4 file.

    Args:
        file: of the video; it appears when the block ends without an error.
        size: height and width of its frames.
        rate: frames per second.

    Raises:
        UserError: it cannot be written.
    """
    with part_of(file) as part:
        codec, draft, written = cv2.VideoWriter_fourcc(*'mp4v'), part.with_suffix('.mp4'), 0
        stream = cv2.VideoWriter(str(draft), cv2.CAP_FFMPEG, codec, rate, size[::-1])

        def add(frame: np.ndarray) -> None:
            nonlocal written
            stream.write(frame)
            written += 1

        try:
            if not stream.isOpened():
                raise UserError(
                    f'{file} cannot be written as a video of {size[1]} x {size[0]} pixels: make room, or '
                    'choose another --out'
                )
            yield add
            stream.release()
            if cv2.VideoCapture(str(draft)).get(cv2.CAP_PROP_FRAME_COUNT) != written:  # OpenCV names no error
                raise UserError(f'{file} cannot be written as a whole: make room, or choose another --out')
            with _one_line(file):
                os.replace(draft, part)
        finally:
            stream.release()
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{file} cannot be written ({error.strerror or error}): make room, or choose another --out'
        ) from error
