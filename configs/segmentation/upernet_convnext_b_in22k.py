"""UPerNet, ConvNeXt-B, ADE20K, 640 x 640 crops, 160 000 iterations, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_b_in22k.py 8
Expect:  52.6 mIoU at a single scale, 53.1 with several scales and flip (test.py --tta; paper, Table 4)
"""

_base_ = [
    '../_base_/models/upernet_convnext_t.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/schedules/ade20k_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(arch='base', init_cfg=dict(checkpoint='convnext_base_22k_224')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)
