"""Mask R-CNN, ConvNeXt V2-L, COCO, large-scale jitter, 3x schedule, pretrained without labels.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_v2_l.py 8
Expect:  no published number that we could read

The recipe is that of V2-B: one of V2-L is not published with the official code.
"""

_base_ = './mask_rcnn_convnext_v2_b.py'

model = dict(
    backbone=dict(arch='v2_large', init_cfg=dict(checkpoint='convnextv2_large_1k_224_fcmae')),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
