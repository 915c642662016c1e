"""Mask targets are mmdet's, bit by bit, of masks that are copied once."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import ops

from convnext_backbone.heads.mask_targets import MasksOnce, use_masks_once


def drawn(objects: int, regions: int, size=(40, 56)):
    """Masks of overlapping rectangles, and boxes inside, at the border, tiny and beyond the image."""
    draw = np.random.default_rng(0)
    masks = np.zeros((objects, *size), np.uint8)
    for mask in masks:
        y, x = draw.integers(0, size[0] - 4), draw.integers(0, size[1] - 4)
        mask[y : y + draw.integers(2, 30), x : x + draw.integers(2, 30)] = 1
    corners = draw.uniform(-6, 60, (regions, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    boxes[0], boxes[1] = (3, 3, 3, 3), (0, 0, size[1], size[0])
    return masks, boxes, draw.integers(0, objects, regions)


@pytest.mark.parametrize('binarize', [True, False])
def test_masks_are_cut_as_mmdet_cuts_them(binarize):
    structures = pytest.importorskip('mmdet.structures.mask')
    masks, boxes, numbers = drawn(5, 60)
    right = structures.BitmapMasks(masks, 40, 56)
    options = dict(out_shape=(28, 28), inds=numbers, device='cpu', binarize=binarize)
    expected = right.crop_and_resize(boxes, **options)
    found = MasksOnce(right).crop_and_resize(boxes, **options)
    rois = torch.from_numpy(np.concatenate([numbers[:, None], boxes], 1)).float()
    shares = ops.roi_align(torch.from_numpy(masks)[:, None].float(), rois, 28, 1.0, -1, True)[:, 0]
    assert torch.equal(torch.from_numpy(found.masks), shares >= 0.5 if binarize else shares)
    assert type(found) is type(expected)
    assert found.masks.dtype == expected.masks.dtype
    np.testing.assert_array_equal(found.masks, expected.masks)
    assert 0.05 < found.masks.mean() < 0.6
    empty = structures.BitmapMasks(masks[:0], 40, 56)
    assert MasksOnce(empty).crop_and_resize(boxes, **options).masks.shape == (0, 28, 28)
    options['inds'] = numbers[:0]
    assert MasksOnce(right).crop_and_resize(boxes[:0], **options).masks.shape == (0, 28, 28)


def test_the_head_learns_the_same_and_copies_no_mask_for_a_region(monkeypatch):
    pytest.importorskip('mmdet')
    from mmcv import ops as mmcv_ops
    from mmdet.models.task_modules.samplers import SamplingResult
    from mmdet.structures.mask import BitmapMasks, mask_target
    from mmengine.config import ConfigDict
    from mmengine.structures import InstanceData

    from convnext_backbone.config import read_config
    from convnext_backbone.measure import build_model

    model = build_model(read_config('mask_rcnn_convnext_t_1x'), 'cpu').roi_head
    head, cfg = model.mask_head, ConfigDict(mask_size=28)
    results, objects = [], []
    for boxes, numbers, masks in ((b, n, m) for m, b, n in (drawn(3, 20), drawn(2, 7))):
        result = SamplingResult.__new__(SamplingResult)
        result.pos_priors, result.pos_assigned_gt_inds = torch.from_numpy(boxes), torch.from_numpy(numbers)
        results.append(result)
        objects.append(InstanceData(masks=BitmapMasks(masks, 40, 56)))
    expected = head.get_targets(results, objects, cfg)
    boxes, numbers = ([getattr(r, name) for r in results] for name in ('pos_priors', 'pos_assigned_gt_inds'))
    assert torch.equal(expected, mask_target(boxes, numbers, [each.masks for each in objects], cfg))
    assert use_masks_once(model) == 1
    assert use_masks_once(model) == 0  # it is already
    given, align = [], mmcv_ops.roi_align
    monkeypatch.setattr(
        mmcv_ops, 'roi_align', lambda maps, *rest: given.append(len(maps)) or align(maps, *rest)
    )
    found = head.get_targets(results, objects, cfg)
    assert torch.equal(found, expected)
    assert given == [2, 2]  # objects that have regions, one of three has none
    assert [type(each.masks) for each in objects] == [BitmapMasks] * 2
    assert use_masks_once(nn.Linear(2, 2)) == 0
