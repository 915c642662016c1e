"""Compares mmcv's operators on a GPU with the same on the CPU, in float32: outputs and gradients."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .rows import Row, close, same

BOUND = 1e-4  # of the largest number; sums are in another order


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def _boxes(number: int, side: float) -> Tensor:
    """Draw boxes (number, 4) in pixels, some partly outside of an image of ``side``."""
    corner = (1.3 * torch.rand(number, 2) - 0.15) * side
    return torch.cat([corner, corner + 4 + torch.rand(number, 2) * side / 2], 1)


def _compare(name: str, function: Callable, tensors: list[Tensor], device: str) -> Iterator[Row]:
    """Compare outputs and gradients of a function of tensors."""
    results = []
    for place in ('cpu', device):
        own = [t.to(place).requires_grad_(t.is_floating_point()) for t in map(torch.clone, tensors)]
        out = function(*own)
        wanted = [t for t in own if t.requires_grad]
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        found = torch.autograd.grad(out, wanted, grad, allow_unused=True)
        results.append([out, *found])
    for number, (right, found) in enumerate(zip(*results)):
        if right is None or found is None:
            yield same(f'{name} gradient {number}', right is found, 'on one of both only')
        else:
            yield close(f'{name} {f"gradient {number}" if number else "output"}', found.cpu(), right, BOUND)


def roi_operators(device: str) -> Iterator[Row]:
    """Compare RoIAlign, by mean and by maximum, and deformable RoI pooling."""
    from mmcv.ops import deform_roi_pool, roi_align

    maps = _normal(2, 16, 50, 68)
    rois = torch.cat([torch.randint(2, (64, 1)).float(), _boxes(64, 200)], 1)
    for size, ratio, aligned in ((7, 0, True), (14, 2, True), (7, 2, False)):
        yield from _compare(
            f'roi_align {size}x{size} samples {ratio}{" aligned" * aligned}',
            lambda x, s=size, r=ratio, a=aligned: roi_align(x, rois.to(x.device), s, 0.25, r, 'avg', a),
            [maps],
            device,
        )
    inside = torch.cat([torch.zeros(8, 1), 60 + _boxes(8, 40).clamp(0, 60)], 1)
    yield from _compare(
        'deform_roi_pool',
        lambda x, shift: deform_roi_pool(x, inside.to(x.device), shift, 7, 0.25, 2, 0.1),
        [maps, _normal(8, 2, 7, 7)],
        device,
    )


def suppression(device: str) -> Iterator[Row]:
    """Compare which boxes are kept by NMS, by classes too, and by Soft-NMS."""
    from mmcv.ops import batched_nms, nms, soft_nms

    boxes, classes = _boxes(2000, 600), torch.randint(80, (2000,))
    scores = (torch.randperm(2000) + 0.5) / 2000  # all different: the order of equal ones is nobody's
    for threshold in (0.5, 0.7):
        kept = [nms(boxes.to(place), scores.to(place), threshold)[1].cpu() for place in ('cpu', device)]
        yield same(f'nms {threshold}', torch.equal(*kept), f'{len(kept[1])} boxes kept')
    settings = dict(type='nms', iou_threshold=0.5)
    kept = [
        batched_nms(boxes.to(place), scores.to(place), classes.to(place), settings)[1].cpu()
        for place in ('cpu', device)
    ]
    yield same('batched_nms', torch.equal(*kept), f'{len(kept[1])} boxes kept')
    first, second = (soft_nms(boxes[:200].to(place), scores[:200].to(place)) for place in ('cpu', device))
    yield same('soft_nms order', torch.equal(first[1], second[1].cpu()))
    if torch.equal(first[1], second[1].cpu()):
        yield close('soft_nms', second[0].cpu(), first[0], BOUND)


def layers(device: str) -> Iterator[Row]:
    """Compare attention over several maps, deformable convolutions, CARAFE and the focal loss."""
    from mmcv.ops import carafe, deform_conv2d, modulated_deform_conv2d, sigmoid_focal_loss
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = torch.tensor([[24, 32], [12, 16], [6, 8], [3, 4]])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, first = shapes.to(value.device), starts.to(value.device)
        return MultiScaleDeformableAttnFunction.apply(value, sizes, first, locations, weights, 64)

    value = _normal(2, int(shapes.prod(1).sum()), 8, 32)
    places, weights = torch.rand(2, 300, 8, 4, 4, 2) * 1.2 - 0.1, torch.rand(2, 300, 8, 4, 4)
    yield from _compare('multi-scale attention', attend, [value, places, weights], device)
    x, weight, offset = _normal(2, 16, 20, 24), _normal(8, 16, 3, 3), _normal(2, 18, 20, 24)
    yield from _compare(
        'deformable convolution', lambda x, o, w: deform_conv2d(x, o, w, 1, 1), [x, offset, weight], device
    )
    yield from _compare(
        'modulated deformable convolution',
        lambda x, o, m, w, b: modulated_deform_conv2d(x, o, m, w, b, 1, 1),
        [x, offset, torch.rand(2, 9, 20, 24), weight, _normal(8)],
        device,
    )
    yield from _compare('carafe', lambda x, m: carafe(x, m, 5, 1, 2), [x, torch.rand(2, 25, 40, 48)], device)
    labels = torch.randint(81, (500,))
    yield from _compare(
        'focal loss',
        lambda x: sigmoid_focal_loss(x, labels.to(x.device), 2.0, 0.25, None, 'none'),
        [_normal(500, 80)],
        device,
    )


def check(device: str) -> Iterator[Row]:
    """Compare all operators above, by whichever module computes them here."""
    torch.manual_seed(0)
    for part in (roi_operators, suppression, layers):
        yield from part(device)
