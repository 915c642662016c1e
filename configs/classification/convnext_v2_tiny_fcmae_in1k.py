"""ConvNeXt V2 tiny, ImageNet-1K, 224 x 224, 300 epochs, after pretraining without labels (FCMAE).

Run:     tools/dist_train.sh configs/classification/convnext_v2_tiny_fcmae_in1k.py 8
Expect:  83.0 top-1 (README of the official V2)
"""

_base_ = './convnext_v2_base_fcmae_in1k.py'

model = dict(
    backbone=dict(
        arch='v2_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='convnextv2_tiny_1k_224_fcmae')
    )
)
train_cfg = dict(max_epochs=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=40,
        end=300,
        T_max=260,
        eta_min_ratio=3.125e-4,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=3.2e-3), paramwise_cfg=dict(decay_rate=0.9, decay_type='block_wise'))
