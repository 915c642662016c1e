"""Roadmap from ResNet-200 to ConvNeXt-B, step 15: BN to LN.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_15_layer_norm.py 8
Expect:  83.35 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='layer_norm'))
