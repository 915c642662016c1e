"""Cascade Mask R-CNN, ConvNeXt-T, COCO, 3x schedule.

Run:     tools/dist_train.sh configs/detection/cascade_convnext_t.py 8
Expect:  50.4 box AP, 43.7 mask AP (paper, Table 3)
"""

_base_ = [
    '../_base_/models/cascade_mask_rcnn_convnext_t.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_3x.py',
]

optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
