"""ConvNeXt-S, ImageNet-22K, 224 x 224, 90 epochs from scratch.

Run:     tools/dist_train.sh configs/classification/convnext_s_in22k.py 8
Expect:  the start of convnext_s_in22k_in1k; no published number of its own
"""

_base_ = './convnext_t_in22k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.0))
