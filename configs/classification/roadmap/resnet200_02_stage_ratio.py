"""Roadmap from ResNet-200 to ConvNeXt-B, step 2: stage ratio and width 84.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_02_stage_ratio.py 8
Expect:  81.33 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='stage_ratio'))
