"""Finds images that are nearly the same, by a hash of 64 bits and a look at a tiny copy."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .images import each

DISTANCE = 4  # bits of 64 in which the hashes of near-identical images may differ
BANDS = DISTANCE + 1  # of the hash: one of them is equal, whichever bits differ
SIDE = 16  # of the tiny copies
MOST = 1 << 20  # pairs that are compared at once


def groups_of(paths: Sequence[str | os.PathLike], progress: str = 'looking for equal images') -> np.ndarray:
    """Return a number for each image, the same for images that are nearly the same.

    An image that cannot be read is like none: the training will name it.

    Args:
        paths: of the image files.
        progress: what the bar on a terminal says.

    Returns:
        (N,) int, the smallest index of a member.
    """
    groups, _, _ = _look(paths, progress)
    return groups


def twins(
    paths: Sequence[str | os.PathLike], others: Sequence[str | os.PathLike], progress: str
) -> tuple[list[tuple[int, int]], int]:
    """Find the images that are nearly the same as one of ``others``.

    Args:
        paths, others: of image files.
        progress: what the bar on a terminal says.

    Returns:
        Index in ``paths`` and that of the nearest in ``others``, for each that has one; how many files of
        both could not be read.
    """
    groups, hashes, tiny = _look([*paths, *others], progress)
    own, readable = len(paths), tiny[:, 0] >= 0
    order = np.argsort(groups, kind='stable')
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        members = members[readable[members]]
        beside = members[members >= own]
        for one in members[members < own] if len(beside) else ():
            _, near = _alike(hashes, tiny, np.full(len(beside), one), beside)
            if len(near):
                distance = np.abs(tiny[near] - tiny[one]).sum(1)
                found.append((int(one), int(near[distance.argmin()]) - own))
    return sorted(found), int((~readable).sum())


def _look(paths: Sequence, progress: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the group of each image, its hash, and its tiny copy, int16, negative where there is none."""
    seen = each(_reduce, paths, progress)
    numbers = np.array([i for i, found in enumerate(seen) if found is not None], int)
    groups = np.arange(len(paths))
    hashes, tiny = np.zeros(len(paths), np.uint64), np.full((len(paths), SIDE * SIDE), -1, np.int16)
    if len(numbers):
        hashes[numbers] = [seen[i][0] for i in numbers]
        small = np.stack([seen[i][1] for i in numbers])
        tiny[numbers] = small
        groups[numbers] = numbers[_groups(hashes[numbers], small)]
    return groups, hashes, tiny


def _reduce(file: str | os.PathLike) -> tuple[int, np.ndarray] | None:
    """Return the difference hash of an image and a tiny gray copy; ``None`` for what is no image."""
    try:
        with Image.open(file) as image:
            image.draft('L', (4 * SIDE, 4 * SIDE))  # of a JPEG an eighth is decoded
            gray = _gray(image)
            small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
            tiny = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX))
    except (OSError, ValueError, SyntaxError):
        return None
    bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return int(np.packbits(bits).view('>u8')[0]), tiny.reshape(-1)


def _gray(image: Image.Image) -> Image.Image:
    """Return an image in gray of 8 bits; Pillow would cut values of more off at 255."""
    if image.mode != 'F' and not image.mode.startswith('I'):
        return image.convert('L')
    values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
    low, high = (values.min(), values.max()) if image.mode == 'F' else (0, values.max())
    if image.mode != 'F':
        high = 2 ** max(8, int(high).bit_length()) - 1
    return Image.fromarray((np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8))


def _groups(hashes: np.ndarray, tiny: np.ndarray) -> np.ndarray:
    """Return for each image the smallest index of those that it is nearly the same as, directly or not."""
    parent = np.arange(len(hashes))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(first: np.ndarray, second: np.ndarray) -> None:
        for a, b in zip(first.tolist(), second.tolist()):
            low, high = sorted((root(a), root(b)))
            parent[high] = low

    # Equal hashes and tiny copies first: of many equal images one goes on.
    keys = np.hstack([hashes[:, None].view(np.uint8), tiny])
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    join(first[which.reshape(-1)], np.arange(len(hashes)))
    chosen = np.sort(first)
    edges = np.linspace(0, 64, BANDS + 1).astype(int)
    for low, high in zip(edges[:-1], edges[1:]):
        band = hashes[chosen] >> np.uint64(low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind='stable')
        ordered, members = band[order], chosen[order]
        # Each is compared with the next, the one after that and so on, as long as any has the same band.
        for step in range(1, len(members)):
            same = np.flatnonzero(ordered[step:] == ordered[:-step])
            if not same.size:
                break
            for begin in range(0, len(same), MOST):
                part = same[begin : begin + MOST]
                join(*_alike(hashes, tiny, members[part], members[part + step]))
    return np.array([root(i) for i in range(len(parent))])


def _alike(
    hashes: np.ndarray, tiny: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return those pairs whose hashes are near, and whose tiny copies are, too.

    Pictures of little contrast have like hashes: the copies may differ by a tenth of their own contrast.
    """
    near = np.bitwise_count(hashes[a] ^ hashes[b]) <= DISTANCE
    a, b = a[near], b[near]
    one, other = tiny[a].astype(np.float32), tiny[b].astype(np.float32)
    alike = np.abs(one - other).mean(1) <= 1 + 0.1 * np.minimum(one.std(1), other.std(1))
    return a[alike], b[alike]
