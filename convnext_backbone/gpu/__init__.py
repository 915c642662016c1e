"""Checks a GPU and what this package does on it: numbers, whole steps, resuming, speed.

Each part runs in a process of its own, which may crash or hang: the others go on.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..ops.trial import PATHS, end_session
from .rows import Row

SCRIPT = PATHS + 'from convnext_backbone import gpu; gpu.run_part(*sys.argv[2:])'


@dataclass(frozen=True)
class Part:
    """Describes one part: what it looks at, its seconds at most, and whether nothing may run beside it."""

    what: str
    seconds: float
    alone: bool = False


PARTS = dict(  # those alone are timed; the first is run first, the last with all the time that is left
    choice=Part('what computes each kind of call, by trial', 100, alone=True),
    compilation=Part('torch.compile as one graph against eager mode', 150),
    resume=Part('a training that is resumed against one that is not, bit by bit', 150),
    steps=Part('training steps of classifier, Mask R-CNN and UPerNet against a CPU; mixed precision', 150),
    kernels_bfloat16=Part('Triton kernels against float64, bfloat16', 150),
    kernels_float16=Part('Triton kernels against float64, float16', 150),
    kernels_float32=Part('Triton kernels against float64, float32', 150),
    graphs=Part('CUDA graphs against eager mode', 100),
    operators=Part("mmcv's operators against a CPU", 100),
    speed=Part('the backbone against other libraries', 300, alone=True),
)


@dataclass
class Outcome:
    """Holds what a part found.

    Attributes:
        rows: comparisons, as far as they came.
        failure: why it ended before its end; empty if it did not.
        seconds: that it took.
    """

    rows: list[Row] = field(default_factory=list)
    failure: str = ''
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Return whether everything was compared, and right."""
        return not self.failure and bool(self.rows) and all(row.right for row in self.rows)


def _rows(name: str, device: str, seconds: float) -> Iterator[Row]:
    from . import kernels, operators, resume, speed, steps

    if name == 'speed':
        return speed.check(seconds)
    part, _, dtype = name.partition('_')
    if dtype:
        return kernels.check(device, dtype)
    functions = dict(
        choice=speed.verdicts,
        operators=operators.check,
        steps=steps.check,
        graphs=steps.graphs,
        compilation=steps.compilation,
        resume=resume.check,
    )
    return functions[part](device)


def run_part(name: str, device: str, seconds: str, file: str) -> None:
    """Run a part in this process, with a line of JSON in ``file`` for each comparison."""
    with open(file, 'a', buffering=1) as stream:
        for row in _rows(name, device, float(seconds)):
            print(json.dumps(asdict(row)), file=stream)


def run_parts(
    names: list[str], seconds: float, device: str = 'cuda', said: Callable[[str], None] = print
) -> dict[str, Outcome]:
    """Run parts in processes of their own.

    Args:
        names: of :data:`PARTS`.
        seconds: for all of them; what is left for the last is all that is left.
        device: cuda, or cpu for what does not need a GPU.
        said: is given a line for each part, as soon as it is over.
    """
    end = time.monotonic() + seconds

    def run(name: str) -> Outcome:
        left = end - time.monotonic()
        outcome = run_child(name, device, left if name == 'speed' else min(left, PARTS[name].seconds))
        bad = [row for row in outcome.rows if not row.right]
        line = f'{name}: {len(outcome.rows) - len(bad)} right, {len(bad)} wrong, {outcome.seconds:.0f} s'
        lines = [line + (f'; {outcome.failure}' if outcome.failure else '')]
        said('\n'.join(lines + [f'  wrong: {row.what}: {row.found}' for row in bad[:10]]))
        return outcome

    found, wanted = {}, [name for name in PARTS if name in names]
    beside = [name for name in wanted if not PARTS[name].alone]
    found.update((name, run(name)) for name in wanted if PARTS[name].alone and name != 'speed')
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        found.update(zip(beside, pool.map(run, beside)))
    found.update((name, run(name)) for name in wanted if name == 'speed')
    return {name: found[name] for name in wanted}


def run_child(name: str, device: str, seconds: float) -> Outcome:
    """Run one part in a child process, which is ended after ``seconds``."""
    if seconds < 5:
        return Outcome(failure='not run: the time was up')
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file, log = Path(folder, 'rows'), Path(folder, 'log')
        file.touch()
        line = [
            sys.executable,
            '-c',
            SCRIPT,
            json.dumps(sys.path),
            name,
            device,
            str(seconds - 20),
            str(file),
        ]
        with log.open('w') as stream:
            child = subprocess.Popen(line, stdout=stream, stderr=stream, start_new_session=True)
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # also what it started, and if this process is interrupted
            end_session(child)
        rows = [Row(**json.loads(line)) for line in file.read_text().split('\n')[:-1]]
        text = log.read_text(errors='replace').strip().splitlines()
    failure = ''
    if status is None:
        failure = f'ended after {seconds:.0f} s, which were all it had'
    elif status:
        said = [line for line in text if re.match(r'[\w.]*(Error|Exception)\b', line)] or text
        failure = ', '.join([f'ended with status {status}', *said[-1:]])[:400]
    return Outcome(rows, failure, time.monotonic() - begin)
