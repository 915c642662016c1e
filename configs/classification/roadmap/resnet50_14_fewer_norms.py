"""Roadmap from ResNet-50 to ConvNeXt-T, step 14: fewer norms.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_14_fewer_norms.py 8
Expect:  81.41 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='fewer_norms'))
