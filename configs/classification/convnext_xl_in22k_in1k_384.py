"""ConvNeXt-XL, ImageNet-1K, 384 x 384, fine-tuned from ImageNet-22K.

Run:     tools/dist_train.sh configs/classification/convnext_xl_in22k_in1k_384.py 8
Expect:  87.8 top-1 (paper, Table 1)
"""

_base_ = './convnext_t_in22k_in1k_384.py'

model = dict(
    backbone=dict(arch='xlarge', drop_path_rate=0.4), init_cfg=dict(checkpoint='convnext_xlarge_22k_224')
)
custom_hooks = [dict(type='EMAHook', momentum=1e-4)]
