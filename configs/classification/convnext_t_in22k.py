"""ConvNeXt-T, ImageNet-22K, 224 x 224, 90 epochs from scratch.

Run:     tools/dist_train.sh configs/classification/convnext_t_in22k.py 8
Expect:  the start of convnext_t_in22k_in1k; no published number of its own
"""

_base_ = [
    '../_base_/models/classifier_convnext_t.py',
    '../_base_/datasets/imagenet22k.py',
    '../_base_/schedules/in22k_90e.py',
]

model = dict(backbone=dict(drop_path_rate=0.0), num_classes=21841)
