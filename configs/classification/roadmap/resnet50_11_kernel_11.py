"""Roadmap from ResNet-50 to ConvNeXt-T, step 11: kernel size 11.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_11_kernel_11.py 8
Expect:  80.47 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_11'))
