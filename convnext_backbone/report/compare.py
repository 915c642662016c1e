"""Compares two models on the same images, with intervals by drawing images again (bootstrap)."""

from collections.abc import Callable

import numpy as np

from ..html import escape, table

DRAWS = 1000
INTERVAL = (2.5, 97.5)  # percentiles: 95 %


def interval(metric: Callable[[np.ndarray], float], images: int, seed: int = 0) -> tuple[float, float, float]:
    """Return a difference and its 95 % interval.

    Args:
        metric: of the numbers of some images, with repetitions, the difference of both models.
        images: how many there are.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    drawn = [metric(random.integers(0, images, images)) for _ in range(DRAWS)]
    low, high = np.nanpercentile(drawn, INTERVAL)
    return metric(np.arange(images)), float(low), float(high)


def difference_of_accuracy(first: list[dict], second: list[dict]) -> dict[str, tuple]:
    """Return what of two classifiers' results differs, in percent of the images."""
    rights = [np.array([r['label'] == r['found'] for r in results], float) for results in (first, second)]
    values = [100 * right.mean() for right in rights]
    found = interval(lambda own: 100 * float(rights[1][own].mean() - rights[0][own].mean()), len(first))
    return {'top-1': (*values, *found)}


def difference_of_iou(first: list[dict], second: list[dict]) -> dict[str, tuple]:
    """Return what of two segmenters' results differs: the mean IoU, in percent."""
    size = 1 + max(
        label for results in (first, second) for r in results for pair in r['pairs'] for label in pair
    )
    counts = np.zeros((2, len(first), 3, size))  # of each image: both, truth, prediction
    for model, results in enumerate((first, second)):
        for number, record in enumerate(results):
            for (right, found), count in record['pairs'].items():
                counts[model, number, 1, right] += count
                counts[model, number, 2, found] += count
                counts[model, number, 0, right] += count * (right == found)

    def mean_iou(model: int, own: np.ndarray) -> float:
        both, truth, found = counts[model, own].sum(0)
        union = truth + found - both
        return 100 * float((both[union > 0] / union[union > 0]).mean())

    everything = np.arange(len(first))
    found = interval(lambda own: mean_iou(1, own) - mean_iou(0, own), len(first))
    return {'mIoU': (mean_iou(0, everything), mean_iou(1, everything), *found)}


def difference_of_ap(first, second) -> dict[str, tuple]:
    """Return what of two evaluations of hotcoco differs: AP, AP50, AP75, AP of each size, in percent."""
    import hotcoco

    found = hotcoco.compare(first, second, n_bootstrap=DRAWS // 2, seed=0)
    rows = {}
    for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'):
        values = [found[key][name] for key in ('metrics_a', 'metrics_b', 'deltas')]
        limits = [found['ci'][name][key] for key in ('lower', 'upper')]
        if min(values[:2]) >= 0:
            rows[name] = tuple(100 * value for value in (*values, *limits))
    return rows


def parts(rows: dict[str, tuple], other: str) -> list[str]:
    """Return the comparison as a table.

    Args:
        rows: metric -> value of the other model, of this one, difference, and the limits of its interval.
        other: the name of the other model.
    """
    cells = []
    for name, (before, after, difference, low, high) in rows.items():
        sure = 'better' if low > 0 else 'worse' if high < 0 else 'no difference that is sure'
        numbers = [f'{before:.2f}', f'{after:.2f}', f'{difference:+.2f}', f'{low:+.2f} to {high:+.2f}']
        cells.append([escape(name), *numbers, sure])
    head = ['', 'other', 'this', 'difference', '95 % of draws', '']
    return [
        f'<h2>Against {escape(other)}</h2>',
        table(head, cells, (1, 2, 3, 4)),
        f'<p>{DRAWS // 2} to {DRAWS} draws of as many images, with repetitions.</p>',
    ]
