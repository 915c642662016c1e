"""Makes boxes and outlines of what labels hold, to a hundredth of a pixel."""

import math
from collections.abc import Iterable

import numpy as np
from pycocotools import mask as rle

from .structure import Box, Polygons, RunLengths


class Broken(Exception):
    """Is raised for one file, line or object; the reader turns it into an error, or counts it."""


class NoImage(Broken):
    """Is raised for labels that no image belongs to."""


def hundredth(value: float) -> float:
    """Return a coordinate to a hundredth of a pixel."""
    return round(value, 2) + 0.0  # no -0.0


def make_box(values: Iterable) -> Box:
    """Return a box x1 y1 x2 y2 to hundredths.

    Raises:
        Broken: it has no size, or holds something else than finite numbers.
    """
    numbers = [number(value) for value in values]
    x1, y1, x2, y2 = map(hundredth, numbers)
    if x2 <= x1 or y2 <= y1:
        raise Broken(f'the box {x1:g} {y1:g} {x2:g} {y2:g} has no width or height')
    return x1, y1, x2, y2


def number(value) -> float:
    """Return a finite number.

    Raises:
        Broken: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise Broken(f'{value!r} is no finite number')
    return found


def make_polygon(values: Iterable) -> tuple[float, ...]:
    """Return a polygon x y x y ... to hundredths.

    Raises:
        Broken: it has fewer than three points, or holds something else than finite numbers.
    """
    polygon = tuple(hundredth(number(value)) for value in values)
    if len(polygon) < 6 or len(polygon) % 2:
        raise Broken(f'an outline of {len(polygon) // 2} points, at least three are needed')
    return polygon


def around(polygons: Polygons) -> Box:
    """Return the box around polygons."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return make_box((min(xs), min(ys), max(xs), max(ys)))


def ellipse(x: float, y: float, across: float, down: float) -> tuple[float, ...]:
    """Return an ellipse as a polygon of 64 points; across and down are half axes."""
    turns = [2 * math.pi * i / 64 for i in range(64)]
    return make_polygon(v for t in turns for v in (x + across * math.cos(t), y + down * math.sin(t)))


def upright(x: float, y: float, width: float, height: float, angle: float) -> tuple:
    """Return the upright box around a rotated one; the angle in radians."""
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    across, down = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return make_box((x - across, y - down, x + across, y + down))


def run_lengths(whole: np.ndarray) -> tuple[Box, RunLengths]:
    """Return the box and the run lengths of a mask, (H, W) uint8.

    Raises:
        Broken: it is empty.
    """
    encoded = rle.encode(np.asfortranarray(whole))
    x, y, width, height = rle.toBbox(encoded).tolist()
    return make_box((x, y, x + width, y + height)), RunLengths(
        tuple(encoded['size']), encoded['counts'].decode()
    )
