"""DeepLabV3 at stride 8, ConvNeXt-T, ADE20K, 512 x 512 crops, 160 000 iterations.

Run:     tools/dist_train.sh configs/segmentation/deeplab_convnext_t.py 8
Expect:  no published number; learning rates and stochastic depth as for UPerNet
"""

_base_ = [
    '../_base_/models/deeplab_convnext_t.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_160k.py',
]
