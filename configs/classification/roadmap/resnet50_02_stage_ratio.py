"""Roadmap from ResNet-50 to ConvNeXt-T, step 2: stage ratio.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_02_stage_ratio.py 8
Expect:  79.36 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='stage_ratio'))
