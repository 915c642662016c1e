"""UPerNet, ConvNeXt-XL, ADE20K, 640 x 640 crops, 160 000 iterations, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_xl_in22k.py 8
Expect:  53.6 mIoU at a single scale, 54.0 with several scales and flip (test.py --tta; paper, Table 4)
"""

_base_ = './upernet_convnext_b_in22k.py'

model = dict(
    backbone=dict(arch='xlarge', init_cfg=dict(checkpoint='convnext_xlarge_22k_224')),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=8e-5))
