"""The demo's backbone: 1.9 M parameters, for a few minutes on a CPU.

Starting weights by fan-in: with the usual standard deviation of 0.02, which suits wide networks and long
training, the loss of a first version of the pretraining stayed at chance for all its 1200 steps.
"""

small_backbone = dict(
    type='convnext_backbone.ConvNeXt',
    depths=(2, 2, 4, 2),
    dims=(32, 64, 128, 256),
    layer_scale_init_value=1.0,
    init_cfg=[dict(type='Kaiming', layer=['Conv2d', 'Linear'], mode='fan_in', nonlinearity='linear')],
)
