"""Mask2Former, ConvNeXt-T, COCO instances, 50 epochs.

Run:     tools/dist_train.sh configs/detection/mask2former_convnext_t.py 8
Expect:  no published number; learning rates and stochastic depth as for Mask R-CNN
"""

_base_ = [
    '../_base_/models/mask2former_convnext_t.py',
    '../_base_/datasets/coco_instance_mask2former.py',
    '../_base_/schedules/coco_mask2former_50e.py',
]
