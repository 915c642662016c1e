"""Mask R-CNN, ConvNeXt-T, COCO, 3x schedule.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_t.py 8
Expect:  46.2 box AP, 41.7 mask AP (paper, Table 3)
"""

_base_ = [
    '../_base_/models/mask_rcnn_convnext_t.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_3x.py',
]
