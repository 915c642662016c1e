"""Roadmap from ResNet-50 to ConvNeXt-T, step 7: move up depthwise conv.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_07_moved_up.py 8
Expect:  79.92 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='moved_up'))
