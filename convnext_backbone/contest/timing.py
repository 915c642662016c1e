"""Times contestants in turn and measures their memory; names the machine."""

import contextlib
import importlib.metadata
import platform
import re
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from ..ops import native
from .cell import Cell
from .networks import OURS, PEERS


def timed(work: Callable, device: str, times: int = 1) -> float:
    """Return seconds per call."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / times
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def in_turn(contestants: list, rounds: int, seconds: float, device: str) -> dict[str, list[float]]:
    """Return seconds per call in each round, by name; every round runs each contestant.

    Args:
        contestants: have a ``name`` and are called without arguments; each was called before.
        seconds: that a turn lasts at least; 0: a turn is one call.
    """
    turns = {each.name: 1 for each in contestants}
    if seconds:
        turns = {each.name: max(1, round(seconds / timed(each, device))) for each in contestants}
    times: dict[str, list[float]] = {each.name: [] for each in contestants}
    for number in range(rounds):
        for each in contestants:
            torch.manual_seed(number)
            times[each.name].append(timed(each, device, turns[each.name]))
    return times


def standing(cell: Cell, contestants: list, times: dict[str, list[float]]) -> dict:
    """Return what is said of a cell: medians, spread, memory, the best peer's time over the best of ours.

    Args:
        contestants: with what they measured of their memory, ``kept`` and ``peak``.
        times: as :func:`in_turn` returns them.
    """
    medians = {name: statistics.median(values) for name, values in times.items()}
    best, own = (
        min((name for name in medians if (name in OURS) is mine), key=medians.get) for mine in (False, True)
    )
    ratios = [a / b for a, b in zip(times[best], times[own])]
    return dict(
        cell=str(cell),
        **vars(cell),
        milliseconds={name: value * 1000 for name, value in medians.items()},
        spread={name: [min(v) * 1000, max(v) * 1000] for name, v in times.items()},
        ours=own,
        best_peer=best,
        ratio=statistics.median(ratios),
        ratio_range=[min(ratios), max(ratios)],
        images_per_second=cell.batch / medians[own],
        kept_mib={each.name: each.kept for each in contestants},
        peak_mib={each.name: each.peak for each in contestants},
    )


def peak_memory(work: Callable) -> float:
    """Return MiB of GPU memory that a call takes at most above what lay there before."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kept_memory(model: nn.Module, forward: Callable) -> float:
    """Return MiB that ``forward``, which returns a loss, keeps for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = forward()
        found = sum(kept.values()) / 2**20
    del loss
    return found


def describe(error: Exception) -> str:
    """Return an error in one short line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def about(device: str) -> str:
    """Name the processor or GPU, the versions and the date in one line."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        own = 'with' if native.supports(torch.zeros(1)) else 'without'
        name = f'CPU, {torch.get_num_threads()} threads, {processor()}, {own} our kernels'
    versions = [f'torch {torch.__version__}']
    for package in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f'{package} {importlib.metadata.version(package)}')
    return f'{name}, {", ".join(versions)}, {date.today().isoformat()}'


def processor() -> str:
    """Return the processor's architecture, and what bears on speed of that which Linux names."""
    flags = ''
    with contextlib.suppress(OSError):
        flags = Path('/proc/cpuinfo').read_text()
    found = set(re.findall(r'\b(avx2|avx512f|avx512_bf16|amx_bf16|sve|bf16)\b', flags))
    return ' '.join([platform.machine(), *sorted(found)])
