"""ConvNeXt V2 base, ImageNet-1K, 224 x 224, 300 epochs from scratch, by the recipe of V1.

Run:     tools/dist_train.sh configs/classification/convnext_v2_base_in1k.py 8
Expect:  no published number; stochastic depth of the V1 network nearest in size
"""

_base_ = './convnext_t_in1k.py'

model = dict(backbone=dict(arch='v2_base', drop_path_rate=0.5))
