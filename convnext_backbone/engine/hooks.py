"""Hooks of every training."""

import time

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from ..registry import HOOKS


@HOOKS.register_module()
class DataHook(Hook):
    """Tells streams which epoch it is, and the user when the data loader is slower than the model.

    Gives each process but the first random numbers of its own, for Mixup and stochastic depth; the order of
    the images and the starting weights are the same for all.

    The speed is measured once, over the steps after the first ones of this process.

    Args:
        skip: steps before the measurement, while workers and caches start.
        steps: steps that are measured.
        share: of the time spent waiting for data, above which it is said.
    """

    priority = 'LOWEST'  # what other hooks do is not waiting

    def __init__(self, skip: int = 20, steps: int = 100, share: float = 0.1):
        self.skip, self.steps, self.share = skip, steps, share
        self._step, self._images, self._waited, self._ready = 0, 0, 0.0, None

    def before_train(self, runner) -> None:
        if rank := get_rank():
            seed = (torch.initial_seed() + rank) % 2**32
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002  timm's Mixup draws from it

    def before_train_epoch(self, runner) -> None:
        dataset = runner.train_loop.dataloader.dataset
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(runner.epoch)
        self._ready = None

    def before_val_epoch(self, runner) -> None:
        self._ready = None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        now = time.perf_counter()
        if self._step == self.skip:
            self._start = now
        elif self.skip < self._step < self.skip + self.steps and self._ready is not None:
            self._waited += now - self._ready  # since the last step ended

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._ready = time.perf_counter()
        self._step += 1
        if self.skip < self._step <= self.skip + self.steps and isinstance(data_batch, dict):
            self._images += len(data_batch.get('inputs', ()))
        if self._step == self.skip + self.steps:
            self._report(runner)

    def _report(self, runner) -> None:
        spent = time.perf_counter() - self._start
        if self._waited < self.share * spent:
            return
        workers = runner.train_loop.dataloader.num_workers
        runner.logger.warning(
            f'the data loader gives {self._images / spent:.1f} images/s, the model could take '
            f'{self._images / (spent - self._waited):.1f} ({self._waited / spent:.0%} of the time is spent '
            f'waiting): raise train_dataloader.num_workers, now {workers}'
        )
