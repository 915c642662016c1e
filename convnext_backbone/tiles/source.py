"""Reads images from the top to the bottom: from memory, or, very large ones, from the file by rows."""

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile

from ..datasets.images import header
from ..errors import UnreadableImage, UserError

LARGE = 2**27  # pixels: a larger image is read by rows; decoded it would take 400 MB and more
LONGEST = 4096  # pixels of the whole image, reduced
CACHE = 128  # MiB of decoded blocks that GDAL keeps


@dataclass
class Reduced:
    """Holds a whole image, reduced.

    Attributes:
        pixels: (height // factor, width // factor[, channels]).
        factor: how many times smaller it is.
    """

    pixels: np.ndarray
    factor: int


class Pixels:
    """Gives an image that is in memory.

    Args:
        array: (H, W) or (H, W, channels).
    """

    def __init__(self, array: np.ndarray):
        self.array = array
        self.shape = tuple(array.shape[:2])

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Return some rows."""
        return self.array[top:bottom]

    def whole(self) -> Reduced:
        """Return the image, reduced to at most 4096 pixels by the mean of squares."""
        factor = factor_of(self.shape)
        return Reduced(self.array if factor == 1 else _reduced(self.array, factor), factor)


class Rows:
    """Gives an image file by rows, each of which is decoded once.

    Args:
        file: of any format that GDAL reads by rows: TIFF, PNG, JPEG, JPEG 2000 and others.
        color_type: of the loader: ``'color'`` (8-bit BGR), ``'grayscale'``, or ``'unchanged'``.

    Attributes:
        shape: height and width.

    Raises:
        UserError: rasterio is not installed, or the file has other pixels than ``color_type`` can have.
        UnreadableImage: it is no image.
    """

    def __init__(self, file: str | Path, color_type: str = 'color'):
        try:
            import rasterio
        except ModuleNotFoundError as error:
            found = header(file)
            raise UserError(
                f'{file} has {found.width} x {found.height} pixels, which are read by rows: '
                "pip install 'convnext_backbone[large]'"
            ) from error
        self.file, self.gray, self.unchanged = file, 'gray' in color_type, color_type == 'unchanged'
        with self._readable(), warnings.catch_warnings(action='ignore'):  # of images without a place
            self._data = rasterio.open(file)
            self.colours = None
            with contextlib.suppress(ValueError):  # none
                self.colours = self._data.colormap(1)
        self.shape = self._data.shape
        self._check()
        self._held, self._top, self._next = None, 0, 0
        self._whole, self._factor, self._rest = [], factor_of(self.shape), None

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Return some rows; none above those that were asked for before."""
        if bottom > self._next:
            new = self._read(self._next, bottom)
            self._reduce(new)
            held = new if self._held is None else np.concatenate([self._held, new])
            held = held[top - self._top :]
            self._held, self._top, self._next = held, top, bottom
        return self._held[top - self._top : bottom - self._top]

    def whole(self) -> Reduced:
        """Return the image reduced to at most 4096 pixels, by the mean of squares, once all rows are read."""
        if self._next < self.shape[0]:
            for top in range(self._next, self.shape[0], 256):
                self.rows(top, min(top + 256, self.shape[0]))
        return Reduced(np.concatenate(self._whole), self._factor)

    @property
    def place(self) -> dict:
        """Return what a file of the same pixels needs to lie at the same place of the earth."""
        return dict(crs=self._data.crs, transform=self._data.transform)

    def _check(self) -> None:
        number, kind = self._data.count, self._data.dtypes[0]
        advice = "load it with color_type='unchanged' and give mean and std of its values"
        if not self.unchanged and (kind != 'uint8' or number > 4):
            raise UserError(
                f'{self.file} has {number} channels of {kind}, expected at most 4 of uint8: convert it, or '
                f'{advice}'
            )
        with contextlib.suppress(OSError):
            if (turned := header(self.file).orientation) != 1:
                raise UserError(
                    f'{self.file} is to be turned (EXIF orientation {turned}), which needs all of it at '
                    'once: save it upright'
                )

    def _read(self, top: int, bottom: int) -> np.ndarray:
        """Return rows as OpenCV would read them."""
        from rasterio.windows import Window

        if bottom - top == self.shape[0] > 1:  # of all rows at once GDAL does not say that a PNG is cut off
            return np.concatenate([self._read(top, bottom // 2), self._read(bottom // 2, bottom)])
        with self._readable():
            bands = self._data.read(window=Window(0, top, self.shape[1], bottom - top))
        if self.colours and not self.unchanged:
            table = np.zeros((256, 3), np.uint8)
            for value, colour in self.colours.items():
                table[value] = colour[:3]
            bands = table[bands[0]].transpose(2, 0, 1)
        elif (bits := int(self._data.tags(1, ns='IMAGE_STRUCTURE').get('NBITS', 8))) < 8:  # 1 is white
            bands = bands * np.uint8(255 // (2**bits - 1))
        if self.unchanged:
            order = [2, 1, 0, *range(3, len(bands))] if len(bands) in (3, 4) else range(len(bands))
            image = np.stack([bands[i] for i in order], -1)
            return image[..., 0] if len(bands) == 1 else image
        colour = bands[[2, 1, 0]] if len(bands) >= 3 else bands[[0, 0, 0]]
        image = np.ascontiguousarray(colour.transpose(1, 2, 0))
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if self.gray else image

    def _reduce(self, new: np.ndarray) -> None:
        """Keep the mean of each square of new rows; the last, incomplete squares are left out."""
        rest = new if self._rest is None else np.concatenate([self._rest, new])
        full = len(rest) // self._factor * self._factor
        if full:
            self._whole.append(_reduced(rest[:full], self._factor))
        self._rest = rest[full:].copy()

    @contextlib.contextmanager
    def _readable(self):
        import rasterio
        from rasterio.errors import RasterioError

        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE):  # else a twentieth of the machine's memory
                yield
        except RasterioError as error:
            reason = error.__cause__ or error  # rasterio's own is "Read failed. See previous exception"
            raise UnreadableImage(f'{self.file} cannot be read by rows: {reason}') from error


def factor_of(shape: tuple[int, int]) -> int:
    """Return how many times an image is reduced to have at most 4096 pixels on a side, and at least one."""
    return max(1, min(-(-max(shape) // LONGEST), *shape))


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the mean of each square of ``factor`` pixels, without incomplete squares at the end."""
    height, width = (side // factor for side in image.shape[:2])
    image = np.ascontiguousarray(image[: height * factor, : width * factor])
    if image.ndim == 2 or image.shape[2] <= 4:  # as many channels as OpenCV takes
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    squares = image.reshape(height, factor, width, factor, -1)
    return squares.mean((1, 3)).round().astype(image.dtype)


def source_of(file: str | Path, reader: LoadImageFromFile) -> Pixels | Rows:
    """Return an image file as ``reader`` loads it; a very large one by rows.

    Raises:
        UnreadableImage, UserError: it is not there, no image, or not to be read by rows; see :class:`Rows`.
    """
    if not Path(file).is_file():
        raise UserError(f'no image at {file}')
    with contextlib.suppress(OSError):
        found = header(file)
        if found.width * found.height > LARGE:
            return Rows(file, reader.color_type)
    return Pixels(reader(dict(img_path=str(file)))['img'])
