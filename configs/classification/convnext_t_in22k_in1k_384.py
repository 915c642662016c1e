"""ConvNeXt-T, ImageNet-1K, 384 x 384, fine-tuned from ImageNet-22K.

Run:     tools/dist_train.sh configs/classification/convnext_t_in22k_in1k_384.py 8
Expect:  84.1 top-1 (results page of the official code)
"""

_base_ = [
    '../_base_/models/classifier_convnext_t_22k.py',
    '../_base_/datasets/imagenet1k_384.py',
    '../_base_/schedules/in1k_finetune_30e.py',
]
