"""DINO, 4 scales, ConvNeXt-S, COCO, 12 epochs, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/dino_convnext_s.py 8
Expect:  54.2 box AP (detrex, projects/dino/README.md)
"""

_base_ = './dino_convnext_t.py'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint='convnext_small_22k_1k_384')))
