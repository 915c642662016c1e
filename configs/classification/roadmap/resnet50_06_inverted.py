"""Roadmap from ResNet-50 to ConvNeXt-T, step 6: inverting dimensions.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_06_inverted.py 8
Expect:  80.64 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='inverted'))
