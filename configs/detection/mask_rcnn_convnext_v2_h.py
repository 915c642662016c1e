"""Mask R-CNN, ConvNeXt V2-H, COCO, large-scale jitter, 3x schedule, pretrained without labels.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_v2_h.py 8
Expect:  48.9 mask AP (arXiv:2301.00808, from a secondary source)

The recipe is that of V2-B: one of V2-H is not published with the official code.
"""

_base_ = './mask_rcnn_convnext_v2_b.py'

model = dict(
    backbone=dict(arch='v2_huge', init_cfg=dict(checkpoint='convnextv2_huge_1k_224_fcmae')),
    neck=dict(in_channels=[352, 704, 1408, 2816]),
)
