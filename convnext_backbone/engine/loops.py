"""Epochs that go on at the batch where a training stopped."""

from collections.abc import Iterator

from mmengine.registry import DATA_SAMPLERS as ALL_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, Sampler

from ..registry import DATA_SAMPLERS, LOOPS


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Another batch sampler that can leave out the first batches of an epoch, without reading them.

    Args:
        sampler, batch_size: as mmengine gives them to a batch sampler.
        inner: config of the batch sampler; torch's by default.
        drop_last: of torch's.

    Attributes:
        start: batches that the next epoch leaves out; 0 again once it has begun.
    """

    def __init__(self, sampler, batch_size: int, inner: dict | None = None, drop_last: bool = False):
        self.sampler, self.batch_size = sampler, batch_size
        if inner is None:
            self.inner = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.inner = ALL_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=batch_size))
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        for number, batch in enumerate(self.inner):
            if number >= start:
                yield batch

    def __len__(self) -> int:
        return len(self.inner)


@LOOPS.register_module()
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's, which can also resume from a checkpoint written within an epoch.

    Our Runner puts it in the place of ``EpochBasedTrainLoop``. A checkpoint that was written with epochs of
    another length (another batch, another number of processes) is resumed at the same share of the epoch.

    Attributes:
        steps_before: length of an epoch in the training that is resumed; set on resume.
    """

    steps_before: int | None = None

    def run_epoch(self) -> None:
        """As in mmengine; the first one begins where the training stopped."""
        length = len(self.dataloader)
        done, self._first = self._first_batch(length), False
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if done:
            self.runner.logger.info(f'epoch {self._epoch + 1} goes on at batch {done + 1} of {length}')
            self.dataloader.batch_sampler.start = done
        for number, batch in enumerate(self.dataloader, done):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    _first = True

    def _first_batch(self, length: int) -> int:
        if not self._first or not self.steps_before:
            return 0
        share = (self._iter - self._epoch * self.steps_before) / self.steps_before
        return round(min(max(share, 0), 1) * length)
