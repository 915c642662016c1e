"""Train straight and train with a kill and a resume, and compare: weights, optimizer, random numbers, logs.

python -m tools.dev.verify_resume CONFIG --steps 12
python -m tools.dev.verify_resume CONFIG --steps 12 --processes 2 --workers 2 -- --data-root /data/coco

The second training is killed (SIGKILL) after a random step and goes on with --resume from its last
checkpoint. Options behind `--` go to tools/train.py. Ends with status 1 if anything differs.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from convnext_backbone.checkpoint import read_checkpoint
from convnext_backbone.checkpoint.write import newest_checkpoint, read_metadata
from convnext_backbone.cli import Parser, run
from convnext_backbone.config import nodes, read_config
from convnext_backbone.errors import UserError
from convnext_backbone.gpu.resume import differences, without_run

ROOT = Path(__file__).resolve().parents[2]
TIMES = ('time', 'data_time', 'memory', 'images_per_second', 'eta')  # what no two runs have in common


def parse_args(argv=None):
    """Read the options; what stands behind ``--`` goes to the trainings."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('--steps', type=int, default=12, help='of each training (12)')
    parser.add_argument('--every', type=int, default=3, help='steps from one checkpoint to the next (3)')
    parser.add_argument('--kills', type=int, default=1, help='of the second training (1)')
    parser.add_argument('--signal', choices=('KILL', 'TERM'), default='KILL', help='KILL, or TERM: a request')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--workers', type=int, default=0, help='processes of each data loader (0)')
    parser.add_argument(
        '--seed', type=int, default=0, help='of the trainings and of the moments of the kills'
    )
    parser.add_argument('--out', default='work_dirs/verify_resume', help='folder of both, replaced')
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index('--') if '--' in argv else len(argv)
    args = parser.parse_args(argv[:split])
    args.options = argv[split + 1 :]
    return args


def command(args, work_dir: Path, *more: str) -> list[str]:
    """Return the command line of one of the trainings."""
    hooks = read_config(args.config).default_hooks
    checkpoint = f'default_hooks.checkpoint.interval={args.every}', 'default_hooks.checkpoint.by_epoch=False'
    loader = [f'train_dataloader.num_workers={args.workers}', 'default_hooks.logger.interval=1']
    loader.append(f'train_dataloader.persistent_workers={args.workers > 0}')
    options = [*args.options, *more, '--deterministic', '--seed', str(args.seed), '--work-dir', str(work_dir)]
    options += ['--stop-at', str(args.steps)]
    if '--device' not in options and not torch.cuda.is_available():
        options += ['--device', 'cpu']
    changed = [*(checkpoint if hooks.get('checkpoint') else ()), *loader]
    if '--cfg-options' in options:  # argparse would take the last list only
        place = options.index('--cfg-options') + 1
        options[place:place] = changed
    else:
        options += ['--cfg-options', *changed]
    if args.processes == 1:
        return [sys.executable, str(ROOT / 'tools/train.py'), args.config, *options]
    return [str(ROOT / 'tools/dist_train.sh'), args.config, str(args.processes), *options]


def start(line: list[str], log: Path) -> subprocess.Popen:
    """Start a training in a session of its own, so that the kill reaches every process of it at once."""
    with socket.socket() as free:
        free.bind(('', 0))
        port = free.getsockname()[1]
    environment = {**os.environ, 'MASTER_PORT': str(port)}
    with log.open('a') as stream:
        return subprocess.Popen(line, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def finish(process: subprocess.Popen, log: Path) -> None:
    """Wait for the end of a training.

    Raises:
        UserError: it failed; with the end of its log.
    """
    if process.wait() != 0:
        tail = '\n'.join(log.read_text().splitlines()[-15:])
        raise UserError(
            f'the training failed with status {process.returncode}, its log {log} ends with\n{tail}'
        )


def done(work_dir: Path) -> int:
    """Return the last step in the logs."""
    return max((row['step'] for row in scalars(work_dir) if 'loss' in row), default=0)


def scalars(work_dir: Path) -> list[dict]:
    """Return every logged row of training and validation; of a step that was done twice, the later one."""
    rows = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # half a line: the process was killed while it wrote
                continue
            kept = {name: value for name, value in row.items() if not name.endswith(TIMES)}
            rows[row['step'], 'loss' in row] = kept
    return [rows[key] for key in sorted(rows)]


def kill_after(process: subprocess.Popen, work_dir: Path, step: int, number: signal.Signals) -> bool:
    """Wait for ``step`` to be logged, then kill; False if the training was faster."""
    while process.poll() is None:
        if done(work_dir) >= step:
            os.killpg(process.pid, number)
            return process.wait() != 0  # 0: it came to its last step just before
        time.sleep(0.02)
    return False


def content(work_dir: Path, step: int) -> dict:
    """Return what a checkpoint holds, without what is about the run and not about the training.

    Raises:
        UserError: the newest checkpoint is not of ``step``.
    """
    file, _ = newest_checkpoint(work_dir)
    if file is None or read_metadata(file).get('iter') != step:
        raise UserError(f'{work_dir} has no checkpoint of step {step}: {file}')
    return without_run(read_checkpoint(file))  # scalars are compared as they were logged


def compare(straight: Path, resumed: Path, steps: int) -> list[str]:
    """Return what differs between two trainings, by name; empty if nothing does."""
    different = differences(content(straight, steps), content(resumed, steps))
    logs = [
        {f'{row["step"]} {"train" if "loss" in row else "val"}': row for row in scalars(work_dir)}
        for work_dir in (straight, resumed)
    ]
    return different + differences(*logs, 'log')


def main(argv=None) -> None:
    """Train once at a stretch and once with kills, and compare.

    Raises:
        UserError: values differ, or a training failed.
    """
    args = parse_args(argv)
    if args.kills >= args.steps:
        raise UserError(f'--kills {args.kills}: fewer than --steps {args.steps}, please')
    out = Path(args.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = out / 'straight.log'
    finish(start(command(args, out / 'straight'), log), log)
    draw = random.Random(args.seed)
    number = signal.Signals[f'SIG{args.signal}']
    log, killed = out / 'resumed.log', []
    for step in sorted(draw.sample(range(1, args.steps), args.kills)):
        process = start(command(args, out / 'resumed', *(['--resume'] if killed else [])), log)
        if not kill_after(process, out / 'resumed', step, number):
            finish(process, log)
            break
        killed.append(done(out / 'resumed'))
    finish(start(command(args, out / 'resumed', '--resume'), log), log)
    different = compare(out / 'straight', out / 'resumed', args.steps)
    rows = len(scalars(out / 'straight'))
    how = f'{args.processes} processes, {args.workers} workers, {args.steps} steps'
    how += (
        f', SIG{args.signal} after {" and ".join(map(str, killed))}' if killed else ', over before the kill'
    )
    if different:
        raise UserError(
            f'{args.config}: {how}: {len(different)} values differ, first {", ".join(different[:5])}'
        )
    values = nodes(content(out / 'straight', args.steps))
    count = sum(not isinstance(value, (dict, list, tuple)) for value in values)
    print(f'{args.config}: {how}: bit-identical ({count} values of the checkpoint, {rows} rows of the log)')


if __name__ == '__main__':
    run(main)
