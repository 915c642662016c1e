"""UPerNet on the narrow ConvNeXt of cifar10_mini, CamVid (11 classes, 480 x 360), on a CPU.

Run:     python tools/train.py configs/segmentation/camvid_small.py --data-root DIR --pretrained CHECKPOINT
         with the checkpoint of configs/classification/cifar10_mini.py; --pretrained none for comparison
"""

_base_ = './upernet_convnext_t.py'

crop_size = (240, 240)
metainfo = dict(
    classes=(
        *('Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree'),
        *('SignSymbol', 'Fence', 'Car', 'Pedestrian', 'Bicyclist'),
    ),
    palette=[
        *((70, 130, 180), (70, 70, 70), (153, 153, 153), (128, 64, 128), (244, 35, 232), (107, 142, 35)),
        *((220, 220, 0), (190, 153, 153), (0, 0, 142), (220, 20, 60), (119, 11, 32)),
    ],
)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        _delete_=True,
        type='convnext_backbone.ConvNeXt',
        depths=(2, 2, 4, 2),
        dims=(32, 64, 128, 256),
        layer_scale_init_value=1.0,
        init_cfg=[dict(type='Kaiming', layer=['Conv2d', 'Linear'], mode='fan_in', nonlinearity='linear')],
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11),
    test_cfg=dict(_delete_=True, mode='whole'),
)
data_root = 'data/camvid'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='PackSegInputs'),
]
tta_model = None
tta_pipeline = None
camvid = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
        **camvid,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
        **camvid,
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=600, val_interval=300)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise')
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=50, end=600, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=600, max_keep_ckpts=1))
auto_scale_lr = None
