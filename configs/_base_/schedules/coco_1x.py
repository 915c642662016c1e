"""12 epochs, learning rate divided by 10 after 8 and 11; the rest as in the 3x schedule."""

_base_ = './coco_3x.py'

train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
