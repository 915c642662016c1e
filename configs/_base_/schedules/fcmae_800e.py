"""800 epochs, AdamW, cosine after 40 epochs of warm-up: pretraining (main_pretrain.py of the official V2).

4096 images per update (1.5e-4 for each 256), accumulated over as many steps as the number of GPUs needs.
"""

_base_ = '../default_runtime.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800)
val_cfg = None
test_cfg = None

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=40, end=800, T_max=760, eta_min=0.0, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    accumulative_counts='auto',
    optimizer=dict(type='AdamW', lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='convnext_backbone.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
)
custom_hooks = [dict(type='convnext_backbone.ReconstructionHook', interval=20)]
auto_scale_lr = dict(enable=False, base_batch_size=4096)
