"""Roadmap from ResNet-200 to ConvNeXt-B, step 7: move up depthwise conv.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_07_moved_up.py 8
Expect:  82.04 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='moved_up'))
