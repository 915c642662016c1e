"""Roadmap from ResNet-200 to ConvNeXt-B, step 0: ResNet-200.

Run:     tools/dist_train.sh configs/classification/roadmap/resnet200_00_resnet.py 8
Expect:  78.2 top-1 (paper, Table 11); 90 epochs, SGD, as usual before 2020
"""

_base_ = './resnet50_00_resnet.py'

model = dict(backbone=dict(start='resnet200'))
