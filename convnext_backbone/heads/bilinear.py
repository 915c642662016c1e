"""Writes bilinear resizing of a line, ``torch.nn.functional.interpolate``, as a matrix."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def window(first: int, end: int, size: int, resized: int, align_corners: bool) -> slice:
    """Return which positions of a line make positions ``first`` to ``end - 1`` of the resized one."""
    lowest, highest = (_place(k, size, resized, align_corners) for k in (first, end - 1))
    return slice(max(0, math.floor(lowest)), min(size, math.floor(highest) + 2))


def matrix(first: int, end: int, size: int, resized: int, align_corners: bool) -> Tensor:
    """Return how much of each position is in positions ``first`` to ``end - 1`` of the resized line.

    Returns:
        (end - first, size), float64, on the CPU.
    """
    places = _place(torch.arange(first, end, dtype=torch.float64), size, resized, align_corners)
    distances = places.clamp(0, size - 1)[:, None] - torch.arange(size)
    return (1 - distances.abs()).relu()


def _place(position, size: int, resized: int, align_corners: bool):
    """Return where a position of the resized line lies on the line, beyond its ends, too."""
    if align_corners:
        return position * (size - 1) / max(1, resized - 1)
    return (position + 0.5) * size / resized - 0.5


@functools.lru_cache(64)
@torch.inference_mode(False)  # what is kept serves training, too
def shares(
    size: int, resized: int, taps: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return how much of each position of a line is under each tap of a kernel on the resized line.

    Returns:
        (resized, taps, size), of ``dtype`` on ``device``; zero beyond the ends. Not to be changed.
    """
    line = F.pad(matrix(0, resized, size, resized, align_corners), (0, 0, taps // 2, taps // 2))
    return torch.stack([line[k : k + resized] for k in range(taps)], 1).to(device, dtype)
