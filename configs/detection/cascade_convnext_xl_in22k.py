"""Cascade Mask R-CNN, ConvNeXt-XL, COCO, 3x schedule, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/cascade_convnext_xl_in22k.py 8
Expect:  55.2 box AP, 47.7 mask AP (paper, Table 3)
"""

_base_ = './cascade_convnext_b_in22k.py'

model = dict(
    backbone=dict(arch='xlarge', drop_path_rate=0.8, init_cfg=dict(checkpoint='convnext_xlarge_22k_224')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
