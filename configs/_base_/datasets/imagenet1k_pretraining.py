"""ImageNet-1K, 224 x 224, without labels: random crops of 20 to 100 % and flips alone (arXiv:2301.00808, App. A.1).

data/imagenet/train/<class>/*.JPEG
"""

_base_ = './imagenet1k.py'

train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        transform=dict(_delete_=True, is_training=True, scale=(0.2, 1.0), color_jitter=None, **_base_.common)
    ),
)
val_dataloader = None
val_evaluator = None
test_dataloader = None
test_evaluator = None
