"""Cuts what a mask head learns out of the masks of the objects, each of which is there once.

mmdet copies the whole mask of an object, as large as the image and in float32, for each region that meets it:
for an image of 800 x 1280 with 128 regions half a gigabyte.
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from .change import heads_of, override


class MasksOnce:
    """Stands for mmdet's ``BitmapMasks`` where mask targets are cut.

    Args:
        masks: what it stands for.
    """

    def __init__(self, masks):
        self.given, self.height, self.width = masks, masks.height, masks.width

    def crop_and_resize(self, bboxes: np.ndarray, out_shape, inds: np.ndarray, device, binarize: bool = True):
        """Return the masks of objects inside of boxes, bit by bit as ``BitmapMasks`` does.

        Args:
            bboxes: (K, 4), x1, y1, x2, y2 in pixels.
            out_shape: height and width of the results.
            inds: (K,), the number of the object of each box.
            device: to compute on.
            binarize: 0 or 1; else shares in [0, 1].
        """
        from mmcv.ops import roi_align

        if not len(self.given.masks) or not len(bboxes):
            return self.given.crop_and_resize(bboxes, out_shape, inds, device, binarize=binarize)
        boxes = torch.from_numpy(bboxes).to(device)
        used, numbers = np.unique(inds, return_inverse=True)  # objects without a region are not copied
        rois = torch.cat([torch.from_numpy(numbers).to(boxes)[:, None], boxes], 1)
        maps = torch.from_numpy(self.given.masks[used]).to(device)[:, None].to(boxes.dtype)
        found = roi_align(maps, rois, out_shape, 1.0, 0, 'avg', True).squeeze(1)
        return type(self.given)((found >= 0.5 if binarize else found).cpu().numpy(), *out_shape)


def use_masks_once(model: nn.Module) -> int:
    """Have mmdet's ``FCNMaskHead`` cut its targets out of masks that are there once; all results stay.

    Args:
        model: any; it is changed in place.

    Returns:
        How many heads there are.
    """
    heads = heads_of(model, 'mmdet.models.roi_heads.mask_heads.FCNMaskHead', 'get_targets')
    for head in heads:
        override(head, get_targets=_get_targets)
    return len(heads)


def _get_targets(self, sampling_results: list, batch_gt_instances: list, rcnn_train_cfg) -> Tensor:
    """Compute the targets as the original does, which reads the masks of the objects only."""
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.structures.mask import BitmapMasks

    once = [
        SimpleNamespace(masks=MasksOnce(each.masks)) if type(each.masks) is BitmapMasks else each
        for each in batch_gt_instances
    ]
    return FCNMaskHead.get_targets(self, sampling_results, once, rcnn_train_cfg)
