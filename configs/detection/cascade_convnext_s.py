"""Cascade Mask R-CNN, ConvNeXt-S, COCO, 3x schedule.

Run:     tools/dist_train.sh configs/detection/cascade_convnext_s.py 8
Expect:  51.9 box AP, 45.0 mask AP (paper, Table 3)
"""

_base_ = './cascade_convnext_t.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.6, init_cfg=dict(checkpoint='convnext_small_1k_224'))
)
