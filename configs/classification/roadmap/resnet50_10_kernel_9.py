"""Roadmap from ResNet-50 to ConvNeXt-T, step 10: kernel size 9.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_10_kernel_9.py 8
Expect:  80.57 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_9'))
