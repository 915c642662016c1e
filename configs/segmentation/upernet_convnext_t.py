"""UPerNet, ConvNeXt-T, ADE20K, 512 x 512 crops, 160 000 iterations.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_t.py 8
Expect:  46.0 mIoU at a single scale, 46.7 with several scales and flip (test.py --tta; paper, Table 4)
"""

_base_ = [
    '../_base_/models/upernet_convnext_t.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_160k.py',
]
