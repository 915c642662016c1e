"""UPerNet, ConvNeXt V2-L, ADE20K, 512 x 512 crops, 160 000 iterations, pretrained without labels.

Run:     tools/dist_train.sh configs/segmentation/upernet_convnext_v2_l.py 8
Expect:  53.7 mIoU (arXiv:2301.00808, from a secondary source)

The recipe is that of V1 from ImageNet-1K: a recipe of V2 is not published with the official code. The source
does not say how the figure was measured; it is listed as that of several scales and flip, as V1's are.
"""

_base_ = './upernet_convnext_b.py'

model = dict(
    backbone=dict(
        arch='v2_large',
        layer_scale_init_value=None,
        init_cfg=dict(checkpoint='convnextv2_large_1k_224_fcmae'),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
