"""ConvNeXt-B, ImageNet-1K, 224 x 224, fine-tuned from ImageNet-22K.

Run:     tools/dist_train.sh configs/classification/convnext_b_in22k_in1k.py 8
Expect:  85.8 top-1 (paper, Table 1)
"""

_base_ = './convnext_t_in22k_in1k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2), init_cfg=dict(checkpoint='convnext_base_22k_224')
)
