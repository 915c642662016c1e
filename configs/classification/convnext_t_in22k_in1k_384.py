"""ConvNeXt-T, ImageNet-1K, 384 x 384, fine-tuned from ImageNet-22K.

Run:     tools/dist_train.sh configs/classification/convnext_t_in22k_in1k_384.py 8
Expect:  84.1 top-1 (results page of the official code)
"""

_base_ = [
    '../_base_/models/classifier_convnext_t.py',
    '../_base_/datasets/imagenet1k_384.py',
    '../_base_/schedules/in1k_finetune_30e.py',
]

model = dict(
    backbone=dict(drop_path_rate=0.0),
    head_init_scale=0.001,
    mixup=None,
    init_cfg=dict(  # the head of 22K classes is left out
        type='convnext_backbone.Pretrained',
        checkpoint='convnext_tiny_22k_224',
        skip=['head.*'],
        fresh=['head.*'],
    ),
)
