"""Computes accuracy: top-1, top-5, of each class, and which class was taken for which."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Computes the share of the images, in percent, whose label is among the k highest logits.

    Args:
        topk: the k's that are reported; one larger than the number of classes is left out.
        out_dir: gets ``per_class.json`` (top-1 of each class, percent, and its images) and
            ``confusion.png``; ``tools/test.py`` sets it to the work dir.
    """

    default_prefix = None

    def __init__(self, topk: Sequence[int] = (1, 5), out_dir: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.topk = tuple(topk)
        self.out_dir = out_dir

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep, of each image, the rank of its label (0: the highest logit), and label and predicted class.

        Args:
            data_batch: not needed.
            data_samples: of each image ``logits`` (classes,) and ``label``, its number.
        """
        for sample in data_samples:
            logits, label = sample['logits'], int(sample['label'])
            before = (logits > logits[label]).sum() + (logits[:label] == logits[label]).sum()
            # a logit that is no number is never right
            rank = int(before) if logits[label].isfinite() else len(logits)
            self.results.append((rank, len(logits), label, int(logits.argmax())))

    def compute_metrics(self, results: list[tuple[int, int, int, int]]) -> dict[str, float]:
        """Return ``top1``, ``top5``, ... in percent of the images; write the files of ``out_dir``, if set."""
        classes = results[0][1]
        if self.out_dir:
            self._write(classes, [result[2:] for result in results])
        return {
            f'top{k}': 100 * sum(rank < k for rank, *_ in results) / len(results)
            for k in self.topk
            if k <= classes
        }

    def _write(self, classes: int, pairs: list[tuple[int, int]]) -> None:
        names = (self.dataset_meta or {}).get('classes') or [str(number) for number in range(classes)]
        counts = confusion(pairs, classes)
        per_class = {
            name: dict(top1=round(100 * row[i] / row.sum(), 2) if row.sum() else None, images=int(row.sum()))
            for i, (name, row) in enumerate(zip(names, counts))
        }
        folder = Path(self.out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'per_class.json').write_text(json.dumps(per_class, indent=1) + '\n')
        draw_confusion(counts, names, folder / 'confusion.png')


def confusion(pairs: Sequence[tuple[int, int]], classes: int) -> np.ndarray:
    """Count (label, predicted) pairs: (classes, classes) counts, row the label, column what was predicted."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, tuple(np.array(pairs, dtype=np.int64).T), 1)
    return counts


def draw_confusion(counts: np.ndarray, names: Sequence[str], file: Path) -> None:
    """Draw the share of each row in each column; with names and numbers up to 30 classes."""
    from matplotlib.figure import Figure

    few = len(names) <= 30
    side = 2.5 + 0.45 * len(names) if few else 10
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap='Blues')
    axes.set(xlabel='predicted', ylabel='label', title=f'{counts.trace() / max(counts.sum(), 1):.1%} right')
    if few:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(counts):
            color = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(column, row, counts[row, column], ha='center', va='center', color=color, fontsize=8)
    figure.colorbar(image, label='share of the label', shrink=0.8)
    figure.savefig(file, dpi=100)
