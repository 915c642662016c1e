"""Holds masks as the windows that have all of their pixels, and writes them as run lengths."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlacedMask:
    """Holds a mask as the window of the image that has all of its pixels.

    Attributes:
        pixels: (height, width) bool, of the window.
        top, left: place of the window in the image.
        size: height and width of the image.
    """

    pixels: np.ndarray
    top: int
    left: int
    size: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0, size: tuple[int, int] | None = None):
        """Return a mask, (height, width), that lies at ``top``, ``left`` of an image, as its window."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        y, x = (slice(found[0], found[-1] + 1) if len(found) else slice(0, 0) for found in (rows, columns))
        return cls(mask[y, x].astype(bool), top + y.start, left + x.start, size or mask.shape)

    @classmethod
    def union(cls, masks: 'list[PlacedMask]') -> 'PlacedMask':
        """Return the pixels of any of some masks of an image."""
        masks = [mask for mask in masks if mask.pixels.size] or masks[:1]
        top, left = (min(getattr(mask, name) for mask in masks) for name in ('top', 'left'))
        stop = np.max([(m.top + m.pixels.shape[0], m.left + m.pixels.shape[1]) for m in masks], axis=0)
        pixels = np.zeros((stop[0] - top, stop[1] - left), bool)
        for mask in masks:
            y, x = mask.top - top, mask.left - left
            pixels[y : y + mask.pixels.shape[0], x : x + mask.pixels.shape[1]] |= mask.pixels
        return cls(pixels, top, left, masks[0].size)

    def enlarged(self, factor: int) -> 'PlacedMask':
        """Return the mask in an image that is ``factor`` times as large."""
        pixels = self.pixels.repeat(factor, 0).repeat(factor, 1)
        return PlacedMask(pixels, self.top * factor, self.left * factor, tuple(n * factor for n in self.size))

    def reduced(self, factor: int) -> 'PlacedMask':
        """Return the mask in an image that is ``factor`` times smaller: the middles of squares."""
        size = tuple(n // factor for n in self.size)
        first = [-(-(start - factor // 2) // factor) for start in (self.top, self.left)]
        y, x = (f * factor + factor // 2 - start for f, start in zip(first, (self.top, self.left)))
        pixels = self.pixels[y::factor, x::factor][: size[0] - first[0], : size[1] - first[1]]
        return PlacedMask(pixels, *first, size)

    def whole(self) -> np.ndarray:
        """Return the mask of the image, (height, width) bool."""
        mask = np.zeros(self.size, bool)
        mask[self.top : self.top + len(self.pixels), self.left : self.left + self.pixels.shape[1]] = (
            self.pixels
        )
        return mask

    def runs(self) -> np.ndarray:
        """Return the lengths of runs of pixels, column by column, those outside the mask first."""
        edges = np.diff(self.pixels.astype(np.int8), axis=0, prepend=0, append=0)
        starts, stops = (
            (self.left + x) * self.size[0] + self.top + y
            for x, y in (np.nonzero(step == edges.T) for step in (1, -1))
        )
        apart = starts[1:] != stops[:-1]  # a run that goes on in the next column is one
        starts, stops = starts[np.r_[True, apart][: len(starts)]], stops[np.r_[apart, True][: len(stops)]]
        bounds = np.stack([starts, stops], 1).ravel()
        lengths = np.diff(np.r_[0, bounds, self.size[0] * self.size[1]])
        return lengths if lengths[-1] else lengths[:-1]  # no run of no length at the end


def placed(mask) -> PlacedMask:
    """Return a mask of an image, an array or tensor (height, width), as its window."""
    return mask if isinstance(mask, PlacedMask) else PlacedMask.of(np.asarray(mask))


def rle(mask) -> dict:
    """Return a mask, (height, width) or placed, as COCO's compressed run lengths, in plain types."""
    from pycocotools import mask as coding

    if isinstance(mask, PlacedMask):
        encoded = coding.frPyObjects(dict(size=list(mask.size), counts=mask.runs().tolist()), *mask.size)
    else:
        encoded = coding.encode(np.asfortranarray(np.asarray(mask).astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())
