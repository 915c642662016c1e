"""Cascade R-CNN, ConvNeXt-T, COCO, 3x schedule.

Run:     tools/dist_train.sh configs/detection/cascade_rcnn_convnext_t.py 8
Expect:  no published number; learning rates and stochastic depth as for Cascade Mask R-CNN
"""

_base_ = [
    '../_base_/models/cascade_rcnn_convnext_t.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_3x.py',
]

optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
