"""100 epochs, AdamW, half a cosine from the 50th; the recipe of RTMDet on a pretrained backbone.

128 images per step (8 GPUs with 16 each), full precision. The last 10 epochs are evaluated one by one.
"""

_base_ = './coco_3x.py'

train_cfg = dict(max_epochs=100, val_interval=10, dynamic_intervals=[(90, 1)])
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-5,
        begin=50,
        end=100,
        T_max=50,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.8))
default_hooks = dict(checkpoint=dict(interval=10))
auto_scale_lr = dict(base_batch_size=128)
