"""A narrow ConvNeXt V2 on a tenth of CIFAR-10 (5000 images, enlarged to 96 x 96), 8 epochs on a CPU.

Run:     python tools/train.py configs/classification/cifar10_mini_v2.py --data-root DIR --pretrained CHECKPOINT
         with the checkpoint of configs/pretraining/fcmae_cifar10_mini.py; without --pretrained for comparison
Expect:  49.5 top-1 on its 1000 validation images, from scratch 47.4 (measured here, seed 0)
"""

_base_ = './cifar10_mini.py'

epochs = 8
model = dict(
    backbone=dict(arch='v2_atto', dims=(24, 48, 96, 192), drop_path_rate=0.0, layer_scale_init_value=None),
    mixup=None,
)
train_dataloader = dict(dataset=dict(transform=dict(input_size=96)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=96)))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=1,
        end=epochs,
        T_max=epochs - 1,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=epochs))
