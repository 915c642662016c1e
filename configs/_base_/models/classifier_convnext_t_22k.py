"""ConvNeXt-T classifier that starts from ImageNet-22K (paper, Table 6); the head of 22K classes is left out."""

_base_ = './classifier_convnext_t.py'

model = dict(
    backbone=dict(drop_path_rate=0.0),
    head_init_scale=0.001,
    mixup=None,
    init_cfg=dict(
        type='convnext_backbone.Pretrained',
        checkpoint='convnext_tiny_22k_224',
        skip=['head.*'],
        fresh=['head.*'],
    ),
)
