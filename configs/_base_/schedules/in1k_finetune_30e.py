"""30 epochs, AdamW, cosine, layer-wise decay: fine-tuning on ImageNet-1K (paper, Table 6).

512 images per update, accumulated over as many steps as the number of GPUs needs.
"""

_base_ = '../default_runtime.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='CosineAnnealingLR', begin=0, end=30, T_max=30, eta_min_ratio=0.02, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    accumulative_counts='auto',
    optimizer=dict(type='AdamW', lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-8),
    constructor='convnext_backbone.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise'),
)
auto_scale_lr = dict(enable=False, base_batch_size=512)
