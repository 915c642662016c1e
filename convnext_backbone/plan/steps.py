"""Trains the model of a config for a few real steps, in a process of its own; memory and time of them."""

import contextlib
import copy
import ctypes
import gc
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import task_of
from ..config.keys import dicts
from ..errors import UserError, message
from ..heads import save_work
from ..measure import build_model, building, make_batch

FORKS = multiprocessing.get_context('forkserver')  # its children begin without anybody's memory
PRELOADED = (__name__, f'{__package__}.warm')
UNTIMED = dict(measured=None, seconds=0.0, forward=0.0, backward=0.0, share=0.0)
UPDATES = 3  # that are timed, the median of their steps counts
LONG = 5.0  # seconds after which no other update is begun
OBJECTS = 16  # in each image, where no sampler says how many a head is trained on
MARGIN = 0.08  # of a GPU's memory, which the search for the largest batch leaves free
PARTS = ('backbone', 'neck')  # what is left is that of the heads and losses


@dataclass(frozen=True)
class Sheet:
    """Holds what the steps of one process took: bytes and seconds.

    Attributes:
        batch, size: images; height and width of each.
        weights: parameters and buffers.
        trainable: number of parameters that are trained.
        gradients, state: of them; of the optimizer.
        kept: what the forward pass leaves for the backward one, by part.
        growth: what a step needs beside weights and state, at most: gradients, activations, temporaries.
        measured: the same as the machine sees it: growth of the process's memory; ``None`` on CUDA, where
            ``growth`` comes from the allocator itself.
        seconds, forward, backward: of a step, and of its parts; zero if they were not asked for.
        share: seconds of processors that the process had in a second; well below 1 where others compete.
    """

    batch: int
    size: tuple[int, int]
    weights: int
    trainable: int
    gradients: int
    state: int
    kept: dict[str, int]
    growth: int
    measured: int | None
    seconds: float
    forward: float
    backward: float
    share: float

    @property
    def peak(self) -> int:
        """Return the bytes of tensors at the highest point of a step."""
        return self.weights + self.state + self.growth

    @property
    def error(self) -> float | None:
        """Return by how much ``growth`` is above what the machine measured, as a share of the latter."""
        return self.growth / self.measured - 1 if self.measured else None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive and were made while it is active, each storage once.

    Hooks of saved tensors would not see the inputs that gradient checkpointing keeps, nor temporaries.

    Args:
        known: tensors that were there before; views of them are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._seen = {}
        for tensor in known:
            self._note(tensor, 0)

    def _note(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes() if size is None else size
        self._seen[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        if self._seen.pop(key, None) is not None:
            self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result


class _Meter:
    """Reads the memory of tensors: of the allocator on CUDA, else of :class:`LiveBytes`."""

    def __init__(self, device: str, known: Iterable[Tensor]):
        self.live = LiveBytes(known) if device == 'cpu' else None

    @property
    def now(self) -> int:
        return self.live.now if self.live else torch.cuda.memory_allocated()

    def take_peak(self) -> int:
        """Return the highest value since the last call, and begin anew."""
        if self.live:
            peak, self.live.peak = self.live.peak, self.live.now
            return peak
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


class _Training:
    """Holds a model, its optimizer and a batch, of which updates are made and measured."""

    def __init__(self, cfg: Config, size: tuple[int, int], batch: int, counts: int, device: str):
        torch.manual_seed(0)
        torch.set_flush_denormal(True)  # as our Runner
        self.batch, self.size, self.device, self.counts = batch, size, device, min(counts, 2)
        self.model = build_model(cfg, 'cpu')
        self.model.init_weights()
        self.model.to(device).train()
        save_work(self.model, device)  # as our Runner
        wrapper = copy.deepcopy(cfg.optim_wrapper)
        wrapper.accumulative_counts = self.counts
        self.wrapper = build_optim_wrapper(self.model, wrapper)
        if isinstance(self.wrapper, OptimWrapperDict):
            raise UserError('optim_wrapper has several optimizers: a plan is for one')
        self.data = batch_of(cfg, size, batch)

    @property
    def state(self) -> list[Tensor]:
        return [t for t in tree_leaves(list(self.wrapper.optimizer.state.values())) if isinstance(t, Tensor)]

    @property
    def own(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _settle(self) -> float:
        """Return the time when all that was begun is done."""
        if self.device != 'cpu':
            torch.cuda.synchronize()
        return time.perf_counter()

    def update(self, at: Callable[[str], None] = lambda what: None) -> None:
        """Make the steps of an update; ``at`` hears of ``begin``, ``backward``, ``gradients`` and ``end``."""
        wrapper, update, backward = self.wrapper, type(self.wrapper).update_params, self.wrapper.backward

        def update_params(loss, *args, **kwargs):
            at('backward')
            update(wrapper, loss, *args, **kwargs)

        def going_back(loss, **kwargs):
            backward(loss, **kwargs)
            at('gradients')

        wrapper.update_params, wrapper.backward = update_params, going_back
        try:
            for _ in range(self.counts):
                data = copy.deepcopy(self.data)  # preprocessors change it
                at('begin')
                self.model.train_step(data, optim_wrapper=wrapper)
                at('end')
        finally:
            del wrapper.update_params, wrapper.backward

    def watch(self) -> dict:
        """Make an update and return the memory of its parts, see :class:`Sheet`."""
        before = self.state
        known = [*self.own, *before, *(t for t in tree_leaves(self.data) if isinstance(t, Tensor))]
        meter = _Meter(self.device, known)
        kept, entered, handles = dict.fromkeys((*PARTS, 'heads'), 0), {}, []
        start = meter.now
        found = dict(gradients=0, before=0, after=0)
        began = [start]

        def at(what: str) -> None:
            if what == 'begin':
                kept.update(dict.fromkeys(kept, 0))
                began[0] = meter.now
            elif what == 'backward':
                kept['heads'] = meter.now - began[0] - sum(kept[part] for part in PARTS)
            elif what == 'gradients':
                grads = [p.grad for p in self.model.parameters() if p.grad is not None]
                found['gradients'] = bytes_of(grads)
                found['before'] = max(found['before'], meter.take_peak() - start)
            else:
                found['after'] = max(found['after'], meter.take_peak() - start)

        def enter(part: str) -> None:
            entered[part] = meter.now

        def leave(part: str) -> None:
            kept[part] += meter.now - entered[part]

        for part in PARTS:
            module = getattr(self.model, part, None)
            if isinstance(module, nn.Module):
                handles.append(module.register_forward_pre_hook(lambda *_, part=part: enter(part)))
                handles.append(module.register_forward_hook(lambda *_, part=part: leave(part)))
        meter.take_peak()
        with meter.live or contextlib.nullcontext():
            self.update(at)
        for handle in handles:
            handle.remove()
        if kept['heads'] < 0:  # they let go of maps that nothing needs, which were counted for the backbone
            kept.update(backbone=kept['backbone'] + kept['heads'], heads=0)
        # The state is made at the end of the first update; at later ones it is there from the beginning.
        state = bytes_of(self.state)
        growth = max(found['before'], found['after'] - (state - bytes_of(before)))
        return dict(kept=kept, gradients=found['gradients'], state=state, growth=growth)

    def times(self) -> dict:
        """Make updates without any instrument; return seconds of a step and the growth of the process."""
        measured = None
        if self.device == 'cpu':
            base = _trim()
        rows, update_began, processor = [], time.perf_counter(), time.process_time()
        while len(rows) < UPDATES * self.counts and not (rows and time.perf_counter() - update_began > LONG):
            marks = []
            self.update(lambda what, marks=marks: marks.append((what, self._settle())))
            for number in range(0, len(marks), 4):
                (_, begin), (_, back), (_, gradients), (_, end) = marks[number : number + 4]
                rows.append((end - begin, back - begin, gradients - back))
        share = (time.process_time() - processor) / (time.perf_counter() - update_began)
        if self.device == 'cpu' and base is not None:
            measured = _high_water() - base
        seconds, forward, backward = (statistics.median(column) for column in zip(*rows))
        return dict(measured=measured, seconds=seconds, forward=forward, backward=backward, share=share)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def batch_of(cfg: Config, size: tuple[int, int], batch: int) -> dict:
    """Return made-up data of a size, with as many objects as the samplers of a detector take for positive."""
    if task_of(cfg.model) in ('classification', 'pretraining'):
        classes = cfg.model.get('num_classes') or 1
        images = torch.randn(batch, cfg.model.backbone.get('in_channels', 3), *size)
        return dict(inputs=images, labels=torch.arange(batch) % classes)
    rcnn = (cfg.model.get('train_cfg') or {}).get('rcnn') or {}
    samplers = [node for node in dicts(rcnn) if node.get('num') and node.get('pos_fraction')]
    objects = [round(node['num'] * node['pos_fraction']) for node in samplers]
    return make_batch(cfg, size, batch, objects=max(objects, default=OBJECTS))


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _trim() -> int | None:
    """Give free memory back, and return what the process has; ``None`` where its peak cannot be reset."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    except OSError:
        return None
    return _high_water()


def memory_here(device: str) -> int:
    """Return the bytes that are free on the device, for a CPU on the machine."""
    if device == 'cuda':
        return torch.cuda.mem_get_info()[0]
    try:
        found = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())
        return int(found[1]) * 1024
    except (OSError, TypeError):
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


# --- in a process of its own


def measure_steps(
    cfg: Config,
    size: tuple[int, int],
    batch: int,
    *,
    counts: int = 1,
    device: str = 'cpu',
    timed: bool = True,
    limit: int | None = None,
) -> Sheet:
    """Train a few steps in a process of its own and return what they took.

    Args:
        cfg: of a training; no weights are read, SyncBN is BN.
        size: height and width of the images.
        batch: images.
        counts: steps whose gradients are added up for an update.
        device: ``'cpu'`` or ``'cuda'``.
        timed: without it, memory alone, by one update.
        limit: bytes that the process may have; default: what is free.

    Raises:
        UserError: it does not fit, or the model cannot be trained so; one line.
    """
    return _in_child(_measure, cfg, tuple(size), batch, counts, device, timed, limit)


def largest_batch(cfg: Config, size: tuple[int, int], *, counts: int = 1, step: int = 1) -> int:
    """Return the largest batch that a GPU trains with :data:`MARGIN` of its memory left; 0 if none.

    Args:
        cfg, size, counts: see :func:`measure_steps`.
        step: the batch is a multiple of it.
    """
    return _in_child(_search, cfg, tuple(size), counts, step)


def search(fits: Callable[[int], bool], most: int = 4096) -> int:
    """Return the largest number that ``fits``, by doubling, then bisection; 0 if 1 does not fit."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _measure(cfg, size, batch, counts, device, timed, limit) -> Sheet:
    free = memory_here(device) if limit is None else limit
    if device == 'cpu':
        base = int(re.search(r'VmData:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (base + free, base + free))
    try:
        with building(cfg.get('default_scope'), 'cpu'):
            training = _Training(cfg, size, batch, counts, device)
        with building(cfg.get('default_scope'), device):
            found = training.watch()
            times = training.times() if timed else UNTIMED
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate" in str(error):
            raise UserError(
                f'a step with {batch} images of {size[0]} x {size[1]} (height x width) does not fit: '
                f'{free / 2**30:.1f} GiB are free on this {device}; a smaller --batch, a smaller scale or '
                'model.backbone.with_cp=True need less'
            ) from error
        raise
    trainable = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    return Sheet(batch, size, bytes_of(training.own), trainable, **found, **times)


def _search(cfg, size, counts, step) -> int:
    torch.cuda.set_per_process_memory_fraction(1 - MARGIN)

    def fits(number: int) -> bool:
        try:
            with building(cfg.get('default_scope'), 'cpu'):
                training = _Training(cfg, size, number * step, counts, 'cuda')
            with building(cfg.get('default_scope'), 'cuda'):
                training.update()
                training.update()
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            training = None
            gc.collect()
            torch.cuda.empty_cache()

    return search(fits) * step


def _in_child(function: Callable, *args):
    """Call a function in a process of its own, and return or raise what it does.

    Raises:
        UserError: of the function; or the process was killed.
    """
    FORKS.set_forkserver_preload(list(PRELOADED))
    here, there = FORKS.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = FORKS.Process(target=_answer, args=(there, threads, function, args), daemon=True)
    process.start()
    there.close()
    try:
        kind, value = here.recv()
    except EOFError:
        process.join()
        kind, value = 'killed', process.exitcode
    process.join()
    if kind == 'killed':
        raise UserError(
            f'the process that tried a step ended with status {value}, -9 if the machine was short of '
            'memory: try a smaller --batch'
        )
    if kind == 'error':
        raise UserError(value)
    return value


def _answer(pipe, threads: int, function: Callable, args: tuple) -> None:
    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = 'result', function(*args)
        except UserError as error:
            answer = 'error', str(error)
        except Exception as error:  # whatever a network raises
            text = ' '.join(message(error).split())
            answer = 'error', f'one step of the training: {type(error).__name__}: {text}'
    pipe.send(answer)
