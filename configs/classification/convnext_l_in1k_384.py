"""ConvNeXt-L, ImageNet-1K, 384 x 384, fine-tuned from 224 x 224.

Run:     tools/dist_train.sh configs/classification/convnext_l_in1k_384.py 8
Expect:  85.5 top-1 (paper, Table 1)
"""

_base_ = './convnext_b_in1k_384.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.95), init_cfg=dict(checkpoint='convnext_large_1k_224_ema')
)
