"""DINO, 4 scales, ConvNeXt-L, COCO, 12 epochs, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/dino_convnext_l.py 8
Expect:  55.5 box AP (detrex, projects/dino/README.md)
"""

_base_ = './dino_convnext_t.py'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='convnext_large_22k_1k_384')),
    neck=dict(in_channels=[384, 768, 1536]),
)
