"""Trains at a stretch, and in two parts with a resume, on the device at hand, and compares every number."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoint import read_checkpoint
from ..checkpoint.write import newest_checkpoint
from ..config import nodes
from ..shapes import make_shapes
from .rows import Row, same

CONFIG = 'mask_rcnn_shapes'
STEPS, HALF = 6, 3


def differences(a, b, name: str = '') -> list[str]:
    """Return the names of values that are not exactly equal in two checkpoints."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [name]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f'{name}.{key}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, pair in enumerate(zip(a, b)) for d in differences(*pair, f'{name}.{i}')]
    return [] if a == b else [name]


def without_run(checkpoint: dict) -> dict:
    """Return what a checkpoint holds, without what is about the run and not about the training."""
    kept = ('epoch', 'iter', 'seed', 'steps_per_epoch')
    checkpoint['meta'] = {key: checkpoint['meta'][key] for key in kept}
    checkpoint.pop('message_hub')  # its scalars are in the logs
    return checkpoint


def check(device: str) -> Iterator[Row]:
    """Compare the checkpoints of both trainings, of the demo's Mask R-CNN on a few drawn shapes."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_shapes(Path(folder, 'shapes'), images=(16, 4), crops=(4, 4))

        def train(name: str, *options: str) -> Row:
            line = [sys.executable, '-m', 'convnext_backbone', 'train', CONFIG, '--data-root', str(data)]
            line += ['--work-dir', str(Path(folder, name)), '--device', device, '--seed', '0']
            line += ['--deterministic', *options]
            done = subprocess.run(line, capture_output=True, text=True)
            said = (done.stderr.strip().splitlines() or [''])[-1][-300:] if done.returncode else ''
            return same(f'training {" ".join((name, *options))}', done.returncode == 0, said)

        for name, *options in (
            ('straight', '--stop-at', str(STEPS)),
            ('halves', '--stop-at', str(HALF)),
            ('halves', '--resume', '--stop-at', str(STEPS)),
        ):
            yield (row := train(name, *options))
            if not row.right:
                return
        straight, halves = (
            without_run(read_checkpoint(newest_checkpoint(Path(folder, name))[0]))
            for name in ('straight', 'halves')
        )
        different = differences(straight, halves)
        count = sum(not isinstance(value, (dict, list, tuple)) for value in nodes(straight))
        found = f'{len(different)} of {count} values differ: {", ".join(different[:3])}'
        yield same('resumed as at a stretch', not different, found if different else f'{count} values equal')
