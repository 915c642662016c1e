"""Mask R-CNN, ConvNeXt-S, COCO, 1x schedule.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_s_1x.py 8
Expect:  no published number; learning rates and stochastic depth as for ConvNeXt-T
"""

_base_ = './mask_rcnn_convnext_t_1x.py'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint='convnext_small_1k_224')))
