"""Measures which boxes the anchors of a detector meet, and finds scales and ratios that meet more of them.

Anchors lie on a grid, one for each level of maps. How well they meet a box depends on where between the
points of the grids its centre is, so boxes are laid at random places, each several times. Borders of images
are left out of account.
"""

import numpy as np
from mmengine.config import Config

from ..config.keys import walk
from ..registry import type_name

PLACES = 8  # at which each box is laid
MOST = 20_000  # boxes that are laid, drawn at random of more; the share is right to 0.4 % then
TRIED = 1000  # boxes by which a search compares
GAIN = 0.01  # of the share that a search must find, else it proposes nothing
IOU = 0.5


def generators(cfg: Config) -> dict[str, dict]:
    """Return the anchor generators of a model by their dotted keys, none twice."""
    found: dict[str, dict] = {}
    for key, node in walk(cfg.get('model') or {}, 'model'):
        generator = node.get('anchor_generator')
        if isinstance(generator, dict) and all(dict(generator) != dict(other) for other in found.values()):
            found[f'{key}.anchor_generator'] = generator
    return found


def overlaps(
    generator: dict, sizes: np.ndarray, places: int = PLACES, seed: int = 0, most: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest intersection over union of boxes with any anchor, at random places.

    Args:
        generator: config of an anchor generator of mmdet.
        sizes: (n, 2) width and height of boxes in pixels of the image that the network sees.
        places: at how many places each box is laid; they are the same for all generators.
        seed: of the places, and of the choice among more boxes than ``most``.
        most: how many boxes are laid.

    Returns:
        The numbers of the boxes, (m,), and the overlap at each place, (m, ``places``).
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(sizes, float).reshape(-1, 2)
    chosen = np.arange(len(sizes))
    if len(sizes) > most:
        chosen = np.sort(rng.choice(len(sizes), most, replace=False))
    w, h = sizes[chosen].T[..., None]
    # Strides are powers of two as a rule: then a cell of the coarsest grid holds all there is to see.
    centres = rng.random((2, len(chosen), places)) * 4096
    best = np.zeros((len(chosen), places))
    for (step_x, step_y), anchors in _anchors(generator):
        for low_x, low_y, high_x, high_y in anchors:
            width, height = high_x - low_x, high_y - low_y
            # From the box's centre to the nearest anchor's, along each axis.
            x = np.abs((centres[0] - (low_x + high_x) / 2 + step_x / 2) % step_x - step_x / 2)
            y = np.abs((centres[1] - (low_y + high_y) / 2 + step_y / 2) % step_y - step_y / 2)
            across = np.clip(np.minimum((w + width) / 2 - x, np.minimum(w, width)), 0, None)
            down = np.clip(np.minimum((h + height) / 2 - y, np.minimum(h, height)), 0, None)
            shared = across * down
            np.maximum(best, shared / np.maximum(w * h + width * height - shared, 1e-9), out=best)
    return chosen, best


def coverage(generator: dict, sizes: np.ndarray, iou: float = IOU, seed: int = 0) -> float:
    """Return the share of boxes that have an anchor of at least ``iou``, over random places of each box.

    Args:
        generator: config of an anchor generator of mmdet, as ``anchor_generator`` of a head has it.
        sizes: (n, 2) width and height of boxes in pixels of the image that the network sees.
        iou: least intersection over union.
        seed: of the places.

    Returns:
        0 to 1; NaN without boxes.
    """
    _, best = overlaps(generator, sizes, seed=seed)
    return float((best >= iou).mean()) if len(best) else float('nan')


def better_scales(generator: dict, sizes: np.ndarray, iou: float = IOU, seed: int = 0) -> dict | None:
    """Find scales and ratios that meet more boxes, as many as there are: weights still have their shapes.

    Args:
        generator, sizes, iou, seed: see :func:`coverage`.

    Returns:
        The generator with other ``scales`` (or ``octave_base_scale``) and ``ratios``; ``None`` if nothing
        was found that meets one box in a hundred more, for less than ten boxes, and for generators of
        another make (SSD, YOLO).
    """
    sizes = np.asarray(sizes, float).reshape(-1, 2)
    sizes = sizes[(sizes > 0).all(1)]
    if type_name(generator) != 'AnchorGenerator' or len(sizes) < 10 or not generator.get('ratios'):
        return None
    rng = np.random.default_rng(seed)
    some = sizes[np.sort(rng.choice(len(sizes), min(TRIED, len(sizes)), replace=False))]

    def score(candidate: dict) -> float:  # of two that meet as many boxes the closer one
        _, best = overlaps(candidate, some, 3, seed)
        return float((best >= iou).mean() + 0.05 * best.mean())

    best, reached = dict(generator), score(generator)
    shapes = [list(generator['ratios']), _means(np.log(some[:, 1] / some[:, 0]), len(generator['ratios']))]
    for ratios in shapes:
        for candidate in _scaled({**generator, 'ratios': ratios}, np.geomspace(0.2, 5, 27).tolist(), some):
            if (found := score(candidate)) > reached:
                best, reached = candidate, found
    for _ in range(2):  # around the best, finer
        shapes = [[round(r**power, 2) for r in best['ratios']] for power in (0.7, 0.85, 1, 1.2, 1.4)]
        for ratios in shapes:
            for candidate in _scaled({**best, 'ratios': ratios}, (0.93, 0.97, 1, 1.03, 1.07)):
                if (found := score(candidate)) > reached:
                    best, reached = candidate, found
    gained = coverage(best, sizes, iou, seed) - coverage(generator, sizes, iou, seed)
    return best if gained >= GAIN else None


def _anchors(generator: dict) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Return the stride (x, y) and the anchors at the first point, (a, 4) x y x y, of each level."""
    import mmdet.models  # noqa: F401
    from mmdet.registry import TASK_UTILS

    built = TASK_UTILS.build(dict(generator, _scope_='mmdet'))
    return [
        (tuple(stride), anchors.double().numpy())
        for stride, anchors in zip(built.strides, built.base_anchors)
    ]


def _scaled(generator: dict, factors, sizes: np.ndarray | None = None) -> list[dict]:
    """Return generators whose scales are multiplied by ``factors``, and some with those of ``sizes``."""
    if generator.get('octave_base_scale'):
        return [
            {**generator, 'octave_base_scale': round(generator['octave_base_scale'] * f, 2)} for f in factors
        ]
    found = [{**generator, 'scales': [round(s * f, 2) for s in generator['scales']]} for f in factors]
    if sizes is not None and len(generator['scales']) > 1:
        sides = np.log(np.sqrt(sizes.prod(1)))
        for stride in generator['strides']:  # as if the boxes were those of one level
            step = min(stride) if isinstance(stride, (list, tuple)) else stride
            found.append(
                {**generator, 'scales': [round(s / step, 2) for s in _means(sides, len(generator['scales']))]}
            )
    return found


def _means(logs: np.ndarray, count: int) -> list[float]:
    """Return the means of ``count`` clusters of numbers given as logarithms (k-means from quantiles)."""
    means = np.quantile(logs, (np.arange(count) + 0.5) / count)
    for _ in range(30):
        nearest = np.abs(logs[:, None] - means).argmin(1)
        means = np.array(
            [logs[nearest == i].mean() if (nearest == i).any() else means[i] for i in range(count)]
        )
    return [round(float(value), 2) for value in np.exp(means)]
