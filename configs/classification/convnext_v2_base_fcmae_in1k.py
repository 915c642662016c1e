"""ConvNeXt V2 base, ImageNet-1K, 224 x 224, 100 epochs, after pretraining without labels (FCMAE).

Run:     tools/dist_train.sh configs/classification/convnext_v2_base_fcmae_in1k.py 8
Expect:  84.9 top-1 (README of the official V2)
"""

_base_ = [
    '../_base_/models/classifier_convnext_v2_b_fcmae.py',
    '../_base_/datasets/imagenet1k.py',
    '../_base_/schedules/in1k_fcmae_finetune_100e.py',
]
