"""ImageNet-22K as WebDataset shards, which are read in order and never listed whole; not evaluated.

data/imagenet22k/_info.json and the shards that it names, as in timm's own sets
"""

_base_ = './imagenet1k.py'

train_dataloader = dict(
    sampler=None,
    dataset=dict(
        _delete_=True,
        type='convnext_backbone.ImageStream',
        data_root='data/imagenet22k',
        split='train',
        transform=_base_.train_transform,
    ),
)
val_dataloader = None
val_evaluator = None
test_dataloader = None
test_evaluator = None
