"""The demo's segmenter: UPerNet on the drawn shapes, small enough for a CPU.

Run:     make demo   (which draws the dataset and pretrains the backbone first)
"""

_base_ = ['../_base_/models/small_backbone.py', '../segmentation/upernet_convnext_t.py']

crop_size = (128, 128)
class_weight = [0.3, 1.0, 1.0, 1.0, 1.0, 1.0]  # four fifths of the pixels are background
metainfo = dict(
    classes=('background', 'circle', 'cross', 'square', 'star', 'triangle'),
    palette=[(40, 40, 40), (230, 80, 60), (60, 130, 230), (245, 190, 40), (150, 80, 210), (60, 180, 90)],
)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(_delete_=True, drop_path_rate=0.0, **_base_.small_backbone),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=32,
        num_classes=6,
        dropout_ratio=0.0,
        loss_decode=dict(class_weight=class_weight),
    ),
    auxiliary_head=dict(
        in_channels=128, channels=32, num_classes=6, loss_decode=dict(class_weight=class_weight)
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)
data_root = 'work_dirs/demo/shapes/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (96, 128, 160)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
shapes = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix='.png',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        data_prefix=dict(img_path='images/train', seg_map_path='semantic/train'),
        pipeline=train_pipeline,
        **shapes,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'),
        pipeline=test_pipeline,
        **shapes,
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=1000, val_interval=250)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=6e-3, betas=(0.9, 0.95)),
    paramwise_cfg=dict(decay_rate=0.6, decay_type='layer_wise'),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=1000, eta_min=1e-5),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1000, max_keep_ckpts=1))
auto_scale_lr = None
