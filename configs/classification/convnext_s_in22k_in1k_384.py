"""ConvNeXt-S, ImageNet-1K, 384 x 384, fine-tuned from ImageNet-22K.

Run:     tools/dist_train.sh configs/classification/convnext_s_in22k_in1k_384.py 8
Expect:  85.8 top-1 (results page of the official code)
"""

_base_ = './convnext_t_in22k_in1k_384.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1), init_cfg=dict(checkpoint='convnext_small_22k_224')
)
