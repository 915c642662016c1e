"""DINO, 4 scales, ConvNeXt-T, COCO, 12 epochs, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/dino_convnext_t.py 8
Expect:  52.4 box AP (detrex, projects/dino/README.md)
"""

_base_ = [
    '../_base_/models/dino_convnext_t.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/coco_detr_12e.py',
]
