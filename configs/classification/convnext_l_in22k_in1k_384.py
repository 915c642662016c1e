"""ConvNeXt-L, ImageNet-1K, 384 x 384, fine-tuned from ImageNet-22K.

Run:     tools/dist_train.sh configs/classification/convnext_l_in22k_in1k_384.py 8
Expect:  87.5 top-1 (paper, Table 1)
"""

_base_ = './convnext_t_in22k_in1k_384.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.3), init_cfg=dict(checkpoint='convnext_large_22k_224')
)
