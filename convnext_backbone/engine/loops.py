"""Trains by epochs or by steps, and goes on at the very batch, with the very random numbers, after a stop."""

from bisect import bisect
from collections.abc import Iterator

import torch
from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..errors import UserError
from ..registry import LOOPS
from .randomness import RandomStream
from .sampler import ResumableBatchSampler, read_batches


class _Resumable:
    """Holds what both loops share: the next batches, one step, and the validation after it.

    Attributes:
        random: the random numbers of the steps.
        steps_before: length of a pass over the data in the training that is resumed; set on resume.
        validated: whether the training that is resumed had done the validation that was due.
    """

    steps_before: int | None = None
    validated: bool = True

    def __init__(self, runner, *args, **kwargs):
        super().__init__(runner, *args, **kwargs)
        self.random = RandomStream(runner.seed or 0, get_rank())

    @property
    def resumable(self) -> ResumableBatchSampler | None:
        """Return the batch sampler, unless the data is a stream."""
        sampler = self.dataloader.batch_sampler
        return sampler if isinstance(sampler, ResumableBatchSampler) else None

    def _batches(self, left_out: int, count: int) -> Iterator:
        """Yield the next ``count`` batches, after ``left_out`` batches of the data."""
        return read_batches(self.dataloader, self.iter, left_out, count, self.runner.logger)

    def _step(self, index: int, batch) -> None:
        """Run one training step with its hooks; the training ends after it if that was asked for."""
        runner = self.runner
        runner.call_hook('before_train_iter', batch_idx=index, data_batch=batch)
        with self.random:
            outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        runner.call_hook('after_train_iter', batch_idx=index, data_batch=batch, outputs=outputs)
        self._iter += 1
        runner.stop_if_asked()

    def _validate_if_due(self, done: int, end: int) -> bool:
        """Return whether a validation was due after ``done`` of ``end`` epochs or steps, and was done."""
        self.val_interval = self.dynamic_intervals[bisect(self.dynamic_milestones, done + 1) - 1]
        at = done % self.val_interval == 0 or done == end
        if self.runner.val_loop is None or not at or done < self.val_begin:
            return False
        self.runner.val_loop.run()
        return True


@LOOPS.register_module()
class EpochLoop(_Resumable, EpochBasedTrainLoop):
    """Trains by epochs as mmengine's does; can also resume from a checkpoint written within an epoch.

    Our Runner puts it in the place of ``EpochBasedTrainLoop``. A stream, whose place is not kept, gives the
    rest of such an epoch from its beginning.

    Raises:
        UserError: the epochs of the training that is resumed had another length.
    """

    def run(self) -> torch.nn.Module:
        """Train as in mmengine; a validation that was due when the training stopped comes first."""
        self.runner.call_hook('before_train')
        self.runner.stop_if_asked()
        if not self.validated and self.iter == self.epoch * len(self.dataloader):
            self._validate_if_due(self.epoch, self.max_epochs)
        while self.epoch < self.max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due(self.epoch, self.max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Run an epoch as in mmengine; the first one begins where the training stopped."""
        length = len(self.dataloader)
        done, self.steps_before = self._first_batch(length), None
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if done:
            how = '' if self.resumable else ', with images from the beginning of the stream'
            self.runner.logger.info(f'epoch {self.epoch + 1} goes on at batch {done + 1} of {length}{how}')
        for index, batch in enumerate(self._batches(done, length - done), done):
            self._step(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _first_batch(self, length: int) -> int:
        """Return how many batches of an epoch of ``length`` are done: 0, unless the training is resumed."""
        if self.steps_before is None:
            return 0
        if self.steps_before != length:
            raise UserError(
                f'the training that is resumed had {self.steps_before} steps per epoch, this one has '
                f'{length}: its learning rates would end elsewhere; resume with the same batch size, data '
                'and number of processes, or start from its weights with load_from'
            )
        return self.iter - self.epoch * length


@LOOPS.register_module()
class IterLoop(_Resumable, IterBasedTrainLoop):
    """Trains by steps as mmengine's does; resumes without replaying the data loader.

    Our Runner puts it in the place of ``IterBasedTrainLoop``. A stream starts anew.
    """

    def run(self) -> torch.nn.Module:
        """Train as in mmengine; a validation that was due when the training stopped comes first.

        Raises:
            UserError: the training data gives no batch.
        """
        self.runner.call_hook('before_train')
        self.runner.stop_if_asked()
        self.runner.call_hook('before_train_epoch')
        if not self.validated:
            self._validate_if_due(self.iter, self.max_iters)
        self.runner.model.train()
        if self.iter and not self.resumable:
            self.runner.logger.warning('the place in a stream is not kept: it begins anew')
        while self.iter < self.max_iters and not self.stop_training:
            begun = self.iter
            for batch in self._batches(begun, self.max_iters - begun):
                self._step(self.iter, batch)
                if self._validate_if_due(self.iter, self.max_iters):
                    self.runner.model.train()
                if self.stop_training:
                    break
            if self.iter == begun:
                raise UserError('the training data gives no batch')
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model
