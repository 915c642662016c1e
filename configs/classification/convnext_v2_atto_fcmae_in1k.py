"""ConvNeXt V2 atto, ImageNet-1K, 224 x 224, 600 epochs, after pretraining without labels (FCMAE).

Run:     tools/dist_train.sh configs/classification/convnext_v2_atto_fcmae_in1k.py 8
Expect:  76.7 top-1 (README of the official V2)
"""

_base_ = './convnext_v2_base_fcmae_in1k.py'

model = dict(
    backbone=dict(arch='v2_atto', init_cfg=dict(checkpoint='convnextv2_atto_1k_224_fcmae')),
    label_smoothing=0.2,
    mixup=None,
)
train_cfg = dict(max_epochs=600)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=600,
        T_max=600,
        eta_min_ratio=1.25e-3,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    optimizer=dict(lr=8e-4, weight_decay=0.3), paramwise_cfg=dict(decay_rate=0.9, decay_type='block_wise')
)
