"""12 epochs, AdamW, learning rate divided by 10 after 11; the recipe of DINO.

16 images per step (8 GPUs with 2 each), full precision, no warm-up; the backbone has a tenth of the learning rate.
"""

_base_ = './coco_3x.py'

train_cfg = dict(max_epochs=12)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[11], gamma=0.1)]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
