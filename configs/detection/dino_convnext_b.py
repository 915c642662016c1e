"""DINO, 4 scales, ConvNeXt-B, COCO, 12 epochs, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/dino_convnext_b.py 8
Expect:  55.1 box AP (detrex, projects/dino/README.md)
"""

_base_ = './dino_convnext_t.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='convnext_base_22k_1k_384')),
    neck=dict(in_channels=[256, 512, 1024]),
)
