"""Roadmap from ResNet-50 to ConvNeXt-T, step 16: separate downsampling (= ConvNeXt-T).

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_16_separate_downsampling.py 8
Expect:  81.97 top-1 (paper, Table 10)
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(step='separate_downsampling'))
