"""ConvNeXt-T, ImageNet-1K, 224 x 224, 300 epochs from scratch.

Run:     tools/dist_train.sh configs/classification/convnext_t_in1k.py 8
Expect:  82.1 top-1 (paper, Table 1)
"""

_base_ = [
    '../_base_/models/classifier_convnext_t.py',
    '../_base_/datasets/imagenet1k.py',
    '../_base_/schedules/in1k_300e.py',
]
