"""Analyses classified images: accuracy by class, what is taken for what, calibration, the surest mistakes."""

import numpy as np

from ..html import bar, escape, table
from .compare import difference_of_accuracy
from .figures import curve, encoded, matrix, read_image, reduced

WORST = 24
BINS = 10


def collect(sample: dict) -> dict:
    """Keep the label of an image, what it was taken for, and how sure the model was, 0 to 1.

    Args:
        sample: ``logits`` (classes,) and ``label``.
    """
    shares = sample['logits'].float().softmax(0)
    label, found = int(sample['label']), int(shares.argmax())
    return dict(
        kind='classes', label=label, found=found, sure=float(shares[found]), classes=len(shares),
        of_label=float(shares[label]),
    )  # fmt: skip


def calibration(sure: np.ndarray, right: np.ndarray) -> tuple[float, list[float], list[float]]:
    """Return the expected calibration error, and mean score and share that is right of each bin of scores."""
    places = np.minimum((sure * BINS).astype(int), BINS - 1)
    error, scores, shares = 0.0, [], []
    for place in np.unique(places):
        own = places == place
        scores.append(float(sure[own].mean()))
        shares.append(float(right[own].mean()))
        error += own.mean() * abs(scores[-1] - shares[-1])
    return float(error), scores, shares


def difference(first: list[dict], second: list[dict], classes: tuple[str, ...], report) -> dict[str, tuple]:
    """Return what two models' results differ in, see :mod:`.compare`."""
    return difference_of_accuracy(first, second)


def parts(results: list[dict], classes: tuple[str, ...], report) -> list[str]:
    """Return the page's parts."""
    size = results[0]['classes']
    names = list(classes) if len(classes) == size else [str(i) for i in range(size)]
    label, found, sure = (np.array([record[key] for record in results]) for key in ('label', 'found', 'sure'))
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (label, found), 1)
    with np.errstate(invalid='ignore', divide='ignore'):
        recall, precision = counts.diagonal() / counts.sum(1), counts.diagonal() / counts.sum(0)
    rows = []
    for i in np.argsort(np.nan_to_num(recall, nan=2), kind='stable').tolist():
        if counts[i].sum():
            text = f'{100 * recall[i]:.1f}'
            other = '-' if np.isnan(precision[i]) else f'{100 * precision[i]:.1f}'
            rows.append([escape(names[i]), str(counts[i].sum()), bar(float(recall[i]), text), other])
    error, scores, shares = calibration(sure, label == found)
    return [
        f'<p>Top-1 {100 * (label == found).mean():.1f} %</p>',
        '<h2>By class, the worst first</h2>',
        table(['class', 'images', 'right, %', 'precision, %'], rows[:60], (1, 3)),
        '<h2>Taken for</h2>',
        matrix(counts, names),
        curve(
            f'Calibration: error {error:.3f}',
            {'right': (scores, shares)},
            'score',
            'share that is right',
            True,
        ),
        *_worst(results, names, report),
    ]


def _worst(results: list[dict], names: list[str], report) -> list[str]:
    """Return the mistakes of which the model was surest."""
    wrong = [i for i, record in enumerate(results) if record['label'] != record['found']]
    wrong.sort(key=lambda i: results[i]['of_label'] - results[i]['sure'])
    if not wrong or not report.dataset:
        return []
    from ..registry import DATASETS

    dataset, figures = DATASETS.build(dict(report.dataset)), []
    if len(dataset) != len(results) or not hasattr(dataset, 'filename'):
        return []
    for i in wrong[:WORST]:
        image = read_image(dataset.filename(i))
        if image is not None:
            record = results[i]
            caption = f'{names[record["label"]]}, taken for {names[record["found"]]} ({record["sure"]:.0%})'
            small = encoded(reduced(image)[0], caption)
            figures.append(f'<figure>{small}<figcaption>{escape(caption)}</figcaption></figure>')
    return (
        ['<h2>The surest mistakes</h2>', f'<div class="pair many">{"".join(figures)}</div>']
        if figures
        else []
    )
