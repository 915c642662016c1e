"""Mask R-CNN, ConvNeXt V2-B, COCO, large-scale jitter, 3x schedule, pretrained without labels.

Run:     tools/dist_train.sh configs/detection/mask_rcnn_convnext_v2_b.py 8
Expect:  52.9 box AP, 46.4 mask AP (mmdetection, projects/ConvNeXt-V2/README.md)
"""

_base_ = [
    '../_base_/models/mask_rcnn_convnext_t.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/coco_3x.py',
]

model = dict(
    backbone=dict(
        arch='v2_base',
        layer_scale_init_value=None,
        init_cfg=dict(checkpoint='convnextv2_base_1k_224_fcmae'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))),
)
train_dataloader = dict(batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=32)
