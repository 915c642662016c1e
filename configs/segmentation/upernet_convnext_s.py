"""UPerNet, ConvNeXt-S, ADE20K, 512 x 512 crops, 160 000 iterations.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_s.py 8
Expect:  48.7 mIoU at a single scale, 49.6 with several scales and flip (test.py --tta; paper, Table 4)
"""

_base_ = './upernet_convnext_t.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='convnext_small_1k_224')),
)
