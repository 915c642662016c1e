"""RTMDet-l, ConvNeXt-B, COCO, 100 epochs, 640 x 640, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/rtmdet_convnext_b.py 8
Expect:  53.1 box AP (mmdetection, configs/rtmdet/metafile.yml)
"""

_base_ = './rtmdet_convnext_t.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=dict(checkpoint='convnext_base_22k_1k_384')),
    neck=dict(in_channels=[256, 512, 1024]),
)
