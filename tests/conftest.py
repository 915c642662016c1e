"""What the tests share: the drawn dataset, the reference weights, commands in a fresh process."""

import importlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from yapf.yapflib import yapf_api

from convnext_backbone.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'tests' / 'data'  # reference outputs, published tables and recipes
REAL_DATA = ROOT.parent / 'shared' / 'data'  # small real datasets, too large for the repository

torch.set_num_threads(1)


def remember_formatted_text() -> None:
    """Let yapf format no text twice: a training prints its config at the start and at every checkpoint.

    That took most of the time of short ones.
    """
    original, formatted = yapf_api.FormatCode, {}

    def remembered(text: str, style_config=None, **options):
        key = text, repr((style_config, options))
        if key not in formatted:
            formatted[key] = original(text, style_config=style_config, **options)
        return formatted[key]

    yapf_api.FormatCode = remembered


remember_formatted_text()


def kernels_are_built() -> bool:
    """Whether this machine has our kernels for a CPU; if they are there and wrong, tests are to fail."""
    from convnext_backbone.ops import native

    try:
        return os.environ.get(native.SWITCH) != '0' and bool(native._library())
    except (OSError, subprocess.SubprocessError):
        return False


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
