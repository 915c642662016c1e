"""RTMDet-l, ConvNeXt-T, COCO, 100 epochs, 640 x 640, pretrained on ImageNet-22K.

Run:     tools/dist_train.sh configs/detection/rtmdet_convnext_t.py 8
Expect:  no published number; learning rates as for ConvNeXt-B
"""

_base_ = [
    '../_base_/models/rtmdet_convnext_t.py',
    '../_base_/datasets/coco_rtmdet.py',
    '../_base_/schedules/coco_rtmdet_100e.py',
]

custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(type='PipelineSwitchHook', switch_epoch=90, switch_pipeline={{_base_.train_pipeline_stage2}}),
]
