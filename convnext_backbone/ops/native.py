"""What a block computes beside its matrix products, for a CPU: the kernels of ``native.cpp``.

They are compiled on first use (seconds, once per machine), by ``$CXX`` or the first C++ compiler on the path,
into ``~/.cache/convnext_backbone``. Where there is none, with ``CONVNEXT_NATIVE=0`` in the environment, and
for other data types than float32 and bfloat16 the callers take PyTorch's operators.

Maps are (N, C, H, W) in channels_last memory, rows (rows, C) without gaps; parameters may have any data type.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from mmengine.logging import print_log
from torch import Tensor, nn

SWITCH = 'CONVNEXT_NATIVE'  # environment variable; 0: off
SOURCE = Path(__file__).with_suffix('.cpp')
FOLDER = '~/.cache/convnext_backbone'
OPTIONS = ['-O3', '-march=native', '-std=c++17', '-fopenmp', '-shared', '-fPIC', '-Wno-psabi']
DTYPES = (torch.float32, torch.bfloat16)
KERNEL = 7  # of the convolution
LONGEST_BUILD = 300  # seconds


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels take these: tensors on a CPU, of their data types; builds them if need be."""
    ordinary = all(
        type(x) in (Tensor, nn.Parameter) and x.device.type == 'cpu' and x.dtype in DTYPES for x in tensors
    )
    return ordinary and _works()


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise, of a map of any of the data types, with weight (C, 1, 7, 7), whose data type it gives."""
    x = x.permute(0, 2, 3, 1).contiguous()
    out = x.new_empty(x.shape, dtype=weight.dtype)
    low = [t.dtype == torch.bfloat16 for t in (x, out)]
    _call('convolution', x, _floats(weight), _floats(bias), out, *x.shape, *low)
    return out.permute(0, 3, 1, 2)


def convolution_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of weight (C, 1, 7, 7) and bias (C,), in float32."""
    x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad.to(x.dtype)))
    channels = x.shape[-1]
    weight = x.new_empty(channels, 1, KERNEL, KERNEL, dtype=torch.float32)
    bias = x.new_empty(channels, dtype=torch.float32)
    _call('convolution_gradient', x, grad, weight, bias, *x.shape, x.dtype == torch.bfloat16)
    return weight, bias


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor) -> Tensor:
    """LayerNorm of rows into ``out``."""
    _call('norm', x, _floats(weight), _floats(bias), out, *x.shape, float(eps), x.dtype == torch.bfloat16)
    return out


def norm_gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float, out: Tensor, sums: Tensor
) -> None:
    """Of ``x`` into ``out``; of weight and bias added to ``sums`` (2, C), float32."""
    low = x.dtype == torch.bfloat16
    _call('norm_gradient', grad, x, _floats(weight), out, sums, *x.shape, float(eps), low)


def gelu(x: Tensor, out: Tensor) -> Tensor:
    """Into ``out``, which may be ``x``."""
    _call('gelu', x, out, x.numel(), x.dtype == torch.bfloat16)
    return out


def gelu_gradient(grad: Tensor, x: Tensor, out: Tensor, sums: Tensor) -> Tensor:
    """GELU of ``x`` into ``out``; ``grad`` times its derivative over ``grad``, added up to ``sums`` (C,)."""
    _call('gelu_gradient', grad, x, out, sums, *x.shape, x.dtype == torch.bfloat16)
    return out


def branch_sum(
    residual: Tensor,
    x: Tensor,
    gain: Tensor | None,
    scale: Tensor | None,
    out: Tensor,
    first: int,
    of_sample: int,
) -> None:
    """``residual + scale * gain * x`` into ``out``.

    Args:
        gain: (C,).
        scale: (N,), of each sample.
        first: row of all the rows that the first of these is.
        of_sample: rows of a sample.
    """
    low = [t.dtype == torch.bfloat16 for t in (x, out)]
    _call('branch_sum', residual, x, _floats(gain), _floats(scale), out, *x.shape, first, of_sample, *low)


def branch_gradient(
    grad: Tensor,
    gain: Tensor | None,
    scale: Tensor | None,
    scaled: Tensor | None,
    gained: Tensor | None,
    dtype: torch.dtype,
    sums: Tensor,
    first: int,
    of_sample: int,
) -> None:
    """``scale * grad`` into ``scaled`` and added up to ``sums`` (C,); times ``gain`` into ``gained``.

    ``dtype`` is that of both results, of which either may be left out.
    """
    low = [t == torch.bfloat16 for t in (dtype, grad.dtype)]
    arrays = grad, _floats(gain), _floats(scale), scaled, gained, sums
    _call('branch_gradient', *arrays, *grad.shape, first, of_sample, *low)


def _floats(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().float().contiguous()


_KINDS = {bool: ctypes.c_int, int: ctypes.c_long, float: ctypes.c_float}


def _call(name: str, *arguments) -> None:
    """Tensors as pointers; the number of threads behind them."""
    given = [
        ctypes.c_void_p(None if a is None else a.data_ptr())
        if a is None or isinstance(a, Tensor)
        else _KINDS[type(a)](a)
        for a in arguments
    ]
    getattr(_library(), f'convnext_{name}')(*given, ctypes.c_int(torch.get_num_threads()))


@cache
def _works() -> bool:
    """Whether the kernels are there, and give what PyTorch's operators give: compilers err, too."""
    if os.environ.get(SWITCH) == '0':
        return False
    try:
        _library()
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
        line = next((line for line in said if 'error' in line), said[0] if said else type(error).__name__)
        _say(f'no kernels of our own on this CPU, PyTorch instead: {line}', logging.WARNING)
        return False
    with torch.no_grad():
        x = torch.linspace(-6, 6, 2 * 21 * 9 * 11, device='cpu').view(2, 21, 9, 11)
        weight = torch.linspace(-1, 1, 21 * KERNEL**2, device='cpu').view(21, 1, KERNEL, KERNEL)
        pairs = [
            (convolution(x, weight, x[0, :, 0, 0]), _stock_convolution(x, weight, x[0, :, 0, 0])),
            (gelu(x, torch.empty_like(x)), torch.nn.functional.gelu(x)),
        ]
    right = all(torch.allclose(ours, stock, rtol=1e-4, atol=1e-4) for ours, stock in pairs)
    if not right:
        _say('kernels of our own are wrong on this CPU (please report it), PyTorch instead', logging.WARNING)
    return right


def _stock_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(x, weight, bias, padding=KERNEL // 2, groups=len(weight))


def _say(line: str, level: int) -> None:
    print_log(line, 'current', level)


@cache
def _library() -> ctypes.CDLL:
    """The kernels, compiled if they were not yet."""
    return ctypes.CDLL(str(_built()))


def _built() -> Path:
    """The compiled library for this source, compiler and processor."""
    found = [shutil.which(name) for name in (os.environ.get('CXX'), 'c++', 'g++', 'clang++') if name]
    compiler = next(filter(None, found), None)
    if compiler is None:
        raise OSError('no C++ compiler found (c++, g++, clang++ or $CXX)')
    version = subprocess.run([compiler, '--version'], capture_output=True, text=True, check=True).stdout
    what = [SOURCE.read_text(), *OPTIONS, compiler, version, platform.machine(), _processor()]
    key = hashlib.sha256('\n'.join(what).encode()).hexdigest()[:16]
    path = Path(FOLDER).expanduser() / f'native-{key}.so'
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock', timeout=LONGEST_BUILD):  # of several processes one builds
        if not path.exists():
            _say(f'compiling kernels for this CPU, once: {path}', logging.INFO)
            part = path.with_suffix('.part')
            line = [compiler, *OPTIONS, str(SOURCE), '-o', str(part)]
            subprocess.run(line, capture_output=True, text=True, check=True, timeout=LONGEST_BUILD)
            part.replace(path)
    return path


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return '\n'.join(sorted({line for line in lines if line.startswith(('flags', 'model name', 'Features'))}))
