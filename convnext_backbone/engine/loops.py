"""Runs trainings that go on at the very batch, and with the very random numbers, where a training stopped."""

import itertools
import signal
import threading
from collections import deque
from collections.abc import Iterator

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS as ALL_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, Sampler

from ..config import nodes
from ..errors import UserError
from ..registry import DATA_SAMPLERS, LOOPS
from .randomness import RandomStream, get_states, seed_all, set_states

DEATHS = 3  # of data loader processes, one after the other without a batch between, that end a training


class Batch(list):
    """Holds indices of the images of a batch, and ``key``: what their augmentations are seeded from."""

    def __init__(self, indices, key: tuple[int, ...]):
        super().__init__(indices)
        self.key = key


def fetch_seeded(dataset, batch: Batch) -> list:
    """Return the items of ``dataset`` for ``batch``.

    The augmentations of each are drawn from random numbers of its own, that depend on seed, rank, the
    number of the batch in the training and the place in the batch alone: not on how many processes read,
    which of them does, or whether the training was resumed.
    """
    outside, items = get_states(), []
    try:
        for place, index in enumerate(batch):
            seed_all(*batch.key, place)
            items.append(dataset[index])
    finally:
        set_states(outside)
    return items


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Wraps a batch sampler so that it starts anywhere, without reading what comes before.

    Args:
        sampler, batch_size: as mmengine gives them to a batch sampler.
        inner: config of the batch sampler; torch's by default.
        drop_last: of torch's.
        endless: one pass over the data after the other (iteration-based loops).
        seed: of the random augmentations.

    Attributes:
        recent: the last batches that were handed out, number of the batch in the training -> indices.
    """

    def __init__(
        self,
        sampler,
        batch_size: int,
        inner: dict | None = None,
        drop_last: bool = False,
        endless: bool = False,
        seed: int = 0,
    ):
        self.sampler, self.batch_size, self.endless = sampler, batch_size, endless
        self._inner, self._drop_last = inner, drop_last
        self._key = (seed, get_rank())
        self._number, self._left_out = 0, 0
        self._recent = deque(maxlen=512)

    def begin(self, number: int, left_out: int) -> None:
        """Set what the next pass begins with.

        Args:
            number: of its first batch, counted from the beginning of the training.
            left_out: batches of the data before it; if endless, since the beginning of the training.
        """
        self._number, self._left_out = number, left_out

    def __iter__(self) -> Iterator[Batch]:
        for number, indices in enumerate(self._batches(self._left_out), self._number):
            batch = Batch(indices, (*self._key, number))
            self._recent.append((number, batch))
            yield batch

    @property
    def inner(self) -> Sampler:
        """Return the batch sampler, new for each pass: some keep images of a pass that was not finished."""
        if self._inner is None:
            return BatchSampler(self.sampler, self.batch_size, self._drop_last)
        given = dict(sampler=self.sampler, batch_size=self.batch_size)
        return ALL_SAMPLERS.build(dict(self._inner), default_args=given)

    @property
    def restartable(self) -> bool:
        """Return whether a second pass is as a first one: not with mmdet's samplers of several sources."""
        kept = [node for own in vars(self.sampler).values() for node in nodes(own)]
        return self._can_skip or not any(isinstance(value, Iterator) for value in kept)

    @property
    def _can_skip(self) -> bool:
        return hasattr(self.sampler, 'skip') or isinstance(self.sampler, InfiniteSampler)

    def _skip(self, images: int) -> None:
        """Let the sampler's next pass begin after so many images of its sequence."""
        if hasattr(self.sampler, 'skip'):
            self.sampler.skip(images)
        else:  # mmengine 0.10.7 and older
            anew = InfiniteSampler(range(self.sampler.size), self.sampler.shuffle, self.sampler.seed)
            self.sampler.indices = itertools.islice(anew, images, None)

    def _batches(self, left_out: int) -> Iterator[list[int]]:
        if not self.endless:
            yield from itertools.islice(self.inner, left_out, None)
            return
        passes = 0
        if self._can_skip:
            each = self.batch_size if self._inner is None else 0
            self._skip(left_out * each)
            left_out = 0 if each else left_out
        elif isinstance(self.sampler, DefaultSampler) and len(self):
            passes, left_out = divmod(left_out, len(self))
        for passed in itertools.count(passes):
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(passed)
            empty = True
            for indices in self.inner:
                empty = False
                if left_out:
                    left_out -= 1
                else:
                    yield indices
            if empty:
                return

    @property
    def recent(self) -> dict[int, list[int]]:
        return dict(self._recent)

    def __len__(self) -> int:
        return len(self.inner)


class _Resumable:
    """Holds what both loops share.

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
        """Yield the next ``count`` batches after ``left_out``; a dead process of the data loader is replaced.

        Raises:
            UserError: such processes die one after the other, or read a stream, whose place is lost.
        """
        sampler, deaths = self.resumable, 0
        number = self._iter
        while count:
            if sampler:
                sampler.begin(number, left_out)
            try:
                batches = iter(self.dataloader)
                _leave_dead_workers_to_the_loader()
                for batch in itertools.islice(batches, count):
                    yield batch
                    number, left_out, count, deaths = number + 1, left_out + 1, count - 1, 0
                return
            except RuntimeError as error:
                if not str(error).startswith('DataLoader worker'):
                    raise
                deaths += 1
                if not sampler or not sampler.restartable or deaths == DEATHS:
                    raise UserError(
                        f'{deaths} data loader processes died one after the other before batch {number + 1} '
                        f'({error}): often the memory is exhausted, fewer train_dataloader.num_workers or '
                        'smaller images help; --resume goes on from the last checkpoint'
                    ) from error
                self.runner.logger.warning(
                    f'a data loader process died ({error}): new ones read on at batch {number + 1}'
                )
                batches = self.dataloader._iterator = None  # the latter is kept by persistent_workers

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
        self._decide_current_val_interval()
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
        if not self.validated and self._iter == self._epoch * len(self.dataloader):
            self._validate_if_due(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due(self._epoch, self._max_epochs)
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
            self.runner.logger.info(f'epoch {self._epoch + 1} goes on at batch {done + 1} of {length}{how}')
        for index, batch in enumerate(self._batches(done, length - done), done):
            self._step(index, batch)
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
            self._validate_if_due(self._iter, self._max_iters)
        self.runner.model.train()
        if self._iter and not self.resumable:
            self.runner.logger.warning('the place in a stream is not kept: it begins anew')
        while self._iter < self._max_iters and not self.stop_training:
            begun = self._iter
            for batch in self._batches(begun, self._max_iters - begun):
                self._step(self._iter, batch)
                if self._validate_if_due(self._iter, self._max_iters):
                    self.runner.model.train()
                if self.stop_training:
                    break
            if self._iter == begun:
                raise UserError('the training data gives no batch')
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


def _leave_dead_workers_to_the_loader() -> None:
    """Leave the death of a data loader process to the loader, which notices it within 5 seconds.

    torch raises it wherever the main thread happens to be, in the middle of an optimizer's step, too; the
    loader itself notices it as well, where it waits.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
