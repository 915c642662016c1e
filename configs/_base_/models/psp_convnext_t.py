"""PSPNet on ConvNeXt-T, whose last two maps are at stride 8."""

_base_ = './upernet_convnext_t.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(output_stride=8, out_indices=(2, 3)),
    decode_head=dict(
        _delete_=True,
        type='PSPHead',
        in_channels=768,
        in_index=1,
        channels=512,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(in_index=0),
    test_cfg=dict(_delete_=True, mode='whole'),
)
