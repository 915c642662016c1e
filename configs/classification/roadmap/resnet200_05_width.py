"""Roadmap from ResNet-200 to ConvNeXt-B, step 5: increase width to 128.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_05_width.py 8
Expect:  81.85 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='width'))
