"""Isotropic ConvNeXt-S, ImageNet-1K, 224 x 224, 300 epochs from scratch.

Run:     tools/dist_train.sh configs/classification/isotropic_s_in1k.py 8
Expect:  79.7 top-1 (paper, Table 2)
"""

_base_ = './convnext_t_in1k.py'

model = dict(backbone=dict(type='convnext_backbone.IsotropicConvNeXt', arch='small', drop_path_rate=0.1))
param_scheduler = [  # 50 epochs of warm-up (Table 5)
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=50, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=50,
        end=300,
        T_max=250,
        eta_min_ratio=2.5e-4,
        convert_to_iter_based=True,
    ),
]
