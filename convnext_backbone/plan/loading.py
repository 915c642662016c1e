"""Measures how many images per second a data loader gives, and where the time of an image goes."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler

import cv2
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from torch.utils.data import DataLoader, IterableDataset

from ..datasets.parcel import Parcel
from ..errors import UserError

SECONDS = 5.0  # that each number of workers is measured, at least
REST = 'the dataset: finding, copying, seeding'  # of an image; where the dataset decodes, that too
COLLATE = 'collating a batch'
HANDOVER = 'handing a batch to the training'


def worker_counts(processors: int | None = None) -> list[int]:
    """Return the numbers of workers to measure: 0, 1, 2, 4 and so on, up to those of the processors."""
    most = processors or len(os.sched_getaffinity(0))
    return [0, *(2**n for n in range(most.bit_length()) if 2**n < most), most]


def images_per_second(loader: DataLoader, seconds: float = SECONDS) -> float:
    """Return the images per second that a loader gives to a training that never lets it wait.

    Measured in whole rounds, in which each worker gives one batch, after the round in which they start.

    Args:
        loader: whose batches do not end before the time.
        seconds: to measure, at least.

    Raises:
        UserError: the data ends before a round is measured.
    """
    batches, workers = iter(loader), max(1, loader.num_workers)
    try:
        for _ in range(workers):
            next(batches, None)
        images, began, spent = 0, time.perf_counter(), 0.0
        while spent < seconds and len(chunk := list(itertools.islice(batches, workers))) == workers:
            images += sum(map(_images, chunk))
            spent = time.perf_counter() - began
    finally:
        loader._iterator = None  # which persistent workers keep
        del batches
    if not images:
        raise UserError(f'the data ends before {2 * workers} batches: choose a smaller batch_size')
    return images / spent


def _images(batch: dict) -> int:
    """Return how many images a batch has; those of all branches of semi-supervised training."""
    inputs = batch['inputs']
    return sum(map(len, inputs.values())) if isinstance(inputs, dict) else len(inputs)


def parts_of_an_image(loader: DataLoader, seconds: float = SECONDS) -> dict[str, float]:
    """Return the seconds of an image by what they are spent on, in the order in which that begins.

    One process does all of it: the steps of the pipeline, each without those within it; what the dataset does
    beside them; the collation; and the hand-over, through shared memory as from a worker to the training,
    both ends of it.

    Args:
        loader: without workers; its dataset is changed and not to be used afterwards.
        seconds: to measure, at least.
    """
    clock = _Clock()
    for holder in _pipelines(loader.dataset):
        _time_steps(holder, clock)
    images, fetch = 0, clock.timed(_fetch, REST)
    collate = clock.timed(loader.collate_fn, COLLATE)
    hand_over = clock.timed(_hand_over, HANDOVER)
    began = time.perf_counter()
    with _one_thread():
        for number, source in enumerate(_sources(loader)):
            items = fetch(loader.dataset, source)
            hand_over(collate(items))
            if not number:  # the first one imports and opens what all the others use
                clock.seconds = dict.fromkeys(clock.seconds, 0.0)
                began = time.perf_counter()
                continue
            images += len(items)
            if time.perf_counter() - began > seconds:
                break
    if not images:
        raise UserError('the data ends before 2 batches: choose a smaller batch_size')
    return {name: spent / images for name, spent in clock.seconds.items()}


def _sources(loader: DataLoader) -> Iterator:
    """Yield what :func:`_fetch` makes a batch of: indices, or the iterator and the number of images."""
    if not isinstance(loader.dataset, IterableDataset):
        yield from loader.batch_sampler
        return
    stream = iter(loader.dataset)
    while True:
        yield stream, loader.batch_size


def _fetch(dataset, source) -> list:
    """Return the items of a batch as a worker reads them."""
    if isinstance(dataset, IterableDataset):
        return list(itertools.islice(*source))
    together = getattr(dataset, '__getitems__', None)
    return together(source) if together else [dataset[index] for index in source]


def _hand_over(batch) -> None:
    """Pickle a batch as a worker of our Runner does and read it as the training does."""
    ForkingPickler.loads(bytes(ForkingPickler.dumps(Parcel(batch))))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let OpenCV and PyTorch compute with one thread, as they do in a worker."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


class _Clock:
    """Adds up the seconds of functions by name, each without those that it calls.

    Attributes:
        seconds: by name, in the order of the first calls' beginnings.
    """

    def __init__(self):
        self.seconds, self._within = {}, [0.0]

    def timed(self, function: Callable, name: str) -> Callable:
        """Return a function that does the same and adds its time to ``name``."""

        def call(*args, **kwargs):
            self.seconds.setdefault(name, 0.0)
            self._within.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[name] += spent - self._within.pop()
                self._within[-1] += spent

        return call


def _pipelines(dataset) -> Iterator:
    """Yield the pipeline of a dataset and of those that it wraps: mmengine's ``Compose``, or timm's."""
    for name in ('pipeline', 'transform'):
        if hasattr(getattr(dataset, name, None), 'transforms'):
            yield getattr(dataset, name)
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]:
        if inner is not None:
            yield from _pipelines(inner)


def _time_steps(value, clock: _Clock) -> None:
    """Let each step of a pipeline add to a clock, also steps within steps (``RandomChoice``)."""
    if isinstance(value, BaseTransform):
        inner = list(vars(value).values())
        value.transform = clock.timed(value.transform, type(value).__name__)
    elif isinstance(steps := getattr(value, 'transforms', None), list):
        for number, step in enumerate(steps):
            if not isinstance(
                step, (BaseTransform, Compose, list)
            ):  # a function, or torchvision's and timm's
                name = getattr(step, '__name__', type(step).__name__)
                steps[number] = clock.timed(step, name)
        inner = steps
    else:
        inner = value if isinstance(value, (list, tuple)) else ()
    for step in inner:
        _time_steps(step, clock)
