"""Roadmap from ResNet-200 to ConvNeXt-B, step 8: kernel size 5.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_08_kernel_5.py 8
Expect:  82.32 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_5'))
