"""RetinaNet, ConvNeXt-T, COCO, 3x schedule.

Run:     tools/dist_train.sh configs/detection/retinanet_convnext_t.py 8
Expect:  no published number; learning rates and stochastic depth as for Mask R-CNN
"""

_base_ = [
    '../_base_/models/retinanet_convnext_t.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_3x.py',
]
