"""Blends the logits of tiles into class numbers, of which no more is held than a row of tiles needs."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import PixelData

from .grid import Axis
from .source import Pixels, Rows

BLOCK = 512  # pixels of the side of a TIFF's tile


class MapFile:
    """Holds the class numbers of an image in a file, since they may be more than memory holds.

    Args:
        shape: height and width of the image.
        classes: number of classes; up to 256 a pixel takes one byte, else two.
        place: where the image lies on the earth, as rasterio writes it.

    Attributes:
        counts: pixels of each class.
    """

    def __init__(self, shape: tuple[int, int], classes: int, place: dict | None = None):
        self.shape, self.place = shape, place or {}
        self.dtype = np.dtype(np.uint8 if classes <= 256 else np.uint16)
        self.counts = np.zeros(classes, np.int64)
        self._file = tempfile.TemporaryFile(prefix='convnext-labels-')  # noqa: SIM115 as long as the object

    def append(self, labels: np.ndarray) -> None:
        """Add rows below those that are there; (rows, width)."""
        self.counts += np.bincount(labels.ravel(), minlength=len(self.counts))
        self._file.write(labels.astype(self.dtype).tobytes())

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Return some rows, (bottom - top, width)."""
        width = self.shape[1]
        self._file.seek(top * width * self.dtype.itemsize)
        content = self._file.read((bottom - top) * width * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(-1, width)

    def reduced(self, factor: int) -> np.ndarray:
        """Return the class number at the middle of each ``factor`` x ``factor`` pixels."""
        height, middle = self.shape[0] // factor, factor // 2
        rows = [self.rows(y * factor + middle, y * factor + middle + 1) for y in range(height)]
        return np.concatenate(rows)[:, middle::factor][:, : self.shape[1] // factor]

    def write_tiff(self, file: Path, palette: np.ndarray | None) -> None:
        """Write the class numbers as a TIFF in tiles, compressed.

        Args:
            file: its name.
            palette: colours of the classes, (classes, 3) uint8.

        Raises:
            OSError: it cannot be written.
        """
        import rasterio
        from rasterio.windows import Window

        height, width = self.shape
        layout = dict(tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress='deflate', bigtiff='if_safer')
        size = dict(height=height, width=width, count=1, dtype=self.dtype.name)
        with (
            warnings.catch_warnings(action='ignore'),
            rasterio.open(  # of images without a place
                file, 'w', driver='GTiff', **size, **layout, **self.place
            ) as out,
        ):
            if palette is not None:
                out.write_colormap(1, {n: (*map(int, colour), 255) for n, colour in enumerate(palette)})
            for top in range(0, height, BLOCK):
                bottom = min(top + BLOCK, height)
                out.write(self.rows(top, bottom), 1, window=Window(0, top, width, bottom - top))


class _MapArray:
    """Holds the class numbers of an image in memory."""

    def __init__(self):
        self._rows = []

    def append(self, labels: np.ndarray) -> None:
        """Add rows below those that are there."""
        self._rows.append(labels)

    def sample(self, first):
        """Return the data sample of the whole image, of the class of a tile's."""
        labels = torch.from_numpy(np.concatenate(self._rows))[None]
        return type(first)(
            metainfo=dict(ori_shape=tuple(labels.shape[1:])), pred_sem_seg=PixelData(data=labels)
        )


def blend(tiles: Iterator[tuple], source: Pixels | Rows, rows: Axis, columns: Axis, threshold: float | None):
    """Return the class numbers of an image: the largest of the weighted sums of the tiles' logits.

    Where one tile alone counts its numbers are taken as they are.

    Args:
        tiles: row, column and data sample of each tile, row by row.
        source: the image.
        rows, columns: where the tiles lie.
        threshold: of a model with one output channel, whose ``seg_logits`` are probabilities.

    Returns:
        A data sample; a :class:`MapFile` for an image that is read by rows.
    """
    out, strip, first = None, None, None
    for i, j, sample in tiles:
        logits = sample.seg_logits.data
        if out is None:
            first = sample
            classes = max(len(logits), 2)
            out = MapFile(source.shape, classes, source.place) if isinstance(source, Rows) else _MapArray()
        if j == 0:
            band = np.zeros(
                (rows.final(i) - rows.reach(i)[0], columns.length),
                np.int64 if len(logits) > 256 else np.uint8,
            )
            below = logits.new_zeros(len(logits), rows.ramp if i + 1 < len(rows) else 0, columns.length)
            left = logits.new_zeros(len(logits), 0, 0)
        (top, bottom), (start, stop) = rows.reach(i), columns.reach(j)
        y, x = rows.starts[i], columns.starts[j]
        weighted = logits[:, top - y : bottom - y, start - x : stop - x].clone()
        weighted *= torch.from_numpy(rows.weights(i))[:, None] * torch.from_numpy(columns.weights(j))
        weighted[:, :, : left.shape[2]] += left if j else 0
        end = columns.final(j)
        done, left = weighted[:, :, : end - start], weighted[:, :, end - start :]
        if strip is not None:
            done[:, : strip.shape[1]] += strip[:, :, start:end]
        last = rows.final(i) - top
        below[:, :, start:end] = done[:, last:]
        done = done[:, :last]
        band[:, start:end] = done.argmax(0) if len(done) > 1 else done[0] > threshold
        if j + 1 == len(columns):
            out.append(band)
            strip = below
    return out if isinstance(out, MapFile) else out.sample(first)


def every(labels: np.ndarray, factor: int) -> np.ndarray:
    """Return the class number at the middle of each square of ``factor`` pixels, (H, W) of any integers."""
    height, width = (side // factor for side in labels.shape)
    return labels[factor // 2 :: factor, factor // 2 :: factor][:height, :width]


def map_sample(labels: np.ndarray):
    """Return the data sample of class numbers, (H, W)."""
    from mmseg.structures import SegDataSample

    return SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels.astype(np.int64))[None]))
