"""Roadmap from ResNet-50 to ConvNeXt-T, step 12: ReLU to GELU.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_12_gelu.py 8
Expect:  80.62 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='gelu'))
