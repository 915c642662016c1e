"""Times ConvNeXt of this package and of others in turn: same weights, same outputs; the machine's limit."""

import contextlib
import functools
import gc
import importlib
import importlib.util
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import backbones  # noqa: F401  registers ours
from .backbones import fuse_for_inference
from .backbones.convnext import ARCHITECTURES
from .checkpoint.formats import from_released, released_names
from .errors import UserError
from .ops import mlp, native

DROP_PATH = dict(tiny=0.1, small=0.4, base=0.5, large=0.5, xlarge=0.5)  # paper, Table 5 (xlarge: as large)
CLASSES = 1000
TOLERANCE = 1e-3  # of the largest number of our output, in float32


@dataclass
class Cell:
    """Describes one comparison: everything but who runs it."""

    size: str
    task: str
    mode: str
    precision: str
    compiled: bool
    batch: int
    device: str

    @property
    def image(self) -> tuple[int, int]:
        """Return height and width of the images in pixels."""
        return (224, 224) if self.task == 'classify' else tuple(map(int, self.task.split('x')[1:]))

    def __str__(self) -> str:
        how = 'compiled' if self.compiled else 'eager'
        height, width = self.image
        return f'{self.size} {self.mode} {self.batch} x {height} x {width} {self.precision} {how}'


# --- contestants: (size, dense, drop_path, released weights) -> module that gives logits or a list of maps


def network(size: str, dense: bool, **options) -> nn.Module:
    """Build ours: the backbone without output norms, which the peers do not have, or the classifier."""
    backbone = dict(type='convnext_backbone.ConvNeXt', arch=size, **options)
    if dense:
        return MODELS.build(dict(backbone, output_norm=False))
    return MODELS.build(dict(type='convnext_backbone.Classifier', backbone=backbone, num_classes=CLASSES))


def ours(size: str, dense: bool, drop_path: float, weights: dict, **options) -> nn.Module:
    """Build our network with the given weights."""
    model = network(size, dense, drop_path_rate=drop_path, **options)
    names = released_names(model.state_dict())
    model.load_state_dict({own: weights[name] for own, name in names.items()})
    return model


def timm(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build timm's network with the given weights."""
    import timm

    options = dict(features_only=True) if dense else {}
    model = timm.create_model(f'convnext_{size}', drop_path_rate=drop_path, **options)
    tensors = from_released(weights, 'timm')
    if dense:
        tensors = {n.replace('stem.', 'stem_').replace('stages.', 'stages_'): t for n, t in tensors.items()}
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


class _TorchvisionMaps(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.features = model.features

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i % 2:
                maps.append(x)
        return maps


def torchvision(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build torchvision's network with the given weights.

    Raises:
        ImportError: torchvision does not have the size.
    """
    from torchvision import models

    if size == 'xlarge':
        raise ImportError('torchvision has no xlarge')
    model = getattr(models, f'convnext_{size}')(stochastic_depth_prob=drop_path)
    model.load_state_dict(from_released(weights, 'torchvision'))
    return _TorchvisionMaps(model) if dense else model


class _HuggingFace(nn.Module):
    def __init__(self, model: nn.Module, dense: bool):
        super().__init__()
        self.model, self.dense = model, dense

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if not self.dense:
            return self.model(x).logits
        return list(self.model(x, output_hidden_states=True).hidden_states[1:])


def transformers(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build Hugging Face's network with the given weights."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    depths, dims = ARCHITECTURES[size]
    config = ConvNextConfig(depths=depths, hidden_sizes=dims, drop_path_rate=drop_path, num_labels=CLASSES)
    model = ConvNextForImageClassification(config)
    model.load_state_dict(from_released(weights, 'hf'))
    return _HuggingFace(model.convnext if dense else model, dense)


class _MMPretrain(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module | None):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = self.backbone(x)
        return list(maps) if self.head is None else self.head.fc(maps[-1])


def mmpretrain(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build mmpretrain's network with the given weights."""
    from mmpretrain.models.backbones import ConvNeXt

    options = dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False) if dense else {}
    backbone = ConvNeXt(size, drop_path_rate=drop_path, **options)
    head = None if dense else nn.ModuleDict(dict(fc=nn.Linear(ARCHITECTURES[size][1][3], CLASSES)))
    if dense:  # the others have no output norms
        for i in range(4):
            setattr(backbone, f'norm{i}', nn.Identity())
    model = _MMPretrain(backbone, head)
    tensors = from_released(weights, 'mmpretrain')
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


OURS = {'ours': ours, 'ours triton': functools.partial(ours, fused='triton')}  # the latter on a GPU
PEERS = dict(timm=timm, torchvision=torchvision, transformers=transformers, mmpretrain=mmpretrain)


def random_weights(size: str) -> dict[str, Tensor]:
    """Return random weights under the released names.

    With layer scales and norms that a wrong implementation would show.
    """
    torch.manual_seed(0)
    model = network(size, dense=False, layer_scale_init_value=0.5)
    weights = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix('backbone.')
        weights[name] = tensor + 0.1 * torch.randn_like(tensor) if tensor.ndim == 1 else tensor
    return weights


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
                self.model.parameters(), lr=1e-5, weight_decay=0.05, fused=True
            )
        elif name in OURS:
            fuse_for_inference(self.model)
        self.run_model = torch.compile(self.model) if cell.compiled else self.model

    def autocast(self):
        """Return the context of mixed precision if the cell asks for it, else one that does nothing."""
        if self.cell.precision != 'autocast':
            return contextlib.nullcontext()
        return torch.autocast(self.cell.device, torch.bfloat16)

    def __call__(self) -> None:
        if self.cell.mode == 'inference':
            with torch.inference_mode(), self.autocast():
                self.run_model(self.images)
            return
        with self.autocast():
            loss = loss_of(self.run_model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure_memory(self) -> None:
        """Measure ``kept`` and ``peak`` in one step each; compiled networks have ``peak`` only."""
        if self.cell.device == 'cuda':
            self()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self()
            torch.cuda.synchronize()
            self.peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        if self.cell.mode == 'training' and not self.cell.compiled:
            own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
            kept = {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), self.autocast():
                loss = loss_of(self.model(self.images), self.labels)
                self.kept = sum(kept.values()) / 2**20
            del loss


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

    Our eager training leaves out those that stochastic depth drops.
    """
    return 1 - DROP_PATH[cell.size] / 2 if cell.mode == 'training' and not cell.compiled else 1.0


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


# --- timing


def timed(work: Callable, device: str, times: int = 1) -> float:
    """Return seconds per call."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / times
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def contest(cell: Cell, weights: dict, builders: dict, rounds: int, seconds: float) -> dict:
    """Run all contestants of a cell in turn."""
    contestants = []
    for name, build in builders.items():
        for layout in ('NHWC',) if name in OURS else ('NCHW', 'NHWC'):
            label = name if name in OURS else f'{name} {layout}'
            contestants.append(Contestant(label, build, layout, cell, weights))
    turns = {}
    for contestant in contestants:
        contestant()  # compiles, allocates, chooses algorithms
        contestant.measure_memory()
        turns[contestant.name] = max(1, round(seconds / timed(contestant, cell.device)))
    times = {contestant.name: [] for contestant in contestants}
    limits = [measured_limits(cell.device, cell.precision)]
    for number in range(rounds):
        for contestant in contestants:
            torch.manual_seed(number)
            times[contestant.name].append(timed(contestant, cell.device, turns[contestant.name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    best, own = (
        min((name for name in medians if (name in OURS) is mine), key=medians.get) for mine in (False, True)
    )
    ratios = [a / b for a, b in zip(times[best], times[own])]
    limits.append(measured_limits(cell.device, cell.precision))  # the machine may be another's, too, at times
    rate, bandwidth = (max(values) for values in zip(*limits))
    roof = max(flops(cell) / rate, least_bytes(cell) / bandwidth)
    result = dict(
        cell=str(cell),
        **vars(cell),
        milliseconds={name: value * 1000 for name, value in medians.items()},
        spread={name: [min(v) * 1000, max(v) * 1000] for name, v in times.items()},
        images_per_second=cell.batch / medians[own],
        ours=own,
        best_peer=best,
        ratio=statistics.median(ratios),
        ratio_range=[min(ratios), max(ratios)],
        kept_mib={c.name: c.kept for c in contestants},
        peak_mib={c.name: c.peak for c in contestants},
        roofline_milliseconds=roof * 1000,
        roofline_share=roof / medians[own],
        matrix_tflops=rate / 1e12,
        copy_gb_per_second=bandwidth / 1e9,
    )
    del contestants
    gc.collect()
    torch.compiler.reset()
    return result


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


def about(device: str) -> str:
    """Name the processor or GPU, the versions and the date in one line."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        own = 'with' if native.supports(torch.zeros(1)) else 'without'
        name = f'CPU, {torch.get_num_threads()} threads, {processor()}, {own} our kernels'
    versions = [f'torch {torch.__version__}']
    for package in PEERS:
        with contextlib.suppress(Exception):  # said when it is asked to compute
            versions.append(f'{package} {importlib.import_module(package).__version__}')
    return f'{name}, {", ".join(versions)}, {date.today().isoformat()}'


def processor() -> str:
    """Return the processor's architecture, and what bears on speed of that which Linux names."""
    flags = ''
    with contextlib.suppress(OSError):
        flags = Path('/proc/cpuinfo').read_text()
    found = set(re.findall(r'\b(avx2|avx512f|avx512_bf16|amx_bf16|sve|bf16)\b', flags))
    return ' '.join([platform.machine(), *sorted(found)])
