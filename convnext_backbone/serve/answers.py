"""Answers what is asked about a model: facts about it, and predictions on images, one at a time."""

import base64
import contextlib
import json
import struct
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .. import html
from ..errors import UnreadableImage, is_out_of_memory, message
from ..predictions import class_numbers, png

WAITING = 16  # most requests that wait while one is predicted
MOST_PIXELS = 50_000_000
LAST_SECONDS = 2  # at the end, for the answers that are being sent
FORMATS = 'send a JPEG, PNG, WebP, BMP or TIFF file'


class Refused(Exception):
    """Is raised where a request gets no prediction.

    Attributes:
        status: of HTTP.
        text: a sentence for who asked.
    """

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


class Answers:
    """Answers by one model, in one thread, in the order in which it is asked.

    Args:
        predictor: a :class:`~convnext_backbone.inference.Predictor` or
            :class:`~convnext_backbone.classify.ClassPredictor`.
        config, checkpoint: how the model was named; only the last part is told.
        score: least score of an object where a request says none, 0 to 1.
        most_bytes: of an image file.
        most_pixels: of an image, width times height.
        waiting: most requests that wait while one is predicted.
        guard: gives a context in which each prediction runs.
    """

    def __init__(
        self,
        predictor,
        config: str,
        checkpoint: str,
        *,
        score: float,
        most_bytes: int,
        most_pixels: int = MOST_PIXELS,
        waiting: int = WAITING,
        guard: Callable = contextlib.nullcontext,
    ):
        self.predictor, self.score, self.guard = predictor, score, guard
        self.most_bytes, self.most_pixels = most_bytes, most_pixels
        self._model = ThreadPoolExecutor(1, 'model')
        self._number_of_places = 1 + waiting
        self._places = threading.BoundedSemaphore(self._number_of_places)
        self.classes = _with_colours(predictor.meta)
        self.facts = dict(
            task=predictor.task,
            config=Path(config).stem,
            checkpoint=Path(urlsplit(checkpoint).path).name,
            classes=self.classes,
            score=score,
            most_bytes=most_bytes,
            most_pixels=most_pixels,
            upright='ignore_orientation' not in getattr(getattr(predictor, 'reader', None), 'color_type', ''),
        )

    def close(self) -> None:
        """Wait for the prediction that runs, and until its answer is sent; those that wait are refused."""
        self._model.shutdown(cancel_futures=True)
        end = time.monotonic() + LAST_SECONDS
        for _ in range(self._number_of_places):
            self._places.acquire(timeout=max(0, end - time.monotonic()))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places of those who wait.

        Raises:
            Refused: there is none left.
        """
        if not self._places.acquire(blocking=False):
            raise Refused(503, 'Too many images are waiting already: try again in a moment.')
        try:
            yield
        finally:
            self._places.release()

    def predict(self, content: bytes, **options) -> bytes:
        """Return the prediction for an image as JSON; see :meth:`_answer` for the options.

        Args:
            content: of an image file.

        Raises:
            Refused: there is no prediction; it has a sentence that says why.
        """
        try:
            return self._model.submit(self._predict, content, **options).result()
        except (CancelledError, RuntimeError) as error:  # the latter from a pool that is closed
            text = 'The server is being stopped.'
            raise Refused(503, text) from error

    def _predict(self, content: bytes, **options) -> bytes:
        with tempfile.NamedTemporaryFile(prefix='convnext-') as stream:  # read as any file of a data set
            stream.write(content)
            stream.flush()
            width, height = self._look_at(stream.name)
            try:
                with self.guard():
                    return self._answer(stream.name, **options)
            except UnreadableImage as error:
                text = message(error).replace(stream.name, 'the image')
                raise self._unreadable(text) from error
            except Exception as error:  # whatever it is, the next image may be predicted
                traceback.print_exc()
                reason = why_failed(error).replace(stream.name, 'the image')
            torch.cuda.empty_cache()  # here, since the error holds what took the memory
            raise Refused(500, f'The image of {width} x {height} pixels could not be predicted: {reason}.')

    def _look_at(self, file: str) -> tuple[int, int]:
        """Return width and height of an image by its header, before it is decoded.

        Raises:
            Refused: it is none, too large, or a JPEG that is cut off, which OpenCV would fill up with gray.
        """
        try:
            width, height = stored_size(file)
        except Image.DecompressionBombError as error:  # far more than can be asked for
            raise self._too_large('The image') from error
        except (OSError, SyntaxError, ValueError, LookupError, struct.error) as error:
            text = f'This is no image, or of a format that is not known here: {FORMATS}.'
            raise Refused(415, text) from error
        if width * height > self.most_pixels:
            raise self._too_large(f'The image of {width} x {height} pixels')
        if is_cut_off(file):
            raise self._unreadable()
        return width, height

    def _unreadable(self, text: str = 'cannot be read as an image') -> Refused:
        if 'cannot be read as an image' in text:  # what else such a line says is advice for a training
            text = f'The image is cut off or damaged, or the model does not read its format: {FORMATS}'
        return Refused(415, f'{text}.')

    def _too_large(self, what: str) -> Refused:
        text = f'{what} is too large: at most {self.most_pixels / 1e6:g} million pixels. Send a smaller one.'
        return Refused(413, text)

    def _answer(self, file: str, score: float | None = None, numbers=False, picture=False) -> bytes:
        """Predict on a file and return JSON.

        Args:
            score: least score of an object, 0 to 1; by default that of the server.
            numbers: add ``map``, the class number of each pixel, of a segmenter.
            picture: add ``picture``, the image as the model takes it, for programs that cannot read the file.
        """
        sample = self.predictor.predict(file)
        found = self.predictor.to_json(sample, self.score if score is None else score)
        answer = dict(model=self.facts['config'], **found)
        if self.predictor.task != 'classification':
            answer['classes'] = self.classes
        if numbers and self.predictor.task == 'segmentation':
            answer['map'] = base64.b64encode(number_map(class_numbers(sample), len(self.classes))).decode()
        if picture:
            answer['picture'] = base64.b64encode(png(self.predictor.picture(file)[..., ::-1])).decode()
        return json.dumps(answer, allow_nan=False).encode()


def number_map(numbers: np.ndarray, classes: int) -> bytes:
    """Return class numbers, (height, width), as a PNG that browsers give back unchanged.

    It is gray up to 256 classes; above, red + 256 * green is the number.
    """
    if classes <= 256:
        return png(numbers.astype(np.uint8))
    parts = [np.zeros_like(numbers), numbers >> 8, numbers & 255]  # OpenCV's order
    return png(np.stack(parts, 2).astype(np.uint8))


def stored_size(file: str) -> tuple[int, int]:
    """Return width and height of the stored pixels, by the header alone.

    Raises:
        OSError, SyntaxError, ValueError, LookupError, struct.error: it is no image, or the header is damaged.
        PIL.Image.DecompressionBombError: it is beyond all measure.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of large images
        try:
            with Image.open(file) as image:
                return image.size
        except UnidentifiedImageError:  # perhaps of many channels or of floating point
            return _tiff_size(file)


def is_cut_off(file: str) -> bool:
    """Return whether a file is a JPEG that ends too early; other formats are told by their readers."""
    with contextlib.suppress(UnidentifiedImageError), Image.open(file, formats=['JPEG']) as image:
        image.draft('L', (1, 1))  # an eighth of the size: quick
        try:
            image.load()
        except OSError as error:
            return 'truncated' in str(error)
    return False


def _tiff_size(file: str) -> tuple[int, int]:
    with open(file, 'rb') as stream:
        start = stream.read(16)
        directory = TiffImagePlugin.ImageFileDirectory_v2(start if 43 in start[2:4] else start[:8])  # BigTIFF
        stream.seek(directory.next)
        directory.load(stream)
    return directory[TiffImagePlugin.IMAGEWIDTH], directory[TiffImagePlugin.IMAGELENGTH]


def why_failed(error: Exception) -> str:
    """Return in a few words what went wrong, without a full stop."""
    text = ' '.join(f'{type(error).__name__}: {message(error)}'.split())
    if is_out_of_memory(error):
        return 'the memory is too small for it, send a smaller one'
    return text[:300].rstrip('.')


def _with_colours(meta: dict) -> list[dict]:
    """Return label and colour (``#rrggbb``) of each class, in the order of their numbers."""
    palette = meta.get('palette')
    if np.ndim(palette) == 2:
        colours = ['#{:02x}{:02x}{:02x}'.format(*map(int, colour)) for colour in palette]
    else:  # none, or a name of the drawing library
        colours = [html.colour(number) for number in range(len(meta['classes']))]
    return [dict(label=label, colour=colour) for label, colour in zip(meta['classes'], colours)]
