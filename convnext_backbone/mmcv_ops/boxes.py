"""Computes non-maximum suppression and overlaps of boxes (x1, y1, x2, y2)."""

import numpy as np
import torch
import torchvision
from torch import Tensor


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that are kept, highest score first.

    Args:
        bboxes: (N, 4).
        scores: (N,).
        iou_threshold: a box is dropped if its overlap with a better one is larger.
        offset: 1 where the last pixel belongs to a box, else 0.
    """
    wide = torch.promote_types(bboxes.dtype, torch.float32)
    bboxes, scores = bboxes.to(wide), scores.to(wide)
    if offset:
        bboxes = torch.cat([bboxes[:, :2], bboxes[:, 2:] + offset], 1)
    if wide == torch.float32:
        # as overlaps are: an overlap of exactly the threshold is no reason to drop a box
        iou_threshold = float(np.float32(iou_threshold))
    return torchvision.ops.nms(bboxes, scores, iou_threshold)


def _overlaps_with(box: np.ndarray, others: np.ndarray, offset: int = 0) -> np.ndarray:
    """Return the intersection over union of one box (4,) with others (N, 4), in float32."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inner = np.maximum(high - low + offset, 0).prod(1)
    area, areas = (box[2:] - box[:2] + offset).prod(), (others[:, 2:] - others[:, :2] + offset).prod(1)
    with np.errstate(divide='ignore', invalid='ignore'):  # 0 / 0 of boxes without area: compares as False
        return inner / (area + areas - inner)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping them (Soft-NMS, arXiv:1704.04503).

    Args:
        boxes, scores: (N, 4) and (N,), on the CPU.
        dets: (N, 5), is filled with the boxes that remain and their new scores.
        iou_threshold: overlap from which on the methods 0 and 1 act.
        sigma: of method 2.
        min_score: a box whose score falls below is dropped.
        method: 0 drops (naive), 1 scales by 1 - overlap (linear), 2 by exp(-overlap^2 / sigma) (gaussian).
        offset: 1 where the last pixel belongs to a box, else 0.

    Returns:
        Indices of the boxes that remain, in the order of ``dets``.
    """
    box, score = boxes.float().numpy(), scores.float().numpy().copy()
    index = np.arange(len(score))
    kept = []
    while len(index):
        best = int(score.argmax())
        kept.append((index[best], score[best]))
        rest = np.arange(len(index)) != best
        overlap = _overlaps_with(box[index[best]], box[index[rest]], offset)
        index, score = index[rest], score[rest]
        if method == 2:
            overlap = np.nan_to_num(overlap)
            score = score * np.exp(-(overlap * overlap) / np.float32(sigma))
        else:
            weight = 1 - overlap if method == 1 else 0
            score = np.where(overlap >= np.float32(iou_threshold), score * weight, score)
        stays = score >= np.float32(min_score)
        index, score = index[stays], score[stays].astype(np.float32)
    indices = torch.tensor([i for i, _ in kept], dtype=torch.long)
    dets[: len(kept), :4] = boxes[indices]
    dets[: len(kept), 4] = torch.tensor([s for _, s in kept], dtype=dets.dtype)
    return indices


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return, for each box that is kept, its index and those of the boxes it suppresses, by score.

    Args:
        dets: (N, 5), boxes and scores, on the CPU.
        iou_threshold: a box is suppressed if its overlap is at least this.
    """
    order = dets[:, 4].argsort(descending=True, stable=True).numpy()
    box, groups = dets[:, :4].float().numpy(), []
    while len(order):
        best, rest = order[0], order[1:]
        matched = _overlaps_with(box[best], box[rest]) >= np.float32(iou_threshold)
        groups.append([int(best), *rest[matched].tolist()])
        order = rest[~matched]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fill ``ious`` with intersections over union (mode 0) or over the first box's area (mode 1).

    Args:
        bboxes1, bboxes2: (M, 4) and (N, 4).
        ious: (M, N), or (M,) if ``aligned``.
        offset: 1 where the last pixel belongs to a box, else 0.
    """
    wide = torch.promote_types(bboxes1.dtype, torch.float32)  # the largest float16 is an area of 256 x 256
    first, second = (bboxes1 if aligned else bboxes1[:, None]).to(wide), bboxes2.to(wide)
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    inner = (high - low + offset).clamp(min=0).prod(-1)
    area1, area2 = ((box[..., 2:] - box[..., :2] + offset).prod(-1) for box in (first, second))
    ious.copy_(inner / (area1 + area2 - inner if mode == 0 else area1))


def line_nms(boxes: Tensor, scores: Tensor, overlap: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Drop lanes that run close to a better one (CLRNet, arXiv:2203.10350, Sec. 3.3).

    Args:
        boxes: (N, 5 + points): the third number is the start in [0, 1], the fifth the length in points, from
            the sixth on come the x of the lane at each height.
        scores: (N,).
        overlap: a lane is dropped if its mean distance to a better one, where both run, is smaller.
        top_k: most lanes that are kept.

    Returns:
        Indices of the kept lanes, best first, filled up with zeros to N; their number; and for each lane the
        number, from 1 on, of the kept one it belongs to, 0 for none.
    """
    points = boxes.shape[1] - 5
    start = (boxes[:, 2] * (points - 1) + 0.5).long()
    end = start + boxes[:, 4].long() - 1
    row = torch.arange(points, device=boxes.device)
    keep, parent = torch.zeros_like(start), torch.zeros_like(start)
    order, kept = scores.argsort(descending=True, stable=True), 0
    while len(order) and kept < top_k:
        best = order[0]
        first = torch.maximum(start[order], start[best])
        last = torch.minimum(end[order], end[best]).clamp(max=points - 1)
        common = (row >= first[:, None]) & (row <= last[:, None]) & (first >= 0)[:, None]
        distance = ((boxes[order, 5:] - boxes[best, 5:]).abs() * common).sum(1)
        close = distance < overlap * common.sum(1)
        close[0] = True
        keep[kept] = best
        kept += 1
        parent[order[close]] = kept
        order = order[~close]
    return keep, torch.tensor(kept, device=boxes.device), parent
