"""Computes, on a CPU, what a block has beside its matrix products, by the kernels of ``native.cpp``.

They are compiled on first use (seconds, once per machine), by ``$CXX`` or the first C++ compiler on the path,
into ``~/.cache/convnext_backbone``. Another compiler, another processor or another version of the source is
another file there. Where there is no compiler, those that a wheel for x86-64 brings along are taken
(``tools/dev/wheel.py``). Where there are none either, with ``CONVNEXT_NATIVE=0`` in the environment, and for
other data types than float32 and bfloat16 the callers take PyTorch's operators.

Maps are (N, C, H, W) in channels_last memory, rows (rows, C) without gaps; parameters may have any data type.
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.autograd import forward_ad

SWITCH = 'CONVNEXT_NATIVE'  # environment variable; 0: off
SOURCE = Path(__file__).with_suffix('.cpp')
FOLDER = '~/.cache/convnext_backbone'
OPTIONS = ['-O3', '-march=native', '-std=c++17', '-fopenmp', '-shared', '-fPIC', '-Wno-psabi']
PREBUILT = SOURCE.with_name('prebuilt')  # folder of those that a wheel brings along
LEVELS = {  # of x86-64: what a processor must have, the best first
    'x86-64-v4-bf16': {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl', 'avx512_bf16'},
    'x86-64-v4': {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'},
    'x86-64-v3': {'avx2', 'fma', 'bmi1', 'bmi2', 'f16c', 'movbe', 'abm'},
}
DTYPES = (torch.float32, torch.bfloat16)
KERNEL = 7  # of the convolution
LONGEST_BUILD = 300  # seconds


def supports(*tensors: Tensor) -> bool:
    """Return whether the kernels compute with these tensors: on a CPU, of their data types.

    Builds the kernels if need be.
    """
    ordinary = all(
        type(x) in (Tensor, nn.Parameter) and x.device.type == 'cpu' and x.dtype in DTYPES for x in tensors
    )
    # Forward-mode differentiation: a weight may have a tangent where the input has none.
    return ordinary and forward_ad._current_level < 0 and _built_right()


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve a map of any of the data types depthwise.

    ``weight`` is (C, 1, 7, 7); the result has its data type.
    """
    x = x.permute(0, 2, 3, 1).contiguous()
    c = x.shape[-1]
    out = x.new_empty(x.shape, dtype=weight.dtype)
    low = [t.dtype == torch.bfloat16 for t in (x, out)]
    _call('convolution', x, _floats(weight, c * KERNEL**2), _floats(bias, c), out, *x.shape, *low)
    return out.permute(0, 3, 1, 2)


def convolution_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of weight (C, 1, 7, 7) and bias (C,), in float32."""
    x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad.to(x.dtype)))
    channels = x.shape[-1]
    weight = x.new_empty(channels, 1, KERNEL, KERNEL, dtype=torch.float32)
    bias = x.new_empty(channels, dtype=torch.float32)
    _call('convolution_gradient', x, grad, weight, bias, *x.shape, x.dtype == torch.bfloat16)
    return weight, bias


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor) -> Tensor:
    """Compute LayerNorm of rows into ``out``."""
    affine, low = [_floats(t, x.shape[1]) for t in (weight, bias)], x.dtype == torch.bfloat16
    _call('norm', x, *affine, out, *x.shape, float(eps), low)
    return out


def norm_gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float, out: Tensor, sums: Tensor
) -> None:
    """Compute the gradient of ``x`` into ``out``.

    The gradients of weight and bias are added to ``sums`` (2, C), float32.
    """
    low = x.dtype == torch.bfloat16
    _call('norm_gradient', grad, x, _floats(weight, x.shape[1]), out, sums, *x.shape, float(eps), low)


def gelu(x: Tensor, out: Tensor) -> Tensor:
    """Compute GELU into ``out``, which may be ``x``."""
    _call('gelu', x, out, x.numel(), x.dtype == torch.bfloat16)
    return out


def gelu_gradient(grad: Tensor, x: Tensor, out: Tensor, sums: Tensor) -> Tensor:
    """Compute GELU of ``x`` into ``out``, and its gradient in place of ``grad``.

    ``grad`` times the derivative is written over ``grad`` and added up to ``sums`` (C,).
    """
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
    """Compute ``residual + scale * gain * x`` into ``out``.

    Args:
        gain: (C,).
        scale: (N,), of each sample.
        first: row of all the rows that the first of these is.
        of_sample: rows of a sample.

    Raises:
        RuntimeError: ``residual`` and ``x`` differ in shape.
    """
    if residual.shape != x.shape:
        raise RuntimeError(f'a branch of shape {list(x.shape)} and a residual of {list(residual.shape)}')
    low = [t.dtype == torch.bfloat16 for t in (x, out)]
    factors = _floats(gain, x.shape[1]), _floats(scale)
    _call('branch_sum', residual, x, *factors, out, *x.shape, first, of_sample, *low)


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
    """Compute ``scale * grad`` into ``scaled``, added up to ``sums`` (C,); times ``gain`` into ``gained``.

    ``dtype`` is that of both results, of which either may be left out.
    """
    low = [t == torch.bfloat16 for t in (dtype, grad.dtype)]
    arrays = grad, _floats(gain, grad.shape[1]), _floats(scale), scaled, gained, sums
    _call('branch_gradient', *arrays, *grad.shape, first, of_sample, *low)


def gain_gradient(outer: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of ``gain`` (C,) in float32 and of ``weight`` (C, D).

    Args:
        outer: (C, D), the sum over the rows of the products of the output's gradient and the input.
    """
    weight = weight.contiguous()
    dweight, dgain = torch.empty_like(weight), outer.new_empty(len(outer), dtype=torch.float32)
    low = [t.dtype == torch.bfloat16 for t in (weight, outer)]
    _call('gain_gradient', outer, weight, _floats(gain, len(outer)), dweight, dgain, *outer.shape, *low)
    return dgain, dweight


def _floats(parameter: Tensor | None, count: int | None = None) -> Tensor | None:
    """Return a parameter as the kernels read it.

    It must have ``count`` numbers, or it is refused: the kernels would read beyond its end.
    """
    if parameter is None:
        return None
    if parameter.device.type != 'cpu' or count not in (None, parameter.numel()):
        given = f'{list(parameter.shape)} on {parameter.device}'
        raise RuntimeError(f'a parameter of {count} numbers on the CPU is needed for this map, got {given}')
    return parameter.detach().float().contiguous()


_KINDS = {bool: ctypes.c_int, int: ctypes.c_long, float: ctypes.c_float}


def _call(name: str, *arguments) -> None:
    """Call a kernel with tensors as pointers and the number of threads behind them."""
    given = [
        ctypes.c_void_p(None if a is None else a.data_ptr())
        if a is None or isinstance(a, Tensor)
        else _KINDS[type(a)](a)
        for a in arguments
    ]
    getattr(_library(), f'convnext_{name}')(*given, ctypes.c_int(torch.get_num_threads()))


@cache
def _built_right() -> bool:
    """Return whether the kernels are there, and compute what PyTorch does (a few of them): compilers err."""
    if os.environ.get(SWITCH) == '0':
        return False
    try:
        _library()
        right = _right()
    except Exception as error:  # whatever it is, PyTorch computes
        said = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
        line = next((line for line in said if 'error' in line), said[0] if said else type(error).__name__)
        cost = 'float32 is about as fast, bfloat16 training takes up to 1.4 times as long, see docs/speed.md'
        _say(f'no kernels of our own on this CPU, PyTorch instead: {line} ({cost})', logging.WARNING)
        return False
    if not right:
        _say('kernels of our own are wrong on this CPU (please report it), PyTorch instead', logging.WARNING)
    return right


def _right() -> bool:
    options = dict(device='cpu', dtype=torch.float32)
    with torch.no_grad(), torch.autocast('cpu', enabled=False):
        for dtype in DTYPES:
            x = torch.linspace(-6, 6, 2 * 21 * 9 * 11, **options).view(2, 21, 9, 11).to(dtype)
            weight = torch.linspace(-1, 1, 21 * KERNEL**2, **options).view(21, 1, KERNEL, KERNEL).to(dtype)
            rows, bias = x.view(-1, 21), weight[:, 0, 0, 0]
            pairs = [
                (convolution(x, weight, bias), F.conv2d(x, weight, bias, padding=KERNEL // 2, groups=21)),
                (gelu(x, torch.empty_like(x)), F.gelu(x)),
                (norm(rows, bias, bias, 1e-5, torch.empty_like(rows)), F.layer_norm(rows, (21,), bias, bias)),
            ]
            bound = 1e-4 if dtype == torch.float32 else 2e-2
            if not all(torch.allclose(ours, stock, rtol=bound, atol=bound) for ours, stock in pairs):
                return False
    return True


def _say(line: str, level: int) -> None:
    print_log(line, 'current', level)


@cache
def _library() -> ctypes.CDLL:
    """Return the kernels, compiled if they were not yet, or those that came along.

    Raises:
        Exception: there is no compiler, or it fails, and none came along for this processor.
    """
    try:
        path = _built()
    except Exception as error:
        if (path := prebuilt()) is None:
            raise
        _say(f'kernels for {path.stem.partition("-")[2]} as they came along: {error}', logging.INFO)
        return _with_openmp(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not the file that was written
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_built()))


def prebuilt() -> Path | None:
    """Return the best library that came along for this source and processor, ``None`` if there is none."""
    key, there = source_key(), _flags()
    for level, needed in LEVELS.items():
        path = PREBUILT / f'native-{level}-{key}.so'
        if path.is_file() and needed <= there:
            return path
    return None


def _with_openmp(path: Path) -> ctypes.CDLL:
    """Load a library that takes the threads of PyTorch: it names no OpenMP library, one is there."""
    loaded = {line.split()[-1] for line in Path('/proc/self/maps').read_text().splitlines() if '/' in line}
    names = [name for name in sorted(loaded) if re.search(r'lib(g|i)?omp\d*\b[^/]*\.so', name)]
    for name in names[:1]:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def _flags() -> set[str]:
    """Return what the processor can do, in Linux's words."""
    found = re.search(r'^flags\s*:(.*)$', _processor(), re.MULTILINE)
    return set(found[1].split()) if found else set()


def source_key() -> str:
    """Return what names this version of the source in the name of a library that comes along."""
    return _key(SOURCE.read_text())


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _built() -> Path:
    """Return the compiled library for this source, compiler and processor."""
    compiler = _compiler()
    version = _output([*compiler, '--version'])
    what = [SOURCE.read_text(), *OPTIONS, *compiler, version, platform.machine(), _processor()]
    key = _key('\n'.join(what))
    path = Path(FOLDER).expanduser() / f'native-{key}.so'
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock', timeout=LONGEST_BUILD):  # of several processes one builds
        if not path.exists():
            _say(f'compiling kernels for this CPU, once: {path}', logging.INFO)
            part = path.with_suffix('.part')
            _output([*compiler, *OPTIONS, str(SOURCE), '-o', str(part)])
            with part.open('rb') as stream:
                os.fsync(stream.fileno())
            part.replace(path)
    return path


def _compiler() -> list[str]:
    """Return ``$CXX``, which may have options, or the first compiler that is there."""
    asked = shlex.split(os.environ.get('CXX', ''))
    for line in [asked] if asked else [['c++'], ['g++'], ['clang++']]:
        if found := shutil.which(line[0]):
            return [found, *line[1:]]
    raise OSError(f'no C++ compiler found ({asked[0] if asked else "c++, g++, clang++ or $CXX"})')


def _output(line: list[str]) -> str:
    options = dict(capture_output=True, text=True, errors='replace', check=True, timeout=LONGEST_BUILD)
    return subprocess.run(line, **options).stdout


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return '\n'.join(sorted({line for line in lines if line.startswith(('flags', 'model name', 'Features'))}))
