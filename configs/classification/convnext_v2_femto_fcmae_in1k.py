"""ConvNeXt V2 femto, ImageNet-1K, 224 x 224, 600 epochs, after pretraining without labels (FCMAE).

Run:     tools/dist_train.sh configs/classification/convnext_v2_femto_fcmae_in1k.py 8
Expect:  78.5 top-1 (README of the official V2)

The recipe of atto: the official TRAINING.md prints none for this size.
"""

_base_ = './convnext_v2_atto_fcmae_in1k.py'

model = dict(backbone=dict(arch='v2_femto', init_cfg=dict(checkpoint='convnextv2_femto_1k_224_fcmae')))
