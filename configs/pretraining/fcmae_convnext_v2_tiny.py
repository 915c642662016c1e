"""Masked autoencoder (FCMAE), ConvNeXt V2 tiny, ImageNet-1K without labels, 224 x 224, 800 epochs.

Run:     tools/dist_train.sh configs/pretraining/fcmae_convnext_v2_tiny.py 8
Then:    tools/dist_train.sh configs/classification/convnext_v2_tiny_fcmae_in1k.py 8 --pretrained CHECKPOINT

The recipe of atto: the official TRAINING.md prints none for this size.
"""

_base_ = './fcmae_convnext_v2_atto.py'

model = dict(backbone=dict(arch='v2_tiny'))
