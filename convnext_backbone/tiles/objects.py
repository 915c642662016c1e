"""Joins the objects of tiles and of the whole image: each stays once, one cut by a border becomes whole."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from mmengine.structures import InstanceData
from torchvision.ops import batched_nms, box_iou

from .grid import Axis
from .masks import PlacedMask

IOU = 0.5  # boxes of a class that overlap more are one object
COVERED = 0.5  # share of a cut object's box that lies in that of a whole one, which is then the same object
WEAKER = 0.5  # but not if the whole one's score is a smaller share of the cut one's
BORDER = 0.01  # of a tile's side: a box that ends closer to an inner border was cut there
DRAWN = 32  # objects at once
LEFT, TOP, RIGHT, BOTTOM = range(4)


@dataclass
class Piece:
    """Holds the objects that were found in a tile.

    Attributes:
        row, column: place of the tile.
        area: x1 y1 x2 y2 of the tile, in pixels of the image.
        boxes: (n, 4), in pixels of the image.
        scores, labels: (n,).
        cut: (n, 4), whether a box ends at the left, upper, right and lower border, inside the image.
        masks: of each object, unless the model predicts none.
    """

    row: int
    column: int
    area: tuple[int, int, int, int]
    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    cut: torch.Tensor
    masks: list[PlacedMask] | None

    def enlarged(self, factor: int) -> 'Piece':
        """Return the objects in an image that is ``factor`` times as large."""
        if factor == 1:
            return self
        masks = None if self.masks is None else [mask.enlarged(factor) for mask in self.masks]
        return replace(self, boxes=self.boxes * factor, masks=masks)


def piece_of(sample, i: int, j: int, rows: Axis, columns: Axis, min_score: float) -> Piece:
    """Return the objects of tile ``i``, ``j`` of at least a score, in pixels of the image."""
    found = sample.pred_instances
    found = found[found.scores >= min_score]
    y, x = rows.starts[i], columns.starts[j]
    height, width = rows.size, columns.size
    boxes = found.bboxes.float()
    near = [max(2.0, BORDER * side) for side in (width, height)]
    inner = torch.tensor([j > 0, i > 0, j + 1 < len(columns), i + 1 < len(rows)])
    ends = [
        boxes[:, 0] <= near[0],
        boxes[:, 1] <= near[1],
        boxes[:, 2] >= width - near[0],
        boxes[:, 3] >= height - near[1],
    ]
    masks = None
    if 'masks' in found:
        size = (rows.length, columns.length)
        masks = [PlacedMask.of(np.asarray(mask), y, x, size) for mask in found.masks]
    return Piece(
        row=i,
        column=j,
        area=(x, y, x + width, y + height),
        boxes=boxes + torch.tensor([x, y, x, y]),
        scores=found.scores.float(),
        labels=found.labels.long(),
        cut=torch.stack(ends, 1) & inner,
        masks=masks,
    )


def join(pieces: list[Piece], shape: tuple[int, int], first):
    """Return the objects of an image, each once, the surest first.

    1. Objects that a border between two tiles cut are one if their boxes agree (IoU of 0.5) in what the tiles
       have in common: it has the box and the mask of both together, and the higher score.
    2. Of whole objects of a class whose boxes overlap (IoU above 0.5) the surest stays (NMS).
    3. An object that was cut gives way to a whole one of its class that has half of it or more in its box,
       unless that is much less sure (half its score); then cut ones among themselves as in 2.

    Args:
        pieces: of the tiles, the last of the whole image.
        shape: height and width of the image.
        first: a tile's data sample, of whose class the result is.

    Returns:
        A data sample with ``pred_instances``.
    """
    starts = np.cumsum([0, *(len(piece.scores) for piece in pieces)])
    boxes, scores, labels, cut = (
        torch.cat([getattr(piece, name) for piece in pieces]) for name in ('boxes', 'scores', 'labels', 'cut')
    )
    masks = None
    if pieces[0].masks is not None:
        masks = [mask for piece in pieces for mask in piece.masks]
    kept = torch.ones(len(scores), dtype=torch.bool)
    for group in _stitched(pieces, starts, cut):
        index = torch.tensor(group)
        surest = group[int(scores[index].argmax())]
        boxes[surest] = torch.cat([boxes[index, :2].amin(0), boxes[index, 2:].amax(0)])
        cut[surest] = cut[index].any(0)
        if masks is not None:
            masks[surest] = PlacedMask.union([masks[k] for k in group])
        kept[index] = False
        kept[surest] = True
    was_cut = cut.any(1)
    chosen = _suppress(boxes, scores, labels, kept & ~was_cut, kept & was_cut)
    found = InstanceData(bboxes=boxes[chosen], scores=scores[chosen], labels=labels[chosen])
    if masks is not None:
        found.masks = [masks[k] for k in chosen.tolist()]
    return type(first)(metainfo=dict(ori_shape=tuple(shape)), pred_instances=found)


def _stitched(pieces: list[Piece], starts: np.ndarray, cut: torch.Tensor) -> list[list[int]]:
    """Return the groups of objects that borders cut apart, by their numbers among all.

    A side at which the other part is there is no longer ``cut``.
    """
    by_place = {(piece.row, piece.column): n for n, piece in enumerate(pieces[:-1])}
    parent = {}

    def root(k: int) -> int:
        while parent.setdefault(k, k) != k:
            k = parent[k]
        return k

    for n, piece in enumerate(pieces[:-1]):
        for step, ends, begins in (((0, 1), RIGHT, LEFT), ((1, 0), BOTTOM, TOP)):
            m = by_place.get((piece.row + step[0], piece.column + step[1]))
            if m is None:
                continue
            for a, b in _pairs(piece, pieces[m], ends, begins):
                a, b = int(starts[n]) + a, int(starts[m]) + b
                cut[a, ends] = cut[b, begins] = False
                parent[root(a)] = root(b)
    groups = {}
    for k in list(parent):
        groups.setdefault(root(k), []).append(k)
    return list(groups.values())


def _pairs(one: Piece, other: Piece, ends: int, begins: int) -> list[tuple[int, int]]:
    """Return the pairs of objects of two neighbours that are one: each has one partner, the best first."""
    mine, theirs = one.cut[:, ends].nonzero()[:, 0], other.cut[:, begins].nonzero()[:, 0]
    if not len(mine) or not len(theirs):
        return []
    common = torch.tensor(
        [max(one.area[k], other.area[k]) for k in (0, 1)] + [min(one.area[k], other.area[k]) for k in (2, 3)],
        dtype=torch.float32,
    )
    boxes = [_within(piece.boxes[k], common) for piece, k in ((one, mine), (other, theirs))]
    agree = box_iou(*boxes).nan_to_num() * (one.labels[mine][:, None] == other.labels[theirs])
    pairs, free = [], [set(range(len(mine))), set(range(len(theirs)))]
    for flat in agree.flatten().argsort(descending=True, stable=True).tolist():
        a, b = divmod(flat, len(theirs))
        if agree[a, b] < IOU:
            break
        if a in free[0] and b in free[1]:
            free[0].remove(a)
            free[1].remove(b)
            pairs.append((int(mine[a]), int(theirs[b])))
    return pairs


def _within(boxes: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Return what lies of boxes within an area; none becomes a box of no size."""
    corners = torch.maximum(boxes[:, :2], area[:2])
    return torch.cat([corners, torch.maximum(torch.minimum(boxes[:, 2:], area[2:]), corners)], 1)


def _suppress(boxes, scores, labels, whole: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the objects that stay, the surest first; see :func:`join`."""
    whole, cut = (mask.nonzero()[:, 0] for mask in (whole, cut))
    whole = whole[batched_nms(boxes[whole], scores[whole], labels[whole], IOU)]
    stays = torch.tensor(
        [not _covered(k, whole, boxes, scores, labels) for k in cut.tolist()], dtype=torch.bool
    )
    cut = cut[stays]
    cut = cut[batched_nms(boxes[cut], scores[cut], labels[cut], IOU)]
    chosen = torch.cat([whole, cut])
    return chosen[scores[chosen].argsort(descending=True, stable=True)]


def _covered(k: int, whole: torch.Tensor, boxes, scores, labels) -> bool:
    """Return whether a cut object lies in a whole one."""
    same = whole[(labels[whole] == labels[k]) & (scores[whole] >= WEAKER * scores[k])]
    sides = (_within(boxes[same], boxes[k])[:, 2:] - _within(boxes[same], boxes[k])[:, :2]).prod(1)
    return bool((sides >= COVERED * (boxes[k, 2:] - boxes[k, :2]).prod()).any())


def reduced_objects(sample, factor: int, min_score: float):
    """Return the objects of at least a score in an image that is ``factor`` times smaller."""
    found = sample.pred_instances
    found = found[found.scores >= min_score]
    small = InstanceData(bboxes=found.bboxes / factor, scores=found.scores, labels=found.labels)
    if 'masks' in found:
        small.masks = [mask.reduced(factor) for mask in found.masks]
    return type(sample)(pred_instances=small)


def parts_of(sample, min_score: float) -> Iterator:
    """Yield the sample itself, or, with masks as windows, samples of a few objects with whole masks.

    Those of all objects of a large image would be more than the memory holds.
    """
    masks = sample.pred_instances.get('masks') if 'pred_instances' in sample else None
    if not isinstance(masks, list):
        yield sample
        return
    found = sample.pred_instances
    found = found[found.scores >= min_score]
    for k in range(0, max(len(found), 1), DRAWN):
        part = found[k : k + DRAWN].clone()
        if windows := part.pop('masks'):
            part.masks = torch.from_numpy(np.stack([mask.whole() for mask in windows]))
        yield type(sample)(pred_instances=part)
