"""ImageNet-1K, 224 x 224, with the training augmentation of the paper (Table 5).

data/imagenet/{train,val}/<class>/*.JPEG
"""

data_root = 'data/imagenet'
common = dict(
    input_size=224,
    interpolation='bicubic',
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
train_transform = dict(
    is_training=True,
    auto_augment='rand-m9-mstd0.5-inc1',
    re_prob=0.25,
    re_mode='pixel',
    **common,
)
train_dataloader = dict(
    batch_size=128,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='convnext_backbone.collate_images'),
    dataset=dict(
        type='convnext_backbone.ImageDataset', data_root=data_root, split='train', transform=train_transform
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='convnext_backbone.collate_images'),
    dataset=dict(
        type='convnext_backbone.ImageDataset',
        data_root=data_root,
        split='val',
        transform=dict(is_training=False, crop_pct=0.875, **common),
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='convnext_backbone.Accuracy')
test_evaluator = val_evaluator

default_scope = 'mmengine'
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
