"""ConvNeXt V2 huge, ImageNet-1K, 224 x 224, 100 epochs, after pretraining without labels (FCMAE).

Run:     tools/dist_train.sh configs/classification/convnext_v2_huge_fcmae_in1k.py 8
Expect:  86.3 top-1 (README of the official V2)

The recipe of base: the official TRAINING.md prints none for this size.
"""

_base_ = './convnext_v2_base_fcmae_in1k.py'

model = dict(backbone=dict(arch='v2_huge', init_cfg=dict(checkpoint='convnextv2_huge_1k_224_fcmae')))
