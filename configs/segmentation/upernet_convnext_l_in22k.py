"""UPerNet, ConvNeXt-L, ADE20K, 640 x 640 crops, 160 000 iterations, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_l_in22k.py 8
Expect:  53.2 mIoU at a single scale, 53.7 with several scales and flip (test.py --tta; paper, Table 4)
"""

_base_ = './upernet_convnext_b_in22k.py'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='convnext_large_22k_224')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
