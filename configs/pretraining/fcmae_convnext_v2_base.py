"""Masked autoencoder (FCMAE), ConvNeXt V2 base, ImageNet-1K without labels, 224 x 224, 1600 epochs.

Run:     tools/dist_train.sh configs/pretraining/fcmae_convnext_v2_base.py 8
Then:    tools/dist_train.sh configs/classification/convnext_v2_base_fcmae_in1k.py 8 --pretrained CHECKPOINT

1600 epochs are those of the official TRAINING.md; the default of its main_pretrain.py is 800.
"""

_base_ = './fcmae_convnext_v2_atto.py'

model = dict(backbone=dict(arch='v2_base'))
train_cfg = dict(max_epochs=1600)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=40, end=1600, T_max=1560, eta_min=0.0, convert_to_iter_based=True),
]
