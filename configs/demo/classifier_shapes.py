"""The demo's pretraining: a small ConvNeXt told to name single shapes, from scratch.

Run:     make demo   (which draws the dataset first)
"""

_base_ = ['../_base_/models/small_backbone.py', '../_base_/default_runtime.py']

model = dict(
    type='convnext_backbone.Classifier',
    backbone=_base_.small_backbone,
    num_classes=5,
)
data_root = 'work_dirs/demo/shapes/classification'
normalise = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='convnext_backbone.collate_images'),
    drop_last=True,
    dataset=dict(
        type='convnext_backbone.ImageDataset',
        data_root=data_root,
        split='train',
        transform=dict(
            input_size=64,
            is_training=True,
            scale=(0.8, 1.0),
            ratio=(0.9, 1.1),
            color_jitter=None,
            **normalise,
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
        transform=dict(input_size=64, is_training=False, crop_pct=1.0, **normalise),
    ),
)
val_evaluator = dict(type='convnext_backbone.Accuracy')

train_cfg = dict(type='IterBasedTrainLoop', max_iters=1400, val_interval=350)
val_cfg = dict(type='ValLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='convnext_backbone.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=1400, eta_min=1e-5),
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=1400, max_keep_ckpts=1)
)
log_processor = dict(by_epoch=False)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
default_scope = 'mmengine'
auto_scale_lr = None
