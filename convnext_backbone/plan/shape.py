"""Works out the largest image that a training pipeline can give, from the config alone."""

import math
from dataclasses import dataclass

from mmengine.config import Config

from ..config import datasets, hooks_of, task_of
from ..errors import UserError
from ..registry import type_name

Pair = tuple[int, int]


@dataclass(frozen=True)
class Largest:
    """Holds the largest images of a training.

    Attributes:
        size: height and width of the largest image where it reaches the network, padding included.
        mixed: height and width that a batch is padded to if one image in it is wide and another upright;
            ``None`` where the batches are of one orientation or all images of one size.
        how: where it comes from, in words.
    """

    size: Pair
    mixed: Pair | None
    how: str


@dataclass(frozen=True)
class _Box:
    """Bounds the images after a step: no side longer than its own, no shorter side longer than ``short``."""

    height: float = math.inf
    width: float = math.inf
    short: float = math.inf

    @classmethod
    def exact(cls, height: float, width: float) -> '_Box':
        return cls(height, width, min(height, width))

    def __or__(self, other: '_Box') -> '_Box':
        pairs = zip(self._all(), other._all())
        return _Box(*(max(a, b) for a, b in pairs))

    def cut(self, height: float, width: float) -> '_Box':
        height, width = min(self.height, height), min(self.width, width)
        return _Box(height, width, min(self.short, height, width))

    def padded(self, height: float, width: float) -> '_Box':
        height, width = max(self.height, height), max(self.width, width)
        return _Box(height, width, max(self.short, min(height, width)))

    def times(self, factor: float) -> '_Box':
        return _Box(*(value * factor for value in self._all()))

    def divisible(self, divisor: int) -> '_Box':
        return _Box(*(_up(value, divisor) for value in self._all()))

    def _all(self) -> tuple[float, float, float]:
        return self.height, self.width, self.short

    @property
    def known(self) -> bool:
        return all(map(math.isfinite, self._all()))

    @property
    def largest(self) -> Pair:
        """Return height and width of the largest image; of two that are as large, the wide one."""
        if self.short >= min(self.height, self.width):
            return int(self.height), int(self.width)
        wide, tall = (self.short, self.width), (self.height, self.short)
        return tuple(int(n) for n in (wide if wide[1] >= tall[0] else tall))


def largest_shape(cfg: Config, given: Pair | None = None) -> Largest:
    """Return the largest images that the training data of a config can give.

    Steps that resize, crop, pad or join images are followed by the bounds that they leave, whatever the size
    of the files; the preprocessor's padding comes last. Where no step bounds the images it is the first of:
    the size of the preprocessor, that of the test pipeline.

    Args:
        cfg: of a training.
        given: height and width, in place of what the pipeline gives; the padding is still that of the config.

    Raises:
        UserError: the config has no training data, or says no size.
    """
    loader = cfg.get('train_dataloader') or {}
    name = cfg.filename or 'the config'
    if not loader.get('dataset'):
        raise UserError(
            f'{name} has no train_dataloader with a dataset: a plan is for a config that is trained'
        )
    processor = cfg.model.get('data_preprocessor') or {}
    if given:
        return Largest(_preprocessed(processor, _Box.exact(*given)).largest, None, '--shape')
    if task_of(cfg.model) in ('classification', 'pretraining'):
        side = next((_side(data) for _, data in datasets(cfg, ('train_dataloader',)) if _side(data)), None)
        if side is None:
            raise UserError(f'{name} has no train_dataloader.dataset.transform.input_size')
        return Largest(side, None, 'input_size of the transform')
    if not any(data.get('pipeline') for _, data in datasets(cfg, ('train_dataloader',))):
        raise UserError(f'{name} has no train_dataloader.dataset.pipeline: the size of its images is unknown')
    follow = _Pipeline(cfg)
    box = follow.dataset(loader['dataset'])
    for hook in hooks_of(cfg):
        if type_name(hook) == 'PipelineSwitchHook':
            box |= follow.steps(hook.get('switch_pipeline'), _Box())
    how = 'the steps of train_pipeline'
    if not box.known:
        box, how = _elsewhere(cfg, follow, processor)
    if not box.known:
        raise UserError(
            f'no step of the train_pipeline of {name} bounds the size of its images: give '
            '--shape HEIGHT WIDTH, the largest in pixels'
        )
    before = box
    box = _preprocessed(processor, box)
    if box != before:
        how += ', then the padding of data_preprocessor'
    mixed = None
    one_way = type_name(loader.get('batch_sampler') or {}) == 'AspectRatioBatchSampler'
    if box.short < min(box.height, box.width) and not (one_way and not follow.turns):
        mixed = int(box.height), int(box.width)
    return Largest(box.largest, mixed, how)


def _side(data: dict) -> Pair | None:
    side = (data.get('transform') or {}).get('input_size')
    if isinstance(side, (list, tuple)):
        return tuple(side[-2:])
    return (side, side) if isinstance(side, int) else None


def _elsewhere(cfg: Config, follow: '_Pipeline', processor: dict) -> tuple[_Box, str]:
    if processor.get('size'):
        return _Box.exact(*_pair(processor['size'])), 'data_preprocessor.size'
    for split in ('val_dataloader', 'test_dataloader'):
        for _, data in datasets(cfg, (split,)):
            if (box := follow.steps(data.get('pipeline'), _Box())).known:
                return box, f'the pipeline of {split}, since no step of train_pipeline bounds the images'
    return _Box(), ''


def _preprocessed(processor: dict, box: _Box) -> _Box:
    inner = processor.get('data_preprocessor')  # of several branches
    if isinstance(inner, dict):
        return _preprocessed(inner, box)
    divisor = processor.get('pad_size_divisor') or processor.get('size_divisor') or 1
    if processor.get('size'):
        box = box.padded(*_pair(processor['size']))
    box = box.divisible(divisor)
    for step in processor.get('batch_augments') or ():
        kind = type_name(step)
        if kind == 'BatchFixedSizePad':
            box = box.padded(*_pair(step['size']))
        elif kind == 'BatchSyncRandomResize':
            box = _Box.exact(*[max(step['random_size_range'])] * 2)
        elif kind == 'BatchResize':
            box = _Box.exact(*_pair(step['scale']))
    return box


def _pair(value) -> Pair:
    return (value, value) if isinstance(value, (int, float)) else tuple(value)


def _up(value: float, divisor: int) -> float:
    return value if math.isinf(value) else math.ceil(value / divisor) * divisor


class _Pipeline:
    """Follows the bounds of images through steps.

    Attributes:
        turns: whether a step can make an upright image of a wide one.
    """

    def __init__(self, cfg: Config):
        self.of_mmseg, self.turns = cfg.get('default_scope') == 'mmseg', False

    def dataset(self, node: dict) -> _Box:
        """Return the bounds of the images of a dataset, those inside wrappers first."""
        inner = node.get('dataset') or node.get('datasets')
        box = _Box()
        if inner:
            parts = [self.dataset(part) for part in (inner if isinstance(inner, (list, tuple)) else [inner])]
            box = parts[0]
            for part in parts[1:]:
                box |= part
        return self.steps(node.get('pipeline') or node.get('transforms'), box)

    def steps(self, steps, box: _Box) -> _Box:
        """Return the bounds after ``steps``."""
        for step in steps or ():
            if isinstance(step, dict):
                box = self._step(step, box)
        return box

    def _step(self, step: dict, box: _Box) -> _Box:
        kind = type_name(step).rpartition('.')[2]
        inner = step.get('transforms')
        if kind == 'RandomChoice' and inner:
            branches = [self.steps(part if isinstance(part, list) else [part], box) for part in inner]
            box = branches[0]
            for branch in branches[1:]:
                box |= branch
            return box
        if inner:
            after = self.steps(inner, box)
            return after | box if kind == 'RandomApply' else after
        method = getattr(self, f'_{kind.removeprefix("Cached")}', None)
        return method(step, box) if method else box

    def _resized(self, step: dict, scale, box: _Box, factor: float = 1.0) -> _Box:
        """Follow mmcv's Resize: ``scale`` is (width, height), or the two sides in any order."""
        width, height = (n * factor for n in _pair(scale))
        if not step.get('keep_ratio', False):
            return _Box.exact(int(height), int(width))
        long, short = max(width, height), min(width, height)
        if short < 0:  # mmdet: -1 for a side that is free
            return _Box(math.inf, math.inf, long)
        return _Box(int(long), int(long) if math.isfinite(long) else long, int(short))

    def _Resize(self, step, box):  # noqa: N802  named as the steps are
        if step.get('scale') is not None:
            return self._resized(step, step['scale'], box)
        return box.times(max(_pair(step.get('scale_factor') or 1)))

    _FixScaleResize = _Resize

    def _RandomResize(self, step, box):  # noqa: N802
        scale, ratio = step['scale'], max(step.get('ratio_range') or (1,))
        if isinstance(scale, (list, tuple)) and isinstance(scale[0], (list, tuple)):
            scale = [max(part) for part in zip(*(sorted(one, reverse=True) for one in scale))]
        return self._resized({'keep_ratio': True, **step} if self._keeps(step) else step, scale, box, ratio)

    def _RandomChoiceResize(self, step, box):  # noqa: N802
        found = None
        for scale in step['scales']:
            one = self._resized({'keep_ratio': True} if self._keeps(step) else {}, scale, box)
            found = one if found is None else found | one
        return found

    @staticmethod
    def _keeps(step: dict) -> bool:
        return bool(step.get('keep_ratio') or (step.get('resize_cfg') or {}).get('keep_ratio'))

    def _ResizeShortestEdge(self, step, box):  # noqa: N802
        short = max(_pair(step['scale']))
        return _Box(step['max_size'], step['max_size'], min(short, step['max_size']))

    def _RandomCrop(self, step, box):  # noqa: N802
        size, kind = _pair(step['crop_size']), step.get('crop_type', 'absolute')
        self.turns = True
        if kind == 'absolute_range':
            return box.cut(size[1], size[1])
        if kind == 'relative_range':
            return box
        if kind == 'relative':
            return box.cut(box.height * size[0], box.width * size[1])
        return box.cut(*(size if self.of_mmseg else size[::-1]))

    def _CenterCrop(self, step, box):  # noqa: N802
        return box.cut(*_pair(step['crop_size'])[::-1])

    def _RandomCenterCropPad(self, step, box):  # noqa: N802
        size = step.get('crop_size')
        return _Box.exact(*size) if size else box

    def _Pad(self, step, box):  # noqa: N802
        if step.get('pad_to_square'):
            side = max(box.height, box.width)
            box = _Box.exact(side, side)
        if step.get('size') is not None:
            box = box.padded(*_pair(step['size'])[::-1])
        return box.divisible(step.get('size_divisor') or 1)

    def _Mosaic(self, step, box):  # noqa: N802
        width, height = _pair(step.get('img_scale') or 640)
        mosaic = _Box.exact(2 * height, 2 * width)
        return mosaic if step.get('prob', 1.0) >= 1 or not box.known else mosaic | box

    _RandomMosaic = _Mosaic

    def _RandomAffine(self, step, box):  # noqa: N802
        top, left = step.get('border') or (0, 0)
        return _Box.exact(box.height + 2 * top, box.width + 2 * left) if top or left else box

    def _Expand(self, step, box):  # noqa: N802
        return box.times(max(step.get('ratio_range') or (1, 4)))

    def _turned(self, step, box):
        side = max(box.height, box.width)
        self.turns = True
        return _Box(side, side, box.short)

    _RandomRotate90 = _RandomRotFlip = _turned
    _MinIoURandomCrop = _turned  # the crop of a wide image may be upright
