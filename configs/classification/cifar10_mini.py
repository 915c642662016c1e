"""A narrow ConvNeXt on a tenth of CIFAR-10 (5000 images, enlarged to 48 x 48), from scratch on a CPU.

Run:     python tools/train.py configs/classification/cifar10_mini.py --data-root DIR
Expect:  60.9 top-1 on its 1000 validation images, 14 minutes on one core (measured here, seed 0)
"""

_base_ = '../_base_/default_runtime.py'

epochs = 60
model = dict(
    type='convnext_backbone.Classifier',
    backbone=dict(
        type='convnext_backbone.ConvNeXt',
        depths=(2, 2, 4, 2),
        dims=(32, 64, 128, 256),
        drop_path_rate=0.1,
        layer_scale_init_value=1.0,
        # by fan-in: a standard deviation of 0.02 suits wide networks and long training
        init_cfg=[dict(type='Kaiming', layer=['Conv2d', 'Linear'], mode='fan_in', nonlinearity='linear')],
    ),
    num_classes=10,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.3, cutmix_alpha=1.0, prob=0.7),
)
data_root = 'data/cifar10_mini'
common = dict(input_size=48, mean=(0.491, 0.482, 0.447), std=(0.247, 0.244, 0.262))
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='convnext_backbone.collate_images'),
    dataset=dict(
        type='convnext_backbone.ImageDataset',
        data_root=data_root,
        split='train',
        transform=dict(
            is_training=True,
            scale=(0.5, 1.0),
            ratio=(0.85, 1.18),
            auto_augment='rand-m5-n2-mstd0.5-inc1',
            interpolation='bilinear',
            **common,
        ),
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='convnext_backbone.collate_images'),
    dataset=dict(
        type='convnext_backbone.ImageDataset',
        data_root=data_root,
        split='val',
        transform=dict(is_training=False, crop_pct=1.0, interpolation='bilinear', **common),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='convnext_backbone.Accuracy')
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.99), weight_decay=0.05),
    constructor='convnext_backbone.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=3, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=3,
        end=epochs,
        T_max=epochs - 3,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=epochs, max_keep_ckpts=1))
default_scope = 'mmengine'
