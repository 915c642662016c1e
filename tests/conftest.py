"""What the tests share: the drawn dataset, the reference weights, commands in a fresh process."""

import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convnext_backbone import cli
from convnext_backbone.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'tests' / 'data'  # reference outputs, published tables and recipes
REAL_DATA = ROOT.parent / 'shared' / 'data'  # small real datasets, too large for the repository

torch.set_num_threads(1)


def kernels_are_built() -> bool:
    """Whether this machine has our kernels for a CPU; if they are there and wrong, tests are to fail."""
    from convnext_backbone.ops import native

    try:
        return os.environ.get(native.SWITCH) != '0' and bool(native._library())
    except (OSError, subprocess.SubprocessError):
        return False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items: list) -> None:
    """Begin with long tests, so that no worker is left alone with one at the end (groups come before).

    Groups are part of a test's id for pytest-xdist; 3.8.0 puts them where pytest 9.2 does not look.
    """
    items.sort(key=lambda item: item.get_closest_marker('long') is None)
    if getattr(config.option, 'loadgroup', False):
        for item in items:
            suffix = ''.join(f'@{mark.args[0]}' for mark in item.iter_markers('xdist_group'))
            if not item.nodeid.endswith(suffix):
                item._id = type(item._id).parse(item.nodeid + suffix)


@pytest.fixture(scope='session', autouse=True)
def in_the_root() -> None:
    """The tools and configs are named as a user in the project's folder names them."""
    os.chdir(ROOT)


@pytest.fixture(scope='session')
def golden() -> dict:
    """Outputs of the official implementation in float64."""
    return json.loads((DATA / 'official_outputs.json').read_text())


@pytest.fixture(scope='session')
def real_data() -> Path:
    """Folder of small real datasets."""
    if not REAL_DATA.is_dir():
        pytest.skip(f'real images are not here: {REAL_DATA}')
    return REAL_DATA


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A few drawn images in all three layouts."""
    from convnext_backbone.shapes import make_shapes

    return make_shapes(tmp_path_factory.mktemp('shapes'), images=(8, 4), crops=(40, 10), size=64)


def reference_weights(module: torch.nn.Module, prefix: str = '') -> None:
    """Fill the parameters by the rule of the reference outputs; ``prefix`` is not part of the names."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            name = name.removeprefix(prefix)
            n = parameter.numel()
            v = torch.sin(0.7 * torch.arange(n, dtype=torch.float64) + zlib.crc32(name.encode()) % 1000)
            if name.endswith('gamma') and parameter.ndim == 1:
                v = 0.5 + 0.1 * v
            elif parameter.ndim > 1:
                v = v * (2 / (n / parameter.shape[0])) ** 0.5
            elif name.endswith('weight'):
                v = 1 + 0.1 * v
            else:
                v = 0.1 * v
            parameter.copy_(v.view(parameter.shape))


def reference_input(shape) -> torch.Tensor:
    t = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return (torch.sin(0.013 * t) + 0.5 * torch.cos(0.0007 * t)).view(shape)


def largest_difference(output: torch.Tensor, reference: dict) -> float:
    assert list(output.shape) == reference['shape']
    output = output.detach().double()
    samples = torch.tensor(reference['samples'], dtype=torch.float64)
    differences = [
        (output.flatten()[:: reference['every']][: len(samples)] - samples).abs().max().item(),
        abs(output.mean().item() - reference['mean']),
        abs(output.std(correction=0).item() - reference['std']),
        abs(output.abs().max().item() - reference['absmax']),
    ]
    return max(differences)


def command(*arguments, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    """Run ``python ARGUMENTS`` in the project's root, output and errors captured together."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(
    ['convnext_backbone.commands.train', 'convnext_backbone.classification', 'mmcv', 'tensorboard', 'timm']
)


def begin(function: Callable, *arguments, log: str | os.PathLike = os.devnull, **environment):
    """Start a process that calls a function of a module, what it prints goes to ``log``.

    It is forked from one that has imported everything and done nothing else: a new interpreter takes seconds.
    """
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', **environment}
    process = FORKS.Process(target=_begun, args=(function, arguments, str(log), environment))
    process.start()
    return process


def _begun(function: Callable, arguments: tuple, log: str, environment: dict) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get('PYTHONPATH', '').split(os.pathsep)
    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    function(*arguments)


def convnext(*words: str) -> None:
    """Be ``convnext WORDS``, in a process of its own."""
    sys.argv = ['convnext', *words]
    cli.main(list(words))


def train_in_processes(
    arguments: list[str], log: Path, processes: int = 2, timeout: float = 300, **environment
) -> subprocess.CompletedProcess:
    """Train as torchrun would, on one machine; if one fails, the others have a minute to end.

    Returns:
        The status of the first that failed, and the output of all.
    """
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = found.getsockname()[1]
    common = dict(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    words = ['train', *arguments, '--launcher', 'pytorch']
    ranks = []
    for rank in range(processes):
        own = {name: str(value) for name, value in dict(common, RANK=rank, LOCAL_RANK=rank).items()}
        ranks.append(begin(convnext, *words, log=log, **own, **environment))
    deadline, failed = time.monotonic() + timeout, 0
    while any(process.exitcode is None for process in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
        if not failed and (failed := next((p.exitcode for p in ranks if p.exitcode), 0)):
            deadline = min(deadline, time.monotonic() + 60)
    late = [process for process in ranks if process.exitcode is None]
    for process in late:
        process.kill()
        process.join()
    failed = failed or next((process.exitcode for process in ranks if process.exitcode), 0)
    return subprocess.CompletedProcess(words, failed, log.read_text())


def last_line(result: subprocess.CompletedProcess) -> str:
    return result.stdout.strip().splitlines()[-1]


def tool(name: str):
    """``convnext NAME``, or ``tools/dev/NAME.py``, in this process: starting one takes seconds."""
    if name in COMMANDS:
        return importlib.import_module(f'convnext_backbone.commands.{name}')
    return importlib.import_module(f'tools.dev.{name}')


def log_of(work_dir: Path) -> str:
    return max(work_dir.glob('*/*.log'), key=lambda file: file.stat().st_mtime).read_text()


class Bomb:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)
