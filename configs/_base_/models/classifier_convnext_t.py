"""ConvNeXt-T classifier, with the regularisation of training from scratch (paper, Table 5)."""

model = dict(
    type='convnext_backbone.Classifier',
    backbone=dict(type='convnext_backbone.ConvNeXt', arch='tiny', drop_path_rate=0.1),
    num_classes=1000,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
