"""Roadmap from ResNet-50 to ConvNeXt-T, step 8: kernel size 5.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_08_kernel_5.py 8
Expect:  80.35 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='kernel_5'))
