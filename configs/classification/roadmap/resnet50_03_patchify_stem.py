"""Roadmap from ResNet-50 to ConvNeXt-T, step 3: patchify stem.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_03_patchify_stem.py 8
Expect:  79.51 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='patchify_stem'))
