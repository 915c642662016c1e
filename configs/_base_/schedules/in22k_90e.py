"""90 epochs, AdamW, cosine after 5 epochs of warm-up: pretraining on ImageNet-22K (paper, Table 5).

4096 images per update, accumulated over as many steps as the number of GPUs needs (8 with 128: four).
"""

_base_ = './in1k_300e.py'

train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=90)
val_cfg = None
test_cfg = None
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', begin=5, end=90, T_max=85, eta_min_ratio=2.5e-4, convert_to_iter_based=True
    ),
]
custom_hooks = []  # no EMA
