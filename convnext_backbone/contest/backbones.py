"""Times the backbones in turn: same weights, same outputs; the machine's limit."""

import contextlib
import gc
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..backbones import fuse_for_inference
from ..backbones.convnext import ARCHITECTURES
from ..errors import UserError
from ..ops import mlp
from .cell import Cell
from .networks import CLASSES, OURS, PEERS, network, ours
from .timing import describe, in_turn, kept_memory, peak_memory, standing, timed

DROP_PATH = dict(tiny=0.1, small=0.4, base=0.5, large=0.5, xlarge=0.5)  # paper, Table 5 (xlarge: as large)
TOLERANCE = 1e-3  # of the largest number of our output, in float32

# --- one contestant in one cell


def listed(outputs) -> list[Tensor]:
    """Return the maps of a backbone, or the logits of a classifier, as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def loss_of(outputs, labels: Tensor) -> Tensor:
    """Return the cross entropy of logits, or the mean square of each map, summed."""
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs.float(), labels)
    return sum(m.float().square().mean() for m in outputs)


class Contestant:
    """Holds a network ready to be timed in a cell.

    Attributes:
        kept: MiB that its forward pass keeps for the backward one, without parameters (training, eager).
        peak: MiB of GPU memory above what lay there before, at most; ``None`` on a CPU.
    """

    def __init__(self, name: str, build: Callable, layout: str, cell: Cell, weights: dict):
        self.name, self.cell, self.kept, self.peak = name, cell, None, None
        training = cell.mode == 'training'
        model = build(cell.size, cell.task != 'classify', DROP_PATH[cell.size] if training else 0.0, weights)
        low = torch.bfloat16 if cell.precision == 'bfloat16' else torch.float32
        fmt = torch.channels_last if layout == 'NHWC' else torch.contiguous_format
        self.model = model.to(cell.device, low, memory_format=fmt).train(training)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(cell.batch, 3, *cell.image, generator=generator)
        self.images = images.to(cell.device, low, memory_format=fmt)
        self.labels = torch.arange(cell.batch, device=cell.device) % CLASSES
        if training:
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=1e-5, weight_decay=0.05, fused=True, capturable=cell.captured
            )
        elif name in OURS:
            fuse_for_inference(self.model)
        self.run_model = torch.compile(self.model) if cell.compiled else self.model
        self.graph: torch.cuda.CUDAGraph | None = None

    def autocast(self):
        """Return the context of mixed precision if the cell asks for it, else one that does nothing."""
        if self.cell.precision != 'autocast':
            return contextlib.nullcontext()
        return torch.autocast(self.cell.device, torch.bfloat16)

    def __call__(self) -> None:
        if self.graph:
            self.graph.replay()
        elif self.cell.mode == 'inference':
            with torch.inference_mode(), self.autocast():
                self.run_model(self.images)
        else:
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def capture(self) -> None:
        """Make what a call does a CUDA graph; memory is measured before."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # all of it: where gradients were first made, they are made ever after
            for _ in range(2):
                self()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            self()
        self.graph = graph

    def loss(self) -> Tensor:
        """Return the loss of a forward pass."""
        with self.autocast():
            return loss_of(self.run_model(self.images), self.labels)

    def measure_memory(self) -> None:
        """Measure ``kept`` and ``peak`` in one step each; compiled networks have ``peak`` only."""
        if self.cell.device == 'cuda':
            self.peak = peak_memory(self)
        if self.cell.mode == 'training' and not self.cell.compiled:
            self.kept = kept_memory(self.model, self.loss)


def same_outputs(build: Callable, reference: nn.Module, cell: Cell, weights: dict) -> float:
    """Return the largest difference from our network in float32, relative to its largest number."""
    dense = cell.task != 'classify'
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = listed(reference(images))
        found = listed(build(cell.size, dense, 0.0, weights).eval()(images))
    pairs = zip(expected, found, strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


# --- the hardware's limit


def measured_limits(device: str, precision: str) -> tuple[float, float]:
    """Measure FLOPs per second of a large matrix product, bytes per second of a copy (read and written).

    The product as such, as a 1 x 1 convolution, and as blocks do it, which other libraries may compute: the
    fastest of them.
    """
    low = torch.float32 if precision == 'float32' else torch.bfloat16
    n = 8192 if device == 'cuda' else 1536
    a, b = torch.randn(2, n, n, device=device).to(low)
    image, filters = a.view(1, n, 1, n).permute(0, 3, 1, 2), b[:, :, None, None]
    size = 2**30 if device == 'cuda' else 2**27
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        linear = mlp._linear(b, a, constant=True)
        products = (lambda: a @ b, lambda: F.conv2d(image, filters), lambda: linear(a))
        matrix = min(timed(product, device) for product in products for _ in range(7))
    copy = min(timed(lambda: target.copy_(source), device) for _ in range(7))
    return 2 * n**3 / matrix, 2 * size / copy


def share_computed(cell: Cell) -> float:
    """Return the share of blocks and samples that is computed.

    Our eager training on a CPU leaves out those that stochastic depth drops.
    """
    left_out = cell.device == 'cpu' and cell.mode == 'training' and not cell.compiled
    return 1 - DROP_PATH[cell.size] / 2 if left_out else 1.0


def least_bytes(cell: Cell) -> float:
    """Return the bytes that any implementation must move.

    Those are the maps at the borders of blocks, the weights, and the optimizer's state.

    Inference: each block reads and writes its map once, each weight is read once. Training: forward the same,
    backward reads the block's input and the gradient of its output and writes that of its input; AdamW reads
    parameter, gradient and two moments and writes three of them, after the gradient was written.
    """
    wide = 2 if cell.precision == 'bfloat16' else 4
    low = 4 if cell.precision == 'float32' else 2
    depths, dims = ARCHITECTURES[cell.size]
    height, width = cell.image
    maps = [
        depth * dim * (height // stride) * (width // stride)
        for depth, dim, stride in zip(depths, dims, (4, 8, 16, 32))
    ]
    parameters = sum(t.numel() for t in backbone_parameters(cell.size))
    if cell.mode == 'inference':
        return 2 * sum(maps) * cell.batch * low + parameters * low
    return 5 * sum(maps) * cell.batch * low * share_computed(cell) + parameters * (2 * low + 8 * wide)


def backbone_parameters(size: str) -> list[Tensor]:
    """Return the parameters of our backbone on the device ``meta``."""
    with torch.device('meta'):
        return list(MODELS.build(dict(type='convnext_backbone.ConvNeXt', arch=size)).parameters())


def flops(cell: Cell) -> float:
    """Count two FLOPs per multiply-add of convolutions and linear layers; three times as many in training."""
    with torch.device('meta'):
        model = network(cell.size, cell.task != 'classify').eval()
        images = torch.empty(1, 3, *cell.image)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    passes = 3 if cell.mode == 'training' else 1
    return counter.get_total_flops() * cell.batch * passes * share_computed(cell)


def contest(cell: Cell, weights: dict, builders: dict, rounds: int, seconds: float) -> dict:
    """Run all contestants of a cell in turn."""
    contestants = []
    for name, build in builders.items():
        for layout in ('NHWC',) if name in OURS else ('NCHW', 'NHWC'):
            label = name if name in OURS else f'{name} {layout}'
            contestants.append(Contestant(label, build, layout, cell, weights))
    for contestant in contestants:
        contestant()  # compiles, allocates, chooses algorithms
        contestant.measure_memory()
        if cell.captured:
            _capture(contestant)
    limits = [measured_limits(cell.device, cell.precision)]
    result = standing(cell, contestants, in_turn(contestants, rounds, seconds, cell.device))
    limits.append(measured_limits(cell.device, cell.precision))  # the machine may be another's, too, at times
    rate, bandwidth = (max(values) for values in zip(*limits))
    roof = max(flops(cell) / rate, least_bytes(cell) / bandwidth) * 1000
    result.update(
        roofline_milliseconds=roof,
        roofline_share=roof / result['milliseconds'][result['ours']],
        matrix_tflops=rate / 1e12,
        copy_gb_per_second=bandwidth / 1e9,
    )
    del contestants
    gc.collect()
    torch.compiler.reset()
    return result


def _capture(contestant: Contestant) -> None:
    try:
        contestant.capture()
    except Exception as error:  # whatever a library raises; nothing is computed after it
        name = contestant.name
        raise UserError(
            f'{name} cannot be captured as a CUDA graph: {describe(error)}; name the others by --peers'
        ) from None


def admitted(cell: Cell, weights: dict, peers: list[str]) -> dict[str, Callable]:
    """Return our network, and the peers that are installed and compute the same.

    Raises:
        UserError: no peer is installed and computes the same.
    """
    reference = ours(cell.size, cell.task != 'classify', 0.0, weights).eval()
    same_outputs(ours, reference, cell, weights)  # what fails here is no peer's fault
    found = dict(OURS) if cell.device == 'cuda' else dict(ours=ours)
    for name in peers:
        build = PEERS[name]
        if importlib.util.find_spec(name) is None:
            print(f'{name} is not installed')
            continue
        try:
            difference = same_outputs(build, reference, cell, weights)
        except Exception as error:  # a package beside others that it does not fit raises anything
            print(f'{name} is left out: {type(error).__name__}: {error}')
            continue
        if not difference < TOLERANCE:
            print(f'{name} computes something else (difference {difference:.1e}): left out')
            continue
        print(f'{name} computes the same (difference {difference:.1e})', flush=True)
        found[name] = build
    if not found.keys() - OURS.keys():
        raise UserError('no peer to compare with: pip install timm torchvision transformers')
    return found
