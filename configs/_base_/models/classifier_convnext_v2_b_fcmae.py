"""ConvNeXt V2-B classifier that starts from pretraining without labels (TRAINING.md of the official V2)."""

_base_ = './classifier_convnext_t.py'

model = dict(
    backbone=dict(
        arch='v2_base',
        init_cfg=dict(type='convnext_backbone.Pretrained', checkpoint='convnextv2_base_1k_224_fcmae'),
    ),
    head_init_scale=0.001,
)
