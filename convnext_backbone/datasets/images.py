"""Tells from the first bytes of an image file what it holds: size, orientation and depth."""

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import PIL
from PIL import Image
from tqdm import tqdm

ORIENTATION = 0x0112  # EXIF tag
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')  # of image files, in lower case
BITS = {'1': 1, 'I;16': 16, 'I;16B': 16, 'I;16L': 16, 'I;16N': 16, 'I': 32, 'F': 32}  # of a channel, else 8


@dataclass(frozen=True)
class Header:
    """Holds what the beginning of an image file says.

    Attributes:
        width, height: of the stored pixels.
        orientation: of EXIF, 1 to 8; 1 is upright.
        mode: Pillow's name, e.g. ``'RGB'``, ``'P'``, ``'I;16'``; ``'?'`` for a file that Pillow does not
            read.
        bits: of each channel.
    """

    width: int
    height: int
    orientation: int
    mode: str
    bits: int

    @property
    def upright(self) -> tuple[int, int]:
        """Return width and height as seen, after EXIF orientation."""
        return (self.height, self.width) if self.orientation in TURNED else (self.width, self.height)


def each(function: Callable, items: Sequence, text: str) -> list:
    """Return ``function`` of each item, by several threads, with a bar on a terminal."""
    if not items:
        return []
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the user's own files may be large
    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = pool.map(function, items)
            return list(tqdm(results, text, len(items), disable=None, leave=False, delay=1))
    finally:
        Image.MAX_IMAGE_PIXELS = most


def header(file: str | os.PathLike | IO[bytes]) -> Header:
    """Read the header of an image file.

    Raises:
        OSError: the file is missing or no image.
    """
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # nothing is decoded
    try:
        with Image.open(file) as image:
            bits = BITS.get(image.mode, 8)
            if image.format == 'PNG':
                bits = _png_bits(file, bits)
            try:
                orientation = int(image.getexif().get(ORIENTATION, 1))
            except (TypeError, ValueError, SyntaxError, struct.error):
                orientation = 1
            return Header(
                *image.size,
                orientation if orientation in range(1, 9) else 1,
                image.mode,
                bits,
            )
    except PIL.UnidentifiedImageError:
        return _other_header(file)
    except (ValueError, SyntaxError, struct.error) as error:
        raise OSError(f'it is no image, or cut off ({error})') from error
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _png_bits(file: str | os.PathLike, default: int) -> int:
    """Return the bits of each channel of a PNG: Pillow reduces 16-bit colour to 8 without a word."""
    with open(file, 'rb') as stream:
        start = stream.read(25)
    return start[24] if len(start) == 25 and start[12:16] == b'IHDR' else default


def _other_header(file: str | os.PathLike) -> Header:
    """Read a file that Pillow does not know (TIFF of many channels, of floating point) as a whole."""
    import cv2
    import numpy as np

    array = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED) if os.path.getsize(file) else None
    if array is None:
        raise OSError('it is no image')
    return Header(*array.shape[1::-1], 1, '?', array.dtype.itemsize * 8)
