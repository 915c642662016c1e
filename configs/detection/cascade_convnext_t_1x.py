"""Cascade Mask R-CNN, ConvNeXt-T, COCO, 1x schedule.

Run:     tools/dist_train.sh configs/detection/cascade_convnext_t_1x.py 8
Expect:  no published number; learning rates as in the 3x recipe
"""

_base_ = [
    '../_base_/models/cascade_mask_rcnn_convnext_t.py',
    '../_base_/datasets/coco_instance_single_scale.py',
    '../_base_/schedules/coco_1x.py',
]

optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
