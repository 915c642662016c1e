"""Roadmap from ResNet-200 to ConvNeXt-B, step 10: kernel size 9.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_10_kernel_9.py 8
Expect:  82.27 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_9'))
