"""Roadmap from ResNet-50 to ConvNeXt-T, step 15: BN to LN.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_15_layer_norm.py 8
Expect:  81.47 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='layer_norm'))
