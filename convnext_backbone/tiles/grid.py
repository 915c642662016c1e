"""Places tiles along the sides of an image, and says how much each counts where two overlap."""

from dataclasses import dataclass

import numpy as np

from ..errors import UserError

SMALLEST = 64  # pixels, of a tile's side: below, most of it is a border
MOST_OVERLAP = 0.5
GRID = 32  # pixels of an image at a position of the last map


@dataclass(frozen=True)
class Tiling:
    """Says how images are divided.

    Attributes:
        size: side of a tile, in pixels of the image.
        overlap: least share of its side that a tile has in common with the next, 0 to 0.5.
        batch: tiles that are predicted at once.

    Raises:
        UserError: in :meth:`checked`, for a number out of range.
    """

    size: int
    overlap: float = 0.2
    batch: int = 1

    def checked(self) -> 'Tiling':
        """Return the tiling itself, if its numbers can be meant."""
        if self.size < SMALLEST:
            raise UserError(f'--tile is the side of a tile in pixels, at least {SMALLEST}, got {self.size}')
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise UserError(
                f'--overlap is the share of a tile that the next one has in common with it, 0 to '
                f'{MOST_OVERLAP}, got {self.overlap:g}'
            )
        return self


class Axis:
    """Divides a side of an image into tiles of one size.

    They begin at multiples of 32 pixels, like the maps of a network, but the last, which ends with the image.
    Neighbours share a strip. Its middle is where one takes over from the other: linearly over half of the
    asked overlap, so that at least a quarter of it, at a tile's border, does not count at all.

    Args:
        length: of the side, in pixels.
        tiling: size and overlap of the tiles.

    Attributes:
        starts: first pixel of each tile.
        ramp: pixels over which one tile takes over from the next, an even number.
    """

    def __init__(self, length: int, tiling: Tiling):
        self.length, self.size = length, min(tiling.size, length)
        stride = tiling.size - round(tiling.overlap * tiling.size)
        stride = stride // GRID * GRID or stride
        self.starts = [*range(0, length - self.size, stride), length - self.size]
        self._middles = [
            (start + end) // 2 for start, end in zip(self.starts[1:], map(self.stop, range(len(self))))
        ]
        apart = min(np.diff(self._middles), default=self.size)
        self.ramp = 2 * min(int(tiling.overlap * tiling.size / 4), int(apart) // 2)

    def __len__(self) -> int:
        return len(self.starts)

    def stop(self, i: int) -> int:
        """Return the pixel after the last of tile ``i``."""
        return self.starts[i] + self.size

    def reach(self, i: int) -> tuple[int, int]:
        """Return the first pixel that tile ``i`` counts for, and the one after the last."""
        half = self.ramp // 2
        first = self._middles[i - 1] - half if i else 0
        return first, self._middles[i] + half if i + 1 < len(self) else self.length

    def final(self, i: int) -> int:
        """Return the pixel up to which nothing is missing once tile ``i`` is there."""
        return self.reach(i)[1] - (self.ramp if i + 1 < len(self) else 0)

    def weights(self, i: int) -> np.ndarray:
        """Return how much tile ``i`` counts for each pixel of its reach, 0 to 1, together with others 1."""
        first, stop = self.reach(i)
        weights = np.ones(stop - first, np.float32)
        rising = (np.arange(self.ramp, dtype=np.float32) + 0.5) / max(self.ramp, 1)
        if i:
            weights[: self.ramp] = rising
        if i + 1 < len(self):
            weights[len(weights) - self.ramp :] *= 1 - rising
        return weights
