"""Roadmap from ResNet-200 to ConvNeXt-B, step 4: depthwise conv.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_04_depthwise.py 8
Expect:  80.54 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='depthwise'))
