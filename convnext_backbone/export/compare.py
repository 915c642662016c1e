"""Compares what an exported file gives with what eager gives: tensors, or the objects of a detector."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..errors import UserError

TOLERANCE = 1e-4  # of the largest number in eager's output
OBJECTS = 1e-3  # of a score, and of the longer side of a box, in pixels
GREY = 2.5 / 255  # of a probability in a mask: eager's comes in 8 bits
OVERLAP = 0.75  # from which on a box of a lower precision is that of eager
LEFT_OVER = 0.02  # share of objects that may differ: an overlap at the threshold falls to either side
FEWEST = 20  # objects that are compared where none has the least score


class Difference(NamedTuple):
    """Holds how tensors differ: by how much, beside eager's largest number; the share of equal classes."""

    shape: tuple[int, ...]
    difference: float
    largest: float
    classes: float | None = None

    def __str__(self) -> str:
        shape = ' x '.join(map(str, self.shape))
        same = '' if self.classes is None else f', {100 * self.classes:.2f} % of the classes are equal'
        numbers = f'differs from eager by {self.difference:.1e}, largest number {self.largest:.3g}'
        return f'{shape:20s} {numbers}{same}'


class Agreement(NamedTuple):
    """Holds how the objects in an image agree: how many eager finds, the share of these that the file has.

    ``boxes`` (pixels), ``scores`` and ``masks`` are the largest differences of those; ``more`` counts what
    the file finds beyond. ``min_score`` is the least score that was compared, ``lowered`` whether nothing
    has that of the model.
    """

    shape: tuple[int, ...]
    objects: int
    matched: float
    more: int
    boxes: float
    scores: float
    masks: float | None
    min_score: float
    lowered: bool

    def __str__(self) -> str:
        shape = ' x '.join(map(str, self.shape))
        if not self.objects:
            return f'{shape:20s} nothing found, {self.more} by the file'
        what = f'{100 * self.matched:.4g} % of {self.objects} objects'
        if self.lowered:
            what = f'nothing found; above a score of {self.min_score:.2g} {what}'
        masks = '' if self.masks is None else f', {self.masks:.1e} in masks'
        return (
            f'{shape:20s} {what} agree, {self.more} more; largest difference {self.boxes:.1e} pixels, '
            f'{self.scores:.1e} in scores{masks}'
        )


class Outputs:
    """Compares tensors with those of the network in eager mode.

    Args:
        eager: the network that is exported.
        channels: of an image.
    """

    def __init__(self, eager: nn.Module, channels: int):
        self.eager, self.channels = eager, channels

    def batches(self, size, traced, only_traced: bool) -> list[Tensor]:
        """Return random batches of three sizes, the first to trace with.

        Args:
            size, traced: height and width, as asked for and as traced.
            only_traced: images may not be smaller than what is traced.
        """
        shapes = [(2, *traced), (1, *(traced if only_traced else size)), (3, traced[0] + 32, traced[1] + 64)]
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(n, self.channels, *hw, generator=generator) for n, *hw in shapes]

    def compare(self, load: Callable, images: Tensor, format: str, strict: bool) -> Difference:
        """Return how the outputs differ.

        Args:
            load: returns a function from images to outputs.
            strict: differences are an error.

        Raises:
            UserError: shapes differ, or the numbers too much.
        """
        expected = self.eager(images)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = load()(images)
        for a, b in zip(expected, found, strict=True):
            if a.shape != b.shape:
                raise UserError(
                    f'not written: {format} gives {tuple(b.shape)} where eager gives {tuple(a.shape)}, on '
                    f'images of {tuple(images.shape)}'
                )
        difference = max((a - b).abs().max().item() for a, b in zip(expected, found))
        largest = max(a.abs().max().item() for a in expected)
        if not difference <= (TOLERANCE * largest if strict else torch.finfo(torch.float32).max):
            raise UserError(
                f'not written: {format} differs from eager by {difference:.2g} (largest number '
                f'{largest:.2g}) on images of {tuple(images.shape)}'
            )
        classes = None
        if not strict and len(expected) == 1:
            classes = (expected[0].argmax(1) == found[0].argmax(1)).float().mean().item()
        return Difference(tuple(images.shape), difference, largest, classes)


class Objects:
    """Compares the objects in an image with those of mmdet's own prediction.

    Args:
        model: a detector of mmdet.
        channels: of an image.
    """

    def __init__(self, model: nn.Module, channels: int = 3):
        self.model, self.channels = model, channels
        self.cfg = (model.roi_head if hasattr(model, 'roi_head') else model.bbox_head).test_cfg

    def batches(self, size, traced, only_traced: bool) -> list[Tensor]:
        """Return images of three sizes, smooth like photos; see :meth:`Outputs.batches`."""
        height, width = traced
        shapes = [(height, width), (height // 2 + 5, width // 2 + 3), (width // 2, height // 2)]
        generator = torch.Generator().manual_seed(0)
        return [_scene(self.channels, hw, generator) for hw in shapes]

    def compare(self, load: Callable, images: Tensor, format: str, strict: bool) -> Agreement:
        """Return how the objects agree; see :meth:`Outputs.compare`.

        Where nothing has the least score of the model, the best that are found below are compared.
        """
        min_score, lowered = float(self.cfg.get('score_thr', 0)), False
        expected = self.predict(images, min_score)
        if not len(expected[0]):
            expected, min_score = _best(self.predict(images, 0.0), min_score)
            lowered = len(expected[0]) > 0
        found = load(min_score)(images) if lowered else load()(images)
        agreement = Agreement(tuple(images.shape), *_agreement(expected, found, strict), min_score, lowered)
        few = 1 - agreement.matched > LEFT_OVER or agreement.more > LEFT_OVER * agreement.objects
        if not all(out.isfinite().all() for out in found) or (strict and few):
            raise UserError(f'not written: {format} gives other objects than eager: {agreement}')
        return agreement

    def predict(self, images: Tensor, min_score: float) -> list[Tensor]:
        """Return what mmdet predicts on an image (1, 3, H, W): boxes, scores, labels, and masks.

        Masks are (n, H, W), the probability of the object at each pixel, in 8 bits.
        """
        from mmdet.structures import DetDataSample

        size = tuple(images.shape[2:])
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        preprocessor = self.model.data_preprocessor
        bottom, right = (-side % preprocessor.pad_size_divisor for side in size)
        padded = F.pad(images, (0, right, 0, bottom), value=float(preprocessor.pad_value))
        with _set(self.cfg, score_thr=min_score, mask_thr_binary=-1):
            found = self.model.predict(padded, [sample])[0].pred_instances
        outputs = [found.bboxes, found.scores, found.labels]
        return [*outputs, found.masks.float() / 255] if 'masks' in found else outputs


@contextlib.contextmanager
def _set(cfg: dict, **values) -> Iterator[None]:
    """Change entries of a dict for a while; those that it does not have are left out."""
    before = {key: cfg[key] for key in values if key in cfg}
    cfg.update({key: values[key] for key in before})
    try:
        yield
    finally:
        cfg.update(before)


def _scene(channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return an image (1, channels, H, W) of coarse and fine random patches, mean 0, standard deviation 1."""
    image = 0
    for cells in (3, 10, 40):
        grid = torch.randn(1, channels, cells, cells, generator=generator)
        image = image + F.interpolate(grid, size=size, mode='bilinear')
    return image / image.std()


def _best(outputs: list[Tensor], min_score: float) -> tuple[list[Tensor], float]:
    """Return the best objects, and a score that lies between them and the others."""
    scores = outputs[1]
    if not len(scores):
        return outputs, min_score
    most = min(FEWEST, len(scores))
    below = scores[most] if len(scores) > most else 0.99 * scores[most - 1]
    return [out[:most] for out in outputs], float((scores[most - 1] + below) / 2)


def _agreement(expected: list[Tensor], found: list[Tensor], strict: bool) -> tuple:
    """Return objects, matched share, more, and the largest differences of boxes, scores and masks."""
    (boxes, scores, labels), (own, own_scores, own_labels) = expected[:3], found[:3]
    number = len(boxes)
    if not number or not len(own):
        return number, float(not number), len(own), 0.0, 0.0, None
    apart = (boxes[:, None] - own).abs().amax(2)  # (n, m)
    further = (scores[:, None] - own_scores).abs()
    if strict:
        side = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1)
        same = (apart <= OBJECTS * side[:, None]) & (further <= OBJECTS)
    else:
        same = torchvision.ops.box_iou(boxes, own) >= OVERLAP
    same &= labels[:, None] == own_labels
    rows, columns = _pairs(same, further)
    far = torch.zeros(len(rows))
    if len(expected) > 3 and len(rows):
        pasted = paste(found[3][columns], boxes[rows], expected[3].shape[1:])  # into the same boxes
        wide = (boxes[rows, 2:] - boxes[rows, :2]).amin(1) >= 1  # between pixels a mask is of no use
        far = (expected[3][rows] - pasted).abs().flatten(1).amax(1) * wide
        if strict:
            rows, columns, far = (each[far <= GREY] for each in (rows, columns, far))
    if not len(rows):
        return number, 0.0, len(own), 0.0, 0.0, None
    differences = [float(each.max()) for each in (apart[rows, columns], further[rows, columns], far)]
    return (
        number,
        len(rows) / number,
        len(own) - len(rows),
        *differences[: len(expected) - 1],
        *[None] * (4 - len(expected)),
    )


def _pairs(same: Tensor, further: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of pairs, each object in one at most, the nearest scores first."""
    pairs, used = [], set()
    for row in range(len(same)):
        columns = [int(c) for c in same[row].nonzero().flatten() if int(c) not in used]
        if columns:
            best = min(columns, key=lambda column: float(further[row, column]))
            used.add(best)
            pairs.append((row, best))
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def paste(masks: Tensor, boxes: Tensor, size) -> Tensor:
    """Return masks (n, S, S) of boxes (n, 4) as (n, H, W): bilinear between the centres of the S x S places.

    A pixel's centre is at a half. As mmdet does it on a CPU, nothing is further from the box than a pixel.
    """
    weights = []
    for axis, length in ((1, size[0]), (0, size[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        number = masks.shape[1 + (axis == 0)]
        pixel = torch.arange(length)
        at = (pixel + 0.5 - low) / (high - low) * number - 0.5  # (n, length)
        near = (1 - (at[..., None] - torch.arange(number)).abs()).nan_to_num(0).clamp(min=0)
        inside = (pixel >= low.floor() - 1) & (pixel < high.ceil() + 1)
        weights.append(near * inside[..., None])
    rows, columns = weights
    return rows @ masks @ columns.mT
