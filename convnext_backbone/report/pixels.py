"""Analyses label maps: IoU and boundary IoU of each class, what is taken for what, the worst images.

Boundary IoU: arXiv:2103.16562, of pixels within 2 % of the image's diagonal of an outline.
"""

import cv2
import numpy as np

from ..html import bar, escape, table
from .compare import difference_of_iou
from .figures import colour_of, matrix, percent, read_image, reduced, side_by_side

IGNORED = 255
DIAGONAL = 0.02
WORST = 10


def collect(sample: dict) -> dict:
    """Keep counts of an image, and small copies of its label maps.

    Args:
        sample: ``pred_sem_seg`` and ``gt_sem_seg``, each with ``data`` (1, H, W).
    """
    found = sample['pred_sem_seg']['data'].squeeze().cpu().numpy().astype(np.int64)
    right = sample['gt_sem_seg']['data'].squeeze().cpu().numpy().astype(np.int64)
    return dict(
        kind='pixels',
        file=sample.get('img_path', ''),
        pairs=pairs(right, found),
        edges=edges(right, found),
        right=_packed(right),
        found=_packed(found),
    )


def pairs(right: np.ndarray, found: np.ndarray) -> dict[tuple[int, int], int]:
    """Count the pixels of each pair of a class and what it was taken for; ignored ones are left out."""
    known = right != IGNORED
    keys, counts = np.unique(right[known] * 1000 + found[known], return_counts=True)
    return {(int(key) // 1000, int(key) % 1000): int(count) for key, count in zip(keys, counts)}


def edges(right: np.ndarray, found: np.ndarray) -> dict[int, tuple[int, int]]:
    """Return, of each class that is there, pixels of both boundaries together and of at least one of them."""
    width = max(1, round(DIAGONAL * float(np.hypot(*right.shape))))
    known, counts = right != IGNORED, {}
    for label in np.union1d(np.unique(right[known]), np.unique(found[known])).tolist():
        rims = [_rim((values == label) & known, width) for values in (right, found)]
        counts[label] = int((rims[0] & rims[1]).sum()), int((rims[0] | rims[1]).sum())
    return counts


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask within ``width`` of its outline; the border of the image is one."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return mask & (inner[1:-1, 1:-1] == 0)


def _packed(labels: np.ndarray) -> bytes:
    small, _ = reduced(labels.astype(np.uint8), nearest=True)
    return cv2.imencode('.png', small)[1].tobytes()


def difference(first: list[dict], second: list[dict], classes: tuple[str, ...], report) -> dict[str, tuple]:
    """Return what two models' results differ in, see :mod:`.compare`."""
    return difference_of_iou(first, second)


def parts(results: list[dict], classes: tuple[str, ...], report) -> list[str]:
    """Return the page's parts."""
    size = 1 + max([len(classes) - 1, *(label for r in results for pair in r['pairs'] for label in pair)])
    names = [*classes, *(str(i) for i in range(len(classes), size))]
    counts, rims = np.zeros((size, size), np.int64), np.zeros((size, 2), np.int64)
    for record in results:
        for pair, count in record['pairs'].items():
            counts[pair] += count
        for label, pixels in record['edges'].items():
            rims[label] += pixels
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = counts.diagonal() / union
        recall, precision = counts.diagonal() / counts.sum(1), counts.diagonal() / counts.sum(0)
        boundary = rims[:, 0] / rims[:, 1]
    rows = []
    for label in np.argsort(np.nan_to_num(iou, nan=2)).tolist():
        cells = [percent(values[label]) for values in (boundary, recall, precision)]
        share = counts[label].sum() / max(counts.sum(), 1)
        strip = bar(float(np.nan_to_num(iou[label])), percent(iou[label]))
        rows.append([escape(names[label]), f'{share:.2%}', strip, *cells])
    means = [f'mIoU {percent(np.nanmean(iou))}', f'mean boundary IoU {percent(np.nanmean(boundary))}']
    means.append(f'right pixels {percent(counts.diagonal().sum() / max(counts.sum(), 1))}')
    head = ['class', 'of the pixels', 'IoU', 'boundary IoU', 'recall', 'precision']
    return [
        f'<p>{", ".join(means)}</p>',
        '<h2>By class, the worst first</h2>',
        table(head, rows, (1, 3, 4, 5)),
        '<h2>Taken for</h2>',
        matrix(counts, names),
        *_worst(results, names),
    ]


def iou_of(pairs: dict[tuple[int, int], int]) -> float:
    """Return the mean IoU of the classes that are in an image, or in its prediction."""
    labels = {label for pair in pairs for label in pair}
    values = []
    for label in labels:
        both = pairs.get((label, label), 0)
        union = sum(count for pair, count in pairs.items() if label in pair)
        values.append(both / union)
    return float(np.mean(values)) if values else float('nan')


def _worst(results: list[dict], names: list[str]) -> list[str]:
    scored = [(iou_of(record['pairs']), number) for number, record in enumerate(results) if record['pairs']]
    text = ['<h2>The worst images</h2>']
    for score, number in sorted(scored)[:WORST]:
        record = results[number]
        right, found = (
            cv2.imdecode(np.frombuffer(record[key], np.uint8), cv2.IMREAD_GRAYSCALE)
            for key in ('right', 'found')
        )
        image = read_image(record['file'])
        if image is None:
            continue
        image = cv2.resize(image, right.shape[::-1], interpolation=cv2.INTER_AREA)
        shown = {'image': image, 'truth': _painted(image, right), 'found': _painted(image, found)}
        caption = f'{record["file"].rpartition("/")[2]}: mean IoU {percent(score)}'
        text.append(side_by_side(shown, caption))
    return text if len(text) > 1 else []


def _painted(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    colours = np.array([colour_of(label) for label in range(255)] + [(0, 0, 0)], float)
    return (0.4 * image + 0.6 * colours[labels]).astype(np.uint8)
