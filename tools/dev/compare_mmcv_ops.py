"""Compare the stand-in for mmcv's compiled operators with the compiled ones, on random inputs.

    python tools/dev/compare_mmcv_ops.py PATH [--rounds 200] [--device cpu]

PATH is mmcv's extension, ``mmcv/_ext.*.so``, compiled for the torch of this environment
(``tools/dev/compile_mmcv.sh``; ``make test-operators`` does both). It is loaded beside ours under another
name, and every function is called in both with the same numbers, in float32 and float64. What mmcv has for
CUDA only is compared with its CUDA kernels, compiled as loops for one thread of a CPU (``mmcv_kernels.cpp``).
Prints a table; exit status 1 if a difference is larger than rounding explains.

Not drawn is what the compiled functions leave undefined or get wrong: maps in channels_last memory (read as
if they were contiguous), the maximum over a region without samples (-10000) and the gradient of one in the
row -1 (left out: -1 stands for none), Soft-NMS of boxes without area (not a number), weights of the sigmoid
loss for the background (read behind the end), shifts of deformable RoI pooling near the border (a gradient
that is not the output's).
"""

import argparse
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from convnext_backbone.mmcv_ops.operators import OPERATORS, make_module

OURS = make_module('ours')
MISSING = 'implementation for device'
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}  # times the largest number of a result
# its exponential is in float32 whatever the type, and the logarithm of the rest to one magnifies roundings
LOOSE = {'sigmoid_focal_loss_forward': {torch.float32: 2e-4, torch.float64: 1e-6}}


class Draw:
    """Draws the random numbers of one round."""

    def __init__(self, name: str, number: int, seed: int, device: str):
        self.generator = torch.Generator().manual_seed(zlib.crc32(f'{name} {number} {seed}'.encode()))
        self.device, self.dtype = device, torch.float64 if number % 4 == 3 else torch.float32
        self.large = number % 8 == 0  # sizes at which the time of a call is not that of calling

    def whole(self, low: int, high: int) -> int:
        """Draw a whole number from ``low`` to ``high``, both included."""
        return torch.randint(low, high + 1, (), generator=self.generator).item()

    def one_of(self, *choices):
        """Draw one of ``choices``."""
        return choices[self.whole(0, len(choices) - 1)]

    def normal(self, *shape) -> Tensor:
        """Draw a tensor of normally distributed numbers."""
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def uniform(self, *shape) -> Tensor:
        """Draw a tensor of numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator).to(self.device, self.dtype)

    def integers(self, high: int, *shape) -> Tensor:
        """Draw a tensor of whole numbers from 0 to ``high - 1``."""
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def size(self, small: int, large: int) -> int:
        """Draw a size from 1 to ``small``; in rounds with large tensors to ``large``."""
        return self.whole(1, large if self.large else small)


class Watched:
    """Times the functions of a module."""

    def __init__(self, module):
        self.module, self.seconds = module, defaultdict(float)

    def __getattr__(self, name: str):
        function = getattr(self.module, name)

        def timed(*arguments, **settings):
            begin = time.perf_counter()
            result = function(*arguments, **settings)
            if arguments[0].is_cuda:
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - begin
            return result

        return timed


# One function for each group of operators: draws the inputs, and returns a function that calls a module's
# operators with copies of them and returns {operator: results}.


def regions(draw: Draw, images: int, height: int, width: int, scale: float, number: int) -> Tensor:
    """Draw regions (number, 5), image and corners: some of whole numbers, some partly or entirely outside."""
    size = torch.tensor([width, height], device=draw.device, dtype=draw.dtype) / scale
    corner = (1.4 * draw.uniform(number, 2) - 0.3) * size
    extent = draw.uniform(number, 2) * size * draw.one_of(0.1, 0.5, 1.2)
    boxes = torch.cat([corner, corner + extent + 1e-3], 1)
    if draw.whole(0, 2) == 0:
        boxes = boxes.round()
        boxes[:, 2:] += 1
    return torch.cat([draw.integers(images, number, 1).to(boxes), boxes], 1)


def roi_align(draw: Draw, mode: int):
    """Draw a case of RoIAlign and its gradient; ``mode`` 0 is the maximum, 1 the mean."""
    images, channels = draw.whole(1, 3), draw.size(4, 64)
    height, width = draw.whole(1, 30), draw.whole(1, 30)
    scale = draw.one_of(1.0, 0.5, 0.25, 0.0625)
    rois = regions(draw, images, height, width, scale, draw.size(6, 100))
    maps, bins = draw.normal(images, channels, height, width), (draw.whole(1, 7), draw.whole(1, 7))
    if mode == 0:
        rois[:, 2:] += 1 / 64  # no sample in the row -1
    settings = dict(
        aligned_height=bins[0],
        aligned_width=bins[1],
        spatial_scale=scale,
        sampling_ratio=draw.one_of(0, 0, 1, 2, 3),
        pool_mode=mode,
        aligned=draw.one_of(True, False),
    )
    grad = draw.normal(len(rois), channels, *bins)

    def run(module):
        output, grad_input = torch.zeros_like(grad), torch.zeros_like(maps)
        places = [torch.zeros_like(grad) if mode == 0 else maps.new_zeros(0) for _ in range(2)]
        module.roi_align_forward(maps, rois, output, *places, **settings)
        module.roi_align_backward(grad, rois, *places, grad_input, **settings)
        return dict(roi_align_forward=[output], roi_align_backward=[grad_input])

    return run


def roi_pool(draw: Draw):
    """Draw a case of the maximum over the bins of regions, and its gradient."""
    images, channels = draw.whole(1, 3), draw.size(4, 64)
    height, width = draw.whole(1, 30), draw.whole(1, 30)
    scale = draw.one_of(1.0, 0.5, 0.25, 0.0625)
    rois = regions(draw, images, height, width, scale, draw.size(6, 100))
    maps, bins = draw.normal(images, channels, height, width), (draw.whole(1, 7), draw.whole(1, 7))
    settings = dict(pooled_height=bins[0], pooled_width=bins[1], spatial_scale=scale)
    grad = draw.normal(len(rois), channels, *bins)

    def run(module):
        output, grad_input = torch.zeros_like(grad), torch.zeros_like(maps)
        places = torch.zeros_like(grad, dtype=torch.int)
        module.roi_pool_forward(maps, rois, output, places, **settings)
        module.roi_pool_backward(grad, rois, places, grad_input, **settings)
        return dict(roi_pool_forward=[output, places.long()], roi_pool_backward=[grad_input])

    return run


def deform_roi_pool(draw: Draw):
    """Draw a case of deformable RoI pooling and its gradients.

    The regions lie well inside: near the border mmcv's gradient of the shifts is not that of its output.
    """
    images, channels, size = draw.whole(1, 3), draw.size(4, 64), draw.whole(20, 30)
    corner = 8 + 4 * draw.uniform(draw.size(6, 100), 2)
    boxes = torch.cat([corner, corner + 1 + 3 * draw.uniform(len(corner), 2)], 1)
    rois = torch.cat([draw.integers(images, len(boxes), 1).to(boxes), boxes], 1)
    maps, bins = draw.normal(images, channels, size, size), (draw.whole(1, 4), draw.whole(1, 4))
    shift = draw.one_of(draw.normal(len(rois), 2, *bins).clamp(-3, 3), maps.new_zeros(0))
    settings = dict(
        pooled_height=bins[0],
        pooled_width=bins[1],
        spatial_scale=1.0,
        sampling_ratio=draw.one_of(0, 2, 3),
        gamma=0.125,
    )
    grad = draw.normal(len(rois), channels, *bins)

    def run(module):
        output, grad_input, grad_shift = (torch.zeros_like(t) for t in (grad, maps, shift))
        module.deform_roi_pool_forward(maps, rois, shift, output, **settings)
        module.deform_roi_pool_backward(grad, maps, rois, shift, grad_input, grad_shift, **settings)
        return dict(deform_roi_pool_forward=[output], deform_roi_pool_backward=[grad_input, grad_shift])

    return run


def boxes_and_scores(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw boxes (N, 4), many of which overlap, and scores (N,), all different, in float32."""
    draw.dtype = torch.float32  # the compiled functions take no other
    number = draw.size(60, 1000)
    corner = draw.uniform(number, 2) * draw.one_of(5, 20, 100, 1000)
    # many small ones, if rounded, overlap by exactly a threshold
    boxes = torch.cat([corner, corner + 1 + draw.uniform(number, 2) * draw.one_of(9, 30)], 1)
    order = torch.randperm(number, generator=draw.generator).to(draw.device)
    scores = (order + 0.5) / number  # all different: the order of equal ones is nobody's
    return (boxes.round() if draw.whole(0, 1) else boxes), scores.float()


def nms(draw: Draw):
    """Draw a case of non-maximum suppression: the indices that are kept."""
    boxes, scores = boxes_and_scores(draw)
    threshold, offset = draw.one_of(0.3, 0.5, 0.6, 0.7, 0.9), draw.whole(0, 1)

    def run(module):
        return dict(nms=[module.nms(boxes, scores, iou_threshold=threshold, offset=offset)])

    return run


def softnms(draw: Draw):
    """Draw a case of Soft-NMS: indices and scores, at inputs where rounding does not change the order."""
    boxes, scores = boxes_and_scores(draw)
    settings = dict(
        iou_threshold=draw.one_of(0.3, 0.5, 0.6),
        sigma=draw.one_of(0.25, 0.5),
        min_score=draw.one_of(0.0, 0.001, 0.05),
        method=draw.whole(0, 2),
        offset=draw.whole(0, 1),
    )
    boxes, scores = boxes.cpu(), scores.cpu()

    def run(module, scores=scores):
        dets = boxes.new_zeros(len(boxes), 5)
        kept = module.softnms(boxes.clone(), scores.clone(), dets, **settings)
        dets = dets[: len(kept)]
        # equal scores, most of them zeros, come in an order that is nobody's
        order = sorted(range(len(kept)), key=lambda i: (-dets[i, 4].item(), kept[i].item()))
        order = [i for i in order if dets[i, 4] > 1e-30]
        return dict(softnms=[kept[order], dets[order]])

    found = run(OURS)['softnms'][0]
    for _ in range(5):  # the order may hang on the rounding of an exponential: then draw again
        nearly = scores * (1 + 3e-6 * draw.normal(len(scores)).cpu())
        if not torch.equal(run(OURS, nearly)['softnms'][0], found):
            return softnms(draw)
    return run


def nms_match(draw: Draw):
    """Draw a case of NMS with the boxes that each kept one suppresses."""
    boxes, scores = boxes_and_scores(draw)
    dets, threshold = torch.cat([boxes, scores[:, None]], 1).cpu(), draw.one_of(0.3, 0.5, 0.6, 0.7)

    def run(module):
        groups = module.nms_match(dets, iou_threshold=threshold)
        return dict(nms_match=[torch.tensor([i for group in groups for i in (-1, *group)])])

    return run


def bbox_overlaps(draw: Draw):
    """Draw a case of overlaps of boxes, of all pairs or row by row."""
    first, _ = boxes_and_scores(draw)
    second, _ = boxes_and_scores(draw)
    aligned = draw.one_of(True, False)
    number = min(len(first), len(second))
    first, second = (first[:number], second[:number]) if aligned else (first, second)
    settings = dict(mode=draw.whole(0, 1), aligned=aligned, offset=draw.whole(0, 1))

    def run(module):
        ious = first.new_zeros(number if aligned else (len(first), len(second)))
        module.bbox_overlaps(first, second, ious, **settings)
        return dict(bbox_overlaps=[ious])

    return run


def convolution(draw: Draw):
    """Draw tensors for a deformable convolution.

    Returns:
        Tensors by name, then kernel, stride, padding and dilation (of height and width), groups, and groups
        of the offsets.
    """
    groups, deform_groups = draw.whole(1, 2), draw.whole(1, 2)
    channels = 2 * draw.size(2, 16)
    kernel, stride, padding, dilation = ((draw.whole(1, 3), draw.whole(1, 3)) for _ in range(4))
    padding = tuple(p - 1 for p in padding)
    size = [d * (k - 1) + 1 + draw.size(5, 20) for d, k in zip(dilation, kernel)]
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    images, taps = draw.whole(1, 4), deform_groups * kernel[0] * kernel[1]
    tensors = dict(
        input=draw.normal(images, channels, *size),
        weight=draw.normal(2 * draw.size(2, 16), channels // groups, *kernel),
        offset=draw.one_of(0.3, 2.0) * draw.normal(images, 2 * taps, *out),
        mask=draw.uniform(images, taps, *out),
    )
    tensors['bias'] = draw.normal(len(tensors['weight']))
    tensors['grad'] = draw.normal(images, len(tensors['weight']), *out)
    return tensors, (kernel, stride, padding, dilation, groups, deform_groups)


def deform_conv(draw: Draw):
    """Draw a case of deformable convolution (arXiv:1703.06211) and its gradients."""
    t, (kernel, stride, padding, dilation, groups, deform_groups) = convolution(draw)
    step = draw.one_of(*(n for n in range(1, len(t['input']) + 1) if len(t['input']) % n == 0))
    keep = draw.one_of(True, False)  # the buffer between the two calls of the backward pass
    settings = dict(group=groups, deformable_group=deform_groups, im2col_step=step)
    for name, pair in dict(k=kernel, d=stride, pad=padding, dilation=dilation).items():
        settings[f'{name}H'], settings[f'{name}W'] = pair

    def run(module):
        output, grad_input, grad_offset, grad_weight = (
            torch.zeros_like(t[name]) for name in ('grad', 'input', 'offset', 'weight')
        )
        columns, ones = (output.new_empty(0) for _ in range(2))
        module.deform_conv_forward(t['input'], t['weight'], t['offset'], output, columns, ones, **settings)
        module.deform_conv_backward_input(
            t['input'],
            t['offset'],
            t['grad'].clone(),
            grad_input,
            grad_offset,
            t['weight'],
            columns,
            **settings,
        )
        columns = columns if keep else output.new_empty(0)
        module.deform_conv_backward_parameters(
            t['input'], t['offset'], t['grad'].clone(), grad_weight, columns, ones, scale=1, **settings
        )
        return dict(
            deform_conv_forward=[output],
            deform_conv_backward_input=[grad_input, grad_offset],
            deform_conv_backward_parameters=[grad_weight],
        )

    return run


def modulated_deform_conv(draw: Draw):
    """Draw a case of deformable convolution with a mask (arXiv:1811.11168) and its gradients."""
    t, (kernel, stride, padding, dilation, groups, deform_groups) = convolution(draw)
    with_bias = draw.one_of(True, False)
    bias = t['bias'] if with_bias else t['bias'].new_empty(0)
    settings = dict(group=groups, deformable_group=deform_groups, with_bias=with_bias)
    for name, pair in dict(kernel=kernel, stride=stride, pad=padding, dilation=dilation).items():
        settings[f'{name}_h'], settings[f'{name}_w'] = pair

    def run(module):
        output, ones, columns = torch.zeros_like(t['grad']), bias.new_empty(0), bias.new_empty(0)
        given = t['input'], t['weight'], bias, ones, t['offset'], t['mask']
        module.modulated_deform_conv_forward(*given, output, columns, **settings)
        found = [torch.zeros_like(g) for g in (t['input'], t['weight'], bias, t['offset'], t['mask'])]
        module.modulated_deform_conv_backward(*given, columns, *found, t['grad'].clone(), **settings)
        return dict(modulated_deform_conv_forward=[output], modulated_deform_conv_backward=found)

    return run


def ms_deform_attn(draw: Draw):
    """Draw a case of attention over several maps (arXiv:2010.04159), also outside them, and its gradients."""
    shapes = torch.tensor([[draw.whole(1, 9), draw.whole(1, 9)] for _ in range(draw.whole(1, 3))])
    areas = shapes.prod(1)
    starts = (areas.cumsum(0) - areas).to(draw.device)
    images, heads, channels = draw.whole(1, 4), draw.whole(1, 3), 4 * draw.size(2, 8)
    queries, points, maps = draw.size(5, 100), draw.whole(1, 4), len(shapes)
    value = draw.normal(images, int(areas.sum()), heads, channels)
    locations = 1.3 * draw.uniform(images, queries, heads, maps, points, 2) - 0.15
    weights = draw.uniform(images, queries, heads, maps, points)
    shapes, grad = shapes.to(draw.device), draw.normal(images, queries, heads * channels)

    def run(module):
        given = value, shapes, starts, locations, weights
        output = module.ms_deform_attn_forward(*given, im2col_step=64)
        found = [torch.zeros_like(t) for t in (value, locations, weights)]
        module.ms_deform_attn_backward(*given, grad, *found, im2col_step=64)
        return dict(ms_deform_attn_forward=[output], ms_deform_attn_backward=found)

    return run


def carafe_inputs(draw: Draw) -> tuple:
    """Draw features, masks and a gradient for CARAFE (arXiv:1905.02188), and its settings."""
    groups, kernel, scale = draw.whole(1, 2), draw.one_of(1, 3, 5), draw.whole(1, 3)
    images, channels, height, width = (
        draw.whole(1, 2),
        2 * draw.size(2, 16),
        draw.size(5, 20),
        draw.size(5, 20),
    )
    features = draw.normal(images, channels, height, width)
    masks = draw.uniform(images, groups * kernel**2, height * scale, width * scale)
    grad = draw.normal(images, channels, height * scale, width * scale)
    return features, masks, grad, dict(kernel_size=kernel, group_size=groups, scale_factor=scale)


def carafe_naive(draw: Draw):
    """Draw a case of CARAFE without buffers, and its gradients."""
    features, masks, grad, settings = carafe_inputs(draw)

    def run(module):
        output, *found = (torch.zeros_like(t) for t in (grad, features, masks))
        module.carafe_naive_forward(features, masks, output, **settings)
        module.carafe_naive_backward(grad, features, masks, *found, **settings)
        return dict(carafe_naive_forward=[output], carafe_naive_backward=found)

    return run


def carafe(draw: Draw):
    """Draw a case of CARAFE with the buffers that mmcv's fast kernels need, and its gradients."""
    features, masks, grad, settings = carafe_inputs(draw)

    def run(module):
        buffers = [torch.zeros_like(t) for t in (features, grad, masks)]
        output, *found = (torch.zeros_like(t) for t in (grad, features, masks))
        module.carafe_forward(features, masks, *buffers, output, **settings)
        others = [torch.zeros_like(t) for t in (grad, grad, features, masks)]
        module.carafe_backward(grad, buffers[0], masks, *others, *found, **settings)
        return dict(carafe_forward=[output], carafe_backward=found)

    return run


def masked_convolution(draw: Draw):
    """Draw a case of taking the windows at chosen positions out of a map, and putting columns back."""
    kernel, padding = (draw.whole(1, 3), draw.whole(1, 3)), (draw.whole(0, 2), draw.whole(0, 2))
    x = draw.normal(1, draw.size(4, 32), draw.size(8, 40), draw.size(8, 40))
    rows, columns = (draw.uniform(*x.shape[2:]) > 0.5).nonzero().T.contiguous()
    settings = dict(kernel_h=kernel[0], kernel_w=kernel[1], pad_h=padding[0], pad_w=padding[1])
    back = draw.normal(3, len(rows))

    def run(module):
        found = x.new_zeros(x.shape[1] * kernel[0] * kernel[1], len(rows))
        module.masked_im2col_forward(x, rows, columns, found, **settings)
        image = x.new_zeros(1, 3, *x.shape[2:])
        sizes = dict(height=x.shape[2], width=x.shape[3], channels=3)
        module.masked_col2im_forward(back, rows, columns, image, **sizes)
        return dict(masked_im2col_forward=[found], masked_col2im_forward=[image])

    return run if len(rows) else masked_convolution(draw)


def psamask(draw: Draw):
    """Draw a case of the masks of PSANet, collecting or distributing, and their gradients."""
    height, width, mask = draw.whole(1, 4), draw.whole(1, 4), (draw.whole(1, 5), draw.whole(1, 5))
    x = draw.normal(draw.whole(1, 2), mask[0] * mask[1], height, width)
    grad = draw.normal(len(x), height * width, height, width)
    settings = dict(psa_type=draw.whole(0, 1), num_=len(x), h_feature=height, w_feature=width)
    settings |= dict(h_mask=mask[0], w_mask=mask[1])
    settings |= dict(half_h_mask=(mask[0] - 1) // 2, half_w_mask=(mask[1] - 1) // 2)

    def run(module):
        output, found = torch.zeros_like(grad), torch.zeros_like(x)
        module.psamask_forward(x, output, **settings)
        module.psamask_backward(grad, found, **settings)
        return dict(psamask_forward=[output], psamask_backward=[found])

    return run


def sigmoid_focal_loss(draw: Draw):
    """Draw a case of the focal loss of sigmoids (arXiv:1708.02002) and its gradient."""
    rows, classes = draw.size(20, 2000), draw.size(5, 80)
    logits, target = 3 * draw.normal(rows, classes), draw.integers(classes + 1, rows)
    weight = draw.one_of(draw.uniform(classes), logits.new_zeros(0))
    target = target.clamp(max=classes - 1) if weight.numel() else target
    settings = dict(gamma=draw.one_of(0.5, 2.0), alpha=0.25)

    def run(module):
        output, found = torch.zeros_like(logits), torch.zeros_like(logits)
        module.sigmoid_focal_loss_forward(logits, target, weight, output, **settings)
        module.sigmoid_focal_loss_backward(logits, target, weight, found, **settings)
        return dict(sigmoid_focal_loss_forward=[output], sigmoid_focal_loss_backward=[found])

    return run


def softmax_focal_loss(draw: Draw):
    """Draw a case of the focal loss of a softmax and its gradient."""
    rows, classes = draw.size(20, 2000), draw.size(5, 80) + 1
    p, target = (2 * draw.normal(rows, classes)).softmax(1), draw.integers(classes, rows)
    weight = draw.one_of(draw.uniform(classes), p.new_zeros(0))
    settings = dict(gamma=draw.one_of(0.5, 2.0), alpha=0.25)

    def run(module):
        output, buffer, found = p.new_zeros(rows), p.new_zeros(rows), torch.zeros_like(p)
        module.softmax_focal_loss_forward(p, target, weight, output, **settings)
        module.softmax_focal_loss_backward(p, target, weight, buffer, found, **settings)
        return dict(softmax_focal_loss_forward=[output], softmax_focal_loss_backward=[buffer, found])

    return run


def sync_batch_norm(draw: Draw):
    """Draw a case of the steps of batch norm over several processes, as one process takes them."""
    draw.dtype = torch.float32
    images, channels, pixels = draw.whole(2, 4), 3 + draw.size(4, 32), 9 + draw.size(30, 400)
    x, grad = 1 + 2 * draw.normal(images, channels, pixels), draw.normal(images, channels, pixels)
    weight, bias = draw.normal(channels), draw.normal(channels)
    settings = dict(eps=1e-5, momentum=0.1, group_size=draw.whole(1, 2))

    def run(module):
        mean, var, std, grad_weight, grad_bias = (torch.zeros_like(weight) for _ in range(5))
        running = torch.zeros_like(weight), torch.ones_like(weight)
        norm, output, found = (torch.zeros_like(x) for _ in range(3))
        module.sync_bn_forward_mean(x, mean)
        module.sync_bn_forward_var(x, mean, var)
        module.sync_bn_forward_output(x, mean, var, weight, bias, *running, norm, std, output, **settings)
        module.sync_bn_backward_param(grad, norm, grad_weight, grad_bias)
        module.sync_bn_backward_data(grad, weight, grad_weight, grad_bias, norm, std, found)
        return dict(
            sync_bn_forward_mean=[mean],
            sync_bn_forward_var=[var],
            sync_bn_forward_output=[output, norm, std, *running],
            sync_bn_backward_param=[grad_weight, grad_bias],
            sync_bn_backward_data=[found],
        )

    return run


GROUPS = [
    partial(roi_align, mode=1),
    partial(roi_align, mode=0),
    roi_pool,
    deform_roi_pool,
    nms,
    softnms,
    nms_match,
    bbox_overlaps,
    deform_conv,
    modulated_deform_conv,
    ms_deform_attn,
    carafe,
    carafe_naive,
    masked_convolution,
    psamask,
    sigmoid_focal_loss,
    softmax_focal_loss,
    sync_batch_norm,
]


class Row:
    """Holds what was found about one operator.

    Attributes:
        draws: how often it was compared; 0 if nothing is compiled for this device.
        differ: draws whose whole numbers, or whose shapes, are not the same.
        absolute: the largest difference of a number.
        relative: the largest difference by data type, in shares of the largest number of a result.
        ratio: time of the compiled one by the time of ours.
    """

    def __init__(self, name: str):
        self.tolerance = LOOSE.get(name, TOLERANCE)
        self.draws, self.differ, self.absolute, self.ratio = 0, 0, 0.0, 0.0
        self.relative = {}

    def add(self, found: list[Tensor], expected: list[Tensor]) -> None:
        """Add a draw: what ours gave, and what the compiled operator did."""
        self.draws += 1
        same = True
        for ours, theirs in zip(found, expected, strict=True):
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                same = False
            elif not theirs.is_floating_point():
                same &= torch.equal(ours, theirs)
            elif theirs.numel():
                difference = (ours - theirs).abs().max().item()
                relative = difference / max(theirs.abs().max().item(), 1e-30)
                self.absolute = max(self.absolute, difference)
                self.relative[theirs.dtype] = max(self.relative.get(theirs.dtype, 0.0), relative)
                same &= relative == relative  # not a number
        self.differ += not same

    def wrong(self) -> bool:
        """Return whether whole numbers or shapes differ, or others by more than rounding."""
        return self.differ > 0 or any(each > self.tolerance[kind] for kind, each in self.relative.items())

    def text(self) -> str:
        """Return the cells of the row in the printed table."""
        relative = [f'{self.relative[kind]:.1e}' if kind in self.relative else '' for kind in TOLERANCE]
        absolute = f'{self.absolute:.1e}' if self.relative else ''
        return ' | '.join(map(str, [self.draws, self.differ, absolute, *relative, f'{self.ratio:.2f}']))


# What the kernels' headers take from CUDA
CUDA = """
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
using std::max;
using std::min;
#define __global__
#define __device__
#define __shared__
#define __syncthreads()
struct Index { int x, y, z; };
static Index blockIdx{0, 0, 0}, threadIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};
template <typename T> void atomicAdd(T *place, T number) { *place += number; }
struct phalf {
  float value;
  explicit phalf(float number) : value(number) {}
  operator float() const { return value; }
};
"""


class Kernels:
    """Runs mmcv's CUDA kernels as loops on a CPU, called as the functions of the extension are.

    The kernels of CARAFE are made of blocks of threads; the naive ones stand for them.

    Args:
        sources: mmcv/ops/csrc/common/cuda.
    """

    def __init__(self, sources: Path):
        with tempfile.TemporaryDirectory() as folder:
            for name in ('cuda.h', 'pytorch_cuda_helper.hpp'):
                text = '#include "common_cuda_helper.hpp"\n' if name.startswith('pytorch') else CUDA
                Path(folder, name).write_text(text)
            library = Path(folder, 'kernels.so')
            flags = ['-O1', '-w', '-std=c++17', '-shared', '-fPIC', f'-I{folder}', f'-I{sources}']
            code = Path(__file__).with_name('mmcv_kernels.cpp')
            subprocess.run(['g++', *flags, '-o', str(library), str(code)], check=True)
            self.library = ctypes.CDLL(str(library))

    def __getattr__(self, name: str):
        """Return a function that hands over its tensors, then the sizes that the kernel asks for."""

        def function(*tensors, **settings):
            result = None
            if name == 'ms_deform_attn_forward':
                value, locations = tensors[0], tensors[3]
                result = value.new_zeros(*locations.shape[:2], value.shape[2] * value.shape[3])
                tensors = *tensors, result
            sizes, numbers = self.sizes(name, tensors, **settings)
            assert all(t.is_contiguous() for t in tensors)
            pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() or None for t in tensors))
            kind = str(tensors[0].dtype).removeprefix('torch.')
            kernel = getattr(self.library, f'{name}_{kind}')
            kernel.restype = None
            kernel(
                pointers,
                (ctypes.c_int * len(sizes))(*sizes),
                (ctypes.c_double * len(numbers))(*numbers),
            )
            return result

        return function

    def carafe_forward(self, features, masks, rfeatures, routput, rmasks, output, **settings):
        """Compute CARAFE by the naive kernel; of the buffers only ``rfeatures`` is filled."""
        rfeatures.copy_(features)
        self.carafe_naive_forward(features, masks, output, **settings)

    def carafe_backward(self, grad, rfeatures, masks, *others, **settings):
        """Compute the gradients of features and masks, the last two tensors, by the naive kernel."""
        self.carafe_naive_backward(grad, rfeatures, masks, *others[-2:], **settings)

    @staticmethod
    def sizes(name: str, t: tuple, **settings) -> tuple[list[int], list[float]]:
        """Return whole numbers and others in the order of the kernel's arguments, the threads' number first.

        Raises:
            RuntimeError: there is no such kernel.
        """
        group, given = name.removesuffix('_forward').removesuffix('_backward'), list(settings.values())
        forward = name.endswith('_forward')
        if group == 'roi_pool':
            results, maps = (t[2], t[0]) if forward else (t[0], t[3])
            return [results.numel(), *given[:2], *maps.shape[1:]], given[2:]
        if group == 'deform_roi_pool':
            results, maps = (t[3], t[0]) if forward else (t[0], t[1])
            return [results.numel(), *given[:2], given[3], *maps.shape[1:]], [given[2], given[4]]
        if group == 'carafe_naive':
            upsampled = t[2] if forward else t[0]
            return [upsampled.numel(), *given, *upsampled.shape[1:]], []
        if group == 'masked_im2col':
            return [len(t[1]) * t[0].shape[1], *t[0].shape[2:], *given, len(t[1])], []
        if group == 'masked_col2im':
            return [len(t[1]) * given[2], *given, len(t[1])], []
        if group == 'sigmoid_focal_loss':
            return [t[0].numel(), t[0].shape[1]], given
        if group == 'softmax_focal_loss':
            return list(t[0].shape), given
        if group == 'ms_deform_attn':
            (images, pixels, heads, channels), (_, queries, _, maps, points, _) = t[0].shape, t[3].shape
            threads = images * queries * heads * channels
            return [threads, images, pixels, heads, channels, maps, queries, points], []
        if name == 'sync_bn_forward_output':
            return [*t[0].shape, given[2]], given[:2]
        if name.startswith('sync_bn'):
            return list(t[0].shape), []
        raise RuntimeError(f'{name}: {MISSING}')


def load(path: Path):
    """Load the compiled module; its last name must be the one it was compiled with."""
    spec = importlib.util.spec_from_file_location('compiled._ext', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(group, compiled, rounds: int, seed: int, device: str) -> dict[str, Row]:
    """Compare one group of operators in ``rounds`` random cases; return a row for each operator, by name."""
    name, kind = (group.func.__name__, group.keywords) if isinstance(group, partial) else (group.__name__, {})
    first = group(Draw(name, 0, seed, device))
    rows = {operator: Row(operator) for operator in first(OURS)}
    try:
        first(compiled)  # what the first call of a process does is not measured
    except RuntimeError as error:
        if MISSING in str(error):
            return rows
        raise
    theirs, ours = Watched(compiled), Watched(OURS)
    for number in range(rounds):
        run = group(Draw(name, number, seed, device))
        expected = run(theirs)
        for operator, found in run(ours).items():
            rows[operator].add(found, expected[operator])
    for operator, row in rows.items():
        row.ratio = theirs.seconds[operator] / ours.seconds[operator]
    if kind:
        return {f'{operator}, {["maximum", "mean"][kind["mode"]]}': row for operator, row in rows.items()}
    return rows


def show(rows: dict[str, Row], title: str) -> None:
    """Print a table of the operators that were compared."""
    head = ['Operator', 'Draws', 'Differ', 'Largest difference', 'relative, float32', 'relative, float64']
    print(f'{title}\n\n| {" | ".join([*head, "Time, compiled / ours"])} |')
    print('|---' * (len(head) + 1) + '|')
    for name, row in rows.items():
        if row.draws:
            print(f'| {name} | {row.text()} |')


def main() -> int:
    """Compare all operators; return 1 if one differs or was not compared, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('path', type=Path, help="mmcv's compiled extension, _ext*.so")
    parser.add_argument('--rounds', type=int, default=200, help='random inputs for each operator')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu', help='cuda, if the extension is compiled for it')
    arguments = parser.parse_args()
    try:
        compiled = load(arguments.path)
    except (ImportError, OSError) as error:
        print(f'{arguments.path} cannot be loaded with torch {torch.__version__}: {error}', file=sys.stderr)
        return 1
    seed, rounds, device = arguments.seed, arguments.rounds, arguments.device
    rows, groups = {}, []
    for group in GROUPS:
        found = compare(group, compiled, rounds, seed, device)
        rows |= found
        groups += [] if any(row.draws for row in found.values()) else [group]
    show(rows, f'torch {torch.__version__}, compiled by {compiled.get_compiler_version()}, {device}')
    if groups:
        print(
            f'\nNot compiled for {device}: {", ".join(name for name, row in rows.items() if not row.draws)}'
        )
        try:
            kernels = Kernels(arguments.path.parent / 'ops' / 'csrc' / 'common' / 'cuda')
        except (OSError, subprocess.CalledProcessError) as error:
            print(f'mmcv_kernels.cpp cannot be built: {error}', file=sys.stderr)
            return 1
        others = {}
        for group in groups:
            others |= compare(group, kernels, rounds, seed, 'cpu')
        rows |= others
        show(others, '\nWith its CUDA kernels, as loops')
    wrong = [name for name, row in rows.items() if row.wrong()]
    wrong += sorted(set(OPERATORS) - {name.split(',')[0] for name, row in rows.items() if row.draws})
    if wrong:
        print(f'not compared, or differ by more than rounding: {", ".join(wrong)}', file=sys.stderr)
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
