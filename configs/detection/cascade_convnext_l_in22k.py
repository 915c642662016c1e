"""Cascade Mask R-CNN, ConvNeXt-L, COCO, 3x schedule, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/cascade_convnext_l_in22k.py 8
Expect:  54.8 box AP, 47.6 mask AP (paper, Table 3)
"""

_base_ = './cascade_convnext_b_in22k.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.7, init_cfg=dict(checkpoint='convnext_large_22k_224')),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
