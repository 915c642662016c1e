"""Roadmap from ResNet-200 to ConvNeXt-B, step 11: kernel size 11.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_11_kernel_11.py 8
Expect:  82.18 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_11'))
