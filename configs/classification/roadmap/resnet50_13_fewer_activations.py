"""Roadmap from ResNet-50 to ConvNeXt-T, step 13: fewer activations.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_13_fewer_activations.py 8
Expect:  81.27 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='fewer_activations'))
