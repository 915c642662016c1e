"""368 750 iterations (50 epochs), AdamW, learning rate divided by 10 after 8/9 and 26/27; as Mask2Former is trained.

16 images per step (8 GPUs with 2 each). The learning rates of the backbone decay layer by layer, as with the other
heads here; the queries and the embeddings of levels have no weight decay.
"""

_base_ = './coco_3x.py'

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=368750, val_interval=36875)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=368750, by_epoch=False, milestones=[327778, 355092], gamma=0.1),
]
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
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=36875))
log_processor = dict(by_epoch=False)
