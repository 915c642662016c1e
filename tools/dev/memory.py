"""Measure the memory of a training step of T, B and L, this package's and others', and what reduces it.

    python -m tools.dev.memory                     what an image keeps for the backward pass; batches
    python -m tools.dev.memory --device cuda       the same by CUDA's counters, beside the prediction
    python -m tools.dev.memory --parts models      whole detectors and segmenters, by steps of the plan
    python -m tools.dev.memory --parts recompute   the time that with_cp=True costs, in turn
    python -m tools.dev.memory --parts fsdp        two processes on a CPU: FSDP2 beside DDP

Prints Markdown tables. Stochastic depth is off, so that no sample is left out.
"""

import contextlib
import functools
import gc
import math
import statistics
import tempfile
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from convnext_backbone.cli import Parser, run
from convnext_backbone.config import choose_device, choose_precision, read_config
from convnext_backbone.contest import PEERS, Cell, about, admitted, ours, random_weights
from convnext_backbone.contest.backbones import loss_of
from convnext_backbone.contest.timing import timed
from convnext_backbone.engine.launch import shard
from convnext_backbone.plan import CARDS, Line, LiveBytes, measure_steps
from convnext_backbone.plan.steps import bytes_of

SIDES = dict(cpu=64, cuda=224)  # of the images that are counted: what is kept is in proportion to the pixels
SIDE = 224  # of those of a classifier
BATCHES = (2, 4)
CONTEXT = 0.6 * 2**30  # bytes that CUDA, cuBLAS and cuDNN have; an assumption
STATE = 16  # bytes of a parameter: weight, gradient and two moments in float32
PRECISIONS = ('autocast', 'float32')
MODELS = {  # config: height and width of an image; images of a step
    'mask_rcnn_convnext_t': ((800, 1280), 1),
    'cascade_convnext_b': ((800, 1280), 1),
    'cascade_convnext_l_in22k': ((800, 1280), 1),
    'upernet_convnext_t': ((512, 512), 2),
    'upernet_convnext_b': ((512, 512), 2),
    'upernet_convnext_l_in22k': ((640, 640), 2),
}
PARTS = ('backbones', 'models', 'recompute', 'fsdp')


@dataclass(frozen=True)
class Counted:
    """Holds bytes of activations: ``kept`` for the backward pass, ``peak`` at most, with those."""

    kept: int
    peak: int


def count(model: nn.Module, images: torch.Tensor, autocast: bool) -> Counted:
    """Return the bytes that a forward pass keeps, and the most that a backward pass has beside it.

    The gradient is that of the images, so that those of the parameters are left out, whose bytes are known.

    Args:
        model: gives maps or logits; in training.
        images: (N, 3, H, W), on the device of the model.
        autocast: bfloat16.
    """
    images.requires_grad_()
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    cuda = images.is_cuda
    live = None if cuda else LiveBytes([*model.parameters(), *model.buffers(), images, labels])
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated() if cuda else 0
    with live or contextlib.nullcontext():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            loss = loss_of(model(images), labels)
        kept = torch.cuda.memory_allocated() - start if cuda else live.now
        torch.autograd.grad(loss, images)
        peak = torch.cuda.max_memory_allocated() - start if cuda else live.peak
    return Counted(kept, peak)


def lines_of(model: nn.Module, precision: str, device: str) -> list[Line]:
    """Return the lines of what is kept and at most alive, for images of 224 x 224; the better layout.

    Args:
        model: a classifier.
        precision: ``'autocast'`` or ``'float32'``.
        device: of the model: on a CPU smaller images are counted.
    """
    found, side = [], SIDES[device]
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout).train()
        counts = []
        for batch in (BATCHES[0], *BATCHES):  # the first one chooses algorithms and opens libraries
            images = torch.randn(batch, 3, side, side).to(device, memory_format=layout)
            counts.append(count(model, images, precision == 'autocast'))
        pairs = [(getattr(counts[1], name), getattr(counts[2], name)) for name in ('kept', 'peak')]
        lines = [Line.through(BATCHES[0], low, BATCHES[1], high) for low, high in pairs]
        found.append([Line(line.fixed, line.per_image * (SIDE / side) ** 2) for line in lines])
    return min(found, key=lambda lines: lines[0].per_image)


def fixed_bytes(parameters: int, precision: str) -> float:
    """Return the bytes of a training that no image adds to: states, copies in bfloat16, and CUDA's own."""
    return parameters * (STATE + 2 * (precision == 'autocast')) + CONTEXT


def largest(memory: float, fixed: float, per_image: float) -> int:
    """Return how many images fit."""
    return max(0, math.floor((memory - fixed) / per_image))


def contestants(size: str, device: str, weights: dict) -> dict:
    """Return the builders of a size by name: ours, also with checkpoints, and peers that compute the same."""
    found = admitted(Cell(size, 'classify', 'training', 'float32', False, 2, device), weights, list(PEERS))
    return {'ours': found.pop('ours'), 'ours, with_cp': functools.partial(ours, with_cp=True), **found}


def backbones(args, device: str) -> str:
    """Return the tables of what an image needs, and of the largest batches of a classifier.

    On CUDA the classifier's steps are measured, too, beside the prediction.
    """
    rows, fitting = [], []
    for size in args.sizes:
        weights = random_weights(size)
        parameters = sum(t.numel() for t in weights.values())
        for name, build in contestants(size, device, weights).items():
            model = build(size, False, 0.0, weights).to(device)
            for precision in PRECISIONS:
                kept, peak = lines_of(model, precision, device)
                pixels = [SIDE**2, 512**2, 640**2, 800 * 1280]
                cells = [f'{kept.per_image * n / SIDE**2 / 2**20:,.0f}' for n in pixels]
                cells.append(f'{(peak.per_image - kept.per_image) / 2**20:,.1f}')
                rows.append([precision, size, name, *cells])
                cells = _batches(fixed_bytes(parameters, precision), peak.per_image)
                if device == 'cuda':
                    line = measured_line(model, precision)
                    cells += _batches(line.fixed + CONTEXT, line.per_image)
                    cells.append(f'{line.per_image / 2**20:,.1f} / {peak.per_image / 2**20:,.1f}')
                fitting.append([precision, size, name, *cells])
            del model
            gc.collect()
            print('.', end='', flush=True)
    first = ['precision', 'size', 'network']
    kept = ['224 x 224', '512 x 512', '640 x 640', '800 x 1280', 'workspace at 224']
    cards = [f'{card} GiB' for card in CARDS]
    measured = [f'{card}, measured' for card in cards] + ['MiB per image: measured / counted']
    return (
        '\n\nMiB that an image keeps for the backward pass\n\n'
        + table([*first, *kept], sorted(rows, key=lambda row: row[0]))
        + '\n\nLargest batch of the classifier at 224 x 224, predicted\n\n'
        + table([*first, *cards, *measured * (device == 'cuda')], sorted(fitting, key=lambda row: row[0]))
    )


def _batches(fixed: float, per_image: float) -> list[str]:
    return [f'{largest(card * 2**30, fixed, per_image):,}' for card in CARDS]


def measured_line(model: nn.Module, precision: str) -> Line:
    """Return the line through CUDA's peaks of whole training steps of a classifier, with AdamW."""
    optimizer, peaks, batches = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True), [], (16, 32)
    for batch in (batches[0], *batches):  # the optimizer's state is made at the end of the first step
        images = torch.randn(batch, 3, SIDE, SIDE, device='cuda').to(memory_format=torch.channels_last)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast('cuda', torch.bfloat16, enabled=precision == 'autocast'):
            loss = loss_of(model(images), torch.zeros(batch, dtype=torch.long, device='cuda'))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
        del loss, images
    return Line.through(batches[0], peaks[1], batches[1], peaks[2])


def models(args, device: str) -> str:
    """Return the table of whole models, as published but for stochastic depth, with and without with_cp.

    All that is alive at most beside the fixed part is taken to be in proportion to the images.
    """
    rows = []
    for name, (image, batch) in MODELS.items():
        if not any(f'_{size[0]}' in name for size in args.sizes):
            continue
        for with_cp in (False, True):
            cfg = read_config(name)
            choose_precision(cfg, False, device)
            cfg.model.backbone.update(with_cp=with_cp, drop_path_rate=0.0)
            sheet = measure_steps(cfg, image, batch, device=device, timed=False)
            kept = [sheet.kept['backbone'], sheet.kept['neck'] + sheet.kept['heads']]
            workspace = max(0, sheet.growth - sheet.gradients - sum(kept))
            fixed = sheet.weights + sheet.gradients + sheet.state
            cells = [f'{n / 2**20:,.0f}' for n in (fixed, *(size / batch for size in (*kept, workspace)))]
            cells += _batches(fixed + CONTEXT, (sum(kept) + workspace) / batch)
            label = f'`{name}`' + ', with_cp' * with_cp
            rows.append([label, f'{batch} x {image[0]} x {image[1]}', *cells])
            print('.', end='', flush=True)
    heads = [
        'config',
        'images',
        'weights, gradients, AdamW',
        'kept: backbone',
        'kept: neck, heads',
        'workspace',
    ]
    return '\n\nMiB, but for the first of an image; the largest batch, predicted\n\n' + table(
        [*heads, *(f'{card} GiB' for card in CARDS)], rows
    )


def recompute(args, device: str) -> str:
    """Return the table of the time that activation checkpointing costs, both contestants in turn."""
    rows, batch = [], 4 if device == 'cpu' else 64
    for size in args.sizes:
        weights = random_weights(size)
        images = torch.randn(batch, 3, SIDE, SIDE, device=device)
        steps = []
        for with_cp in (False, True):
            model = ours(size, False, 0.0, weights, with_cp=with_cp).to(device).train()
            steps.append(functools.partial(_step, model, torch.optim.AdamW(model.parameters()), images))
            steps[-1]()
        turns = [[timed(step, device) for step in steps] for _ in range(args.rounds)]
        ratio = statistics.median(second / first for first, second in turns)
        medians = [statistics.median(column) * 1e3 for column in zip(*turns)]
        rows.append([size, f'{medians[0]:,.0f}', f'{medians[1]:,.0f}', f'{ratio:.2f}'])
    heads = ['size', 'ms per step', 'with_cp', 'ratio']
    return f'\n\nTraining step, {batch} x 224 x 224, float32\n\n' + table(heads, rows)


def _step(model: nn.Module, optimizer, images: torch.Tensor) -> None:
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    loss_of(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def fsdp(args, device: str) -> str:
    """Return the table of bytes and time of two processes with DDP and with FSDP2, in turn, on this CPU."""
    with tempfile.NamedTemporaryFile() as file:
        context = torch.multiprocessing.get_context('spawn')
        answers = context.SimpleQueue()
        options = (args.sizes, args.rounds, file.name, answers)
        torch.multiprocessing.spawn(_process, options, nprocs=2)
        rows = answers.get()
    heads = ['size', 'DDP, MiB per process', 'FSDP2', 'DDP, ms per step', 'FSDP2', 'ratio']
    return '\n\nParameters, gradients and AdamW state; 1 x 64 x 64 per process, gloo\n\n' + table(heads, rows)


def _process(rank: int, sizes: list[str], rounds: int, file: str, answers) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{file}.store', rank=rank, world_size=2)
    rows, images = [], torch.randn(1, 3, 64, 64)
    for size in sizes:
        weights = random_weights(size)
        models = [ours(size, False, 0.0, weights).train() for _ in range(2)]
        models[0] = DistributedDataParallel(models[0])
        shard(models[1], 'cpu')
        optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
        held = []
        for model, optimizer in zip(models, optimizers):
            loss_of(model(images), torch.zeros(1, dtype=torch.long)).backward()
            optimizer.step()
            state = [t for t in tree_leaves(list(optimizer.state.values())) if isinstance(t, torch.Tensor)]
            tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *state]
            held.append(bytes_of(t.to_local() if hasattr(t, 'to_local') else t for t in tensors) / 2**20)
            optimizer.zero_grad()
        steps = [functools.partial(_step, m, o, images) for m, o in zip(models, optimizers)]
        turns = [[timed(step, 'cpu') for step in steps] for _ in range(rounds)]
        ratio = statistics.median(second / first for first, second in turns)
        times = [f'{statistics.median(column) * 1e3:,.0f}' for column in zip(*turns)]
        rows.append([size, *(f'{value:,.0f}' for value in held), *times, f'{ratio:.2f}'])
        del models, optimizers, steps, model, optimizer, state, tensors
        gc.collect()
    if rank == 0:
        answers.put(rows)
    distributed.destroy_process_group()


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [heads, ['---'] * len(heads), *rows])


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        '--sizes', nargs='+', default=['tiny', 'base', 'large'], choices=('tiny', 'base', 'large')
    )
    parser.add_argument('--parts', nargs='+', default=['backbones'], choices=PARTS)
    parser.add_argument('--rounds', type=int, default=5, help='turns of what is timed')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Print a table for each part."""
    args = parse_args(argv)
    device = choose_device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    print(about(device), flush=True)
    for part in args.parts:
        print(dict(backbones=backbones, models=models, recompute=recompute, fsdp=fsdp)[part](args, device))


if __name__ == '__main__':
    run(main)
