"""Cascade Mask R-CNN, ConvNeXt-B, COCO, 3x schedule, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/cascade_convnext_b_in22k.py 8
Expect:  54.0 box AP, 46.9 mask AP (paper, Table 3)
"""

_base_ = './cascade_convnext_b.py'

model = dict(backbone=dict(drop_path_rate=0.6, init_cfg=dict(checkpoint='convnext_base_22k_224')))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
