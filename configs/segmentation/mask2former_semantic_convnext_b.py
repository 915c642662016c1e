"""Mask2Former, ConvNeXt-B, ADE20K, 640 x 640 crops, 160 000 iterations, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/segmentation/mask2former_semantic_convnext_b.py 8
Expect:  55.06 mIoU by one user's training with 64 images a step for 50 000 iterations (Mask2Former's pull request
         34, a secondary source; rates and decay may differ)
"""

_base_ = [
    '../_base_/models/mask2former_semantic_convnext_t.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/schedules/ade20k_mask2former_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(arch='base', init_cfg=dict(checkpoint='convnext_base_22k_1k_384')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
