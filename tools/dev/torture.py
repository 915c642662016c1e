"""Kill trainings at random moments, resume them, and compare each with one that nothing happened to.

python -m tools.dev.torture --kills 200            (or: make torture)

A small classifier with everything that has a state: shuffling, augmentation, Mixup, stochastic depth, a
moving average, accumulated gradients, a schedule, validation. Every job suffers some faults, is resumed after
each that ended it, and in the end must have the weights, optimizer, random numbers and logs of the untouched
one, bit by bit. Printed for each kind of fault: how often it struck (not when the training came to its last
step before), jobs that came through, lost (nothing to resume from, or without an end) and differing. Ends
with status 1 if there is one of the latter two.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import torch

from convnext_backbone.checkpoint.write import checkpoints_in, newest_checkpoint, read_metadata
from convnext_backbone.cli import STOPPED, Parser, run
from convnext_backbone.commands import train
from convnext_backbone.errors import UserError
from convnext_backbone.shapes import make_shapes

from . import verify_resume

STEPS = 48
CONFIG = """
_base_ = '{root}/configs/demo/classifier_shapes.py'
model = dict(
    backbone=dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=0.3),
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
train_dataloader = dict(
    batch_size=4, num_workers=2, dataset=dict(transform=dict(color_jitter=0.4, re_prob=0.25))
)
val_dataloader = dict(batch_size=10, num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters={steps}, val_interval=20)
optim_wrapper = dict(accumulative_counts=3)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=4, max_keep_ckpts=3), hang=dict(timeout={timeout})
)
custom_hooks = [dict(type='EMAHook', momentum=0.01)]
"""
TIMEOUT = 8  # seconds after which a training that hangs ends itself
ENDED = {0, 1, STOPPED, -signal.SIGKILL}


def parse_args(argv=None):
    """Read the options."""
    parser = Parser(__doc__)
    parser.add_argument('--kills', type=int, default=200, help='faults in all (200)')
    parser.add_argument(
        '--processes', type=int, default=1, help='of each training; with several, torchrun starts them again'
    )
    parser.add_argument('--per-job', type=int, default=4, help='faults that one job suffers (4)')
    parser.add_argument('--seed', type=int, default=0, help='of the kinds and moments of the faults')
    parser.add_argument('--out', default='work_dirs/torture', help='replaced')
    parser.add_argument(
        '--only', nargs='+', choices=[*FAULTS, *FAULTS_OF_SEVERAL], metavar='FAULT', help='of these kinds'
    )
    return parser.parse_args(argv)


class Job:
    """Runs one training, which is killed and resumed.

    Attributes:
        draw: random numbers of its faults.
        data, work_dir: folders, the latter on a file system of its own if this user may mount one.
    """

    def __init__(self, folder: Path, config: Path, data: Path, processes: int, draw: random.Random):
        self.folder, self.config, self.data = folder, config, data
        self.processes, self.draw = processes, draw
        folder.mkdir(parents=True)
        self.log, self.work_dir = folder / 'log', folder / 'w'
        self.process, self.launched = None, 0

    def start(self) -> None:
        """Start the training, or let it go on from its last checkpoint."""
        options = ['--device', 'cpu', '--seed', '0', '--deterministic', '--data-root', str(self.data)]
        options += [
            '--work-dir',
            str(self.work_dir),
            '--pretrained',
            'none',
            '--stop-at',
            str(STEPS),
            '--resume',
        ]
        self.launched += 1
        if self.processes == 1:
            self.process = psutil.Process(fork_training([str(self.config), *options], self.log))
            return
        line = [str(verify_resume.ROOT / 'tools/dist_train.sh'), str(self.config), str(self.processes)]
        popen = verify_resume.start([*line, *options, '--max-restarts', '9'], self.log)
        self.process = psutil.Process(popen.pid)

    def ended(self, seconds: float = 0) -> int | None:
        """Return the status of the training, if it has ended or does so within ``seconds``."""
        try:
            return self.process.wait(seconds)
        except psutil.TimeoutExpired:
            return None

    def finished(self) -> bool:
        """Return whether the last step is done and on the disk."""
        newest, _ = newest_checkpoint(self.work_dir)
        return newest is not None and read_metadata(newest).get('iter') == STEPS

    def may_start_again(self) -> bool:
        """Return whether it ended as a fault ends it.

        A SIGTERM after the last step is no longer waited for.
        """
        return self.ended() in ENDED or (self.ended() == -signal.SIGTERM and self.finished())

    def wait_until_training(self) -> bool:
        """Wait until a few more steps are done, a random number; False if the training ends before."""
        goal = verify_resume.done(self.work_dir) + self.draw.randint(1, 8)
        while self.ended(0.01) is None:
            if verify_resume.done(self.work_dir) >= goal:
                time.sleep(self.draw.uniform(0, 0.15))
                return True
        return False

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the data loader; with several processes, those that train."""
        return [child for child in self.process.children() if lives(child)]

    def kill(self) -> bool:
        """Kill it; return whether this ended it: it may have come to its last step just before."""
        self.process.kill()
        return self.ended(30) == -signal.SIGKILL


def lives(process: psutil.Process) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def strike(process: psutil.Process, how: str) -> bool:
    """Do ``'kill'``, ``'suspend'`` or ``'resume'`` to a process; return whether it lived to see it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        alive = lives(process)
        getattr(process, how)()
        return alive
    return False


def fork_training(arguments: list[str], log: Path) -> int:
    """Run ``tools/train.py`` in a process that need not import everything again; return its number."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.argv = ['tools/train.py', *arguments]
        run(lambda: train.main(arguments))
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        os._exit(status)


# Faults: each takes a job that was training a moment ago, returns whether it struck; the job may have ended
# then. A job that came to its last step before the fault could act was not struck, and is not touched.


def killed(job: Job) -> bool:
    """Kill the training."""
    return job.kill()


def killed_while_writing(job: Job) -> bool:
    """Kill the training within 10 ms of beginning to write a file."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and job.process.is_running() and job.ended() is None:
        if any(job.work_dir.glob('.*.part')):
            time.sleep(job.draw.uniform(0, 0.01))
            return job.kill()
    return False


def asked_to_stop(job: Job) -> bool:
    """Send SIGTERM, as a cluster does; the training has to write a checkpoint and end within 60 s."""
    job.process.send_signal(signal.SIGTERM)
    return job.ended(60) == STOPPED


def worker_killed(job: Job) -> bool:
    """Kill a process of the data loader; the training replaces it."""
    workers = job.workers()
    return bool(workers) and strike(job.draw.choice(workers), 'kill')


def worker_hangs(job: Job) -> bool:
    """Suspend the processes of the data loader; the training has to notice and to end itself.

    Raises:
        UserError: it did not.
    """
    workers = [worker for worker in job.workers() if strike(worker, 'suspend')]
    status = job.ended(6 * TIMEOUT)
    for worker in workers:
        strike(worker, 'kill')
    if status not in (0, 1):  # 0: what it needed up to its last step had been read before
        raise UserError(f'{job.log}: a training whose data loader hangs did not end itself')
    return bool(workers) and status == 1


def checkpoint_truncated(job: Job) -> bool:
    """Kill the training and cut its newest checkpoint short, if there is an older one."""
    newest = checkpoints_in(job.work_dir) if job.kill() else []
    if len(newest) > 1:
        os.truncate(newest[0], job.draw.randrange(newest[0].stat().st_size))
    return len(newest) > 1


def checkpoint_bit_flipped(job: Job) -> bool:
    """Kill the training and turn one bit of its newest checkpoint, if there is an older one."""
    newest = checkpoints_in(job.work_dir) if job.kill() else []
    if len(newest) > 1:
        with newest[0].open('r+b') as stream:
            stream.seek(place := job.draw.randrange(newest[0].stat().st_size))
            byte = stream.read(1)[0] ^ 1 << job.draw.randrange(8)
            stream.seek(place)
            stream.write(bytes([byte]))
    return len(newest) > 1


def image_vanishes(job: Job) -> bool:
    """Remove an image for some steps, during which it may be wanted; then the training ends and names it."""
    images = sorted((job.data / 'train').rglob('*.png'))
    for image in (chosen := job.draw.sample(images, len(images) // 2)):
        image.rename(image.with_suffix('.gone'))
    status = job.ended(30)
    for image in chosen:
        image.with_suffix('.gone').rename(image)
    return status == 1


def disk_full(job: Job) -> bool:
    """Fill the disk for a second or two: checkpoints cannot be written, the training goes on."""
    filler = job.work_dir / 'filler'
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(handle, bytes(1 << 12)):
            pass
    os.close(handle)
    running = job.ended() is None
    job.ended(job.draw.uniform(0.5, 2))
    filler.unlink()
    return running


def rank_killed(job: Job) -> bool:
    """Kill any rank; torchrun starts all again, which resume by themselves."""
    return worker_killed(job)


def rank_hangs(job: Job) -> bool:
    """Suspend a rank; the others wait for it, end themselves, and torchrun starts all again.

    Raises:
        UserError: the trainings did not end by themselves.
    """
    workers = job.workers()
    rank = job.draw.choice(workers) if workers else None
    if not (rank and strike(rank, 'suspend')):
        return False
    deadline = time.monotonic() + 15 * TIMEOUT  # torchrun alone gives it 30 s
    while lives(rank):
        if job.finished():  # nothing watches any more, and the others wait for it to leave with them
            strike(rank, 'resume')
            return False
        if time.monotonic() > deadline:
            raise UserError(f'{job.log}: a training with a rank that hangs did not end itself')
        time.sleep(0.5)
    return True


def named(*functions) -> dict:
    """Return functions by their names in words."""
    return {function.__name__.replace('_', ' '): function for function in functions}


FAULTS = named(
    *(killed, killed_while_writing, asked_to_stop, worker_killed, worker_hangs),
    *(checkpoint_truncated, checkpoint_bit_flipped, image_vanishes, disk_full),
)
FAULTS_OF_SEVERAL = named(rank_killed, rank_hangs, killed)


def mounted(folder: Path) -> bool:
    """Mount a file system of 8 MB at ``folder``, for a disk that is full; only root can."""
    folder.mkdir(parents=True)
    line = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    return os.getuid() == 0 and subprocess.run(line, capture_output=True).returncode == 0


def suffer(job: Job, kinds: list[str]) -> tuple[Counter, str]:
    """Run a job through faults of these kinds.

    Returns:
        How often each struck, and what became of the job.
    """
    struck = Counter()
    has_disk = mounted(job.work_dir)
    try:
        job.start()
        for kind in kinds:
            while not job.wait_until_training():
                if job.ended() == 0:
                    return struck, 'survived'
                if not job.may_start_again():
                    return struck, f'lost (status {job.ended()} by itself)'
                job.start()
                if job.launched > 4 * len(kinds) + 4:
                    return struck, 'lost (it does not come on)'
            if kind == 'disk full' and not has_disk:
                continue
            struck[kind] += (FAULTS | FAULTS_OF_SEVERAL)[kind](job)
        while (status := job.ended(120)) != 0:
            if not job.may_start_again() or job.launched > 4 * len(kinds) + 4:
                return struck, f'lost (status {status})'
            job.start()
        return struck, 'survived'
    finally:
        for process in (
            [*job.process.children(recursive=True), job.process] if job.process.is_running() else []
        ):
            strike(process, 'kill')


def main(argv=None) -> None:
    """Run jobs until so many faults have struck, compare each with the untouched one, print the counts.

    Raises:
        UserError: a job was lost or differs, or the faults do not strike.
    """
    args = parse_args(argv)
    torch.set_num_threads(1)
    out = Path(args.out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    data = make_shapes(out / 'shapes', images=(1, 1), crops=(60, 10), size=64) / 'classification'
    config = out / 'torture.py'
    config.write_text(CONFIG.format(root=verify_resume.ROOT, steps=2 * STEPS, timeout=TIMEOUT))
    straight = Job(out / 'straight', config, data, args.processes, random.Random(args.seed))
    straight.start()
    if straight.ended(300) != 0:
        raise UserError(f'the untouched training failed: {straight.log}')
    draw, total, number = random.Random(args.seed), Counter(), 0
    fates, began = {}, time.monotonic()
    for kind in args.only or (FAULTS if args.processes == 1 else FAULTS_OF_SEVERAL):
        fates[kind] = Counter()
    while sum(total.values()) < args.kills:
        kinds = draw.choices(list(fates), k=min(args.per_job, args.kills - sum(total.values())))
        job = Job(out / f'job{number}', config, data, args.processes, random.Random(draw.random()))
        try:
            struck, fate = suffer(job, kinds)
            if fate == 'survived':
                different = verify_resume.compare(straight.work_dir, job.work_dir, STEPS)
                if struck['disk full']:  # rows of the log could not be written, either
                    different = [name for name in different if not name.startswith('log')]
                fate = f'differs in {", ".join(different[:3])}' if different else fate
        finally:
            subprocess.run(['umount', '--lazy', str(job.work_dir)], capture_output=True)
        total += struck
        for kind in +struck:
            fates[kind][fate.split()[0]] += 1
        print(f'{sum(total.values()):4d} faults; job {number}: {", ".join(kinds)}: {fate}', flush=True)
        if fate == 'survived':
            shutil.rmtree(job.folder)
        number += 1
        if not +struck and number > 3 * args.kills:
            raise UserError('the faults do not strike: choose others')
    print(f'\n{"fault":24s} {"struck":>6s}   jobs: {"survived":>8s} {"lost":>6s} {"differing":>9s}')
    for kind, fate in fates.items():
        print(f'{kind:24s} {total[kind]:6d} {fate["survived"]:16d} {fate["lost"]:6d} {fate["differs"]:9d}')
    bad = sum(fate['lost'] + fate['differs'] for fate in fates.values())
    minutes = (time.monotonic() - began) / 60
    print(f'{sum(total.values())} faults in {number} jobs, {minutes:.1f} minutes')
    if bad:
        raise UserError(f'jobs were lost or differ, see their folders in {out}')


if __name__ == '__main__':
    run(main)
