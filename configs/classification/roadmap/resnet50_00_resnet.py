"""Roadmap from ResNet-50 to ConvNeXt-T, step 0: ResNet-50 (original recipe).

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_00_resnet.py 8
Expect:  76.13 top-1 (paper, Table 10); 90 epochs, SGD, as usual before 2020
"""

_base_ = [
    '../../_base_/models/classifier_convnext_t.py',
    '../../_base_/datasets/imagenet1k.py',
    '../../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='convnext_backbone.Roadmap', start='resnet50', step='resnet'),
    label_smoothing=0.0,
    mixup=None,
)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(transform=dict(auto_augment=None, color_jitter=None, re_prob=0.0, interpolation='bilinear')),
)
val_dataloader = dict(dataset=dict(transform=dict(interpolation='bilinear')))
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=90, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60], gamma=0.1)]
optim_wrapper = dict(
    type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
)
auto_scale_lr = dict(enable=False, base_batch_size=256)
