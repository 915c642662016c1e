"""Predicts on large images by tiles: windows that overlap, each an image of its own to the model."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import nn
from tqdm import tqdm

from ..errors import UserError
from .grid import Axis, Tiling
from .maps import MapFile, blend, every, map_sample
from .objects import Piece, join, parts_of, piece_of, reduced_objects
from .source import Pixels, Reduced, Rows, source_of

__all__ = [
    'MapFile',
    'Pixels',
    'Reduced',
    'Rows',
    'Tiling',
    'loaded',
    'parts_of',
    'predict_by_tiles',
    'reduced_sample',
    'source_of',
    'threshold_of',
]

Predict = Callable[[Sequence[np.ndarray]], list]


def predict_by_tiles(
    predict: Predict,
    source: Pixels | Rows,
    tiling: Tiling,
    threshold: float | None = None,
    min_score: float = 0.0,
):
    """Return the prediction for an image, computed by tiles.

    Objects: each tile's, and those of the whole image, which may be reduced; see :func:`.objects.join`.
    Class numbers: the tiles' logits, blended; see :func:`.maps.blend`.

    Args:
        predict: returns a data sample of mmdet or mmseg for each of some images of one size, (h, w) or
            (h, w, channels), as OpenCV reads them.
        source: the image, read from the top to the bottom.
        tiling: how the image is divided.
        threshold: of a segmenter with one output channel, see :func:`threshold_of`.
        min_score: of an object that is kept.

    Returns:
        The sample of the whole image. Of a detector ``masks`` is a list of
        :class:`~.masks.PlacedMask`; of a segmenter it has no logits, and for an image
        that is read by rows it is a :class:`MapFile`.

    Raises:
        UserError: the model predicts neither objects nor class numbers, or things and stuff together.
    """
    rows, columns = (Axis(length, tiling) for length in source.shape)
    tiles = _tiles(predict, source, rows, columns, tiling)
    with tqdm(total=len(rows) * len(columns), unit='tile', disable=None, leave=False, delay=2) as bar:
        first, tiles = _peek(tiles)
        if 'pred_sem_seg' in first:
            return blend(_counted(tiles, bar), source, rows, columns, threshold)
        if 'pred_panoptic_seg' in first or 'pred_instances' not in first:
            raise UserError(
                f'tiles are for models of objects or of class numbers, {type(first).__name__} of this model '
                'holds neither alone: predict without --tile'
            )
        pieces = [piece_of(sample, i, j, rows, columns, min_score) for i, j, sample in _counted(tiles, bar)]
    if len(pieces) > 1:
        whole = source.whole()
        pieces.append(_whole_piece(predict([whole.pixels])[0].cpu(), whole, min_score))
    return join(pieces, source.shape, first)


def loaded(image: np.ndarray) -> dict:
    """Return the pixels of an image, (H, W, channels) as OpenCV reads them, as a loader gives a file's."""
    size = image.shape[:2]
    return dict(img=image, img_path='', img_id=0, img_shape=size, ori_shape=size)


def threshold_of(model: nn.Module) -> float | None:
    """Return the probability from which on a segmenter with one output channel says yes; else ``None``."""
    return getattr(getattr(model, 'decode_head', None), 'threshold', None)


def _tiles(predict: Predict, source, rows: Axis, columns: Axis, tiling: Tiling) -> Iterator[tuple]:
    """Yield row, column and sample of each tile, from the top to the bottom."""
    for i in range(len(rows)):
        band = source.rows(rows.starts[i], rows.stop(i))
        for k in range(0, len(columns), tiling.batch):
            some = range(k, min(k + tiling.batch, len(columns)))
            images = [np.ascontiguousarray(band[:, columns.starts[j] : columns.stop(j)]) for j in some]
            for j, sample in zip(some, predict(images), strict=True):
                yield i, j, sample.cpu()


def _peek(tiles: Iterator[tuple]) -> tuple:
    """Return the first sample, and all tiles."""
    first = next(tiles)

    def all_of_them() -> Iterator[tuple]:
        yield first
        yield from tiles

    return first[2], all_of_them()


def _counted(tiles: Iterator[tuple], bar: tqdm) -> Iterator[tuple]:
    for tile in tiles:
        yield tile
        bar.update()


def _whole_piece(sample, whole: Reduced, min_score: float) -> Piece:
    """Return the objects that were found in the whole image, in its full size."""
    axes = (Axis(side, Tiling(max(side, 1), 0.0)) for side in whole.pixels.shape[:2])
    return piece_of(sample, 0, 0, *axes, min_score).enlarged(whole.factor)


def reduced_sample(sample, factor: int, min_score: float):
    """Return what was predicted for an image, for the image ``factor`` times smaller."""
    if isinstance(sample, MapFile):
        return map_sample(sample.reduced(factor))
    if 'pred_sem_seg' in sample:
        return map_sample(every(sample.pred_sem_seg.data[0].numpy(), factor))
    return reduced_objects(sample, factor, min_score)
