"""ConvNeXt-B, ImageNet-1K, 384 x 384, fine-tuned from 224 x 224.

Run:     tools/dist_train.sh configs/classification/convnext_b_in1k_384.py 8
Expect:  85.1 top-1 (paper, Table 1)
"""

_base_ = [
    '../_base_/models/classifier_convnext_t.py',
    '../_base_/datasets/imagenet1k_384.py',
    '../_base_/schedules/in1k_finetune_30e.py',
]

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.8),
    head_init_scale=0.001,
    mixup=None,
    init_cfg=dict(type='convnext_backbone.Pretrained', checkpoint='convnext_base_1k_224'),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
