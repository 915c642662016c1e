"""Computes the loss of each pixel strip by strip, without a score of every class for every pixel at once.

The scores of a segmenter are enlarged to the size of the labels. In mmseg's way the logarithms of 150 chances
for each of 512 x 512 pixels are kept for the backward pass, 150 MiB an image in float32, and as much again
passes through the memory several times. Since the loss is a mean over pixels, its gradient by the small map
of scores can be summed up at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .bilinear import shares, window
from .change import heads_of, override

# Numbers in a strip of rows: on a CPU they fit into the cache; elsewhere strips are to be few.
STRIP = dict(cpu=2**21, cuda=2**23)


class _SumOfLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        scores: Tensor,
        labels: Tensor,
        ignored: int,
        align_corners: bool,
        weights: Sequence[float] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of cross entropies and of weights, and how often the label has the highest score.

        Args:
            scores: (N, K, h, w).
            labels: (N, H, W), integers below K, or ``ignored``.
            ignored: the label of pixels that do not count.
            align_corners: how scores are enlarged, see ``torch.nn.functional.interpolate``; bilinear.
            weights: of the K classes; ``None``: 1.
        """
        if labels.device.type == 'cpu':
            _check(labels, scores.shape[1], ignored)
        dtype, device = torch.promote_types(scores.dtype, torch.float32), scores.device
        right = shares(scores.shape[3], labels.shape[2], 1, align_corners, dtype, device)[:, 0]
        down = shares(scores.shape[2], labels.shape[1], 1, align_corners, dtype, device)[:, 0]
        weights = [1.0] * scores.shape[1] if weights is None else weights
        weights = torch.tensor(weights, dtype=dtype, device=device)
        wanted, grads, sums = ctx.needs_input_grad[0], [], []
        with torch.autocast(scores.device.type, enabled=False):
            for image, own in zip(scores, labels, strict=True):
                long_rows = image.to(dtype) @ right.t()  # (K, h, W)
                grad = torch.zeros_like(long_rows) if wanted else None
                sums += _sum_strips(long_rows, own, down, align_corners, ignored, weights, grad)
                grads += [grad @ right] if wanted else []
        if wanted:
            ctx.save_for_backward(torch.stack(grads))
            ctx.dtype = scores.dtype
        loss, weight, hits = torch.stack(sums).sum(0)
        return loss.to(dtype), weight.to(dtype), hits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        (grads,) = ctx.saved_tensors
        return (grads * grad).to(ctx.dtype), None, None, None, None


def _sum_strips(
    rows: Tensor,
    labels: Tensor,
    down: Tensor,
    align_corners: bool,
    ignored: int,
    weights: Tensor,
    grad: Tensor | None,
) -> list[Tensor]:
    """Return for each strip of an image the sums of losses, weights and hits; add its gradient to ``grad``.

    Args:
        rows: scores with their columns enlarged, (K, h, W).
        labels: (H, W).
        down: (H, h), by which rows are enlarged.
        align_corners, ignored, weights: see :class:`_SumOfLosses`.
        grad: of ``rows``, or ``None``.
    """
    found, first = [], 0
    for own in labels.split(max(1, STRIP[rows.device.type] // rows[:, 0].numel())):
        end = first + len(own)
        used = window(first, end, rows.shape[1], len(down), align_corners)
        part = down[first:end, used]
        first = end
        scores = part @ rows[:, used]  # (K, height, W)
        counts = own != ignored
        index = torch.where(counts, own, 0)[None]
        factors = torch.where(counts, weights[index[0]], 0)
        of_label = scores.gather(0, index)[0]
        highest, best = scores.max(0)
        chances = scores.sub_(highest).exp_()
        sums = chances.sum(0)
        losses = sums.log() + highest - of_label
        of_strip = torch.where(counts, losses, 0) * factors, factors, (best == own) & counts
        found.append(torch.stack([each.sum(dtype=torch.float64) for each in of_strip]))
        if grad is not None:
            chances *= factors / sums
            chances.scatter_add_(0, index, -factors[None])
            grad[:, used] += part.t() @ chances
    return found


def _check(labels: Tensor, classes: int, ignored: int) -> None:
    wrong = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise IndexError(f'Target {wrong[0]} is out of bounds.')  # as torch.nn.functional.cross_entropy


def use_strips(model: nn.Module) -> int:
    """Have mmseg's decode heads compute cross entropy strip by strip.

    Args:
        model: any; it is changed in place.

    Returns:
        How many heads there are.
    """
    heads = heads_of(model, 'mmseg.models.decode_heads.decode_head.BaseDecodeHead', 'loss_by_feat')
    heads = [head for head in heads if head.sampler is None and _is_plain(head.loss_decode)]
    for head in heads:
        override(head, loss_by_feat=_loss_by_feat)
    return len(heads)


def _is_plain(loss: nn.Module) -> bool:
    """Return whether a loss is mmseg's cross entropy; it divides by no weights of some pixels only."""
    from mmseg.models.losses import CrossEntropyLoss
    from mmseg.models.losses.cross_entropy_loss import cross_entropy

    if type(loss) is not CrossEntropyLoss or (loss.class_weight is not None and loss.avg_non_ignore):
        return False
    return loss.cls_criterion is cross_entropy and loss.reduction == 'mean'


def _loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
    """Compute loss and accuracy as the original does."""
    labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
    enlarged = all(size > own for size, own in zip(labels.shape[1:], seg_logits.shape[2:]))
    if seg_logits.device.type not in STRIP or torch.compiler.is_compiling() or not enlarged:
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead

        return BaseDecodeHead.loss_by_feat(self, seg_logits, batch_data_samples)
    loss, eps = self.loss_decode, torch.finfo(torch.float32).eps
    how = self.ignore_index, self.align_corners, loss.class_weight
    total, weight, hits = _SumOfLosses.apply(seg_logits, labels, *how)
    counted = (labels != self.ignore_index).sum()
    over = labels.numel() if loss.class_weight is None and not loss.avg_non_ignore else weight
    accuracy = (hits + eps) * (100.0 / (counted + eps))  # as mmseg.models.losses.accuracy
    return {loss.loss_name: loss.loss_weight * (total / (over + eps)), 'acc_seg': accuracy[None]}
