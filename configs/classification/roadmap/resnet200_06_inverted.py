"""Roadmap from ResNet-200 to ConvNeXt-B, step 6: inverting dimensions.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_06_inverted.py 8
Expect:  82.64 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='inverted'))
