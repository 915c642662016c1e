"""Roadmap from ResNet-200 to ConvNeXt-B, step 14: fewer norms.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_14_fewer_norms.py 8
Expect:  83.17 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='fewer_norms'))
