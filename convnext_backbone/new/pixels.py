"""Finds out how images are to be loaded and normalised: channels, bits, mean and deviation."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..checkpoint.zoo import PIXEL_MEAN, PIXEL_STD, normalisation
from ..datasets.images import header
from ..errors import UserError
from ..labels import Labels
from ..transforms import LoadImage

SAMPLES, EXTRA_SAMPLES = 277, 338  # tags of TIFF
ALPHA = (1, 2)  # values of the latter for transparency
SAMPLE = 64  # images that are looked at, at most
COLOUR_MODES = (
    '1',
    'L',
    'LA',
    'P',
    'PA',
    'RGB',
    'RGBA',
    'CMYK',
    'YCbCr',
    'LAB',
    'HSV',
)  # Pillow's, of pictures


@dataclass(frozen=True)
class Pixels:
    """Holds how images are loaded and normalised.

    Attributes:
        channels: of the tensor that the network gets.
        load: arguments of ``LoadImageFromFile``.
        mean, std: of the loaded values, by channel.
        why: where the latter come from.
    """

    channels: int
    load: dict
    mean: Sequence[float]
    std: Sequence[float]
    why: str

    @property
    def usual(self) -> bool:
        """Return whether they are those of the pretraining: colour, 8 bits."""
        return not self.load and self.channels == 3


USUAL = Pixels(3, {}, PIXEL_MEAN, PIXEL_STD, 'of ImageNet')


def pixels_of(labels: Labels, weights: str | None = None, seed: int = 0) -> Pixels:
    """Look at a sample of the images to train on.

    Args:
        labels: whose images these are.
        weights: that the training starts from; colours of 8 bits are normalised as theirs were.
        seed: of the sample.

    Raises:
        UserError: images that cannot be trained on together, or whose values have no known range.
    """
    files = [sample.image for sample in labels.splits['train']]
    files = random.Random(seed).sample(files, min(SAMPLE, len(files)))
    heads = {}
    for file in files:
        try:
            heads[file] = header(file)
        except OSError:
            continue  # the check of the data names it, or --skip-corrupt leaves it out
    kinds = Counter((_is_picture(file, head), head.bits > 8) for file, head in heads.items())
    if not kinds or set(kinds) == {(True, False)}:
        mean, std = normalisation(weights)
        return USUAL if mean == PIXEL_MEAN else Pixels(3, {}, mean, std, f'of the images of {weights}')
    if len(kinds) > 1:
        odd = min(kinds, key=kinds.get)
        file = next(f for f, head in heads.items() if (_is_picture(f, head), head.bits > 8) == odd)
        raise UserError(
            f'images of several kinds: {file} has mode {heads[file].mode} with {heads[file].bits} bits, most '
            'have others; convert them to one kind'
        )
    ((picture, _),) = kinds
    if labels.task == 'classes':
        file = files[0]
        raise UserError(
            f'{file} has mode {heads[file].mode} with {heads[file].bits} bits: the classifier reads pictures '
            'of 8 bits; convert them'
        )
    load = dict(bits=_bits(list(heads))) if picture else dict(color_type='unchanged')
    mean, std, channels = _statistics(list(heads), load)
    return Pixels(channels, load, mean, std, f'measured on {len(heads)} images')


def _is_picture(file: Path, head) -> bool:
    """Return whether a file holds gray or colour, and not the channels of some instrument."""
    if head.mode in ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I'):
        return head.bits <= 16
    if head.mode in COLOUR_MODES and file.suffix.lower() in ('.tif', '.tiff'):
        with Image.open(file) as image:
            tags = getattr(image, 'tag_v2', {})  # Pillow leaves channels that it does not know out
            transparent = tags.get(EXTRA_SAMPLES, (0,))[0] in ALPHA or head.mode == 'CMYK'
            return tags.get(SAMPLES, 1) <= 3 + transparent
    return head.mode in COLOUR_MODES


def _bits(files: list[Path]) -> int:
    """Return how many of 16 bits the values of the sample need, 9 at least."""
    import cv2

    largest = max(int(cv2.imdecode(np.fromfile(f, np.uint8), cv2.IMREAD_ANYDEPTH).max()) for f in files)
    return min(16, max(9, largest.bit_length()))


def _statistics(files: list[Path], load: dict) -> tuple[list[float], list[float], int]:
    """Return mean and standard deviation of each channel as loaded, colour as RGB, and their number."""
    transform, count, total, squares = LoadImage(**load), 0, 0.0, 0.0
    for file in files:
        image = transform.transform(dict(img_path=str(file)))['img']
        image = image[:, :, None] if image.ndim == 2 else image
        values = image.reshape(-1, image.shape[2]).astype(np.float64)
        if not np.isscalar(total) and len(total) != values.shape[1]:
            raise UserError(f'{file} has {values.shape[1]} channels, others have {len(total)}')
        count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    if 'bits' in load:  # loaded as BGR
        mean, std = mean[::-1], std[::-1]
    return [round(float(v), 3) for v in mean], [round(float(v), 3) for v in std], len(mean)
