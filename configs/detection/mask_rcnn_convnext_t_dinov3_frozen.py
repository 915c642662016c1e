"""Mask R-CNN, ConvNeXt-T pretrained by DINOv3 and frozen, COCO, 3x schedule.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_t_dinov3_frozen.py 8
Expect:  no published number; neck, heads and the norms of the four maps learn, stem and stages stay as they are
"""

_base_ = './mask_rcnn_convnext_t_dinov3.py'

model = dict(backbone=dict(frozen_stages=4, drop_path_rate=0.0))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
