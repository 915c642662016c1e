"""Finds out whether the Triton kernels are right and faster on this GPU, at first use of each kind of call.

A child process (:mod:`.trial_child`) computes a kind of call by Triton, by PyTorch and in float64, and times
the first two. What it finds is kept in ``~/.cache/convnext_backbone``: another GPU, driver, version of torch
or Triton or of our sources is another file there. Whatever goes wrong, a crash or a hang included, PyTorch
computes, and a line of the log says why. A process waits a minute at most, all its trials together; of
several processes one tries. With ``CONVNEXT_TRIAL=0`` in the environment nothing is tried.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from filelock import FileLock, Timeout
from mmengine.logging import print_log
from torch import Tensor, nn

from . import depthwise, triton_kernels
from .native import FOLDER

SWITCH = 'CONVNEXT_TRIAL'  # environment variable; 0: off
DEVICE = 'cuda'  # on which to try
ROWS = depthwise.LARGE  # of a large call; so one whose weight gradient is Triton's is large
HUGE = 2**22  # numbers of a huge call, for which the GPU computes longer than launching its kernels takes
LONGEST = 60  # seconds of a process for all its trials, waiting for another process included
LONGEST_KIND = 30  # seconds for a kind of call, most of which compile
SHORTEST = 8  # seconds without which no child is begun
OVER = 'the time was over'
# Begins a child's program: modules are to be found where this process finds them.
PATHS = 'import json, sys; sys.path[:] = json.loads(sys.argv[1]); '
SCRIPT = PATHS + 'from convnext_backbone.ops import trial_child; trial_child.main()'
COMMAND = [sys.executable, '-c', SCRIPT]

# Set by torch.export: torch.compiler.is_exporting() is true in any compilation, too (torch 2.11), and torch
# 2.6 has one flag for both, which torch.compile does not set.
EXPORTING = '_is_exporting_flag' if hasattr(torch.compiler, '_is_exporting_flag') else '_is_compiling_flag'


class Kind(NamedTuple):
    """Holds what calls have in common of which one verdict is true."""

    operator: str
    channels: int
    dtype: torch.dtype  # under autocast its data type
    autocast: bool
    training: bool
    size: str  # huge: from HUGE numbers on; large: from ROWS positions on, of all samples; or small
    compiled: bool  # by torch.compile
    device: torch.device

    @property
    def name(self) -> str:
        """Return what the log and the file call it."""
        words = [self.operator, f'{self.channels} channels', str(self.dtype).removeprefix('torch.')]
        words += ['autocast'] if self.autocast else []
        words += ['training' if self.training else 'inference', self.size]
        words += ['compiled'] if self.compiled else []
        return ' '.join(words)


_known: dict[Kind, bool] = {}  # whether by Triton
_not_kept: dict[str, dict] = {}  # verdicts that hold in this process only: it may have lacked time or memory
_layers: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()  # channels, operators
_seconds_left = float(LONGEST)


def expect(layer: nn.Module, channels: int, *operators: str) -> None:
    """Say that ``layer`` will ask for these operators, so that the first trial tries them all.

    It holds as long as the layer is there.
    """
    _layers[layer] = channels, operators


def being_exported() -> bool:
    """Return whether a program is traced or exported, which is to consist of PyTorch's own operators."""
    return torch.jit.is_tracing() or getattr(torch.compiler, EXPORTING)


def chosen(operator: str, fused: bool | str, x: Tensor, channels: int, dilation: int = 1) -> bool:
    """Return whether the Triton kernels compute an operator.

    They do where they support it and are asked for by ``fused='triton'``; with ``fused=True``, where a trial
    has found them right and faster. The first call of a kind on CUDA may take a minute.

    Args:
        operator: block, depthwise or channel_norm.
        fused: see :class:`convnext_backbone.ConvNeXt`.
        x: the input, a map or rows.
        channels: of ``x``.
        dilation: of the convolution.
    """
    asked, device = fused == 'triton', x.device.type
    if not (asked or (fused and device == DEVICE)) or being_exported():
        return False
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    if operator == 'channel_norm':
        supported = triton_kernels.norm_supports(x)
    else:
        supported = dilation == 1 and triton_kernels.supports(x, channels, dtype)
    if asked or not supported or type(x) is not Tensor or x.numel() == 0:
        return asked and supported
    size = 'large' if x.numel() >= ROWS * channels else 'small'  # constants for torch.compile
    size = 'huge' if x.numel() >= HUGE else size
    training, compiled = torch.is_grad_enabled(), torch.compiler.is_compiling()
    return _verdict(operator, channels, dtype, autocast, training, size, compiled, x.device)


@torch.compiler.assume_constant_result
def _verdict(*kind) -> bool:
    kind = Kind(*kind)
    if kind not in _known:
        if torch.cuda.is_current_stream_capturing():
            return False  # until there is a verdict
        found = _find(kind)
        if found['why']:
            line = f'{kind.name}: {"Triton" if found["triton"] else "PyTorch"}, {found["why"]}'
            print_log(line, 'current', logging.WARNING if found.get('failed') else logging.INFO)
        _known[kind] = found['triton']
    return _known[kind]


# --- verdicts and where they are kept


def verdicts(device: torch.device) -> dict[str, dict]:
    """Return what the trials on a GPU have found, those of this process and those that are kept.

    By the name of the kind of call: ``triton``, whether those kernels compute it; ``why``; ``failed``, if
    they were wrong, crashed or hung.

    Args:
        device: with the number of the GPU.
    """
    machine = _machine(device)
    found = {}
    with contextlib.suppress(OSError, ValueError):
        found = _read(_file(machine), machine)
    return found | _not_kept


def _find(kind: Kind) -> dict:
    """Return the verdict: from the file, or of a trial of all kinds of calls that are expected."""
    global _seconds_left
    if os.environ.get(SWITCH) == '0':
        return pytorch('')
    begin = time.monotonic()
    try:
        machine = _machine(kind.device)
        path = _file(machine)
        with contextlib.suppress(OSError, ValueError):
            if found := _read(path, machine).get(kind.name):
                return found
        if _seconds_left < SHORTEST:
            _not_kept.setdefault(kind.name, pytorch('this process has no time left to try Triton'))
        if kind.name not in _not_kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f'{path}.lock', timeout=max(0.0, _seconds_left)):  # of several processes one tries
                left = _seconds_left - (time.monotonic() - begin)  # most of it: others wait as long
                if found := _try_expected(kind, path, machine, 0.9 * left).get(kind.name):
                    return found
        return _not_kept[kind.name]
    except Timeout:
        return pytorch('another process is still trying', failed=True)
    except Exception as error:  # whatever it is, PyTorch computes
        return pytorch(f'Triton could not be tried: {first_line(error)}', failed=True)
    finally:
        _seconds_left -= time.monotonic() - begin


def pytorch(why: str, **more) -> dict:
    """Return the verdict that PyTorch computes, with the reason and whether Triton ``failed``."""
    return dict(triton=False, why=why, **more)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return (str(error).strip().splitlines() or [''])[0] or type(error).__name__


def _try_expected(kind: Kind, path: Path, machine: dict, seconds: float) -> dict[str, dict]:
    """Return the file's verdicts, completed by a trial of what is expected and not in it."""
    found = {}
    try:
        found = _read(path, machine)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        line = f'{path} cannot be read, the Triton kernels are tried anew: {first_line(error)}'
        print_log(line, 'current', logging.WARNING)
    if kind.name in found:
        return found
    kinds = [k for k in _expected(kind) if k.name not in found]
    line = f'trying the Triton kernels on this GPU, once ({seconds:.0f} s at most): {path}'
    print_log(line, 'current', logging.INFO)
    tried = _try_in_children(kinds, seconds)
    _not_kept.update((name, verdict) for name, verdict in tried.items() if verdict.pop('passing', False))
    found |= {name: verdict for name, verdict in tried.items() if name not in _not_kept}
    part = path.with_suffix('.part')
    with part.open('w') as stream:
        json.dump(dict(machine=machine, verdicts=found), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
    return found


def _read(path: Path, machine: dict) -> dict[str, dict]:
    """Return the verdicts of a file by their names; raise ``ValueError`` if it is damaged."""
    kept = json.loads(path.read_text())
    try:
        verdicts = kept['verdicts']
        whole = kept['machine'] == machine and all(
            type(verdict['triton']) is bool and type(verdict['why']) is str for verdict in verdicts.values()
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError('no verdicts') from error
    if not whole:
        raise ValueError('not what was written')
    return verdicts


def _file(machine: dict) -> Path:
    key = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
    return Path(FOLDER).expanduser() / f'trial-{key}.json'


def _machine(device: torch.device) -> dict[str, str]:
    """Return what a verdict depends on beside its kind of call."""
    return dict(
        gpu=torch.cuda.get_device_name(device),
        driver=_driver(),
        torch=str(torch.__version__),
        cuda=str(torch.version.cuda),
        triton=triton_kernels.triton.__version__,
        sources=_sources(),
    )


def _driver() -> str:
    try:
        return Path('/proc/driver/nvidia/version').read_text().splitlines()[0]
    except (OSError, IndexError):
        return ''


@functools.cache
def _sources() -> str:
    texts = [file.read_bytes() for file in sorted(Path(__file__).parent.glob('*.py'))]
    return hashlib.sha256(b'\n'.join(texts)).hexdigest()[:16]


def _expected(kind: Kind) -> list[Kind]:
    """Return ``kind`` and those that the layers that are there will ask for, the nearest first.

    In training those of inference as well, since a validation follows.
    """
    pairs = {(operator, channels) for channels, operators in list(_layers.values()) for operator in operators}
    modes = [kind.training, *([False] if kind.training else [])]
    found = {kind: None}
    sizes = sorted(('huge', 'large', 'small'), key=lambda size: size != kind.size)
    for size, training, (operator, channels) in product(
        sizes, modes, sorted(pairs, key=lambda pair: pair[::-1])
    ):
        if operator != 'channel_norm' and not triton_kernels.takes(channels, kind.dtype):
            continue
        call = dict(operator=operator, channels=channels, size=size, training=training)
        found[kind._replace(**call)] = None
    return list(found)


# --- the child processes, seen from here


def _try_in_children(kinds: list[Kind], seconds: float) -> dict[str, dict]:
    """Return the verdicts of ``kinds``, of which one at which a child ended is PyTorch's.

    The others go on in another child. For those that the time did not suffice for, and if no child begins,
    the verdict is ``passing``: it is not to be kept.
    """
    end = time.monotonic() + seconds
    found, why = {}, 'no time was left'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        while pending := [kind for kind in kinds if kind.name not in found]:
            if end - time.monotonic() < SHORTEST:
                break
            begun, why, hung = _run_child(pending, end, Path(folder), found)
            if begun is None or time.monotonic() >= end:
                break
            if begun not in found:
                found[begun] = pytorch(f'Triton {"hung" if hung else "crashed"}: {why}', failed=True)
    for kind in pending:
        found.setdefault(kind.name, pytorch(f'Triton could not be tried: {why}', failed=True, passing=True))
    return found


def _run_child(kinds: list[Kind], end: float, folder: Path, found: dict) -> tuple[str | None, str, bool]:
    """Run a child and add its verdicts to ``found``.

    Returns:
        The name of the last kind that it began, why it ended, and whether it did not go on.
    """
    request, result, log = (folder / name for name in ('request', 'result', 'log'))
    asked = dict(kinds=kinds, seconds=max(1.0, end - time.monotonic()))
    request.write_text(json.dumps(asked, default=lambda value: str(value).removeprefix('torch.')))
    result.write_text('')
    with request.open() as given, log.open('w') as said:
        line = [*COMMAND, json.dumps(sys.path), str(result)]
        child = subprocess.Popen(line, stdin=given, stdout=said, stderr=said, start_new_session=True)
    lines, status, last = [], None, time.monotonic()
    try:
        while status is None and time.monotonic() < min(end, last + LONGEST_KIND):
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = child.wait(0.05)
            new = _lines(result)
            if len(new) > len(lines):
                lines, last = new, time.monotonic()
    finally:  # also what it started, and if this process is interrupted
        end_session(child)
    found.update((line['name'], line['verdict']) for line in lines if 'verdict' in line)
    text = log.read_text(errors='replace').strip().splitlines()
    why = ', '.join([f'exit status {status}', *text[-1:]])
    if status is None:
        why = f'no answer in {LONGEST_KIND} s' if time.monotonic() < end else OVER
    return lines[-1]['name'] if lines else None, why, status is None


def end_session(child: subprocess.Popen) -> None:
    """End a child that has a session of its own, and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)


def _lines(file: Path) -> list[dict]:
    whole = file.read_text().split('\n')[:-1]
    return [json.loads(line) for line in whole]
