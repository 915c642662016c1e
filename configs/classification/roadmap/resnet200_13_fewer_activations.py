"""Roadmap from ResNet-200 to ConvNeXt-B, step 13: fewer activations.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_13_fewer_activations.py 8
Expect:  82.71 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='fewer_activations'))
