"""Collects predictions beside the metrics of an evaluation, and writes the page from them."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub, print_log

from ..checkpoint.write import write_text
from ..errors import UserError, message
from ..html import document, escape
from ..registry import METRICS
from . import classes, compare, objects, pixels
from .figures import STYLE


@METRICS.register_module()
class Report(BaseMetric):
    """Writes a page about what was predicted; it gives no number of its own to the log.

    Args:
        out: file of the page.
        title: its heading.
        ann_file: COCO file of the truth, of detectors.
        dataset: config of the images, of classifiers, whose predictions do not say which file they are of.
        at_end: only in the last validation of a training; there an error is a warning.
        other: name of another model, to compare with: of it a report with ``keep`` comes before.
        keep: write no page, keep the results for the next report.
    """

    default_prefix = 'report'  # of no number; without one mmengine warns

    def __init__(
        self,
        out: str,
        title: str = 'Report',
        ann_file: str = '',
        dataset: dict | None = None,
        at_end: bool = False,
        other: str = '',
        keep: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.out, self.title, self.ann_file, self.dataset, self.at_end = out, title, ann_file, dataset, at_end
        self.other, self.keep = other, keep

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep what the page needs of each image.

        Args:
            data_batch: not needed.
            data_samples: of detectors, segmenters or classifiers.
        """
        if self.at_end and not _at_end():
            return
        for sample in data_samples:
            self.results.append(_kind(sample).collect(sample))

    def evaluate(self, size: int) -> dict:
        """Write the page, where there is something to show; return no metrics."""
        if self.at_end and not _at_end():
            self.results.clear()
            return {}
        return super().evaluate(size)

    def compute_metrics(self, results: list[dict]) -> dict:
        """Write the page.

        Raises:
            UserError: the file cannot be written, or what computes it is not installed; unless ``at_end``.
        """
        try:
            if self.keep:
                _kept[:] = results
                return {}
            write_text(Path(self.out), self.page(results))
            print_log(f'report: {self.out}', 'current')
        except Exception as error:
            if not self.at_end:
                raise
            print_log(f'no report: {message(error)}', 'current', 30)
        return {}

    def page(self, results: list[dict]) -> str:
        """Return the page of what was collected."""
        names = tuple((self.dataset_meta or {}).get('classes') or ())
        kind = dict(objects=objects, pixels=pixels, classes=classes)[results[0]['kind']]
        parts = [f'<p>{escape(str(len(results)))} images</p>']
        if self.other:
            others, _kept[:] = list(_kept), []
            parts += compare.parts(kind.difference(others, results, names, self), self.other)
        return document(self.title, [*parts, *kind.parts(results, names, self)], STYLE)


_kept: list[dict] = []  # results of the model to compare with


def _kind(sample: dict):
    if 'pred_sem_seg' in sample:
        return pixels
    return objects if 'pred_instances' in sample else classes


def _at_end() -> bool:
    """Return whether a training is in its last epoch, or at its last step."""
    hub = MessageHub.get_current_instance()
    done, most = (
        [hub.get_info(name) or 0 for name in names]
        for names in (('epoch', 'iter'), ('max_epochs', 'max_iters'))
    )
    return done[0] + 1 >= most[0] if most[0] and most[0] < 10**9 else done[1] + 1 >= most[1]


def make_report(
    cfg: Config, out: str | os.PathLike, title: str, at_end: bool = False, **more
) -> Report | None:
    """Return the report of an evaluation, which the runner adds to its metrics; a config does not hold it.

    Args:
        cfg: of the run; its ``test_evaluator`` names the truth (``val_evaluator`` if ``at_end``).
        out: file of the page.
        title: of the page.
        at_end: see :class:`Report`; without what computes a detector's, there is none then.
        more: ``other`` or ``keep`` of :class:`Report`.

    Raises:
        UserError: a detector's report, without what computes it.
    """
    split = 'val' if at_end else 'test'
    if not (given := cfg.get(f'{split}_evaluator')):
        return None
    evaluators = given if isinstance(given, (list, tuple)) else [given]
    ann_file = next((e['ann_file'] for e in evaluators if e.get('ann_file')), '')
    if ann_file and importlib.util.find_spec('hotcoco') is None:
        if at_end:
            return None
        raise UserError("the report of a detector needs hotcoco: pip install 'convnext_backbone[report]'")
    dataset = None if ann_file else cfg[f'{split}_dataloader'].dataset
    return Report(str(out), title, ann_file, dataset, at_end, **more)
