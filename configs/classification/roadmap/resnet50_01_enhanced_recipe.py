"""Roadmap from ResNet-50 to ConvNeXt-T, step 1: ResNet-50 (enhanced recipe).

Run:     tools/dist_train.sh configs/classification/roadmap/resnet50_01_enhanced_recipe.py 8
Expect:  78.82 top-1 (paper, Table 10)
"""

_base_ = '../convnext_t_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='convnext_backbone.Roadmap',
        start='resnet50',
        step='enhanced_recipe',
        drop_path_rate=0.1,
    )
)
custom_hooks = []  # no EMA on the roadmap (App. A.1)
