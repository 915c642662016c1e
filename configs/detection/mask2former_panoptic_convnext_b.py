"""Mask2Former, ConvNeXt-B, COCO panoptic, 50 epochs.

Run:     tools/dist_train.sh configs/detection/mask2former_panoptic_convnext_b.py 8
Expect:  no published number; layer decay and stochastic depth as for Cascade Mask R-CNN
"""

_base_ = './mask2former_panoptic_convnext_t.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=dict(checkpoint='convnext_base_1k_224')),
    panoptic_head=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
