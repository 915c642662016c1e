"""Roadmap from ResNet-200 to ConvNeXt-B, step 3: patchify stem.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_03_patchify_stem.py 8
Expect:  81.59 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='patchify_stem'))
