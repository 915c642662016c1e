"""Roadmap from ResNet-50 to ConvNeXt-T, step 4: depthwise conv.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_04_depthwise.py 8
Expect:  78.28 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='depthwise'))
