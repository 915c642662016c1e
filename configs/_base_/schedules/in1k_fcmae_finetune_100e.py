"""100 epochs, AdamW, cosine after 20 of warm-up, layer-wise decay, EMA: fine-tuning after pretraining without labels.

That of base in the official V2's TRAINING.md; 1024 images per update, accumulated over as many steps as the
number of GPUs needs.
"""

_base_ = '../default_runtime.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=20,
        end=100,
        T_max=80,
        eta_min_ratio=4e-4,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    accumulative_counts='auto',
    optimizer=dict(type='AdamW', lr=2.5e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='convnext_backbone.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.6, decay_type='layer_wise'),
)
custom_hooks = [dict(type='EMAHook', momentum=1e-4)]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
