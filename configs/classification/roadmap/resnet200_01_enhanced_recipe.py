"""Roadmap from ResNet-200 to ConvNeXt-B, step 1: ResNet-200 (enhanced recipe).

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_01_enhanced_recipe.py 8
Expect:  81.14 top-1 (paper, Table 11)

The rate of stochastic depth in this regime is not printed; it is ConvNeXt-B's of Table 5.
"""

_base_ = './resnet50_01_enhanced_recipe.py'

model = dict(backbone=dict(start='resnet200', drop_path_rate=0.5))
