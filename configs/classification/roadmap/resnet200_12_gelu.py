"""Roadmap from ResNet-200 to ConvNeXt-B, step 12: ReLU to GELU.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_12_gelu.py 8
Expect:  82.19 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='gelu'))
