"""Exports a trained network to ONNX, TorchScript or torch.export, compared with eager before it is kept.

A detector as a whole is computed by :mod:`.detectors`, :mod:`.compare` holds a file against eager,
:mod:`.int8` quantises, :mod:`.images` reads images as a config's test data does and describes how.
"""

import copy
import functools
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import fuse_for_inference
from ..backbones.block import Block
from ..config import task_of
from ..errors import UserError, check_choice, message
from .compare import Agreement, Difference, Objects, Outputs
from .detectors import DetectorNetwork
from .int8 import quantise

SUFFIXES = {'onnx': '.onnx', 'torchscript': '.torchscript.pt', 'torch_export': '.pt2'}
SMALLEST = 64  # pixels to trace with: the last map has two positions, one would be taken for a constant
OPSET = 18  # of ONNX: the first that resizes as PyTorch does
PRECISIONS = ('fp32', 'fp16', 'int8')
COMPARED = 3  # real images that the file is compared on
INPUT, METADATA = 'images', 'convnext_backbone.json'


class Network(nn.Module):
    """Computes what is exported: normalised images in, tensors out, nothing of a training.

    Args:
        model: a classifier, a segmenter, or anything else with a ``backbone``.
        part: ``'whole'`` or ``'backbone'``.

    Raises:
        UserError: a detector as a whole, whose boxes are not a matter of tensors alone.
    """

    def __init__(self, model: nn.Module, part: str = 'whole'):
        super().__init__()
        self.model = model if part == 'whole' else model.backbone
        task = task_of(model)
        self.dense = part == 'whole' and task == 'segmentation'
        if part == 'backbone':
            if task in ('classification', 'pretraining'):
                raise UserError(
                    f'the backbone of a {type(model).__name__} has no output norms: take the config of a '
                    'detector or segmenter, or of a classifier the part whole'
                )
            self.outputs = [f'map{index}' for index in model.backbone.out_indices]
        elif task in ('segmentation', 'classification'):
            self.outputs = ['logits']
        else:
            raise UserError(
                f'{type(model).__name__} is no classifier and no segmenter: of a detector only the part '
                'backbone is exported in this format; as a whole it is exported to onnx'
            )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what is exported.

        (N, 3, H, W) -> logits (N, classes), logits (N, classes, H, W), or the maps of the backbone.
        """
        images = images.to(next(self.model.parameters(), images).dtype)
        if not self.dense:
            found = self.model(images)
            return _wide(found) if isinstance(found, Tensor) else tuple(map(_wide, found))
        logits = _wide(self.model(images, mode='tensor'))
        corners = self.model.decode_head.align_corners
        return F.interpolate(logits, size=images.shape[2:], mode='bilinear', align_corners=corners)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class AdaptiveMean(nn.Module):
    """Computes ``nn.AdaptiveAvgPool2d`` by two matrix products, which ONNX has for images of any size.

    Args:
        size: positions of the output, of a square or (height, width).
    """

    def __init__(self, size: int | Sequence[int]):
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, *size)
        """Average over the rows, then over the columns, of each output position's window."""
        rows, columns = (self._weights(x, side - 2, n) for side, n in zip((4, 5), self.size))
        return rows @ x @ columns.mT

    @staticmethod
    def _weights(x: Tensor, axis: int, n: int) -> Tensor:
        """Return (n, length) weights: row ``i`` averages from floor(i L / n) to ceil((i + 1) L / n)."""
        length = x.shape[axis]
        position = torch.arange(length, device=x.device)
        i = torch.arange(n, device=x.device)[:, None]
        start = torch.div(i * length, n, rounding_mode='floor')
        end = torch.div((i + 1) * length + n - 1, n, rounding_mode='floor')
        inside = ((position >= start) & (position < end)).to(x.dtype)
        return inside / (end - start).to(x.dtype)


class HalvingMaxPool(nn.Module):
    """Computes ``nn.MaxPool2d(2)`` by windows, which torch.export can express for images of any size."""

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H // 2, W // 2)
        """Take the largest number of each 2 x 2 window; an odd last row or column is left out."""
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))


def is_whole_detector(model: nn.Module, part: str) -> bool:
    """Return whether boxes are exported, not tensors of a fixed number."""
    return part == 'whole' and task_of(model) == 'detection'


def prepare_network(model: nn.Module, part: str, format: str, precision: str = 'fp32') -> nn.Module:
    """Return a copy of ``model`` ready to be traced: blocks folded, and without what that leaves unused.

    Of ``precision`` fp16 its weights are float16; images and outputs stay float32.
    """
    model = copy.deepcopy(model)
    detects = format == 'onnx' and is_whole_detector(model, part)
    network = (DetectorNetwork(model) if detects else Network(model, part)).eval()
    fuse_for_inference(network)
    for module in list(network.modules()):
        if isinstance(module, Block):
            module.pwconv1 = module.pwconv2 = module.gamma = module.norm.weight = module.norm.bias = None
        if hasattr(module, 'auxiliary_head'):
            module.auxiliary_head = None
        for name, child in module.named_children():
            if format == 'onnx' and isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AdaptiveMean(child.output_size))
            if format == 'torch_export' and isinstance(child, nn.MaxPool2d) and child.kernel_size == 2:
                setattr(module, name, HalvingMaxPool())
    if precision == 'fp16':
        network.model.half()
    return network


def export(
    model: nn.Module,
    out: str | os.PathLike,
    format: str,
    *,
    part: str = 'whole',
    size: tuple[int, int] = (224, 224),
    meta: dict | None = None,
    precision: str = 'fp32',
    images: Sequence[Tensor] = (),
) -> list[Difference | Agreement]:
    """Write ``model`` to ``out``, for images of any size (torch.export: from 64 pixels on).

    Batches may have any size, too, but a detector as a whole takes one image. The file is kept if it gives
    what eager gives, on random images of three sizes and on three of ``images``; in a lower precision
    differences are reported only, as long as they are finite.

    Args:
        model: in evaluation mode, on the CPU, float32.
        format: ``'onnx'``, ``'torchscript'`` or ``'torch_export'``.
        part: ``'whole'`` or ``'backbone'``.
        size: height and width of the images that it is traced with.
        meta: what belongs to the file (classes, mean, ...), written into it as JSON.
        precision: ``'fp32'``; of ONNX ``'fp16'``, weights and networks in float16, or ``'int8'``, the inputs
            and weights of convolutions and linear layers in 8 bits.
        images: real images, (1, 3, H, W), normalised; int8 is calibrated with them.

    Returns:
        How each batch compares with eager.

    Raises:
        UserError: the part, the precision or the name does not fit, a package is missing, the format cannot
            express the network, or the outputs differ.
    """
    write, read = _FORMATS[check_choice('format', format, _FORMATS)]
    out = Path(out)
    if format == 'torch_export' and out.suffix != '.pt2':
        raise UserError(f'the name of a torch.export program must end in .pt2, got {out}')
    _check_precision(precision, format, images)
    channels = getattr(getattr(model, 'backbone', model), 'in_channels', 3)
    if format == 'onnx' and is_whole_detector(model, part):
        judge = Objects(model, channels)
    else:
        judge = Outputs(Network(model, part), channels)
    network = prepare_network(model, part, format, precision)
    traced = tuple(max(side, SMALLEST) for side in size)
    batches = judge.batches(size, traced, format == 'torch_export')
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix='.export-') as folder,
        warnings.catch_warnings(action='ignore'),  # of the exporters, about themselves
        torch.no_grad(),
    ):
        draft = Path(folder, out.name)
        try:
            write(network, batches[0], draft, json.dumps(meta or {}))
            if precision == 'int8':
                quantise(draft, INPUT, images)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f'cannot write {out}: {error}') from error
        except Exception as error:  # the exporters have no error of their own in common
            reason = message(error).splitlines()[0]
            raise UserError(f'{format} cannot express this {type(model).__name__}: {reason}') from error
        load = functools.cache(functools.partial(read, draft))
        report = [
            judge.compare(load, batch, format, precision == 'fp32')
            for batch in [*batches, *images[:COMPARED]]
        ]
        for file in Path(folder).iterdir():  # ONNX above 2 GiB keeps its weights in a second file
            os.replace(file, out.with_name(file.name))
    return report


def _check_precision(precision: str, format: str, images: Sequence[Tensor]) -> None:
    """Check that a precision and what it needs are there.

    Raises:
        UserError: they are not.
    """
    check_choice('precision', precision, PRECISIONS)
    if precision != 'fp32' and format != 'onnx':
        raise UserError(f'{format} is written in fp32 only, got precision {precision}: take the format onnx')
    if precision == 'int8' and not images:
        raise UserError('int8 needs real images to find the ranges of values with, got none: give some')


def _dynamic(network: nn.Module) -> dict:
    dim = torch.export.Dim
    if isinstance(network, DetectorNetwork):  # one image; what is padded may be as small as it likes
        return {INPUT: {2: dim.DYNAMIC, 3: dim.DYNAMIC}}
    return {INPUT: {0: dim('batch'), 2: dim('height', min=SMALLEST), 3: dim('width', min=SMALLEST)}}


def _write_onnx(network: nn.Module, images: Tensor, file: Path, meta: str) -> None:
    _need('onnx', 'onnxscript', 'onnxruntime')
    for name in ('onnxscript', 'onnx_ir', 'torch.onnx'):
        logging.getLogger(name).setLevel(logging.ERROR)
    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=network.outputs,
        dynamic_shapes=_dynamic(network),
    )
    program.model.metadata_props[METADATA] = meta
    program.save(file)


def _read_onnx(file: Path, min_score: float | None = None) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    replaced = {}
    if min_score is not None:
        replaced['min_score'] = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(min_score, np.float32))
        options.add_initializer('min_score', replaced['min_score'])
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])

    def run(images: Tensor, replaced=replaced) -> list[Tensor]:  # onnxruntime does not keep what it was given
        return [torch.from_numpy(out) for out in session.run(None, {INPUT: images.numpy()})]

    return run


def _write_torchscript(network: Network, images: Tensor, file: Path, meta: str) -> None:
    traced = torch.jit.trace(network, images, check_trace=False)
    torch.jit.save(traced, str(file), _extra_files={METADATA: meta})


def _read_torchscript(file: Path) -> Callable:
    return _listed(torch.jit.load(str(file)))


def _write_torch_export(network: Network, images: Tensor, file: Path, meta: str) -> None:
    program = torch.export.export(network, (images,), dynamic_shapes=_dynamic(network))
    torch.export.save(program, str(file), extra_files={METADATA: meta})


def _read_torch_export(file: Path) -> Callable:
    return _listed(torch.export.load(str(file)).module())


def _listed(network: Callable) -> Callable:
    def run(images: Tensor) -> list[Tensor]:
        found = network(images)
        return [found] if isinstance(found, Tensor) else list(found)

    return run


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {", ".join(missing)}: pip install {" ".join(missing)}')


_FORMATS = {
    'onnx': (_write_onnx, _read_onnx),
    'torchscript': (_write_torchscript, _read_torchscript),
    'torch_export': (_write_torch_export, _read_torch_export),
}
