"""UPerNet, ConvNeXt V2-H, ADE20K, 512 x 512 crops, 160 000 iterations, pretrained without labels.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_v2_h.py 8
Expect:  55.0 mIoU (arXiv:2301.00808, from a secondary source)

The recipe is that of V1 from ImageNet-1K, as in upernet_convnext_v2_l.py.
"""

_base_ = './upernet_convnext_v2_l.py'

model = dict(
    backbone=dict(arch='v2_huge', init_cfg=dict(checkpoint='convnextv2_huge_1k_224_fcmae')),
    decode_head=dict(in_channels=[352, 704, 1408, 2816]),
    auxiliary_head=dict(in_channels=1408),
)
