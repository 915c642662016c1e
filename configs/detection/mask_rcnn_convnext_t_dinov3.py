"""Mask R-CNN, ConvNeXt-T pretrained by DINOv3, COCO, 3x schedule, fine-tuned.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_t_dinov3.py 8
Expect:  no published number; the recipe is that of mask_rcnn_convnext_t
Weights: DINOv3 License, see docs/weights.md; dinov3_convnext_tiny is the same from their authors
"""

_base_ = './mask_rcnn_convnext_t.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='timm_dinov3_convnext_tiny')))
