"""Finds images that are nearly the same, by a hash of 64 bits and a look at a tiny copy."""

from pathlib import Path

import numpy as np
from PIL import Image

from .reading import Draft, Reading, each

DISTANCE = 4  # bits of 64 in which the hashes of near-identical images may differ
BANDS = DISTANCE + 1  # of the hash: one of them is equal, whichever bits differ
SIDE = 16  # of the tiny copies
MOST = 1 << 20  # pairs that are compared at once


def groups_of(reading: Reading, drafts: list[Draft]) -> np.ndarray:
    """Return a number for each image, the same for images that are nearly the same.

    An image that cannot be read is like none: the training will name it.

    Returns:
        (N,) int, the smallest index of a member.
    """
    seen = each(lambda draft: _reduce(reading.path(draft.image)), drafts, 'looking for equal images')
    readable = np.array([found is not None for found in seen], bool)
    numbers = np.flatnonzero(readable)
    groups = np.arange(len(drafts))
    if len(numbers):
        hashes = np.array([seen[i][0] for i in numbers], np.uint64)
        tiny = np.stack([seen[i][1] for i in numbers])
        groups[numbers] = numbers[_groups(hashes, tiny)]
    return groups


def _reduce(file: Path) -> tuple[int, np.ndarray] | None:
    """Return the difference hash of an image and a tiny gray copy; ``None`` for what is no image."""
    try:
        with Image.open(file) as image:
            image.draft('L', (4 * SIDE, 4 * SIDE))  # of a JPEG an eighth is decoded
            gray = image.convert('L')
            small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
            tiny = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX))
    except (OSError, ValueError, SyntaxError):
        return None
    bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return int(np.packbits(bits).view('>u8')[0]), tiny.reshape(-1)


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
