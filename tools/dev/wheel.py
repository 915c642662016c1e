"""Build the wheel for Linux on x86-64 with compiled kernels, for machines without a compiler.

python -m tools.dev.wheel --out dist

The kernels (ops/native.cpp) are there for processors with AVX2, with AVX-512, and with its bfloat16. They
need glibc 2.28 and no OpenMP library of their own: they take the threads of PyTorch's.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from convnext_backbone.cli import Parser, run
from convnext_backbone.errors import UserError
from convnext_backbone.ops import native

ROOT = Path(__file__).resolve().parents[2]
PLATFORM, GLIBC = 'manylinux_2_28_x86_64', (2, 28)
OPTIONS = ['-O3', '-std=c++17', '-fopenmp', '-fPIC', '-Wno-psabi', '-c']
LINK = ['-shared', '-nodefaultlibs', '-s', '-Wl,--allow-shlib-undefined']
LIBRARIES = ['-lstdc++', '-lgcc_s', '-lgcc', '-lc', '-lm']
EXTRA = {'x86-64-v4-bf16': ['-march=x86-64-v4', '-mavx512bf16']}


def compile_level(level: str, folder: Path, compiler: str = 'g++') -> Path:
    """Compile the kernels for one of :data:`~convnext_backbone.ops.native.LEVELS`; return the library.

    Raises:
        UserError: there is no compiler, it fails, or the library needs a newer glibc.
    """
    for tool in (compiler, 'objdump'):
        if shutil.which(tool) is None:
            raise UserError(f'no {tool} here: install it, the wheel is built with it')
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f'native-{level}-{native.source_key()}.so'
    kernels = library.with_suffix('.o')
    march = EXTRA.get(level, [f'-march={level}'])
    output([compiler, *OPTIONS, *march, str(native.SOURCE), '-o', str(kernels)])
    output([compiler, *LINK, str(kernels), *LIBRARIES, '-o', str(library)])
    kernels.unlink()
    needed = re.findall(r'GLIBC_(\d+)\.(\d+)', output(['objdump', '-T', str(library)]))
    newest = max(tuple(map(int, version)) for version in needed)
    if newest > GLIBC:
        raise UserError(f'{library} needs glibc {newest}, the wheel is for {GLIBC}: build on an older system')
    return library


def output(line: list[str]) -> str:
    """Return what a program prints.

    Raises:
        UserError: it fails.
    """
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f'{line[0]} failed: {(result.stderr or result.stdout).strip().splitlines()[-1]}')
    return result.stdout


def main(argv=None) -> Path:
    """Build the wheel and return its path."""
    parser = Parser(__doc__)
    parser.add_argument('--out', default='dist', metavar='DIR', help='folder of the wheel; default: dist')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'source')
        ignored = shutil.ignore_patterns('.*', 'work_dirs', 'data', 'build', '*.egg-info', '__pycache__')
        shutil.copytree(ROOT, source, ignore=ignored)
        for level in native.LEVELS:
            compile_level(level, source / native.PREBUILT.relative_to(ROOT))
        build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
        option = f'--config-settings=--build-option=--plat-name={PLATFORM}'
        output([*build, option, '--wheel-dir', folder, str(source)])
        (wheel,) = Path(folder).glob(f'*{PLATFORM}.whl')
        Path(args.out).mkdir(parents=True, exist_ok=True)  # where wheels of other versions may be
        written = shutil.copy(wheel, args.out)
    print(f'written: {written}')
    return Path(written)


if __name__ == '__main__':
    run(main)
