"""Isotropic ConvNeXt-L, ImageNet-1K, 224 x 224, 300 epochs from scratch.

Run:     tools/dist_train.sh configs/classification/isotropic_l_in1k.py 8
Expect:  82.6 top-1 (paper, Table 2)
"""

_base_ = './isotropic_s_in1k.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.5))
