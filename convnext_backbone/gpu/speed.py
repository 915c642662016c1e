"""Times the backbone against other libraries on a GPU, the most telling cells first, until time is up."""

import time
from collections.abc import Iterator
from itertools import product

import torch

from .. import contest
from ..ops import trial
from .rows import Row

SIZES, TASKS = ('tiny', 'base'), ('classify', '1x800x1280')
PEERS = ('timm', 'torchvision')
CAPTURED = ('timm',)  # torchvision's training step cannot be captured (0.26)
BATCH, SMALLEST = 128, 8  # images to classify; halved until they fit
ROUNDS, SECONDS = 3, 0.3


def cells() -> list[contest.Cell]:
    """Return the comparisons, bfloat16: eager ones first, and as CUDA graphs; then by ``torch.compile``."""
    found = []
    for compiled, size, captured, task, mode in product(
        (False, True), SIZES, (False, True), TASKS, ('training', 'inference')
    ):
        batch = BATCH if task == 'classify' else int(task.split('x')[0])
        found.append(contest.Cell(size, task, mode, 'bfloat16', compiled, batch, 'cuda', captured))
    return found


def compare(cell: contest.Cell) -> dict:
    """Run a cell; with half the batch, and so on, if memory does not suffice."""
    weights = contest.random_weights(cell.size)
    peers = CAPTURED if cell.captured else PEERS
    builders = contest.OURS | {name: contest.PEERS[name] for name in peers}
    while True:
        try:
            return contest.contest(cell, weights, builders, ROUNDS, SECONDS)
        except torch.OutOfMemoryError:
            if cell.batch // 2 < SMALLEST:
                raise
            cell.batch //= 2
            torch.cuda.empty_cache()


def check(seconds: float) -> Iterator[Row]:
    """Compare as many cells as the time suffices for; what each took last is taken for the next."""
    end, longest = time.monotonic() + seconds, {False: 0.0, True: 0.0}
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    for cell in cells():
        begin = time.monotonic()
        if begin + longest[cell.compiled] > end:
            yield Row(str(cell), True, 'not run: the time was up')
            continue
        try:
            result = compare(cell)
        except Exception as error:  # whatever a library raises
            yield Row(str(cell), False, f'{type(error).__name__}: {str(error).splitlines()[0][:200]}')
            continue
        longest[cell.compiled] = max(longest[cell.compiled], time.monotonic() - begin)
        times, best = result['milliseconds'], result['best_peer']
        found = f'{result["ratio"]:.2f} times {best}: {times["ours"]:.2f} ms against {times[best]:.2f}'
        if cell.mode == 'training':
            memory = result['peak_mib']
            found += f'; peak {memory["ours"]:.0f} against {memory[best]:.0f} MiB'
        yield Row(str(cell), True, found, result)


def verdicts(device: str) -> Iterator[Row]:
    """Have the kernels tried as a training of tiny in bfloat16 does, and report what the trials found."""
    from ..backbones import ConvNeXt

    model = ConvNeXt('tiny').to(device, torch.bfloat16)
    for images in (16, 1):
        x = torch.randn(images, 3, 224, 224, device=device, dtype=torch.bfloat16)
        sum(m.float().mean() for m in model.train()(x)).backward()
        with torch.no_grad():
            model.eval()(x)
    for name, verdict in trial.verdicts(torch.device(device, 0)).items():
        by = 'Triton' if verdict['triton'] else 'PyTorch'
        right = not verdict.get('failed') or verdict['why'].endswith(trial.OVER)
        yield Row(name, right, f'{by}, {verdict["why"]}', verdict)
