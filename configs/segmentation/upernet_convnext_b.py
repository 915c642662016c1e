"""UPerNet, ConvNeXt-B, ADE20K, 512 x 512 crops, 160 000 iterations.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_b.py 8
Expect:  49.1 mIoU at a single scale, 49.9 with several scales and flip (test.py --tta; paper, Table 4)
"""

_base_ = './upernet_convnext_t.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='convnext_base_1k_224')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
