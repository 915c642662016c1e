"""Our kernels for a CPU against float64, and how they are built."""

import logging
import os
import platform
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import begin, kernels_are_built

from convnext_backbone.ops import native
from tools.dev.wheel import compile_level

ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8}
both_dtypes = pytest.mark.parametrize('dtype', ROUNDING, ids=lambda dtype: str(dtype)[6:])
needed = pytest.mark.skipif(not kernels_are_built(), reason='no C++ compiler, or switched off')


def close(found, exact, dtype, of_sum=4e-6) -> None:
    """Rounded once, after sums in float32."""
    assert found.dtype == dtype
    bound = ROUNDING[dtype] * exact.abs() + of_sum * exact.abs().max()
    assert ((found.double() - exact).abs() <= bound).all()


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_map(*shape, dtype, seed=0):
    return draw(*shape, dtype=dtype, seed=seed).contiguous(memory_format=torch.channels_last)


@needed
@both_dtypes
@pytest.mark.parametrize(
    'shape',
    [
        (1, 8, 1, 1),
        (3, 40, 2, 3),
        (2, 24, 7, 7),
        (1, 33, 9, 15),  # channels that fill no vector
        (2, 16, 40, 3),  # two bands
        (1, 100, 34, 70),  # two bands and three strips, the last ones shorter
        (1, 2048, 5, 8),
    ],
)
def test_the_convolution_and_its_gradients(shape, dtype):
    c = shape[1]
    x, grad = (draw_map(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    weight, bias = draw(c, 1, 7, 7, dtype=dtype, seed=2), draw(c, seed=3)
    leaves = [t.double().requires_grad_() for t in (weight, bias)]
    exact = F.conv2d(x.double(), *leaves, padding=3, groups=c)
    close(native.convolution(x, weight, bias), exact.detach(), dtype)
    close(native.convolution(x, weight.float(), bias), exact.detach(), torch.float32)
    exact.backward(grad.double())
    for found, leaf in zip(native.convolution_gradient(x, grad), leaves):
        close(found, leaf.grad, torch.float32)


@needed
def test_they_are_used():
    assert native.supports(torch.zeros(1))
    assert native.supports(torch.zeros(1, dtype=torch.bfloat16))
    assert not native.supports(torch.zeros(1).double())
    assert not native.supports(torch.zeros(1, device='meta'))


@needed
def test_a_result_does_not_depend_on_the_number_of_threads_nor_on_the_batch():
    x = draw_map(3, 48, 37, 41, dtype=torch.bfloat16)
    weight, threads = draw(48, 1, 7, 7), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append((native.convolution(x, weight, None), *native.convolution_gradient(x, x)))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others))
    assert torch.equal(native.convolution(x[1:2], weight, None), found[0][0][1:2])


@needed
@both_dtypes
@pytest.mark.parametrize(('rows', 'c'), [(1, 8), (5, 40), (7, 21), (300, 96), (3, 2048)])
def test_the_norm_and_its_gradient(rows, c, dtype):
    x, grad = draw(rows, c, dtype=dtype) * 3 + 1, draw(rows, c, dtype=dtype, seed=1)
    weight, bias = torch.rand(c) + 0.5, draw(c, seed=2)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = F.layer_norm(leaves[0], (c,), *leaves[1:], 1e-6)
    exact.backward(grad.double())
    close(native.norm(x, weight, bias, 1e-6, torch.empty_like(x)), exact.detach(), dtype)
    dx, sums = torch.empty_like(x), torch.ones(2, c)  # to which it is added
    native.norm_gradient(grad, x, weight, 1e-6, dx, sums)
    close(dx, leaves[0].grad, dtype)
    close(sums - 1, torch.stack([leaf.grad for leaf in leaves[1:]]), torch.float32, 2e-5)
    plain = native.norm(x, None, None, 1e-6, torch.empty_like(x))
    close(plain, F.layer_norm(x.double(), (c,), eps=1e-6), dtype)


@needed
def test_the_norm_is_taken_around_the_mean():
    """The mean of squares less the square of the mean would be noise here."""
    x = draw(4, 96) + 4000
    exact = F.layer_norm(x.double(), (96,), eps=1e-6)
    found = native.norm(x, None, None, 1e-6, torch.empty_like(x))
    assert (found - exact).abs().max() < 2e-3
    constant = torch.full((2, 40), 7.0)
    assert not native.norm(constant, None, None, 1e-6, torch.empty_like(constant)).any()


@needed
def test_gelu_of_every_bfloat16_number():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    found, exact = native.gelu(every, torch.empty_like(every)), F.gelu(every.double())
    finite = every.isfinite()
    error, unit = (found.double() - exact).abs()[finite], 2.0 ** (exact[finite].abs().log2().floor() - 7)
    large = exact[finite].abs() > 1e-3
    assert not found[every < -20].nan_to_num().any()
    assert (error <= unit)[large].all()  # one unit of the last place
    assert (error <= 2**-8 * exact[finite].abs() + 4e-6 * every[finite].double().abs() + 2**-126).all()
    assert found[every.isnan()].isnan().all()
    assert found[every == torch.inf] == torch.inf


@needed
def test_gelu_and_its_derivative_in_float32():
    x = torch.cat([torch.linspace(-12, 12, 40001), torch.tensor([-3e4, 3e4])])[None]
    leaf = x.double().requires_grad_()
    F.gelu(leaf).sum().backward()
    grad, out, sums = torch.full_like(x, 2.0), torch.empty_like(x), torch.zeros(x.shape[1])
    native.gelu_gradient(grad, x, out, sums)
    assert torch.equal(out, native.gelu(x, torch.empty_like(x)))
    assert torch.equal(sums, grad[0])
    assert ((out - F.gelu(x.double())).abs() <= 3e-7 * x.abs()).all()
    assert (grad / 2 - leaf.grad).abs().max() < 1e-6


@needed
@both_dtypes
@pytest.mark.parametrize('c', [40, 256])
def test_the_gradient_of_gelu_and_its_sum_over_rows(c, dtype):
    x, grad, out, sums = (
        draw(50, c, dtype=dtype),
        draw(50, c, dtype=dtype, seed=1),
        torch.empty(50, c),
        draw(c),
    )
    leaf, before, total = x.double().requires_grad_(), grad.double(), sums.double()
    F.gelu(leaf).backward(before)
    out = native.gelu_gradient(grad, x, torch.empty_like(x), sums)
    close(out, F.gelu(x.double()), dtype)
    close(grad, leaf.grad, dtype, 1e-4 if dtype == torch.bfloat16 else 4e-6)
    close(sums, total + leaf.grad.sum(0), torch.float32, 1e-4 if dtype == torch.bfloat16 else 4e-6)


@needed
@both_dtypes
@pytest.mark.parametrize('outer', [None, torch.float32], ids=['same', 'float32'])
def test_the_sum_with_the_branch_and_its_gradient(outer, dtype):
    """Rows 5 to 15 of four samples of four rows; with and without gain and scale."""
    outer = outer or dtype
    x, residual, grad = (draw(11, 24, dtype=t, seed=i) for i, t in enumerate((dtype, outer, outer)))
    gain, scale = draw(24, seed=5), torch.tensor([0.5, 0.0, 2.0, 1.25])
    for g in (gain, None):
        for s in (scale, None):
            factor = torch.ones(11, 1) if s is None else s.repeat_interleave(4)[5:16, None]
            times = torch.ones(24) if g is None else g
            out = torch.empty_like(residual)
            native.branch_sum(residual, x, g, s, out, 5, 4)
            close(out, residual.double() + x.double() * factor * times, outer)
            scaled, gained = torch.empty_like(x), None if g is None else torch.empty_like(x)
            sums = torch.zeros(24)
            native.branch_gradient(grad, g, s, scaled, gained, dtype, sums, 5, 4)
            close(scaled, grad.double() * factor, dtype)
            close(sums, (grad.double() * factor).sum(0), torch.float32)
            if g is not None:
                close(gained, grad.double() * factor * times, dtype)


@needed
@both_dtypes
@pytest.mark.parametrize('wide', [None, torch.float32], ids=['same', 'float32'])
def test_the_gradient_of_the_gain(wide, dtype):
    outer, weight = draw(20, 84, dtype=wide or dtype), draw(20, 84, dtype=dtype, seed=1)
    gain = draw(20, seed=2)
    dgain, dweight = native.gain_gradient(outer, weight, gain)
    close(dgain, (outer.double() * weight.double()).sum(1), torch.float32)
    close(dweight, outer.double() * gain.double()[:, None], dtype)


@needed
def test_what_is_not_a_number_stays_where_it_belongs():
    x = torch.zeros(1, 16, 20, 20, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    x[0, 3, 10, 10] = torch.nan
    found = native.convolution(x, torch.ones(16, 1, 7, 7, dtype=torch.bfloat16), None)
    expected = torch.zeros_like(found, dtype=torch.bool)
    expected[0, 3, 7:14, 7:14] = True
    assert torch.equal(found.isnan(), expected)


SCRIPT = """
import torch
from convnext_backbone.ops import native
print('kernels:', native.supports(torch.zeros(1)))
"""


def fresh(home, script: str = SCRIPT, processes: int = 1, **environment) -> list[str]:
    """What new processes print that have their cache in ``home``."""
    logs = [home / f'{number}.log' for number in range(processes)]
    environment = {'HOME': str(home), native.SWITCH: '1', **environment}
    for log in logs:
        log.unlink(missing_ok=True)
    started = [begin(exec, script, {}, log=log, **environment) for log in logs]
    for process in started:
        process.join()
    said = [log.read_text() for log in logs]
    assert [process.exitcode for process in started] == [0] * processes, said
    return said


@needed
def test_built_once_for_all_processes_and_not_when_switched_off(tmp_path):
    said = fresh(tmp_path, processes=2)
    assert all('kernels: True' in text for text in said)
    assert sum('compiling kernels for this CPU' in text for text in said) == 1
    assert len(list((tmp_path / '.cache/convnext_backbone').glob('native-*.so'))) == 1
    assert fresh(tmp_path) == ['kernels: True\n']
    assert fresh(tmp_path, CONVNEXT_NATIVE='0') == ['kernels: False\n']


def test_without_a_compiler_one_line_says_so_and_pytorch_computes(tmp_path):
    (said,) = fresh(tmp_path, CXX='', PATH=str(tmp_path))
    assert re.search('no kernels of our own on this CPU, PyTorch instead: no C.. compiler found', said)
    assert 'kernels: False' in said
    assert len(said.strip().splitlines()) == 2


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / 'compiler'
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp: error: no such thing" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    (said,) = fresh(tmp_path, CXX=str(compiler))
    assert 'PyTorch instead: x.cpp: error: no such thing' in said
    assert 'kernels: False' in said
    assert not list((tmp_path / '.cache/convnext_backbone').glob('*.so'))


@needed
@pytest.mark.parametrize(
    'first',
    [
        "with torch.autocast('cpu', torch.bfloat16): block(x)",
        'torch.set_default_dtype(torch.float16); block(x)',
        'torch.set_default_dtype(torch.float64); block(x)',
    ],
)
def test_the_first_use_may_be_anywhere(first, tmp_path):
    """What is tried out then has data types of its own."""
    script = f"""
import torch
from convnext_backbone.backbones.block import Block
from convnext_backbone.ops import native
block, x = Block(32), torch.randn(1, 32, 8, 8)
{first}
assert native._built_right()
"""
    fresh(tmp_path, script, HOME=os.environ['HOME'])


@needed
def test_a_parameter_of_another_size_is_refused():
    """The kernels would read what is not theirs."""
    x = draw_map(1, 64, 5, 5, dtype=torch.float32)
    with pytest.raises(
        RuntimeError, match=r'3136 numbers on the CPU is needed .*, got \[32, 1, 7, 7\] on cpu'
    ):
        native.convolution(x, draw(32, 1, 7, 7), None)
    for gain in (draw(1), draw(24, 2), torch.empty(24, device='meta')):
        with pytest.raises(RuntimeError, match='a parameter of 24 numbers on the CPU'):
            native.branch_sum(*[draw(3, 24)] * 2, gain, None, draw(3, 24), 0, 1)
    with pytest.raises(RuntimeError, match=r'a branch of shape \[3, 24\] and a residual of \[2, 24\]'):
        native.branch_sum(draw(2, 24), draw(3, 24), None, None, draw(3, 24), 0, 1)


@needed
def test_a_file_that_was_cut_off_is_built_again(tmp_path):
    whole = native._built()
    cut_off = tmp_path / '.cache/convnext_backbone' / whole.name
    cut_off.parent.mkdir(parents=True)
    cut_off.touch()
    assert 'kernels: True' in fresh(tmp_path)[0]
    assert cut_off.stat().st_size == whole.stat().st_size


@needed
def test_options_of_the_compiler_and_a_compiler_that_is_not_there(tmp_path):
    assert 'kernels: True' in fresh(tmp_path, CXX='env g++')[0]
    assert 'no C++ compiler found (/no/such)' in fresh(tmp_path, CXX='/no/such')[0]


ALONG = """
import re
from pathlib import Path
import torch
import torch.nn.functional as F
from convnext_backbone.ops import native
native.PREBUILT = Path({folder!r})
torch.set_num_threads(2)
print('kernels:', native.supports(torch.zeros(1)))
x, weight = torch.randn(2, 40, 30, 50), torch.randn(40, 1, 7, 7)
found = native.convolution(x, weight, None)
expected = F.conv2d(x.double(), weight.double(), padding=3, groups=40)
print('error:', (found - expected).abs().max().item() < 1e-4)
loaded = {{line.split()[-1] for line in Path('/proc/self/maps').read_text().splitlines() if '.so' in line}}
print('openmp:', len([name for name in loaded if re.search('lib(g|i)?omp', name)]))
print('kernels of:', *(Path(name).name for name in loaded if 'native-' in name))
"""


@needed
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='kernels for x86-64')
@pytest.mark.parametrize(
    'level', [pytest.param(level, marks=pytest.mark.slow if 'v4' in level else ()) for level in native.LEVELS]
)
def test_without_a_compiler_the_kernels_that_came_along_compute(tmp_path, level, monkeypatch):
    library = compile_level(level, tmp_path / 'along')
    monkeypatch.setattr(native, 'PREBUILT', tmp_path / 'along')
    monkeypatch.setattr(native, '_flags', lambda: native.LEVELS[level] | {'other'})
    assert native.prebuilt() == library
    monkeypatch.setattr(native, '_flags', lambda: set(list(native.LEVELS[level])[1:]))
    assert native.prebuilt() is None
    monkeypatch.undo()
    if not native.LEVELS[level] <= native._flags():
        pytest.skip(f'this processor is below {level}')
    script = ALONG.format(folder=str(tmp_path / 'along'))
    (said,) = fresh(tmp_path, script, CXX='/no/such')
    assert f'kernels for {level}' in said
    assert 'as they came along: no C++ compiler found' in said
    assert 'kernels: True\nerror: True\nopenmp: 1\n' in said
    assert f'kernels of: {library.name}' in said
    library.rename(library.with_name(f'native-{level}-0123456789abcdef.so'))  # of another source
    assert 'PyTorch instead: no C++ compiler found' in fresh(tmp_path, SCRIPT, CXX='/no/such')[0]


@pytest.mark.slow
@needed
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='options for x86')
def test_the_same_with_the_vectors_of_an_older_processor(tmp_path):
    environment = {**os.environ, 'HOME': str(tmp_path), 'CXX': 'c++ -mno-avx512f'}
    line = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-n', '0', __file__, '-k']
    names = 'convolution or norm or gelu or branch or gain or threads or number'
    done = subprocess.run([*line, names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert ' passed' in done.stdout, done.stdout
    assert 'skipped' not in done.stdout, done.stdout
    (built,) = (tmp_path / '.cache/convnext_backbone').glob('native-*.so')
    code = subprocess.run(['objdump', '-d', str(built)], capture_output=True, text=True).stdout
    assert '%zmm' not in code


@needed
def test_kernels_that_compute_something_else_are_not_used(monkeypatch):
    monkeypatch.setattr(native, 'gelu', lambda x, out: x)
    said = []
    monkeypatch.setattr(native, '_say', lambda line, level: said.append((line, level)))
    assert not native._built_right.__wrapped__()
    assert said == [
        ('kernels of our own are wrong on this CPU (please report it), PyTorch instead', logging.WARNING)
    ]
