"""Joins several processes, compares them before they wait for each other, ends them together."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from torch import distributed, nn

from ..backbones.base import DenseBackbone
from ..config import task_of
from ..errors import UserError

STORE_PORT = 20000  # of rank 0 in a Slurm job; the job's number is added, modulo STORE_PORT
PACKAGES = {  # what a result depends on: the distributions that may hold it
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'numpy': ('numpy',),
    'timm': ('timm',),
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


def slurm_environment() -> None:
    """Set the variables that torchrun sets from Slurm's variables of a task.

    Raises:
        UserError: not within ``srun``.
    """
    try:
        task = {name: os.environ[f'SLURM_{name}'] for name in ('PROCID', 'NTASKS', 'LOCALID', 'JOB_ID')}
        nodes = os.environ.get('SLURM_STEP_NODELIST') or os.environ['SLURM_NODELIST']
    except KeyError as error:
        raise UserError(
            f'--launcher slurm, but {error} is not set: use tools/slurm_train.sh, or start the tool with srun'
        ) from error
    if 'MASTER_ADDR' not in os.environ:
        try:
            hosts = subprocess.run(
                ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f'scontrol show hostnames {nodes} fails ({error}): set MASTER_ADDR') from error
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    tasks_here = re.match(r'\d+', os.environ.get('SLURM_STEP_TASKS_PER_NODE', task['NTASKS']))[0]
    os.environ.setdefault('MASTER_PORT', str(STORE_PORT + int(task['JOB_ID']) % STORE_PORT))
    os.environ.update(
        RANK=task['PROCID'],
        WORLD_SIZE=task['NTASKS'],
        LOCAL_RANK=task['LOCALID'],
        LOCAL_WORLD_SIZE=tasks_here,
    )


@functools.cache  # of the code that this process runs, whatever the files become
def environment() -> dict[str, str]:
    """Return what a result depends on besides the config, for logs and checkpoints.

    That is code, packages and machine.
    """
    code = code_of(Path(__file__).parents[1])
    found = dict(python=platform.python_version(), code=code)
    for package, distributions in PACKAGES.items():
        found[package] = 'none'
        for name in reversed(distributions):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                version = importlib.metadata.version(name)
                found[package] = version if name == package else f'{version} ({name})'
    if torch.cuda.is_available():
        found.update(gpu=torch.cuda.get_device_name(), cuda=str(torch.version.cuda))
    return found


def code_of(folder: Path) -> str:
    """Hash what a package executes or reads: all of its files but Python's bytecode and hidden ones."""
    code = hashlib.sha256()
    for file in sorted(folder.rglob('*')):
        name = file.relative_to(folder)
        passed_over = any(part.startswith('.') or part == '__pycache__' for part in name.parts)
        if file.is_file() and not passed_over:
            code.update(name.as_posix().encode() + file.read_bytes())
    return code.hexdigest()[:12]


def settings(cfg: Config) -> dict[str, str]:
    """Return each value of a config but paths, under its dotted name."""
    found, stack = {}, [('', dict(cfg.items()))]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict) and value:
            stack += [(f'{name}.{key}' if name else str(key), child) for key, child in value.items()]
        elif isinstance(value, (list, tuple)) and value:
            stack += [(f'{name}.{key}', child) for key, child in enumerate(value)]
        elif isinstance(value, str) and '/' in value:  # a path may differ between machines
            continue
        else:
            found[name] = getattr(value, '__qualname__', None) or repr(value)
    return found


def compare_processes(what: str, equal: dict, told=None, seconds: float = 60) -> list:
    """Let every process report what it has, before any waits for another without end.

    Args:
        what: a name for this comparison, used once.
        equal: must be the same in all, e.g. the settings of the config.
        told: need not.
        seconds: to wait for the last process.

    Returns:
        ``told`` of each process.

    Raises:
        UserError: in every process, naming the first one that reports something else, and what; or those
            that reported nothing in time.
    """
    world, rank = get_world_size(), get_rank()
    if world == 1:
        return [told]
    store = distributed.PrefixStore(f'compare {what}', distributed.distributed_c10d._get_default_store())
    store.set(str(rank), json.dumps([equal, told, socket.gethostname()]))
    try:
        store.wait([str(other) for other in range(world)], timedelta(seconds=seconds))
    except RuntimeError as error:
        silent = [str(other) for other in range(world) if not store.check([str(other)])]
        raise UserError(
            f'rank {", ".join(silent)} of {world} did not come to compare {what} within {seconds:g} s: '
            'look at the end of its log, there or on its machine'
        ) from error
    said = [json.loads(store.get(str(other))) for other in range(world)]
    first, _, first_host = said[0]
    for other, (facts, _, host) in enumerate(said):
        for key in sorted(first.keys() | facts.keys()):
            if first.get(key) != facts.get(key):
                raise UserError(
                    f'rank {other} ({host}) has another {what} than rank 0 ({first_host}): {key} is '
                    f'{facts.get(key)}, there {first.get(key)}; start all with the same code, config, '
                    'options and data'
                )
    return [told for _, told, _ in said]


def processes_in_words(told: list[dict]) -> str:
    """Describe the processes of a run in one line; ``told`` has ``host`` and ``device`` of each."""
    hosts = {}
    for each in told:
        hosts.setdefault(each['host'], []).append(each['device'])
    backend = distributed.get_backend() if distributed.is_initialized() else 'none'
    parts = [f'{host}: {len(devices)} x {", ".join(sorted(set(devices)))}' for host, devices in hosts.items()]
    count = [
        f'{len(told)} process' + 'es' * (len(told) > 1),
        f'{len(hosts)} machine' + 's' * (len(hosts) > 1),
    ]
    return f'{" on ".join(count)} (backend {backend}): {"; ".join(parts)}'


def start_processes(cfg: Config, launcher: str, device: str) -> None:
    """Set the launcher; on a CPU join the process group here, since mmengine can with GPUs only.

    Raises:
        UserError: several processes were started and ``launcher`` is ``'none'``.
    """
    started = int(os.environ.get('WORLD_SIZE', 1))
    if launcher == 'none' and started > 1:
        raise UserError(
            f'{started} processes were started, but --launcher is none, and each would train alone: use '
            'tools/dist_train.sh, or add --launcher pytorch'
        )
    die_with_launcher()
    cfg.launcher = 'none' if launcher == 'none' else 'pytorch'
    if device == 'cpu' and launcher != 'none':
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
        )
        if not distributed.is_initialized():
            distributed.init_process_group('gloo')


def die_with_launcher() -> None:
    """End this process when torchrun, which started it, is killed: nobody would watch it any more.

    Otherwise it would go on, and write into the work dir of the job that takes its place (Linux only).
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ and sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike, seconds: float = 30) -> Iterator[None]:
    """Hold ``folder`` for this training; a second one would overwrite the first one's checkpoints.

    Args:
        seconds: to wait for one that is just ending.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(Path(folder, '.lock'), timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f'another training is running in {folder}: wait for its end, or choose another --work-dir'
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


class StopRequest:
    """Notices SIGTERM or SIGUSR1: what a cluster sends before it takes the machine away.

    With several processes, these ask each other whether one of them was asked: about every two seconds, and
    at most after ten steps. torchrun gives them 30 seconds from its own SIGTERM to their end.

    Attributes:
        signal: name of the signal that came to this process; empty before.
    """

    MOST_STEPS, SECONDS = 10, 2

    def __init__(self):
        self.signal = ''
        several = get_world_size() > 1
        self._next = 0  # step of the next question
        self._last = 0, time.monotonic()  # step and time of the last one
        # on the CPU, so that no process waits for its GPU
        self.group = distributed.new_group(backend='gloo') if several else None
        self._process, self._before = os.getpid(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a process of the data loader: SIGTERM is from its owner
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.signal = signal.Signals(number).name

    def agreed(self, step: int, validating: bool = False) -> str:
        """Return the signal that came to any process.

        Args:
            step: number of the step that is done, of training or of a validation; all processes come with
                the same numbers.
        """
        if self.group is None:
            return self.signal
        if step % self.MOST_STEPS if validating else step < self._next:
            return ''
        before, then = self._last
        seconds = (time.monotonic() - then) / max(1, step - before)  # of a step
        number = signal.Signals[self.signal].value if self.signal else 0
        said = torch.tensor([number, 0 if validating else seconds], dtype=torch.float64)
        distributed.all_reduce(said, distributed.ReduceOp.MAX, group=self.group)
        number, seconds = int(said[0]), said[1].item()
        if not validating:
            steps = int(self.SECONDS / seconds) if seconds else self.MOST_STEPS
            self._next, self._last = step + min(max(1, steps), self.MOST_STEPS), (step, time.monotonic())
        return signal.Signals(number).name if number else ''

    def close(self) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def gather_on_cpu(value, group=None) -> list | None:
    """Return ``value`` of every process, in the first one; not through the memory of its GPU.

    Args:
        group: a gloo group.
    """
    if get_world_size() == 1:
        return [value]
    found = [None] * get_world_size() if get_rank() == 0 else None
    distributed.gather_object(value, found, group=group)
    return found


# Parameters, gradients and optimizer states divided among the processes (FSDP)


def shard(model: nn.Module, device: str) -> None:
    """Divide the parameters of ``model`` among all processes, block by block (FSDP2, in place)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (get_world_size(),))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of each backbone in ``model``.

    A backbone of ours names them itself; in another library's, those are the innermost elements of its lists
    and sequences that hold two or more weights. A masked autoencoder is divided as a whole: it computes the
    layers of its blocks one by one.
    """
    found = []
    if task_of(model) == 'pretraining':
        return found
    for name, module in model.named_modules():
        if isinstance(module, DenseBackbone):
            found += module.all_blocks()
        elif name.rpartition('.')[2] == 'backbone':
            found += _innermost(module)
    return list(dict.fromkeys(found))  # a backbone may stand in another


def _innermost(module: nn.Module) -> list[nn.Module]:
    """Return the innermost lists' elements that hold two or more weights; see :func:`blocks_of`."""
    lists, found = (nn.Sequential, nn.ModuleList), []
    for child in module.children():
        inner = _innermost(child)
        weights = [parameter for parameter in child.parameters() if parameter.ndim > 1]
        if not inner and isinstance(module, lists) and not isinstance(child, lists) and len(weights) > 1:
            inner = [child]
        found += inner
    return found
