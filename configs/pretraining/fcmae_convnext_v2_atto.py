"""Masked autoencoder (FCMAE), ConvNeXt V2 atto, ImageNet-1K without labels, 224 x 224, 800 epochs.

Run:     tools/dist_train.sh configs/pretraining/fcmae_convnext_v2_atto.py 8
Then:    tools/dist_train.sh configs/classification/convnext_v2_atto_fcmae_in1k.py 8 --pretrained CHECKPOINT

800 epochs are the default of the official main_pretrain.py. Its TRAINING.md prints a pretraining of base alone,
with 1600; how long the released weights were trained is printed in neither.
"""

_base_ = ['../_base_/datasets/imagenet1k_pretraining.py', '../_base_/schedules/fcmae_800e.py']

model = dict(
    type='convnext_backbone.FCMAE',
    backbone=dict(type='convnext_backbone.ConvNeXt', arch='v2_atto'),
    mask_ratio=0.6,
)
