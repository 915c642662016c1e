"""160 000 iterations as for UPerNet, with the clipped gradients of Mask2Former and queries without weight decay."""

_base_ = './ade20k_160k.py'

optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
        )
    ),
)
