"""The stand-in for mmcv's compiled operators, called through mmcv's own Python.

The references are written here from the definitions, as loops in float64: slow, and with nothing in common
with the code that is tested.
"""

import ast
import functools
import importlib
import importlib.machinery
import importlib.util
import math
import os
import pkgutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from mmengine import logging as mmengine_logging
from torch import Tensor, nn

from convnext_backbone import mmcv_ops
from convnext_backbone.errors import UserError
from convnext_backbone.mmcv_ops.operators import OPERATORS, MissingOperator, make_module

ops = pytest.importorskip('mmcv.ops')
ext = importlib.import_module('mmcv._ext')
if not hasattr(ext, '__convnext_operators__'):
    pytest.skip('mmcv has its compiled operators here', allow_module_level=True)

attention = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
multi_scale_deform_attn = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
sync_bn = importlib.import_module('mmcv.ops.sync_bn')
HALVES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


def draw(*shape, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def uniform(*shape, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(function, inputs, seed: int = 99) -> list[Tensor]:
    """Output of ``function(*inputs)``, and the gradients of all inputs for a drawn gradient of the output."""
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    output = function(*leaves)
    output.backward(draw(*output.shape, seed=seed).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def same(found, expected, tolerance: float = 1e-11) -> None:
    assert len(found) == len(expected)
    for ours, reference in zip(found, expected):
        assert ours.shape == reference.shape
        torch.testing.assert_close(ours.double(), reference.double(), rtol=tolerance, atol=tolerance)


def agree(function, reference, *inputs, tolerance: float = 1e-11) -> None:
    """Output and all gradients are those of the reference."""
    same(gradients(function, inputs), gradients(reference, inputs), tolerance)


def tent(plane: Tensor, y, x) -> Tensor:
    """Bilinear sample of (C, H, W) at a point; what lies outside counts as zero."""
    height, width = plane.shape[1:]
    down = (1 - (y - torch.arange(height)).abs()).clamp(min=0)
    right = (1 - (x - torch.arange(width)).abs()).clamp(min=0)
    return torch.einsum('chw,h,w->c', plane, down.to(plane.dtype), right.to(plane.dtype))


def region_sample(plane: Tensor, y, x) -> Tensor:
    """As RoIAlign samples: up to one pixel outside the border's value counts, beyond it zero."""
    height, width = plane.shape[1:]
    y, x = torch.as_tensor(y, dtype=torch.float64), torch.as_tensor(x, dtype=torch.float64)
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(len(plane))
    return tent(plane, y.clamp(0, height - 1), x.clamp(0, width - 1))


# Regions

REGIONS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 11.9],
        [1, 0.0, 0.0, 15.0, 13.0],
        [1, 4.2, 3.3, 4.9, 3.9],  # less than a pixel of the map
        [0, 5.5, 6.5, 5.5, 6.5],  # no size
        [1, 5.5, 6.5, 5.5, 9.5],  # no width
        [0, -9.0, -7.0, 3.1, 2.2],  # begins outside
        [1, 11.0, 10.0, 31.0, 29.0],  # ends outside
        [0, 70.0, 70.0, 90.0, 95.0],  # is outside
        [0, -70.0, -70.0, -60.0, -60.0],
    ],
    dtype=torch.float64,
)
MAPS = (2, 3, 7, 8)
SCALE = 0.5


def regions_for(maps: Tensor) -> Tensor:
    """In quarters, which every data type has."""
    return ((REGIONS * 4).round() / 4).to(maps)


def roi_align_by_definition(maps, rois, size, scale, ratio, mode, aligned):
    bins = []
    for index, *corners in rois.tolist():
        left, top, right, bottom = (c * scale - (0.5 if aligned else 0) for c in corners)
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        rows = ratio if ratio > 0 else math.ceil(height / size[0])
        columns = ratio if ratio > 0 else math.ceil(width / size[1])
        for ph in range(size[0]):
            for pw in range(size[1]):
                samples = [
                    region_sample(
                        maps[int(index)],
                        top + (ph + (iy + 0.5) / rows) * height / size[0],
                        left + (pw + (ix + 0.5) / columns) * width / size[1],
                    )
                    for iy in range(rows)
                    for ix in range(columns)
                ] or [maps[0, :, 0, 0] * 0]
                stacked = torch.stack(samples)
                bins.append(stacked.mean(0) if mode == 'avg' else stacked.max(0).values)
    return torch.stack(bins).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize(
    ('mode', 'by_windows'), [('avg', True), ('avg', False), ('max', False)], ids=['windows', 'avg', 'max']
)
def test_roi_align_is_the_mean_or_maximum_of_bilinear_samples(mode, by_windows, ratio, aligned, monkeypatch):
    monkeypatch.setattr(mmcv_ops.regions, '_by_windows', lambda *region: by_windows)
    geometry = (3, 2), SCALE, ratio, mode, aligned
    agree(
        lambda maps: ops.roi_align(maps, REGIONS, *geometry),
        lambda maps: roi_align_by_definition(maps, REGIONS, *geometry),
        draw(*MAPS),
    )


def test_many_regions_go_by_windows_few_and_endless_ones_by_points():
    maps, region = draw(1, 4, 20, 30), torch.tensor([[0, 2.0, 3.0, 22.0, 13.0]], dtype=torch.float64)
    by_windows = functools.partial(mmcv_ops.regions._by_windows, maps, bins=(7, 7), scale=1.0, aligned=True)
    assert by_windows(rois=region.repeat(4, 1))  # 4 * 49 bins, the map has 600 pixels
    assert not by_windows(rois=region.repeat(3, 1))
    assert not by_windows(rois=region[:0])
    for end in (1e9, math.inf, math.nan):
        assert not by_windows(rois=torch.cat([region.repeat(4, 1), region.new_tensor([[0, 2, 3, end, 13]])]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_roi_align_of_many_regions_under_autocast_is_that_in_float32(dtype):
    maps, grad = draw(1, 4, 20, 30, dtype=dtype), draw(40, 4, 7, 7, dtype=dtype)
    corners = uniform(40, 2) * 15
    rois = torch.cat([torch.zeros(40, 1), corners, corners + 4 + uniform(40, 2, seed=1) * 12], 1).to(dtype)
    found, expected = [], []
    for results, kind in ((found, dtype), (expected, torch.float64)):
        leaf = maps.detach().to(kind).requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=kind == dtype):
            output = ops.roi_align(leaf, rois.to(kind), (7, 7), 1.0, 0, 'avg', True)
            output.backward(grad.to(kind))
        results += [output.detach().double(), leaf.grad.double()]
    for ours, right in zip(found, expected):
        bound = 1e-5 if dtype == torch.float32 else 1e-2  # the rounding of results in bfloat16
        assert (ours - right).abs().max() < bound * right.abs().max()


def test_the_layer_roi_align_is_the_function():
    maps = draw(*MAPS)
    layer = ops.RoIAlign((3, 2), SCALE, 2, 'avg', True)
    expected = roi_align_by_definition(maps, REGIONS, (3, 2), SCALE, 2, 'avg', True)
    same([layer(maps, REGIONS)], [expected])


@pytest.mark.parametrize('ratio', [0, 2])
def test_the_deterministic_gradient_of_roi_align_is_the_ordinary_one(ratio):
    """torch.use_deterministic_algorithms takes it on CUDA only; it runs on a CPU as well."""
    size, grad = (3, 2), draw(len(REGIONS), MAPS[1], 3, 2)
    maps = draw(*MAPS).requires_grad_()
    ops.roi_align(maps, REGIONS, size, SCALE, ratio, 'avg', True).backward(grad)
    found = mmcv_ops.regions._ordered_gradient(grad, REGIONS, MAPS, size, SCALE, ratio, True)
    same([found], [maps.grad])


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_a_region_turned_inside_out_gives_zeros_or_is_one_pixel(mode, aligned):
    """What mmcv computes on CUDA: without samples zero; the legacy way makes it one pixel large."""
    rois = torch.tensor([[0, 9.0, 2.0, 3.0, 12.0], [0, 9.0, 9.0, 3.0, 3.0]], dtype=torch.float64)
    geometry = (2, 2), 1.0, 0, mode, aligned
    found = gradients(lambda maps: ops.roi_align(maps, rois, *geometry), [draw(1, 2, 14, 14)])
    expected = gradients(lambda maps: roi_align_by_definition(maps, rois, *geometry), [draw(1, 2, 14, 14)])
    same(found, expected)
    assert found[0].any() == (not aligned)


def roi_pool_by_definition(maps, rois, size, scale):
    """The last pixel belongs to a region, hence + 1; corners are not rounded before the bins are."""
    height, width = maps.shape[2:]
    bins = []
    for index, x1, y1, x2, y2 in rois.tolist():
        top, left = y1 * scale, x1 * scale
        rows, columns = (y2 + 1) * scale - top, (x2 + 1) * scale - left
        for ph in range(size[0]):
            for pw in range(size[1]):
                low = [math.floor(ph * rows / size[0] + top), math.floor(pw * columns / size[1] + left)]
                high = [
                    math.ceil((ph + 1) * rows / size[0] + top),
                    math.ceil((pw + 1) * columns / size[1] + left),
                ]
                y = slice(*(min(max(v, 0), height) for v in (low[0], high[0])))
                x = slice(*(min(max(v, 0), width) for v in (low[1], high[1])))
                pixels = maps[int(index), :, y, x].flatten(1)
                empty = rows <= 0 or columns <= 0 or pixels.shape[1] == 0
                bins.append(maps.new_zeros(maps.shape[1]) if empty else pixels.max(1).values)
    return torch.stack(bins).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('size', [(3, 2), (1, 1), (7, 5)])
@pytest.mark.parametrize('scale', [1.0, 0.5, 0.3])
def test_roi_pool_is_the_largest_pixel_of_each_bin(scale, size):
    inside_out = torch.tensor([[0, 9.0, 2.0, 3.0, 12.0]], dtype=torch.float64)
    rois = torch.cat([REGIONS, inside_out])
    agree(
        lambda maps: ops.roi_pool(maps, rois, size, scale),
        lambda maps: roi_pool_by_definition(maps, rois, size, scale),
        draw(*MAPS),
    )
    same(
        [ops.RoIPool(size, scale)(draw(*MAPS), rois)],
        [roi_pool_by_definition(draw(*MAPS), rois, size, scale)],
    )


def test_roi_pool_of_negative_maps_is_negative():
    maps = -1 - uniform(1, 1, 4, 4)
    rois = torch.tensor([[0, 0.0, 0.0, 3.0, 3.0]], dtype=torch.float64)
    assert ops.roi_pool(maps, rois, (1, 1)).item() == maps.max().item()


def deform_roi_pool_by_definition(maps, rois, offset, size, scale, ratio, gamma):
    bins = []
    for number, (index, *corners) in enumerate(rois.tolist()):
        left, top, right, bottom = (c * scale - 0.5 for c in corners)
        height, width = bottom - top, right - left
        rows = ratio if ratio > 0 else math.ceil(height / size[0])
        columns = ratio if ratio > 0 else math.ceil(width / size[1])
        for ph in range(size[0]):
            for pw in range(size[1]):
                along_x, along_y = (0, 0) if offset is None else offset[number, :, ph, pw]
                samples = [
                    region_sample(
                        maps[int(index)],
                        top + gamma * height * along_y + (ph + (iy + 0.5) / rows) * height / size[0],
                        left + gamma * width * along_x + (pw + (ix + 0.5) / columns) * width / size[1],
                    )
                    for iy in range(rows)
                    for ix in range(columns)
                ] or [maps[0, :, 0, 0] * 0]
                bins.append(torch.stack(samples).mean(0))
    return torch.stack(bins).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_samples_shifted_bins(ratio):
    geometry = (3, 2), SCALE, ratio, 0.3
    agree(
        lambda maps, offset: ops.deform_roi_pool(maps, REGIONS, offset, *geometry),
        lambda maps, offset: deform_roi_pool_by_definition(maps, REGIONS, offset, *geometry),
        draw(*MAPS),
        draw(len(REGIONS), 2, 3, 2, seed=1),
    )
    agree(
        lambda maps: ops.deform_roi_pool(maps, REGIONS, None, *geometry),
        lambda maps: deform_roi_pool_by_definition(maps, REGIONS, None, *geometry),
        draw(*MAPS),
    )


def test_the_gradient_of_deform_roi_pool_is_that_of_differences():
    rois = REGIONS[[0, 2, 5]]
    inputs = draw(*MAPS).requires_grad_(), draw(3, 2, 2, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda maps, offset: ops.deform_roi_pool(maps, rois, offset, (2, 2), SCALE, 2, 0.3), inputs
    )


def random_head(layer: nn.Module) -> None:
    """Fully connected layers that shift and weigh; mmcv begins with zeros."""
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = 0.2 * draw(*parameter.shape, seed=seed)


def test_the_packs_of_deform_roi_pool_compute_their_own_shifts_and_weights():
    maps, size = draw(*MAPS), (2, 2)
    rois = REGIONS[:4]
    for kind in (ops.DeformRoIPoolPack, ops.ModulatedDeformRoIPoolPack):
        layer = kind(size, 3, deform_fc_channels=5, spatial_scale=SCALE, sampling_ratio=2, gamma=0.3)
        random_head(layer)

        def by_definition(maps, layer=layer):
            plain = deform_roi_pool_by_definition(maps, rois, None, size, SCALE, 2, 0.3).flatten(1)
            shift = layer.offset_fc(plain).view(4, 2, *size)
            shifted = deform_roi_pool_by_definition(maps, rois, shift, size, SCALE, 2, 0.3)
            weigh = getattr(layer, 'mask_fc', None)
            return shifted if weigh is None else shifted * weigh(plain).view(4, 1, *size)

        agree(lambda maps, layer=layer: layer(maps, rois), by_definition, maps)


def test_the_cheap_roi_align_samples_the_middle_of_each_bin():
    """Of regions inside the map, in the order of their images."""
    rois = torch.tensor([[0, 2.6, 3.1, 9.7, 11.4], [0, 2.0, 3.0, 8.0, 5.0], [1, 3.3, 2.2, 12.0, 9.0]])
    rois = rois.double()
    agree(
        lambda maps: ops.SimpleRoIAlign((2, 3), SCALE)(maps, rois),
        lambda maps: roi_align_by_definition(maps, rois, (2, 3), SCALE, 1, 'avg', True),
        draw(*MAPS),
        tolerance=1e-5,  # mmcv makes its grid in float32
    )


def test_point_sample_takes_shares_of_the_map():
    points = uniform(2, 5, 2, seed=1)

    def by_definition(maps, points):
        return torch.stack(
            [
                torch.stack([tent(image, y * 7 - 0.5, x * 8 - 0.5) for x, y in places], 1)
                for image, places in zip(maps, points)
            ]
        )

    agree(ops.point_sample, by_definition, draw(*MAPS), points)


@pytest.mark.parametrize(
    ('mode', 'axis', 'flipped'), [('bottom', 2, ()), ('right', 3, ()), ('top', 2, 2), ('left', 3, 3)]
)
def test_corner_pool_is_a_running_maximum(mode, axis, flipped):
    maps = draw(*MAPS)
    expected = np.flip(np.maximum.accumulate(np.flip(maps.numpy(), flipped), axis), flipped)
    assert np.array_equal(ops.CornerPool(mode)(maps).numpy(), expected)
    assert torch.autograd.gradcheck(ops.CornerPool(mode), draw(1, 2, 3, 4).requires_grad_())


# Boxes


def boxes_and_scores(number: int, seed: int = 0, whole: bool = False) -> tuple[Tensor, Tensor]:
    corners = uniform(number, 2, seed=seed) * 12
    boxes = torch.cat([corners, corners + 1 + uniform(number, 2, seed=seed + 1) * 9], 1)
    boxes = boxes.round() if whole else boxes
    return boxes.float(), uniform(number, seed=seed + 2).float()


def overlap(first, second, offset: int = 0) -> float:
    """Intersection over union, in float32 as the operators have it."""
    first, second, one = np.float32(first), np.float32(second), np.float32(offset)
    width = max(min(first[2], second[2]) - max(first[0], second[0]) + one, np.float32(0))
    height = max(min(first[3], second[3]) - max(first[1], second[1]) + one, np.float32(0))
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (first, second)]
    union = areas[0] + areas[1] - width * height
    return width * height / union if union else np.float32('nan')


def nms_by_definition(boxes, scores, threshold, offset=0) -> list[int]:
    kept = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i].item()):
        if all(not overlap(boxes[k], boxes[index], offset) > np.float32(threshold) for k in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 0.7, 1.0])
def test_nms_drops_what_overlaps_a_better_box(threshold, offset):
    for seed, whole in ((0, False), (10, True), (20, False)):
        boxes, scores = boxes_and_scores(40, seed, whole)
        dets, kept = ops.nms(boxes, scores, threshold, offset)
        assert kept.tolist() == nms_by_definition(boxes.numpy(), scores, threshold, offset)
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


@pytest.mark.parametrize(
    ('offset', 'second', 'threshold'),
    [
        (0, [0, 0, 10, 6], 0.6),  # 60 / 100; 0.6 is larger in float32 than in float64
        (0, [0, 0, 10, 7], 0.7),  # and 0.7 is smaller
        (0, [0, 0, 10, 5], 0.5),
        (0, [0, 0, 10, 3], 0.3),
        (1, [0, 0, 10, 5], 6 / 11),
    ],
)
def test_nms_keeps_a_box_whose_overlap_is_the_threshold(offset, second, threshold):
    boxes = torch.tensor([[0, 0, 10, 10], second], dtype=torch.float32)
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, threshold, offset)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, threshold - 1e-6, offset)[1].tolist() == [0]
    assert ops.nms(boxes.double(), scores.double(), threshold, offset)[1].tolist() == [0, 1]


def test_nms_of_arrays_gives_arrays():
    boxes, scores = boxes_and_scores(20)
    dets, kept = ops.nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == nms_by_definition(boxes.numpy(), scores, 0.5)


def test_nms_leaves_out_low_scores_and_stops_at_a_number():
    boxes, scores = boxes_and_scores(40)
    good = [i for i in nms_by_definition(boxes.numpy(), scores, 0.5) if scores[i] > 0.4]
    assert 3 < len(good) < 40
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.4)[1].tolist() == good
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=3)[1].tolist() == good[:3]


@pytest.mark.parametrize('split', [10000, 1])
def test_batched_nms_treats_classes_apart(split):
    boxes, scores = boxes_and_scores(40)
    classes = torch.arange(40) % 3
    expected = []
    for number in range(3):
        places = (classes == number).nonzero().flatten()
        kept = nms_by_definition(boxes[places].numpy(), scores[places], 0.5)
        expected += places[kept].tolist()
    expected.sort(key=lambda i: -scores[i].item())
    dets, kept = ops.batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5, split_thr=split))
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    kept = ops.batched_nms(boxes, scores, classes, dict(iou_threshold=0.5), class_agnostic=True)[1]
    assert kept.tolist() == nms_by_definition(boxes.numpy(), scores, 0.5)


def soft_nms_by_definition(boxes, scores, threshold, sigma, least, method, offset):
    left = {i: float(score) for i, score in enumerate(scores)}
    kept = []
    while left:
        best = max(left, key=left.get)
        kept.append((best, left.pop(best)))
        for i in list(left):
            iou = float(overlap(boxes[best], boxes[i], offset))
            if method == 'gaussian':
                left[i] *= math.exp(-(iou**2) / sigma) if iou == iou else 1
            elif iou >= np.float32(threshold):
                left[i] *= 1 - iou if method == 'linear' else 0
            if left[i] < least:
                del left[i]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_lowers_the_scores_of_what_overlaps(method, offset):
    for seed in (0, 10, 20):
        boxes, scores = boxes_and_scores(30, seed)
        dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.4, 0.05, method, offset)
        expected = soft_nms_by_definition(boxes.numpy(), scores, 0.3, 0.4, 0.05, method, offset)
        assert kept.tolist() == [i for i, _ in expected]
        assert torch.equal(dets[:, :4], boxes[kept])
        assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected], rel=1e-5)


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_keeps_boxes_without_area(method):
    boxes = torch.tensor([[3.0, 1, 3, 1]] * 3)
    dets, kept = ops.soft_nms(boxes, torch.tensor([0.5, 0.6, 0.4]), 0.5, method=method)
    assert kept.tolist() == [1, 0, 2]
    assert dets[:, 4].tolist() == pytest.approx([0.6, 0.5, 0.4])


def test_soft_nms_through_batched_nms_and_with_arrays():
    boxes, scores = boxes_and_scores(30)
    expected = soft_nms_by_definition(boxes.numpy(), scores, 0.3, 0.5, 0.05, 'linear', 0)
    config = dict(type='soft_nms', iou_threshold=0.3, min_score=0.05)
    classes = torch.zeros(30, dtype=torch.long)
    assert ops.batched_nms(boxes, scores, classes, config)[1].tolist() == [i for i, _ in expected]
    kept = ops.soft_nms(boxes.numpy(), scores.numpy(), 0.3, min_score=0.05)[1]
    assert kept.tolist() == [i for i, _ in expected]


@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.6])
def test_nms_match_names_whom_each_box_suppresses(threshold):
    for seed, whole in ((0, False), (10, True)):
        boxes, scores = boxes_and_scores(30, seed, whole)
        boxes[:2] = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])  # 0.6: here it is enough
        left = sorted(range(30), key=lambda i: -scores[i].item())
        expected = []
        while left:
            best, *left = left
            over = [i for i in left if overlap(boxes[best], boxes[i]) >= np.float32(threshold)]
            expected.append([best, *over])
            left = [i for i in left if i not in over]
        dets = torch.cat([boxes, scores[:, None]], 1)
        assert [group.tolist() for group in ops.nms_match(dets, threshold)] == expected
        assert [group.tolist() for group in ops.nms_match(dets.numpy(), threshold)] == expected


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize(
    ('mode', 'divisor'),
    [
        ('iou', lambda first, second, common: first + second - common),
        ('iof', lambda first, second, common: first),
    ],
    ids=['iou', 'iof'],
)
def test_bbox_overlaps_are_intersections_over_unions_or_the_first_area(mode, divisor, offset):
    first, second = boxes_and_scores(6)[0].double(), boxes_and_scores(6, 10)[0].double()
    second[0] = first[0]
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for i, a in enumerate(first.tolist()):
        for j, b in enumerate(second.tolist()):
            width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
            height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
            areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
            expected[i, j] = width * height / divisor(*areas, width * height)
    same([ops.bbox_overlaps(first, second, mode, offset=offset)], [expected])
    same([ops.bbox_overlaps(first, second[:4], mode, offset=offset)], [expected[:, :4]])
    same([ops.bbox_overlaps(first, second, mode, aligned=True, offset=offset)], [expected.diagonal()])


# Focal losses


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_the_sigmoid_focal_loss_is_that_of_mmdet(reduction, gamma):
    """mmdet keeps one in PyTorch; the row of the background is all negative."""
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits, target = 3 * draw(6, 4), torch.tensor([0, 1, 2, 3, 4, 2])
    one_hot = F.one_hot(target, 5)[:, :4]

    def by_definition(logits):
        loss = py_sigmoid_focal_loss(logits, one_hot, None, gamma, 0.3, 'none')
        return {'none': loss, 'mean': loss.sum() / 6, 'sum': loss.sum()}[reduction]

    agree(
        lambda logits: ops.sigmoid_focal_loss(logits, target, gamma, 0.3, None, reduction),
        by_definition,
        logits,
    )
    layer = ops.SigmoidFocalLoss(gamma, 0.3, reduction=reduction)
    same([layer(logits, target)], [by_definition(logits)])


def test_weights_of_the_sigmoid_focal_loss_go_by_the_target():
    """mmcv reads behind the weights for the background, which has none; here it counts once."""
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits, target = 3 * draw(5, 4), torch.tensor([0, 3, 4, 1, 4])
    weight = torch.tensor([2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    by_row = torch.tensor([2.0, 0.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    one_hot = F.one_hot(target, 5)[:, :4]
    agree(
        lambda logits: ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none'),
        lambda logits: py_sigmoid_focal_loss(logits, one_hot, by_row, reduction='none'),
        logits,
    )


@pytest.mark.parametrize(
    ('weight', 'factors'),
    [
        (None, [1.0, 1.0, 1.0, 1.0]),
        (torch.tensor([2, 0.5, 3, 0.1], dtype=torch.float64), [2.0, 0.5, 3.0, 0.1]),
    ],
    ids=['no weight', 'weight'],
)
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize(('reduction', 'divisor'), [('mean', 5), ('sum', 1)])
def test_the_softmax_focal_loss_is_that_of_the_targets_probability(
    reduction, divisor, gamma, weight, factors
):
    logits, target = 2 * draw(5, 4), torch.tensor([0, 1, 2, 3, 2])
    factors = torch.tensor(factors, dtype=torch.float64)[target]

    def by_definition(logits):
        logarithm = F.log_softmax(logits, 1)[torch.arange(5), target]
        loss = -0.3 * (1 - logarithm.exp()) ** gamma * logarithm
        return (loss * factors).sum() / divisor

    agree(
        lambda logits: ops.softmax_focal_loss(logits, target, gamma, 0.3, weight, reduction),
        by_definition,
        logits,
    )


def test_a_row_without_target_has_no_softmax_focal_loss():
    logits, target = draw(3, 4), torch.tensor([1, -1, 2])
    weight = torch.ones(4, dtype=torch.float64)
    for given in (None, weight):
        rows = ops.softmax_focal_loss(logits, target, 2.0, 0.25, given, 'none')
        assert rows[1] == 0
        assert rows[0] > 0
        loss, grad = gradients(
            lambda x, w=given: ops.softmax_focal_loss(x, target, 2.0, 0.25, w, 'sum'), [logits]
        )
        same([loss], [rows.sum()])
        assert not grad[1].any()
        assert grad[2].all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, *HALVES.values()], ids=str)
@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_focal_losses_of_certain_predictions_are_finite(gamma, dtype):
    logits = torch.tensor([[-300.0, 300.0, 0.0], [300.0, -300.0, 90.0]], dtype=dtype)
    target = torch.tensor([0, 0])
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        found = gradients(lambda x, loss=loss: loss(x, target, gamma, 0.25, None, 'sum'), [logits])
        assert all(each.isfinite().all() for each in found)
        assert found[0] > 0


# Deformable convolution


def deform_conv_by_definition(
    x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
):
    """Every tap reads its own place: a grid, a shift (y, x), a factor."""
    kernel = weight.shape[2:]
    height, width = offset.shape[2:]
    per_group = x.shape[1] // deform_groups
    shift = offset.unflatten(1, (deform_groups, kernel[0] * kernel[1], 2))
    images = []
    for n in range(len(x)):
        pixels = []
        for oy in range(height):
            for ox in range(width):
                taps = []
                for tap in range(kernel[0] * kernel[1]):
                    i, j = divmod(tap, kernel[1])
                    parts = []
                    for g in range(deform_groups):
                        dy, dx = shift[n, g, tap, :, oy, ox]
                        plane = x[n, g * per_group : (g + 1) * per_group]
                        y = oy * stride[0] - padding[0] + i * dilation[0] + dy
                        value = tent(plane, y, ox * stride[1] - padding[1] + j * dilation[1] + dx)
                        if mask is not None:
                            value = value * mask.unflatten(1, (deform_groups, -1))[n, g, tap, oy, ox]
                        parts.append(value)
                    taps.append(torch.cat(parts))
                window = torch.stack(taps, 1).view(1, x.shape[1], *kernel)
                pixels.append(F.conv2d(window, weight, bias, groups=groups)[0, :, 0, 0])
        images.append(torch.stack(pixels, 1).view(-1, height, width))
    return torch.stack(images)


GEOMETRIES = {  # kernel, stride, padding, dilation, groups, deform_groups, output
    'plain': ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1, (4, 5)),
    'groups': ((3, 3), (1, 1), (1, 1), (1, 1), 2, 2, (4, 5)),
    'strides': ((3, 2), (2, 1), (0, 2), (1, 2), 1, 2, (1, 7)),
    'dilated': ((2, 3), (1, 2), (2, 1), (3, 2), 2, 1, (5, 2)),
}


def deform_inputs(name: str) -> tuple:
    kernel, *geometry, out = GEOMETRIES[name]
    groups, deform_groups = geometry[-2:]
    taps = deform_groups * kernel[0] * kernel[1]
    return (
        draw(2, 4, 4, 5),
        1.3 * draw(2, 2 * taps, *out, seed=1),
        uniform(2, taps, *out, seed=2),
        draw(6, 4 // groups, *kernel, seed=3),
        draw(6, seed=4),
        tuple(geometry),
    )


@pytest.mark.parametrize('name', GEOMETRIES)
def test_deformable_convolution_reads_shifted_places(name):
    x, offset, _, weight, _, geometry = deform_inputs(name)
    agree(
        lambda x, offset, weight: ops.deform_conv2d(x, offset, weight, *geometry),
        lambda x, offset, weight: deform_conv_by_definition(x, offset, None, weight, None, *geometry),
        x,
        offset,
        weight,
    )


def test_modulated_deformable_convolution_reads_offsets_of_a_larger_map_as_mmcvs_kernel_does():
    """By its index, ((2 * tap + axis) * height + y) * width + x from the first number of a sample."""
    height, width, taps = 4, 5, 9
    x, weight = draw(2, 3, height, width), draw(2, 3, 3, 3, seed=1)
    offset, mask = draw(2, 2 * taps, 8, 10, seed=2).requires_grad_(), draw(2, taps, 8, 10, seed=3)
    y, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')

    def read(values: Tensor, channels: int) -> Tensor:
        place = [(channel * height + y) * width + across for channel in range(channels)]
        return torch.stack([values[sample].reshape(-1)[torch.stack(place)] for sample in range(len(values))])

    found = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    exact = ops.modulated_deform_conv2d(x, read(offset, 2 * taps), read(mask, taps), weight, None, 1, 1)
    same([found], [exact], 1e-12)
    grad = draw(*found.shape, seed=4)
    same([torch.autograd.grad(found, offset, grad)[0]], [torch.autograd.grad(exact, offset, grad)[0]], 1e-12)


@pytest.mark.parametrize('inputs', [5, 4], ids=['bias', 'no bias'])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_modulated_deformable_convolution_weighs_its_taps(name, inputs):
    x, offset, mask, weight, bias, geometry = deform_inputs(name)
    agree(
        lambda x, offset, mask, weight, *bias: ops.modulated_deform_conv2d(
            x, offset, mask, weight, *(bias or [None]), *geometry
        ),
        lambda x, offset, mask, weight, *bias: deform_conv_by_definition(
            x, offset, mask, weight, *(bias or [None]), *geometry
        ),
        *(x, offset, mask, weight, bias)[:inputs],
    )


@pytest.mark.parametrize('name', GEOMETRIES)
def test_deformable_convolution_without_shifts_is_a_convolution(name):
    x, offset, mask, weight, bias, geometry = deform_inputs(name)
    stride, padding, dilation, groups, deform_groups = geometry
    plain = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    settings = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    layer = ops.DeformConv2d(4, 6, weight.shape[2:], **settings, deform_groups=deform_groups)
    layer.weight.data = weight
    same([layer(x, torch.zeros_like(offset))], [plain])
    second = ops.ModulatedDeformConv2d(4, 6, weight.shape[2:], **settings, deform_groups=deform_groups)
    second.weight.data, second.bias.data = weight, bias
    same(
        [second(x, torch.zeros_like(offset), torch.ones_like(mask))],
        [plain + bias[:, None, None]],
    )


def test_the_layers_that_compute_their_own_shifts_begin_as_convolutions():
    x = draw(2, 4, 6, 5, dtype=torch.float32)
    first = ops.DeformConv2dPack(4, 6, 3, padding=1)
    same([first(x)], [F.conv2d(x, first.weight, padding=1)], 1e-5)
    second = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    same([second(x)], [F.conv2d(x, second.weight, second.bias, padding=1) / 2], 1e-5)  # sigmoid of zero


def test_an_input_smaller_than_the_kernel_is_padded():
    layer = ops.DeformConv2d(4, 6, 3, padding=1).double()
    x = draw(1, 4, 2, 2)
    plain = F.conv2d(x, layer.weight, padding=1)
    same([layer(x, torch.zeros(1, 18, 2, 2, dtype=torch.float64))], [plain])


def test_the_weight_of_a_deformable_convolution_alone_can_be_trained():
    x, offset, _, weight, _, geometry = deform_inputs('groups')
    agree(
        lambda weight: ops.deform_conv2d(x, offset, weight, *geometry),
        lambda weight: deform_conv_by_definition(x, offset, None, weight, None, *geometry),
        weight,
    )
    agree(
        lambda x: ops.deform_conv2d(x, offset, weight, *geometry),
        lambda x: deform_conv_by_definition(x, offset, None, weight, None, *geometry),
        x,
    )


def test_a_graph_of_a_deformable_convolution_gives_its_gradient_again():
    """The weight's gradient travels between two calls in a buffer of the graph: it must not be an old one."""
    x, offset, _, weight, _, geometry = deform_inputs('groups')
    leaves = [t.requires_grad_() for t in (x, offset, weight)]
    output = ops.deform_conv2d(*leaves, *geometry)
    first, second = draw(*output.shape, seed=5), draw(*output.shape, seed=6)
    for grad, wanted in ((first, leaves), (second, leaves[2:]), (first, leaves[2:]), (second, leaves)):
        found = torch.autograd.grad(output, wanted, grad, retain_graph=True)
        fresh = ops.deform_conv2d(*leaves, *geometry)
        same(found, torch.autograd.grad(fresh, wanted, grad))


# Attention

SHAPES = torch.tensor([[4, 5], [2, 3]])
STARTS = torch.tensor([0, 20])


def attention_inputs() -> tuple:
    locations = uniform(2, 3, 2, 2, 4, 2, seed=1) * 1.4 - 0.2  # some outside the maps
    return draw(2, 26, 2, 3), locations, uniform(2, 3, 2, 2, 4, seed=2)


def attention_by_definition(value, locations, weights):
    images, queries, heads, levels, points = weights.shape
    rows = []
    for n in range(images):
        for q in range(queries):
            for h in range(heads):
                total = 0
                for level in range(levels):
                    height, width = SHAPES[level].tolist()
                    start = STARTS[level].item()
                    plane = value[n, start : start + height * width, h].T.reshape(-1, height, width)
                    for p in range(points):
                        x, y = locations[n, q, h, level, p]
                        sample = tent(plane, y * height - 0.5, x * width - 0.5)
                        total = total + weights[n, q, h, level, p] * sample
                rows.append(total)
    return torch.cat(rows).view(images, queries, -1)


def test_deformable_attention_sums_weighted_samples_of_all_maps():
    agree(
        lambda *inputs: attention(inputs[0], SHAPES, STARTS, *inputs[1:], 64),
        attention_by_definition,
        *attention_inputs(),
    )


def test_deformable_attention_is_the_one_that_mmcv_has_in_pytorch():
    agree(
        lambda *inputs: attention(inputs[0], SHAPES, STARTS, *inputs[1:], 64),
        lambda *inputs: multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
            inputs[0], SHAPES.tolist(), *inputs[1:]
        ),
        *attention_inputs(),
    )


# CARAFE


def carafe_by_definition(features, masks, kernel, groups, scale):
    images, channels, height, width = features.shape
    half, per_group = (kernel - 1) // 2, channels // groups
    rows = []
    for n in range(images):
        for c in range(channels):
            for y in range(height * scale):
                for x in range(width * scale):
                    total = features.new_zeros(())
                    for i in range(kernel):
                        for j in range(kernel):
                            v, u = y // scale + i - half, x // scale + j - half
                            if 0 <= v < height and 0 <= u < width:
                                tap = (c // per_group * kernel + i) * kernel + j
                                total = total + features[n, c, v, u] * masks[n, tap, y, x]
                    rows.append(total)
    return torch.stack(rows).view(images, channels, height * scale, width * scale)


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(3, 2, 2), (5, 1, 1), (1, 1, 3)])
def test_carafe_has_a_kernel_for_each_pixel_of_the_output(kernel, groups, scale):
    features = draw(2, 4, 2, 3)
    masks = draw(2, groups * kernel**2, 2 * scale, 3 * scale, seed=1)
    inputs = features, masks
    expected = gradients(lambda *inputs: carafe_by_definition(*inputs, kernel, groups, scale), inputs)
    same(gradients(lambda *inputs: ops.carafe(*inputs, kernel, groups, scale), inputs), expected)
    same([ops.CARAFE(kernel, groups, scale)(*inputs)], expected[:1])
    same([ops.CARAFENaive(kernel, groups, scale)(*inputs)], expected[:1])
    # mmcv's own Python refuses the backward pass of the naive one without CUDA
    found = [torch.full_like(each, 7) for each in inputs]
    ext.carafe_naive_backward(
        draw(*expected[0].shape, seed=99),
        *inputs,
        *found,
        kernel_size=kernel,
        group_size=groups,
        scale_factor=scale,
    )
    same(found, expected[1:])


def test_the_upsampler_of_carafe_averages():
    """Its kernels are softmaxes: of a constant map the inner pixels stay what they are."""
    layer = ops.CARAFEPack(4, 2, up_kernel=3, compressed_channels=3)
    upsampled = layer(torch.full((1, 4, 6, 6), 2.5))
    assert upsampled.shape == (1, 4, 12, 12)
    torch.testing.assert_close(upsampled[:, :, 2:-2, 2:-2], torch.full((1, 4, 8, 8), 2.5))


# Masked convolution, PSAMask


@pytest.mark.parametrize(('kernel', 'padding'), [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((5, 3), (2, 1))])
def test_a_masked_convolution_is_the_convolution_where_the_mask_is(kernel, padding):
    layer = ops.MaskedConv2d(3, 4, kernel, padding=padding).double()
    x, mask = draw(1, 3, 6, 7), uniform(1, 6, 7, seed=1) > 0.6
    mask[0, 0, 0] = mask[0, -1, -1] = True
    plain = F.conv2d(x, layer.weight, layer.bias, padding=padding)
    same([layer(x, mask.double())], [plain * mask])
    same([layer(x)], [plain])
    assert not layer(x, torch.zeros(1, 6, 7)).any()


def test_columns_of_a_masked_convolution_are_the_windows_at_the_places():
    x, rows, columns = draw(1, 2, 4, 5), torch.tensor([0, 3, 1]), torch.tensor([4, 0, 2])
    found = x.new_full((2 * 3 * 2, 3), 7)
    ext.masked_im2col_forward(x, rows, columns, found, kernel_h=3, kernel_w=2, pad_h=1, pad_w=0)
    windows = F.unfold(F.pad(x, (0, 1, 1, 1)), (3, 2)).view(12, 4, 5)
    assert torch.equal(found, windows[:, rows, columns])
    back = x.new_zeros(1, 12, 4, 5)
    ext.masked_col2im_forward(found, rows, columns, back, height=4, width=5, channels=12)
    assert torch.equal(back[0][:, rows, columns], found)
    assert back.count_nonzero() == found.count_nonzero()


@pytest.mark.parametrize('size', [(3, 5), (7, 7), (4, 2)])
@pytest.mark.parametrize(
    ('kind', 'order'),
    [('collect', lambda here, there: (there, here)), ('distribute', lambda here, there: (here, there))],
    ids=['collect', 'distribute'],
)
def test_a_psa_mask_spreads_the_attention_of_each_pixel_over_the_map(kind, order, size):
    height, width = 3, 4
    half = [(s - 1) // 2 for s in size]

    def by_definition(x):
        output = x.new_zeros(2, height * width, height, width)
        for h in range(height):
            for w in range(width):
                for i in range(size[0]):
                    for j in range(size[1]):
                        v, u = h + i - half[0], w + j - half[1]
                        if not (0 <= v < height and 0 <= u < width):
                            continue
                        channel, place = order((h, w), (v, u))
                        output[:, channel[0] * width + channel[1], *place] = x[:, i * size[1] + j, h, w]
        return output

    agree(ops.PSAMask(kind, size), by_definition, draw(2, size[0] * size[1], height, width))


# Batch norm over several processes


def batch_norm(x, mode='default', group_size=1, running=None, affine=None, momentum=0.1, eps=1e-5) -> Tensor:
    channels = x.shape[1]
    running = running or (torch.zeros(channels), torch.ones(channels))
    weight, bias = affine or (torch.ones(channels), torch.zeros(channels))
    arguments = (x, *running, weight, bias, momentum, eps, None, group_size, mode)
    return sync_bn.SyncBatchNormFunction.apply(*arguments)


@pytest.mark.parametrize('mode', ['default', 'N'])
@pytest.mark.parametrize('shape', [(4, 3, 5), (4, 3, 5, 2), (1, 3, 7)])
def test_batch_norm_of_one_process_is_the_one_of_pytorch(shape, mode):
    running, theirs = [(torch.full((3,), 0.3), torch.full((3,), 0.8)) for _ in range(2)]
    inputs = 2 + 3 * draw(*shape), draw(3, seed=1), draw(3, seed=2)
    found = gradients(
        lambda x, *affine: batch_norm(x, mode, 1, running, affine, 0.2, 0.5), [t.float() for t in inputs]
    )
    expected = gradients(
        lambda x, *affine: F.batch_norm(x, *theirs, *affine, training=True, momentum=0.2, eps=0.5),
        [t.float() for t in inputs],
    )
    same(found, expected, 1e-4)
    same(running, theirs, 1e-5)


class Meeting:
    """Sums over threads that stand for processes, in place of torch.distributed."""

    def __init__(self, members: int):
        self.barrier, self.given = threading.Barrier(members, timeout=60), {}

    def all_reduce(self, tensor, group=None):
        self.given[threading.get_ident()] = tensor.clone()
        self.barrier.wait()
        total = sum(self.given.values())
        self.barrier.wait()
        tensor.copy_(total)

    def run(self, jobs) -> list:
        results = [None] * len(jobs)

        def work(number):
            try:
                results[number] = jobs[number]()
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_two_processes_normalise_their_halves_like_the_whole_batch(monkeypatch):
    meeting = Meeting(2)
    monkeypatch.setattr(sync_bn, 'dist', types.SimpleNamespace(all_reduce=meeting.all_reduce))
    x, grad = (2 + 3 * draw(6, 3, 5, seed=seed).float() for seed in (0, 1))
    weight, bias = draw(3, seed=2).float(), draw(3, seed=3).float()
    norm = nn.BatchNorm1d(3)
    norm.weight.data, norm.bias.data = weight.clone(), bias.clone()
    whole = x.clone().requires_grad_()
    expected = norm(whole)
    expected.backward(grad)

    def job(half):
        running = torch.zeros(3), torch.ones(3)
        leaves = [t.clone().requires_grad_() for t in (x[half], weight, bias)]
        output = batch_norm(leaves[0], 'default', 2, running, leaves[1:])
        output.backward(grad[half])
        return output.detach(), *(leaf.grad for leaf in leaves), *running

    halves = slice(0, 3), slice(3, 6)
    for half, found in zip(halves, meeting.run([lambda half=half: job(half) for half in halves])):
        mean_gradients = norm.weight.grad / 2, norm.bias.grad / 2  # mmcv's are means over processes
        statistics = norm.running_mean, norm.running_var
        same(found, [expected[half], whole.grad[half], *mean_gradients, *statistics], 1e-4)


def test_a_process_without_images_keeps_sound_statistics(monkeypatch):
    meeting = Meeting(2)
    monkeypatch.setattr(sync_bn, 'dist', types.SimpleNamespace(all_reduce=meeting.all_reduce))
    x = 2 + 3 * draw(4, 3, 5).float()

    def job(images):
        running = torch.zeros(3), torch.ones(3)
        leaf = images.clone().requires_grad_()
        output = batch_norm(leaf, 'N', 2, running)
        output.sum().backward()
        return output.detach(), leaf.grad, *running

    full, empty = meeting.run([lambda: job(x), lambda: job(x[:0])])
    same([full[0]], [F.batch_norm(x, None, None, training=True)], 1e-4)
    assert empty[0].shape == (0, 3, 5)
    assert empty[1].shape == (0, 3, 5)
    same([empty[2]], [0.1 * x.mean((0, 2))], 1e-5)
    same([empty[3]], [0.9 + 0.1 * x.var((0, 2), correction=0)], 1e-5)


def test_batch_norm_works_without_running_statistics_and_without_weights():
    x = draw(4, 3, 5).float()
    expected = F.batch_norm(x, None, None, training=True)
    nothing = (None, None)
    found = sync_bn.SyncBatchNormFunction.apply(x, *nothing, *nothing, 0.1, 1e-5, None, 1, 'default')
    same([found], [expected], 1e-5)


# What holds for all of them

TARGET = torch.tensor([0, 3, 4, 1, 2, 0])


def small(*shape, seed: int = 0) -> Tensor:
    """Whole eighths: numbers that every data type has."""
    return (draw(*shape, seed=seed) * 8).round().clamp(-24, 24) / 8


def cases() -> dict:
    """Name -> (function, its differentiable inputs), for every operator."""
    x, offset, mask, weight, bias, geometry = deform_inputs('groups')
    deform = [small(*t.shape, seed=i) for i, t in enumerate((x, offset, mask, weight, bias))]
    maps, shift = small(*MAPS), small(len(REGIONS), 2, 3, 2, seed=1)
    value, locations, weights = attention_inputs()

    def region_layer(function, *arguments):
        return lambda maps, *more: function(maps, regions_for(maps), *more, *arguments)

    return {
        **{
            f'roi_align {mode} {ratio}': (
                region_layer(ops.roi_align, (3, 2), SCALE, ratio, mode, True),
                [maps],
            )
            for mode in ('avg', 'max')
            for ratio in (0, 2)
        },
        'roi_pool': (region_layer(ops.roi_pool, (3, 2), SCALE), [maps]),
        'deform_roi_pool': (region_layer(ops.deform_roi_pool, (3, 2), SCALE, 2, 0.25), [maps, shift]),
        'deform_roi_pool without shifts': (
            region_layer(ops.deform_roi_pool, None, (3, 2), SCALE, 0, 0.25),
            [maps],
        ),
        'deform_conv2d': (
            lambda x, offset, weight: ops.deform_conv2d(x, offset, weight, *geometry),
            [deform[0], deform[1], deform[3]],
        ),
        'modulated_deform_conv2d': (
            lambda *inputs: ops.modulated_deform_conv2d(*inputs, *geometry),
            deform,
        ),
        'attention': (
            lambda *inputs: attention(inputs[0], SHAPES, STARTS, *inputs[1:], 64),
            [small(*value.shape), (locations * 16).round() / 16, (weights * 16).round() / 16],
        ),
        'carafe': (
            lambda *inputs: ops.carafe(*inputs, 3, 2, 2),
            [small(2, 4, 2, 3), small(2, 18, 4, 6, seed=1)],
        ),
        'psa_mask collect': (ops.PSAMask('collect', (3, 5)), [small(2, 15, 3, 4)]),
        'psa_mask distribute': (ops.PSAMask('distribute', (3, 5)), [small(2, 15, 3, 4)]),
        'corner_pool': (ops.CornerPool('left'), [maps]),
        'sigmoid_focal_loss': (
            lambda x: ops.sigmoid_focal_loss(x, TARGET.to(x.device), 2.0, 0.25, None, 'none'),
            [small(6, 4)],
        ),
    }


CASES = cases()
MAP_CASES = [name for name, (_, inputs) in CASES.items() if any(t.ndim == 4 for t in inputs)]


def noise_like(output: Tensor) -> Tensor:
    return small(*output.shape, seed=9).to(output.dtype)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize(
    ('name', 'gradient'), [(name, torch.ones_like if 'focal' in name else noise_like) for name in CASES]
)
def test_half_precision_gives_what_float32_gives_rounded(name, gradient, dtype):
    function, inputs = CASES[name]
    kind = HALVES[dtype]
    output = function(*(t.to(kind) for t in inputs))
    grad = gradient(output)

    def run(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        output = function(*leaves)
        output.backward(grad.to(output.dtype))
        return [output.detach(), *(leaf.grad for leaf in leaves)]

    for found, expected in zip(run(kind), run(torch.float32)):
        assert found.dtype == kind
        assert torch.equal(found, expected.to(kind))


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_of_the_functions_that_mmcv_wraps_in_half_precision(dtype):
    """mmcv's Python adds roundings of its own around these, so that they are asked directly."""
    kind = HALVES[dtype]
    probabilities = small(6, 4).softmax(1).to(kind)
    target, none = TARGET.clamp(max=3), probabilities.new_zeros(0)
    boxes = (boxes_and_scores(6)[0] * 60).to(kind)  # areas far beyond the largest float16
    scores = uniform(6, seed=4).to(kind)

    def focal(x):
        loss, buffer, grad = x.new_zeros(6), x.new_zeros(6), torch.zeros_like(x)
        ext.softmax_focal_loss_forward(x, target, none.to(x.dtype), loss, gamma=2.0, alpha=0.25)
        ext.softmax_focal_loss_backward(x, target, none.to(x.dtype), buffer, grad, gamma=2.0, alpha=0.25)
        return loss, grad

    def columns(x):
        found = x.new_zeros(2 * 9, 2)
        rows = torch.tensor([0, 3])
        ext.masked_im2col_forward(x, rows, rows, found, kernel_h=3, kernel_w=3, pad_h=1, pad_w=1)
        return (found,)

    def overlaps(boxes):
        return ops.bbox_overlaps(boxes, boxes), ops.bbox_overlaps(boxes, boxes, 'iof', offset=1)

    for function, x in ((focal, probabilities), (columns, small(1, 2, 4, 4).to(kind)), (overlaps, boxes)):
        for found, expected in zip(function(x), function(x.float())):
            assert found.dtype == kind
            assert expected.isfinite().all()
            assert torch.equal(found, expected.to(kind))
    assert torch.equal(ops.nms(boxes, scores, 0.4)[1], ops.nms(boxes.float(), scores.float(), 0.4)[1])
    for method in ('naive', 'linear', 'gaussian'):
        dets, kept = ops.soft_nms(boxes, scores, 0.4, method=method)
        expected, places = ops.soft_nms(boxes.float(), scores.float(), 0.4, method=method)
        assert torch.equal(kept, places)
        assert torch.equal(dets, expected.to(kind))
    dets = torch.cat([boxes, scores[:, None]], 1)
    groups, expected = ops.nms_match(dets, 0.4), ops.nms_match(dets.float(), 0.4)
    assert [group.tolist() for group in groups] == [group.tolist() for group in expected]


def test_batch_norm_of_float16_is_that_of_float32_rounded():
    x = small(4, 3, 5)
    found, grad = gradients(batch_norm, [x.half()])
    expected, reference = gradients(batch_norm, [x.float()])
    assert torch.equal(found, expected.half())
    assert (grad - reference).abs().max() < 2e-3 * reference.abs().max()


@pytest.mark.parametrize('name', MAP_CASES)
def test_channels_last_maps_give_what_contiguous_ones_give(name):
    function, inputs = CASES[name]
    expected = gradients(function, inputs)
    grad = draw(*expected[0].shape, seed=99)
    leaves = [
        (t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t).requires_grad_()
        for t in (t.clone() for t in inputs)
    ]
    assert not all(t.is_contiguous() for t in leaves)
    output = function(*leaves)
    output.backward(grad.contiguous(memory_format=torch.channels_last) if grad.ndim == 4 else grad)
    same([output.detach(), *(leaf.grad for leaf in leaves)], expected)


def test_a_masked_convolution_and_batch_norm_take_channels_last_maps():
    x = draw(1, 3, 6, 7).contiguous(memory_format=torch.channels_last)
    layer, mask = ops.MaskedConv2d(3, 4, 3, padding=1).double(), uniform(1, 6, 7) > 0.5
    same([layer(x, mask)], [layer(x.contiguous(), mask)])
    images = draw(2, 3, 4, 5).float()
    last = images.contiguous(memory_format=torch.channels_last)
    same(gradients(batch_norm, [last]), gradients(batch_norm, [images]), 1e-5)


@pytest.mark.parametrize('name', CASES)
def test_under_autocast_they_give_what_they_give_without(name):
    function, inputs = CASES[name]
    inputs = [t.float() for t in inputs]
    expected = gradients(function, inputs)
    with torch.autocast('cpu', torch.bfloat16):
        leaves = [t.clone().requires_grad_() for t in inputs]
        output = function(*leaves)
    output.backward(draw(*output.shape, seed=99).to(output.dtype))
    same([output.detach(), *(leaf.grad for leaf in leaves)], expected, 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name', CASES)
def test_on_a_gpu_they_give_what_they_give_on_a_cpu(name):
    function, inputs = CASES[name]
    expected = gradients(function, inputs)
    leaves = [t.cuda().requires_grad_() for t in inputs]
    output = function(*leaves)
    output.backward(draw(*output.shape, seed=99).cuda())
    same([output.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)], expected, 1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name', ['roi_align avg 0', 'roi_align avg 2', 'roi_align max 0', 'roi_pool'])
def test_on_a_gpu_the_gradient_of_regions_can_be_had_in_one_order(name):
    function, inputs = CASES[name]
    inputs = [t.float().cuda() for t in inputs]
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(lambda *t: function(*t).cpu(), inputs) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs:
        assert torch.equal(run[1], runs[0][1])
    same([each.cpu() for each in runs[0]], gradients(function, [t.cpu() for t in inputs]), 1e-5)


EMPTY = {
    'roi_align avg': lambda x: ops.roi_align(x, x.new_zeros(0, 5), (3, 2), 1.0, 0, 'avg', True),
    'roi_align max': lambda x: ops.roi_align(x, x.new_zeros(0, 5), (3, 2), 1.0, 0, 'max', True),
    'roi_pool': lambda x: ops.roi_pool(x, x.new_zeros(0, 5), (3, 2)),
    'deform_roi_pool': lambda x: ops.deform_roi_pool(x, x.new_zeros(0, 5), None, (3, 2)),
    'deform_roi_pool with shifts': lambda x: ops.deform_roi_pool(
        x, x.new_zeros(0, 5), x.new_zeros(0, 2, 3, 2).requires_grad_(), (3, 2)
    ),
}


@pytest.mark.parametrize('name', EMPTY)
def test_no_regions_give_no_features_and_no_gradient(name):
    output, grad = gradients(EMPTY[name], [draw(*MAPS)])
    assert output.shape == (0, 3, 3, 2)
    assert grad.shape == MAPS
    assert not grad.any()


NO_IMAGES = {  # function, shapes of its inputs, shape of the output
    'carafe': (lambda *t: ops.carafe(*t, 3, 2, 2), [(0, 4, 2, 3), (0, 18, 4, 6)], (0, 4, 4, 6)),
    'attention': (
        lambda *t: attention(t[0], SHAPES, STARTS, *t[1:], 64),
        [(0, 26, 2, 3), (0, 3, 2, 2, 4, 2), (0, 3, 2, 2, 4)],
        (0, 3, 6),
    ),
    'attention without queries': (
        lambda *t: attention(t[0], SHAPES, STARTS, *t[1:], 64),
        [(2, 26, 2, 3), (2, 0, 2, 2, 4, 2), (2, 0, 2, 2, 4)],
        (2, 0, 6),
    ),
    'psa_mask': (ops.PSAMask('distribute', (3, 3)), [(0, 9, 3, 4)], (0, 12, 3, 4)),
    'sigmoid_focal_loss': (
        lambda x: ops.sigmoid_focal_loss(x, TARGET[:0], 2.0, 0.25, None, 'sum'),
        [(0, 4)],
        (),
    ),
    'softmax_focal_loss': (
        lambda x: ops.softmax_focal_loss(x, TARGET[:0], 2.0, 0.25, None, 'sum'),
        [(0, 4)],
        (),
    ),
}


@pytest.mark.parametrize('name', NO_IMAGES)
def test_no_images_and_no_queries_give_nothing(name):
    function, shapes, expected = NO_IMAGES[name]
    output, *grads = gradients(function, [draw(*shape) for shape in shapes])
    assert output.shape == expected
    assert not output.any()
    for grad, shape in zip(grads, shapes):
        assert grad.shape == shape
        assert not grad.any()


def test_no_boxes_give_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for function in (ops.nms, ops.soft_nms):
        dets, kept = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.long
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []
    assert ops.bbox_overlaps(boxes, torch.zeros(3, 4)).shape == (0, 3)
    dets, kept = ops.batched_nms(
        boxes, scores, torch.zeros(0, dtype=torch.long), dict(iou_threshold=0.5), class_agnostic=True
    )
    assert dets.shape == (0, 5)


def test_boxes_may_be_part_of_a_graph():
    boxes, scores = (t.requires_grad_() for t in boxes_and_scores(8))
    dets, kept = ops.nms(boxes, scores, 0.5)
    dets.sum().backward()
    assert boxes.grad[kept].eq(1).all()
    assert len(ops.soft_nms(boxes, scores, 0.5)[1]) == 8
    assert ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.9)


# Operators that are not here


MISSING = {
    'box_iou_rotated': lambda box: ops.box_iou_rotated(box, box),
    'nms_rotated': lambda box: ops.nms_rotated(box, box[:, 0], 0.5),
    'prroi_pool_forward': lambda box: ops.prroi_pool(torch.zeros(1, 1, 2, 2), box, (1, 1)),
    'roi_align_rotated_forward': lambda box: ops.RoIAlignRotated(1, 1.0)(torch.zeros(1, 1, 2, 2), box),
}


@pytest.mark.parametrize('name', MISSING)
def test_an_operator_that_is_not_here_says_so_in_one_line(name):
    with pytest.raises(MissingOperator) as caught:
        MISSING[name](torch.zeros(1, 5))
    assert repr(name) in str(caught.value)
    assert '\n' not in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, NotImplementedError)


def test_private_names_are_not_operators():
    assert not hasattr(ext, '_something')
    assert 'roi_align_forward' in dir(ext)


def test_mmcv_names_what_computes_and_the_cuda_version():
    import torchvision

    assert ops.get_compiler_version() == f'torchvision {torchvision.__version__}'
    assert ops.get_compiling_cuda_version() == (torch.version.cuda or 'not available')


# Layers that mmdet and mmseg take by their name in a config, from mmcv.ops or from mmcv's registry
BY_NAME = [
    *('RoIAlign', 'RoIPool', 'SimpleRoIAlign', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'),
    *('DeformConv2dPack', 'ModulatedDeformConv2dPack', 'SAConv2d', 'CARAFEPack', 'SyncBatchNorm', 'soft_nms'),
]
NOT_HERE = {
    'nms_rotated': 'for boxes at an angle: mmrotate',
    'nms_quadri': 'for boxes of four corners: mmrotate',
    'line_nms': "for CLRNet's lanes, in onedl-mmcv only; mmcv-lite does not name it",
}


def imported_names(module) -> set[str]:
    """What a module takes from mmcv.ops, by its source."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[:2] == ['mmcv', 'ops']:
            found |= {alias.name for alias in node.names}
    return found


def extension_names(file: str, seen: set) -> set[str]:
    """What a file of mmcv.ops and those it imports load from the extension."""
    if file in seen:
        return set()
    seen.add(file)
    found = set()
    for node in ast.walk(ast.parse((Path(ops.__file__).parent / f'{file}.py').read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
            found |= set(ast.literal_eval(node.args[1]))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            found |= extension_names(node.module, seen)
    return found


def test_every_operator_that_mmdet_and_mmseg_import_is_here():
    names, modules = set(BY_NAME), 0
    for top in ('mmdet.models', 'mmseg.models'):
        package = importlib.import_module(top)
        for info in pkgutil.walk_packages(package.__path__, f'{top}.', onerror=lambda name: None):
            try:
                module = importlib.import_module(info.name)
            except ImportError:  # of a package that is not installed
                continue
            modules += 1
            names |= imported_names(module)
    assert modules > 400
    files = {
        alias.name: node.module
        for node in ast.parse(Path(ops.__file__).read_text()).body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    for file in Path(ops.__file__).parent.glob('*.py'):  # names that __init__ does not have
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                files.setdefault(node.name, file.stem)
    unknown = {name for name in names if name not in files}
    needed = unknown.union(*(extension_names(files[name], set()) for name in names - unknown))
    assert len(needed) > 25
    assert needed - set(OPERATORS) <= set(NOT_HERE)
    assert {'nms_rotated', 'nms_quadri'} <= needed


# Which module answers the import

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture
def log(monkeypatch) -> list[str]:
    mmengine_logging.MMLogger.get_current_instance()  # without a log the line waits for one
    lines = []
    monkeypatch.setattr(mmengine_logging, 'print_log', lambda text, *arguments: lines.append(text))
    return lines


def load_from(folder: Path):
    """The module that ``import mmcv._ext`` gives, were mmcv in this folder."""
    spec = mmcv_ops.OperatorFinder().find_spec('mmcv._ext', [str(folder)])
    if spec is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_working(folder: Path) -> Path:
    (folder / '_ext.py').write_text('WORKS = True\n')
    return folder


def make_broken(folder: Path) -> Path:
    (folder / f'_ext{SUFFIX}').write_bytes(b'compiled for another machine')
    return folder


def test_without_a_compiled_module_ours_is_loaded(tmp_path, monkeypatch, log):
    monkeypatch.delenv(mmcv_ops.SWITCH, raising=False)
    module = load_from(tmp_path)
    assert module.nms is OPERATORS['nms']
    assert log == [f'mmcv operators: {module.get_compiler_version()} (no compiled mmcv here)']


@pytest.mark.parametrize('choice', ['auto', ''])
def test_a_compiled_module_that_works_is_left_alone(tmp_path, monkeypatch, log, choice):
    monkeypatch.setenv(mmcv_ops.SWITCH, choice)
    module = load_from(make_working(tmp_path))
    assert module.WORKS
    assert not hasattr(module, 'nms')
    assert log == [f'mmcv operators: compiled ({tmp_path / "_ext.py"})']


def test_a_compiled_module_that_cannot_be_loaded_is_replaced_and_the_log_says_why(tmp_path, monkeypatch, log):
    monkeypatch.delenv(mmcv_ops.SWITCH, raising=False)
    module = load_from(make_broken(tmp_path))
    assert module.nms is OPERATORS['nms']
    assert len(log) == 1
    assert f'the compiled {tmp_path / f"_ext{SUFFIX}"} cannot be loaded: ' in log[0]
    assert 'torchvision' in log[0]


def test_ours_can_be_asked_for_beside_a_compiled_module(tmp_path, monkeypatch, log):
    monkeypatch.setenv(mmcv_ops.SWITCH, 'torchvision')
    module = load_from(make_working(tmp_path))
    assert module.nms is OPERATORS['nms']
    assert log[0].endswith('(CONVNEXT_MMCV_OPS=torchvision)')


def test_the_compiled_module_can_be_insisted_on(tmp_path, monkeypatch, log):
    monkeypatch.setenv(mmcv_ops.SWITCH, 'compiled')
    assert load_from(tmp_path) is None
    assert load_from(make_working(tmp_path)) is None
    assert log == []


def test_another_choice_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(mmcv_ops.SWITCH, 'nonsense')
    with pytest.raises(
        UserError, match="CONVNEXT_MMCV_OPS must be one of auto, torchvision, compiled, got 'nons"
    ):
        load_from(tmp_path)


def test_no_other_import_is_answered(monkeypatch):
    monkeypatch.setenv(mmcv_ops.SWITCH, 'nonsense')
    for name in ('mmcv', 'mmcv.ops', 'other._ext', '_ext'):
        assert mmcv_ops.OperatorFinder().find_spec(name, None) is None


def test_the_finder_is_installed_once():
    mmcv_ops.install()
    assert sum(isinstance(finder, mmcv_ops.OperatorFinder) for finder in sys.meta_path) == 1


@pytest.mark.parametrize(
    ('make', 'works', 'reason'),
    [(make_broken, False, 'cannot be loaded'), (make_working, True, 'compiled (')],
    ids=['broken', 'working'],
)
def test_a_fresh_process_imports_what_the_finder_decides(tmp_path, make, works, reason):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    make(package)
    code = (
        'from mmengine.logging import MMLogger; MMLogger.get_current_instance(); import convnext_backbone; '
        'from mmcv import _ext; print("WORKS" in vars(_ext), _ext.__name__)'
    )
    environment = {name: value for name, value in os.environ.items() if name != mmcv_ops.SWITCH}
    environment['PYTHONPATH'] = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert f'{works} mmcv._ext' in result.stdout
    assert reason in result.stdout + result.stderr


def test_a_module_has_all_operators_as_they_are():
    module = make_module('some.name')
    assert module.__name__ == 'some.name'
    for name, function in OPERATORS.items():
        assert getattr(module, name) is function
