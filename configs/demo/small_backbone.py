"""The demo's backbone: 1.9 M parameters, for a few minutes on a CPU.

Starting weights by fan-in: the usual standard deviation of 0.02 suits wide networks and long training,
at these widths it delays the first progress by thousands of steps.
"""

small_backbone = dict(
    type='convnext_backbone.ConvNeXt',
    depths=(2, 2, 4, 2),
    dims=(32, 64, 128, 256),
    layer_scale_init_value=1.0,
    init_cfg=[dict(type='Kaiming', layer=['Conv2d', 'Linear'], mode='fan_in', nonlinearity='linear')],
)
