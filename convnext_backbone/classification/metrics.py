"""Top-1 and top-5 accuracy."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of the images, in percent, whose label is among the k highest logits.

    Args:
        topk: the k's that are reported; one larger than the number of classes is left out.
    """

    default_prefix = None

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs):
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            logits, label = sample['logits'], int(sample['label'])
            before = (logits > logits[label]).sum() + (logits[:label] == logits[label]).sum()
            # a logit that is no number is never right
            rank = int(before) if logits[label].isfinite() else len(logits)
            self.results.append((rank, len(logits)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        classes = results[0][1]
        return {
            f'top{k}': 100 * sum(rank < k for rank, _ in results) / len(results)
            for k in self.topk
            if k <= classes
        }
