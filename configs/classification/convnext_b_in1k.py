"""ConvNeXt-B, ImageNet-1K, 224 x 224, 300 epochs from scratch.

Run:     tools/dist_train.sh configs/classification/convnext_b_in1k.py 8
Expect:  83.8 top-1 (paper, Table 1)
"""

_base_ = './convnext_t_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.5))
