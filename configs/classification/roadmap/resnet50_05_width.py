"""Roadmap from ResNet-50 to ConvNeXt-T, step 5: increase width.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_05_width.py 8
Expect:  80.5 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='width'))
