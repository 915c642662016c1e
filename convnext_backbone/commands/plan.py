"""Say what a training needs before it is started, by a few real steps on made-up images of the largest size.

convnext plan cascade_convnext_t
convnext plan CONFIG --batch 4 --gpus 16      another batch per GPU, another number of GPUs
convnext plan CONFIG --out plans              write plans/plan.json too
convnext plan CONFIG --loading                images per second of the data loader instead, on your data

Memory by part, the largest batch, time, disk, what would help, and the hours on up to 512 GPUs. Neither data
nor weights are needed; a few minutes on a CPU, where the times are those of this machine. With --loading
nothing is trained: the training images are read and augmented by 0, 1, 2, 4 ... worker processes.
"""

import contextlib
import copy
import dataclasses
import json
import sys
from pathlib import Path

import torch
from mmengine.registry import DefaultScope

from ..checks import check_config
from ..cli import Parser
from ..config import (
    check_work_dir,
    choose_device,
    choose_precision,
    read_config,
    set_data_root,
    task_of,
    use_stand_ins,
)
from ..errors import UserError
from ..plan import (
    BUCKET,
    CARDS,
    INFINIBAND,
    MARGIN,
    NODE,
    NVLINK,
    Line,
    Sheet,
    Step,
    averages,
    batches,
    disk_of,
    estimate,
    helps,
    images_per_second,
    largest_batch,
    largest_shape,
    least_batch,
    length_of,
    measure_steps,
    parts_of_an_image,
    variants,
    worker_counts,
)

MOST_GPUS = 512
CROWDED = 0.8  # of a processor: a process that has less shares it with others


def parse_args(argv=None):
    """Return the options of the command line."""
    from ..engine.run import DEVICES

    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('--gpus', type=int, default=8, help='of the training; default 8, as the recipes')
    parser.add_argument('--batch', type=int, metavar='N', help="images per GPU; default: the config's")
    parser.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help='of the images')
    parser.add_argument(
        '--link',
        type=float,
        metavar='GB/s',
        default=INFINIBAND / 1e9,
        help='bandwidth between machines, for each GPU; default 40, InfiniBand NDR',
    )
    parser.add_argument('--loading', action='store_true', help='measure the data loader instead of the model')
    parser.add_argument('--out', type=Path, metavar='DIR', help='write the numbers to plan.json there')
    parser.add_argument('--device', choices=DEVICES, help='default: cuda where there is a GPU')
    parser.add_config_options()
    args = parser.parse_args(argv)
    for name in ('gpus', 'batch', 'link'):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise UserError(f'--{name} is a number above 0, got {value:g}')
    if args.shape and min(args.shape) < 1:
        raise UserError(f'--shape is height and width in pixels, got {args.shape[0]} {args.shape[1]}')
    return args


def main(argv=None) -> dict:
    """Print the plan, and return it as it is written to ``plan.json``.

    Raises:
        UserError: bad input, not even one image fits, or with ``--loading`` the data is not there.
    """
    args = parse_args(argv)
    if args.out:
        check_work_dir(args.out, '--out')
    with contextlib.redirect_stdout(sys.stderr):  # what other libraries print is no part of the result
        device = choose_device(args.device)
        cfg = read_config(args.config, args.cfg_options)
        needed = ('train_dataloader', 'train_cfg', 'optim_wrapper')
        if absent := [key for key in needed if not cfg.get(key)]:
            raise UserError(
                f'{args.config} has no {", ".join(absent)}: a plan is for a config that is trained'
            )
        if args.data_root:
            set_data_root(cfg, args.data_root)
        if not args.loading:
            notes = choose_precision(cfg, False, device)
            plan = _Plan(args, cfg, device)
    if args.loading:
        found = _loading(args.config, cfg)
    else:
        print(plan.title(), flush=True)
        print('\n'.join(notes), end='\n' if notes else '')
        for section in (plan.memory, plan.batches, plan.time, plan.disk, plan.changes, plan.cluster):
            print(f'\n{section()}', flush=True)
        found = plan.found
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        file = args.out / 'plan.json'
        file.write_text(json.dumps(found, indent=1) + '\n')
        print(f'\nwritten: {file}')
    return found


def gib(size: float) -> str:
    """Return bytes in GiB, as a number of the tables."""
    return f'{size / 2**30:.2f}' if size >= 2**27 else f'{size / 2**30:.3f}'


def duration(seconds: float) -> str:
    """Return seconds in the unit that fits."""
    for unit, length in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * length:
            return f'{seconds / length:.1f} {unit}'
    return f'{seconds:.2f} s'


class _Plan:
    """Measures what the sections say, and writes each of them.

    Attributes:
        found: what is written to ``plan.json``.
    """

    def __init__(self, args, cfg, device: str):
        self.args, self.cfg, self.device = args, cfg, device
        self.shape = largest_shape(cfg, args.shape)
        self.batch = args.batch or cfg.train_dataloader.get('batch_size') or 1
        self.length = length_of(cfg, self.batch, args.gpus)
        self.multiple = 2 if cfg.model.get('mixup') else 1  # it needs pairs of images
        least = least_batch(cfg)
        self.largest = self.mixed = self.line = self.other = None
        if device == 'cuda':
            step = max(least, self.multiple)
            self.largest = largest_batch(cfg, self.shape.size, counts=self.length.counts, step=step)
            self.high = min(self.batch, self.largest) or step
        else:
            self.high, self.other = batches(self.batch, self.shape.size, least, self.multiple)
        self.base = self._measure(cfg, self.shape.size, self.high)
        self.average = self.base.weights if averages(cfg) else 0
        if self.other:
            other = self._measure(cfg, self.shape.size, self.other, timed=False)
            self.line = Line.through(
                self.other, other.peak + self.average, self.high, self.base.peak + self.average
            )
        self.seconds = self.base.seconds * self.batch / self.high
        self.step = Step(
            self.seconds,
            self.base.backward * self.batch / self.high,
            4 * self.base.trainable,
            self.batch,
        )
        self.found = dict(
            config=args.config,
            device=self._device(),
            batch=self.batch,
            gpus=args.gpus,
            shape=dataclasses.asdict(self.shape),
            length=dataclasses.asdict(self.length),
            measured=dataclasses.asdict(self.base),
            measured_error=self.base.error,
            moving_average=self.average,
        )

    def _measure(self, cfg, size, batch: int, timed: bool = True) -> Sheet:
        return measure_steps(cfg, size, batch, counts=self.length.counts, device=self.device, timed=timed)

    def _device(self) -> str:
        if self.device == 'cuda':
            return torch.cuda.get_device_name()
        return f'CPU, {torch.get_num_threads()} thread{"s" * (torch.get_num_threads() > 1)}'

    def title(self) -> str:
        height, width = self.shape.size
        lines = [
            f'{self.args.config}: {self.batch} images of {height} x {width} (height x width) per process, '
            f'measured on this machine ({self._device()})',
            f'largest image: {self.shape.how}',
        ]
        if self.shape.mixed and self.batch > 1:
            lines.append(
                f'a batch with a wide and an upright image is padded up to {self.shape.mixed[0]} x '
                f'{self.shape.mixed[1]}, see the last line of the memory'
            )
        if self.high != self.batch:
            lines.append(f'measured with {self.high} images, computed in proportion for {self.batch}')
        return '\n'.join(lines)

    def memory(self) -> str:
        """Write the memory by part."""
        base = self.base
        rows = [('parameters, buffers', base.weights), ('gradients', base.gradients)]
        rows += [('optimizer state', base.state)]
        rows += [('moving average', self.average)] * bool(self.average)
        rest = 'all parts' if task_of(self.cfg.model) == 'pretraining' else 'heads, losses'
        names = dict(backbone='backbone', neck='neck', heads=rest)
        rows += [(f'kept activations: {names[part]}', size) for part, size in base.kept.items() if size]
        rows += [('peak of a step, all of it', base.peak + self.average)]
        lines = [f'Memory with {self.high} images, GiB']
        lines += [f'  {name:34s} {gib(size):>8s}' for name, size in rows]
        if self.line and self.high != self.batch:
            lines.append(
                f'  {f"peak with {self.batch} images, by line":34s} {gib(self.line(self.batch)):>8s}'
            )
        if self.shape.mixed and self.high > 1:
            self.mixed = self._measure(self.cfg, self.shape.mixed, self.high, timed=False)
            name = 'peak, padded to {} x {}'.format(*self.shape.mixed)
            self.found['mixed'] = dataclasses.asdict(self.mixed)
            lines.append(f'  {name:34s} {gib(self.mixed.peak + self.average):>8s}')
        if base.measured:
            lines.append(
                f'  counted from tensors: a step needs {gib(base.growth)} beside parameters and state; the '
                f'process that made it grew by {gib(base.measured)}: counted {base.error:+.0%}'
            )
        elif self.device == 'cuda':
            lines.append('  of the allocator of PyTorch (peak of what was allocated)')
        return '\n'.join(lines)

    def batches(self) -> str:
        """Write the largest batch that fits."""
        if self.line is None:
            self.found['largest_batch'] = self.largest
            late = f'; {self.batch} images do not fit' if self.largest < self.batch else ''
            return (
                f'Largest batch on this GPU: {self.largest} (tried by doubling and bisection, with '
                f'{MARGIN:.0%} of the memory left free){late}'
            )
        fitting = {card: self.line.largest(card * 2**30, self.multiple) for card in CARDS}
        self.found['largest_batch'] = fitting
        self.found['line'] = dataclasses.asdict(self.line)
        lines = [
            f'Largest batch: {", ".join(f"{n} images on {card} GiB" for card, n in fitting.items())}',
            f'  computed: {gib(self.line.fixed)} GiB + {gib(self.line.per_image)} per image, the line '
            'through the peaks',
            f'  at {self.high} and {self.other} images in float32; {MARGIN:.0%} left free',
        ]
        if self.mixed:
            padded = Line.through(0, self.line.fixed, self.high, self.mixed.peak + self.average)
            fitting = {card: padded.largest(card * 2**30, self.multiple) for card in CARDS}
            self.found['largest_batch_padded'] = fitting
            counts = ', '.join(f'{n} on {card} GiB' for card, n in fitting.items())
            lines.append('  padded to {} x {}: {}'.format(*self.shape.mixed, counts))
        return '\n'.join(lines)

    def time(self) -> str:
        """Write time per step, per epoch and in all."""
        images, length, gpus = self.length.images, self.length, self.args.gpus
        row = self._row(gpus)
        part = self.base
        lines = [
            f'Time, at the largest size: {self.seconds:.2f} s per step of {self.batch} images '
            f'(forward {part.forward / part.seconds:.0%}, backward {part.backward / part.seconds:.0%})'
        ]
        if self.device == 'cpu' and part.share < CROWDED:
            lines.append(
                f'  the process had {part.share:.0%} of a processor: others compete, so that all times, '
                'also those of changes, are uncertain'
            )
        with_gpus = f'{gpus} process{"es" * (gpus > 1)}'
        if images:
            steps = max(1, round(images / (self.batch * gpus)))
            per_epoch = steps * (row.step if row else self.seconds)
            lines.append(
                f'  epoch of {images:,} images ({length.source}): {steps:,} steps on {with_gpus}, '
                f'{duration(per_epoch)}'
            )
            self.found['epoch_seconds'] = per_epoch
        if row:
            what = (
                f'{length.epochs} epochs' if length.epochs else f'{length.iterations:,} steps of the config'
            )
            lines.append(
                f'  in all ({what}): {row.steps:,} steps on {with_gpus}, {duration(row.hours * 3600)}'
            )
            self.found['seconds'] = row.hours * 3600
        else:
            lines.append(f'  in all ({length.epochs} epochs): unknown, {length.source}: give --data-root')
        lines.append('  left out: validation, reading data, writing checkpoints; smaller images take less')
        return '\n'.join(lines)

    def _row(self, gpus: int):
        seen = self.length.seen(self.batch * self.args.gpus)
        return None if seen is None else estimate(self.step, gpus, seen, self.args.link * 1e9)

    def disk(self) -> str:
        """Write what the checkpoints need."""
        disk = disk_of(self.cfg, self.length, self.base.weights, self.base.state)
        self.found['disk'] = {**dataclasses.asdict(disk), 'bytes': disk.bytes}
        best = f', {disk.bests} best of {gib(disk.best)}' if disk.bests else ''
        return (
            f'Disk: {gib(disk.bytes)} GiB: {disk.kept} checkpoint{"s" * (disk.kept > 1)} of '
            f'{gib(disk.regular)}, one every {disk.interval}{best}; one more while the oldest is still there'
        )

    def changes(self) -> str:
        """Write what would help, by the same steps with each change."""
        rows, failed = [], []
        for name, cfg, size in variants(self.cfg, self.shape.size, self.device):
            try:
                sheet = self._measure(cfg, size, self.high)
            except UserError as error:
                failed.append(f'  {name}: not measured: {error}')
                continue
            if helps(sheet, self.base):
                rows.append((name, sheet.peak / self.base.peak - 1, sheet.seconds / self.base.seconds - 1))
        self.found['changes'] = [dict(change=n, memory=m, time=t) for n, m, t in rows]
        lines = [
            f'What would help{"":27s} memory     time'
            if rows
            else 'What would help: nothing of what was tried'
        ]
        lines += [f'  {name:40s} {memory:+7.0%}  {time:+7.0%}' for name, memory, time in rows]
        return '\n'.join([*lines, *failed])

    def cluster(self) -> str:
        """Write the hours on many GPUs."""
        numbers, gpus = [], self.args.gpus
        while gpus <= MOST_GPUS or not numbers:
            numbers.append(gpus)
            gpus *= 2
        rows = [row for row in map(self._row, numbers) if row]
        if not rows:
            return 'Many GPUs: the number of images is unknown, so are the hours'
        self.found['cluster'] = [dataclasses.asdict(row) for row in rows]
        lines = [
            'Many GPUs',
            '  GPUs  images/step  all-reduce  of it waited  s/step    steps      hours  efficiency',
        ]
        for row in rows:
            times = f'{row.reduce * 1e3:7.1f} ms  {row.exposed * 1e3:9.1f} ms  {row.step:6.3f}'
            lines.append(
                f'  {row.gpus:4d}  {row.batch:11,d}  {times}  {row.steps:7,d}  {row.hours:9.2f}  '
                f'{row.efficiency:9.1%}'
            )
        whose = 'this machine, not of a GPU' if self.device == 'cpu' else 'this GPU'
        reduced = f'{gib(self.step.gradient_bytes)} GiB of gradients are reduced in a ring, 2 (n - 1) / n of'
        lines += [
            f'  assumed: computation takes the time of {whose}, with the same batch on each;',
            f'  {reduced} them by each',
            f'  at {NVLINK / 1e9:.0f} GB/s within {NODE} GPUs (NVLink), at {self.args.link:g} GB/s beyond;',
            f'  all but the last bucket of {BUCKET // 2**20} MiB overlaps with the backward pass '
            f'({self.step.backward:.2f} s);',
            '  left out: latency, waiting for the slowest process, SyncBN, reading data',
        ]
        if recipe := self.length.recipe_batch:
            lines.append(
                f'  the recipe is for {recipe:,} images per update: with more it is another training, whose '
                'result this does not say'
            )
        return '\n'.join(lines)


def _loading(name: str, cfg) -> dict:
    """Print what the data loader of a training gives, and where its time goes; return the numbers.

    Raises:
        UserError: the data is not there, or has less than two rounds of batches.
    """
    check_config(cfg, ('train_dataloader',), 'none').raise_errors()
    with contextlib.redirect_stdout(sys.stderr):
        use_stand_ins(cfg)
    scope, batch = cfg.get('default_scope') or 'mmengine', cfg.train_dataloader.get('batch_size', 1)
    print(f'{name}: batches of {batch} images of train_dataloader, as a training reads them', flush=True)
    rates = {}
    with DefaultScope.overwrite_default_scope(scope):
        print('\nworkers   images/s   per worker')
        for workers in worker_counts():
            rates[workers] = images_per_second(_loader(cfg, workers))
            each = f'{rates[workers] / workers:12.1f}' if workers else '           -'
            print(f'{workers:7d} {rates[workers]:10.1f} {each}', flush=True)
        parts = parts_of_an_image(_loader(cfg, 0))
    whole = sum(parts.values())
    print('\nWhere the time of an image goes, one process      ms    share')
    for part, seconds in [*parts.items(), ('all', whole)]:
        print(f'  {part:43s} {seconds * 1e3:8.2f} {seconds / whole:8.1%}')
    print(
        '  each step without those within it; files that the machine has read before come from its memory;\n'
        '  a training that takes N images/s needs N / (images/s per worker) workers, and as many cores'
    )
    return dict(config=name, batch=batch, images_per_second=rates, seconds_of_an_image=parts)


def _loader(cfg, workers: int):
    """Build the data loader of a training with a number of workers; it begins anew where the data ends."""
    from ..engine.runner import Runner, resumable

    loader = copy.deepcopy(cfg.train_dataloader)
    loader.num_workers = workers
    if not workers:
        loader.persistent_workers = False
        loader.pop('prefetch_factor', None)
    return Runner.build_dataloader(resumable(loader, True, 0), seed=0)
