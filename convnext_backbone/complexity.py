"""Counts parameters and FLOPs of a config by the paper's protocol; no data and no memory needed.

One multiply-add counts as one FLOP, as in the paper and everywhere in this field. Convolutions and linear
layers are counted (by ``torch.utils.flop_counter``), on the meta device. Of a detector: backbone, neck and
RPN on the image, then 1000 proposals at the box heads and 100 RoIs at the mask heads. Of a segmenter:
backbone and decode head on the whole image; the auxiliary head works in training only. Of a masked
autoencoder: backbone and decoder on the whole image, of which its training computes less. Of attention the
two products of matrices are counted, too; what is sampled at places (deformable attention) is not.

Transformers decide by values, which the meta device does not have: they are computed on the CPU, with zeros.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .config import published, read_config, task_of
from .errors import UserError, message
from .measure import build_on_meta, samples_of

PROPOSALS = 1000  # at each box head
MASK_ROIS = 100  # at each mask head
DETECTOR_INPUT = (800, 1280)


@dataclass(frozen=True)
class Complexity:
    """Holds what :func:`measure` found."""

    input: tuple[int, int]  # height, width
    parameters: int
    macs: dict[str, int]  # multiply-adds for one image, by part

    @property
    def gflops(self) -> float:
        """Return the multiply-adds of all parts, in 10^9: what the paper prints as FLOPs."""
        return sum(self.macs.values()) / 1e9


def measure(cfg: Config, size: tuple[int, int] | None = None) -> Complexity:
    """Count parameters and multiply-adds of a classifier, a detector, a segmenter or a masked autoencoder.

    Args:
        size: height and width of the image. By default a classifier's test size, an autoencoder's training
            size, 800 x 1280 for a detector, and for a segmenter as high as its crop and four times as wide.

    Raises:
        UserError: another kind of model, or a size that it cannot take.
    """
    model = build_on_meta(cfg)
    height, width = size or default_size(cfg)
    parameters = sum(p.numel() for p in model.parameters())
    macs = {}

    def count(part: str, run: Callable, *inputs):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            try:
                result = run(*inputs)
            except (RuntimeError, TypeError, ValueError, AssertionError) as error:
                where = f'{part} of {type(model).__name__} on an image of {height} x {width}'
                raise UserError(f'cannot count {where}: {message(error).splitlines()[0]}') from error
        macs[part] = macs.get(part, 0) + counter.get_total_flops() // 2
        return result

    channels = getattr(model.backbone, 'in_channels', 3)
    image = torch.empty(1, channels, height, width, device='meta')
    maps = count('backbone', model.backbone, image)
    task = task_of(model)
    if task == 'classification':
        pooled = maps[-1].mean((2, 3))
        count('head', model.head, model.norm(pooled))
    elif task == 'pretraining':
        count('decoder', nn.Sequential(model.proj, model.decoder, model.pred), maps[-1])
    elif hasattr(model, 'roi_head'):
        known = {f'{part}_{kind}' for part in ('bbox', 'mask') for kind in ('head', 'roi_extractor')}
        other = {name.split('.')[0] for name, _ in model.roi_head.named_parameters()} - known
        if other or not (model.with_neck and model.with_rpn):
            what = f'its {", ".join(sorted(other))}' if other else 'a detector without neck or RPN'
            raise UserError(f'{type(model).__name__}: {what} cannot be counted')
        maps = count('neck', model.neck, maps)
        count('rpn_head', model.rpn_head, maps)
        for part, rois in (('bbox', PROPOSALS), ('mask', MASK_ROIS)):
            heads = _stages(getattr(model.roi_head, f'{part}_head', None))
            for head, extractor in zip(
                heads, _stages(getattr(model.roi_head, f'{part}_roi_extractor', None))
            ):
                window = extractor.roi_layers[0].output_size
                count(f'{part}_head', head, torch.empty(rois, extractor.out_channels, *window, device='meta'))
    elif (found := _head(model)) and not _is_list(found[1]):
        (name, head), samples = found, samples_of(model, image)
        maps = count('neck', model.neck, maps) if getattr(model, 'with_neck', False) else maps
        if hasattr(model, 'forward_transformer'):  # of the kind of DETR
            inputs = count('transformer', _of_zeros(model).forward_transformer, _zeros(maps), samples)
            count('bbox_head', lambda: head(**inputs))
        elif 'batch_data_samples' in inspect.signature(head.forward).parameters:  # of the kind of MaskFormer
            count(name, _of_zeros(head), _zeros(maps), samples)
        else:
            count(name, head, maps)
    else:
        raise UserError(
            f'{type(model).__name__} is no model that this can count: a classifier or FCMAE of this package, '
            'a detector with RoI heads, one dense head or a transformer, or a segmenter with one decode head'
        )
    return Complexity((height, width), parameters, macs)


def _head(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return name and module of the head that reads the maps of the neck; ``None`` without one."""
    names = ('decode_head', 'panoptic_head', 'bbox_head')
    return next(((name, head) for name in names if (head := getattr(model, name, None)) is not None), None)


def _of_zeros(module: nn.Module) -> nn.Module:
    """Return a module of the meta device on the CPU, with zeros for weights."""
    module.to_empty(device='cpu')
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    return module


def _zeros(maps: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros(map_.shape) for map_ in maps]


def _is_list(module: nn.Module | None) -> bool:
    return isinstance(module, nn.ModuleList)


def _stages(module: nn.Module | None) -> list[nn.Module]:
    """Return the heads of a cascade, the one head of others, none where there is none."""
    return list(module) if _is_list(module) else [module] if module is not None else []


def default_size(cfg: Config) -> tuple[int, int]:
    """Return height and width of the paper's protocol, see :func:`measure`.

    Raises:
        UserError: the config does not give it.
    """
    task = task_of(cfg.model)
    if task == 'detection':
        return DETECTOR_INPUT
    if task == 'segmentation':
        crop = (cfg.model.get('data_preprocessor') or {}).get('size')
        if isinstance(crop, (list, tuple)):
            return crop[0], 4 * crop[0]
    else:
        loader = cfg.get('val_dataloader') or cfg.get('train_dataloader') or {}
        side = loader.get('dataset', {}).get('transform', {}).get('input_size')
        if isinstance(side, int):
            return side, side
    raise UserError('the config does not say the size of its images: give --shape HEIGHT WIDTH')


@dataclass(frozen=True)
class Row:
    """Holds one config beside what is printed about it."""

    name: str  # below configs/, without suffix
    measured: Complexity
    printed: dict  # of configs/published.json

    def ratio(self) -> float | None:
        """Return measured by printed FLOPs; ``None`` if none are printed."""
        return self.measured.gflops / float(self.printed['gflops']) if 'gflops' in self.printed else None

    def agrees(self) -> bool:
        """Return whether the config agrees with print.

        Parameters to the printed digit, FLOPs within 0.5 % or one in the last printed digit.
        """
        params, gflops = self.printed.get('params_M'), self.printed.get('gflops')
        if params and f'{self.measured.parameters / 1e6:.{decimals(params)}f}' != params:
            return False
        if gflops is None:
            return True
        difference = abs(float(f'{self.measured.gflops:.{decimals(gflops)}f}') - float(gflops))
        return difference <= 1.001 * 10 ** -decimals(gflops) or abs(self.ratio() - 1) <= 0.005


def decimals(printed: str) -> int:
    """Count the digits behind the point of a printed number."""
    return len(printed.partition('.')[2])


def compare(names=None) -> Iterator[Row]:
    """Yield a row for each config in a table of the paper, or for ``names`` that have published numbers."""
    for name, printed in published().items():
        if printed['table'] if names is None else name in names:
            yield Row(name, measure(read_config(name)), printed)
