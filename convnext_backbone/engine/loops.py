"""Epochs that go on at the batch where a training stopped."""

import itertools
from collections.abc import Iterator

from mmengine.registry import DATA_SAMPLERS as ALL_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, Sampler

from ..errors import UserError
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

    Our Runner puts it in the place of ``EpochBasedTrainLoop``. A stream, whose place is not kept, gives the
    rest of such an epoch from its beginning.

    Attributes:
        steps_before: length of an epoch in the training that is resumed; set on resume.

    Raises:
        UserError: the epochs of the training that is resumed had another length.
    """

    steps_before: int | None = None

    def run_epoch(self) -> None:
        """As in mmengine; the first one begins where the training stopped."""
        length = len(self.dataloader)
        done, self.steps_before = self._first_batch(length), None
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        sampler = self.dataloader.batch_sampler
        if done:
            kept = isinstance(sampler, ResumableBatchSampler)
            how = '' if kept else ', with images from the beginning of the stream'
            self.runner.logger.info(f'epoch {self._epoch + 1} goes on at batch {done + 1} of {length}{how}')
            if kept:
                sampler.start = done
        for number, batch in enumerate(itertools.islice(self.dataloader, length - done), done):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _first_batch(self, length: int) -> int:
        if self.steps_before is None:
            return 0
        if self.steps_before != length:
            raise UserError(
                f'the training that is resumed had {self.steps_before} steps per epoch, this one has '
                f'{length}: its learning rates would end elsewhere; resume with the same batch size, data '
                'and number of processes, or start from its weights with load_from'
            )
        return self._iter - self._epoch * length
