"""Lists what settings may be: tables of keys and the :class:`Number` or :class:`Choice` that holds for each.

What a rule refuses, no config that mmdet or mmseg ship has (tests/test_values.py looks at all of them).
"""

import logging

import torch

from .rules import Choice, Number

COUNT = Number(1, whole=True)
FROM_0 = Number(0, whole=True)
POSITIVE = Number(0, above=True)
NOT_NEGATIVE = Number(0)
SHARE = Number(0, 1)
PART = Number(0, 1, below=True)
ANY = Number()
FLAG = Choice((True, False))
SWITCH = Choice((True, False, None))
LENGTHS = Number(0, above=True, several=True)

TRAIN_CFG = {
    'max_epochs': Number(1, integral=True),
    'max_iters': Number(1, integral=True),
    'val_interval': Number(1, integral=True),
    'val_begin': Number(0, whole=True),
    'by_epoch': FLAG,
}
LOADER = {
    'batch_size': COUNT,
    'num_workers': FROM_0,
    'persistent_workers': FLAG,
    'pin_memory': FLAG,
    'drop_last': FLAG,
    'prefetch_factor': Number(1, whole=True, also=(None,)),
    'timeout': NOT_NEGATIVE,
    'num_batch_per_epoch': COUNT,
}
OPTIMIZER = {
    'lr': Number(0, above=True, advice='with a rate of 0 or below nothing is learnt'),
    'weight_decay': NOT_NEGATIVE,
    'momentum': PART,
    'eps': Number(0),
    'dampening': PART,
    'alpha': PART,
    'nesterov': FLAG,
    'amsgrad': FLAG,
}
WRAPPER = {
    'accumulative_counts': Number(1, whole=True, also=('auto',)),
    'dtype': Choice(('float16', 'bfloat16', 'float32', 'float64', None), types=(torch.dtype,)),
}
CLIP = {
    'max_norm': Number(0, above=True),
    'clip_value': Number(0, above=True),
    'norm_type': Number(0, above=True, infinite=True, also=('inf',)),
    'type': Choice(('norm', 'value')),
    'error_if_nonfinite': FLAG,
}
PARAMWISE = {
    **dict.fromkeys(
        ('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult'),
        NOT_NEGATIVE,
    ),
    'dcn_offset_lr_mult': NOT_NEGATIVE,
    'lr_mult': NOT_NEGATIVE,
    'decay_mult': NOT_NEGATIVE,
    'decay_rate': Number(
        0, 1, above=True, advice='above 1 the first layers would learn faster than the head'
    ),
    'decay_type': Choice(('layer_wise', 'stage_wise', 'block_wise')),
    'num_layers': COUNT,
    'bypass_duplicate': FLAG,
}
SCHEDULER = {
    'begin': FROM_0,
    'end': Number(1, whole=True),
    'by_epoch': FLAG,
    'start_factor': SHARE,
    'end_factor': SHARE,
    'factor': SHARE,
    'gamma': POSITIVE,
    'T_max': COUNT,
    'power': NOT_NEGATIVE,
    'eta_min': NOT_NEGATIVE,
    'eta_min_ratio': SHARE,
    'step_size': COUNT,
    'eta_max': POSITIVE,
    'total_steps': COUNT,
    'pct_start': SHARE,
    'div_factor': POSITIVE,
    'final_div_factor': POSITIVE,
    'convert_to_iter_based': FLAG,
    'patience': FROM_0,
}
CHECKPOINT = {
    'interval': Number(1, whole=True, off='-1 writes none'),
    'max_keep_ckpts': Number(1, whole=True, off='-1 keeps all'),
    'save_begin': FROM_0,
    'by_epoch': FLAG,
    'save_last': FLAG,
    'save_optimizer': FLAG,
    'save_param_scheduler': FLAG,
    'rule': Choice(('greater', 'less', None), several=True),
}
HOOKS = {  # by the name of the hook
    'CheckpointHook': CHECKPOINT,
    'convnext_backbone.CheckpointHook': CHECKPOINT,
    'LoggerHook': {'interval': COUNT, 'interval_exp_name': COUNT, 'ignore_last': FLAG},
    'ParamSchedulerHook': {},
    'EMAHook': {
        'momentum': Number(
            0,
            1,
            above=True,
            below=True,
            advice='it is the share of the new weights: 0.0001 for a decay of 0.9999',
        ),
        'interval': COUNT,
        'begin_iter': FROM_0,
        'begin_epoch': FROM_0,
        'gamma': POSITIVE,
        'update_buffers': FLAG,
        'strict_load': FLAG,
    },
    'MeanTeacherHook': {'momentum': Number(0, 1, above=True, below=True), 'interval': COUNT},
    'EarlyStoppingHook': {
        'patience': FROM_0,
        'min_delta': NOT_NEGATIVE,
        'rule': Choice(('greater', 'less', None)),
        'stopping_threshold': Number(also=(None,)),
    },
    'DetVisualizationHook': {'interval': COUNT, 'score_thr': SHARE, 'wait_time': NOT_NEGATIVE, 'draw': FLAG},
    'SegVisualizationHook': {'interval': COUNT, 'wait_time': NOT_NEGATIVE, 'draw': FLAG},
    'convnext_backbone.HangHook': {'timeout': POSITIVE},
    'convnext_backbone.NonFiniteGuardHook': {'patience': COUNT},
    'convnext_backbone.DataHook': {'skip': FROM_0, 'steps': COUNT, 'share': Number(0, 1, above=True)},
}
PRIORITIES = (
    'HIGHEST',
    'VERY_HIGH',
    'HIGH',
    'ABOVE_NORMAL',
    'NORMAL',
    'BELOW_NORMAL',
    'LOW',
    'VERY_LOW',
    'LOWEST',
)
THRESHOLD = Number(0, 1, several=True)
MODEL = {  # any dict of the model that has the key
    **dict.fromkeys(('score_thr', 'iou_threshold', 'iou_thr', 'nms_thr', 'min_score'), THRESHOLD),
    **dict.fromkeys(('pos_iou_thr', 'neg_iou_thr', 'min_pos_iou', 'pos_fraction'), THRESHOLD),
    'mask_thr_binary': Number(0, 1, also=(-1,)),
    'neg_pos_ub': Number(-1),
    'max_per_img': Number(-1, whole=True),
    'nms_pre': Number(-1, whole=True),
    'drop_path_rate': PART,
    'layer_scale_init_value': Number(0, also=(None,)),
    'dropout_ratio': Number(-1, 1, advice='below 0 is none'),
    'label_smoothing': PART,
    'num_classes': COUNT,
    'loss_weight': ANY,
    'pad_size_divisor': COUNT,
    'featmap_strides': LENGTHS,
    'scales_per_octave': COUNT,
    'with_cp': FLAG,
}
LOSS = {'beta': POSITIVE, 'gamma': NOT_NEGATIVE}  # of a dict below a key that begins with ``loss``
ANCHORS = {'strides': LENGTHS, 'ratios': Number(0, above=True, several=True, also=(None,))}
SLIDE = {
    'mode': Choice(('whole', 'slide', 'slide_flip')),
    'crop_size': Number(1, whole=True, several=True, also=(None,)),
    'stride': Number(1, whole=True, several=True, also=(None,)),
}
MIXUP = {
    **dict.fromkeys(('mixup_alpha', 'cutmix_alpha'), NOT_NEGATIVE),
    **dict.fromkeys(('prob', 'switch_prob'), SHARE),
    'mode': Choice(('batch', 'pair', 'elem')),
}
STEP = {  # any step of a pipeline that has the key
    **dict.fromkeys(('prob', 'p', 'flip_ratio'), Number(0, 1, several=True)),
    **dict.fromkeys(('scale', 'scales', 'img_scale'), Number(0, above=True, several=True, also=(None,))),
    'scale_factor': Number(0, above=True, several=True, also=(None,)),
    'crop_size': Number(0, above=True, several=True, also=(None,)),
    'size': Number(0, above=True, several=True, also=(None,)),
    'size_divisor': Number(1, whole=True, also=(None,)),
    'ratio_range': Number(0, above=True, several=True, also=(None,)),
    'cat_max_ratio': Number(0, 1, above=True),
    'keep_ratio': FLAG,
    'reduce_zero_label': SWITCH,
    'interpolation': Choice(('nearest', 'bilinear', 'bicubic', 'area', 'lanczos'), types=(int,)),
    'color_type': Choice(
        ('color', 'grayscale', 'unchanged', 'color_ignore_orientation', 'grayscale_ignore_orientation')
    ),
    'imdecode_backend': Choice(('cv2', 'pillow', 'turbojpeg', 'tifffile', None)),
    'direction': Choice(('horizontal', 'vertical', 'diagonal'), several=True),
    'crop_type': Choice(('absolute', 'absolute_range', 'relative', 'relative_range')),
}
FREE = {  # steps whose arguments of these names mean something else
    'RandomCrop': {'scale'},
    'GenerateEdge': {'scale'},
    'ShearX': {'interpolation'},
    'RandomErasing': {'ratio'},
}
TRANSFORM = {  # ``transform`` of our image datasets, timm's names
    'input_size': Number(1, whole=True, several=True),
    **dict.fromkeys(('re_prob', 'hflip', 'vflip', 'color_jitter_prob'), Number(0, 1, also=(None,))),
    'crop_pct': Number(0, 1, above=True, also=(None,)),
    'color_jitter': Number(0, several=True, also=(None,)),
    'scale': Number(0, above=True, several=True, also=(None,)),
    'ratio': Number(0, above=True, several=True, also=(None,)),
    'interpolation': Choice(('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random')),
    'crop_mode': Choice(('center', 'squash', 'border', None)),
    'is_training': FLAG,
}
METRICS = {
    'CocoMetric': {
        'metric': Choice(('bbox', 'segm', 'proposal', 'proposal_fast'), several=True),
        'iou_thrs': Number(0, 1, several=True, also=(None,)),
        'proposal_nums': Number(1, whole=True, several=True),
        'classwise': FLAG,
        'format_only': FLAG,
    },
    'IoUMetric': {
        'iou_metrics': Choice(('mIoU', 'mDice', 'mFscore'), several=True),
        'ignore_index': Number(whole=True),
        'beta': POSITIVE,
        'format_only': FLAG,
    },
    'VOCMetric': {'iou_thrs': THRESHOLD, 'eval_mode': Choice(('area', '11points'))},
}
RANDOMNESS = {
    'seed': Number(0, 2**32 - 1, whole=True, also=(None,)),
    'deterministic': FLAG,
    'diff_rank_seed': FLAG,
}
TOP = {
    'log_level': Choice(tuple(logging.getLevelNamesMapping()), types=(int,)),
    'resume': FLAG,
    'find_unused_parameters': FLAG,
    'launcher': Choice(('none', 'pytorch', 'slurm', 'mpi')),
    'sync_bn': Choice(('torch', 'mmcv', None)),
}
ENV = {
    'cudnn_benchmark': FLAG,
    'mp_start_method': Choice(('fork', 'spawn', 'forkserver', None)),
    'opencv_num_threads': FROM_0,
    'backend': Choice(('nccl', 'gloo', 'mpi', 'ucc', 'hccl', 'cncl', 'mccl')),
}
