"""100 epochs, AdamW, cosine after 20 of warm-up, layer-wise decay, EMA: fine-tuning after pretraining without labels.

That of base in the official V2's TRAINING.md; 1024 images per update, accumulated over as many steps as the
number of GPUs needs.
"""

_base_ = './in1k_300e.py'

train_cfg = dict(max_epochs=100)
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
optim_wrapper = dict(optimizer=dict(lr=2.5e-3), paramwise_cfg=dict(decay_rate=0.6, decay_type='layer_wise'))
auto_scale_lr = dict(base_batch_size=1024)
