"""Roadmap from ResNet-200 to ConvNeXt-B, step 9: kernel size 7.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_09_kernel_7.py 8
Expect:  82.3 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_7'))
