"""Roadmap from ResNet-200 to ConvNeXt-B, step 16: separate downsampling (= ConvNeXt-B).

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_16_separate_downsampling.py 8
Expect:  83.6 top-1 (paper, Table 11)
"""

_base_ = './resnet200_01_enhanced_recipe.py'

model = dict(backbone=dict(step='separate_downsampling'))
