"""Gives the batches of a training from any of them on, each image with random numbers of its own."""

import itertools
import logging
import signal
import threading
from collections import deque
from collections.abc import Iterator

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS as ALL_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Sampler

from ..config import nodes
from ..errors import UserError
from ..registry import DATA_SAMPLERS
from .randomness import get_states, seed_all, set_states

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
        """Return the last batches that were handed out: number of the batch in the training -> indices."""
        return dict(self._recent)

    def __len__(self) -> int:
        return len(self.inner)


def read_batches(
    loader: DataLoader, number: int, left_out: int, count: int, logger: logging.Logger
) -> Iterator:
    """Yield ``count`` batches of ``loader``; processes of it that die are replaced.

    Args:
        number: of the first batch, counted from the beginning of the training.
        left_out: batches of the data before it, see :meth:`ResumableBatchSampler.begin`.
        logger: is told of each dead process.

    Raises:
        UserError: such processes die one after the other, or read a stream, whose place is lost.
    """
    sampler = loader.batch_sampler if isinstance(loader.batch_sampler, ResumableBatchSampler) else None
    deaths = 0
    while count:
        if sampler:
            sampler.begin(number, left_out)
        try:
            batches = iter(loader)
            _leave_dead_workers_to_the_loader()
            for batch in itertools.islice(batches, count):
                yield batch
                number, left_out, count, deaths = number + 1, left_out + 1, count - 1, 0
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not _is_a_death(error, loader):
                raise
            deaths += 1
            if not sampler or not sampler.restartable or deaths == DEATHS:
                raise UserError(
                    f'{deaths} data loader processes died one after the other before batch {number + 1} '
                    f'({error}): often the memory is exhausted, fewer train_dataloader.num_workers or '
                    'smaller images help; --resume goes on from the last checkpoint'
                ) from error
            logger.warning(f'a data loader process died ({error}): new ones read on at batch {number + 1}')
            batches = loader._iterator = None  # the latter is kept by persistent_workers


def _is_a_death(error: Exception, loader: DataLoader) -> bool:
    """Return whether an error comes from a data loader process that died, not from what it read.

    A process that dies while it hands a batch over breaks the connection, before the loader sees it dead.
    """
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith('DataLoader worker')
    return loader.num_workers > 0 and not text.startswith('Caught ')  # as torch begins what a dataset raised


def _leave_dead_workers_to_the_loader() -> None:
    """Leave the death of a data loader process to the loader, which notices it within 5 seconds.

    torch raises it wherever the main thread happens to be, in the middle of an optimizer's step, too; the
    loader itself notices it as well, where it waits.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
