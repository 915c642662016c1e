"""Translates hooks, logs, checkpoints and processes of mmdet 2.x and mmseg 0.x."""

from mmengine.registry import HOOKS

from ...registry import type_name
from .lines import Lines, found, takes

WRITERS = {  # old hook of log_config: backend of the visualizer
    'TensorboardLoggerHook': 'TensorboardVisBackend',
    'WandbLoggerHook': 'WandbVisBackend',
    'MMDetWandbHook': 'WandbVisBackend',
    'MMSegWandbHook': 'WandbVisBackend',
    'MlflowLoggerHook': 'MLflowVisBackend',
    'ClearMLLoggerHook': 'ClearMLVisBackend',
    'NeptuneLoggerHook': 'NeptuneVisBackend',
}
TEXT_LOGGERS = ('TextLoggerHook', 'CustomizedTextLoggerHook')
CHECKPOINT = ('interval', 'by_epoch', 'max_keep_ckpts', 'save_optimizer', 'save_last', 'out_dir')
BEST = ('save_best', 'rule', 'greater_keys', 'less_keys')  # of evaluation: now of the checkpoint hook
EMA = {  # old hook of moving averages: what computes them, and whether buffers are averaged
    'ExpMomentumEMAHook': ('ExpMomentumEMA', True),
    'LinearMomentumEMAHook': ('ExponentialMovingAverage', True),
    'EMAHook': ('ExponentialMovingAverage', True),
}
EMA_STEPS = 2000  # over which the momentum of ExpMomentumEMA falls, unless it is said
OPTIONS = {  # old keys that are options of a run now
    'gpus': 'say it to the launcher: tools/dist_train.sh CONFIG GPUS',
    'gpu_ids': 'choose by CUDA_VISIBLE_DEVICES',
    'device': 'give --device',
    'momentum_config': 'write entries of param_scheduler by hand (CosineAnnealingMomentum, ...)',
}


def runtime(old: dict, detection: bool, by_epoch: bool, evaluation: dict, prefix: str, lines: Lines) -> dict:
    """Return hooks, environment, visualizer and log of a config.

    Args:
        old: the old config; what is translated is taken from it.
        detection: else segmentation.
        by_epoch: whether the training counts epochs.
        evaluation: of the old config; what the checkpoint hook does now is taken from it.
        prefix: before the names of scores now.
        lines: for what has no counterpart.
    """
    kind = 'Det' if detection else 'Seg'
    log = dict(old.pop('log_config', None) or {})
    logger = dict(type='LoggerHook', interval=log.pop('interval', 50))
    if not by_epoch:
        logger['log_metric_by_epoch'] = False
    writers = [dict(type='LocalVisBackend'), *_writers(log.pop('hooks', None) or [], lines)]
    lines.left('log_config', log)
    hooks = dict(
        timer=dict(type='IterTimerHook'),
        logger=logger,
        param_scheduler=dict(type='ParamSchedulerHook'),
        checkpoint=_checkpoint(old.pop('checkpoint_config', None), evaluation, by_epoch, prefix, lines),
        sampler_seed=dict(type='DistSamplerSeedHook'),
        visualization=dict(type=f'{kind}VisualizationHook'),
    )
    processes = dict(mp_start_method='fork', opencv_num_threads=0)
    processes = {key: old.pop(key, value) for key, value in processes.items()}
    distributed = dict(old.pop('dist_params', None) or {})
    environment = dict(
        cudnn_benchmark=old.pop('cudnn_benchmark', False),
        mp_cfg=processes,
        dist_cfg=dict(backend=distributed.pop('backend', 'nccl')),
    )
    lines.left('dist_params', distributed, 'give it to the launcher: MASTER_PORT=... tools/dist_train.sh')
    new = dict(default_hooks=hooks)
    if custom := _hooks(old.pop('custom_hooks', None) or [], 'mmdet' if detection else 'mmseg', lines):
        new['custom_hooks'] = custom
    new['env_cfg'] = environment
    new['visualizer'] = dict(type=f'{kind}LocalVisualizer', vis_backends=writers, name='visualizer')
    new['log_processor'] = dict(type='LogProcessor', window_size=50, by_epoch=by_epoch)
    new['log_level'] = old.pop('log_level', 'INFO')
    start, resumed = old.pop('load_from', None), old.pop('resume_from', None)
    new['load_from'] = resumed or start
    new['resume'] = bool(old.pop('auto_resume', False) or resumed)
    seed, exact = old.pop('seed', None), old.pop('deterministic', None)
    if seed is not None or exact:
        new['randomness'] = dict(seed=seed, deterministic=bool(exact))
    for key, advice in OPTIONS.items():
        if (value := old.pop(key, None)) is not None:
            lines.name(key, value, advice)
    return new


def _checkpoint(given, evaluation: dict, by_epoch: bool, prefix: str, lines: Lines) -> dict:
    given = dict(given or {})
    new = dict(type='CheckpointHook')
    if not given.setdefault('by_epoch', by_epoch):
        new['by_epoch'] = given.pop('by_epoch')
    else:
        del given['by_epoch']
    new |= {key: given.pop(key) for key in CHECKPOINT if given.get(key) is not None}
    new |= {key: evaluation.pop(key) for key in BEST if evaluation.get(key) is not None}
    best = new.get('save_best')
    if isinstance(best, str) and best != 'auto' and prefix:
        new['save_best'] = f'{prefix}/{best}'
    lines.left('checkpoint_config', given)
    return new


def _writers(hooks: list[dict], lines: Lines) -> list[dict]:
    new = []
    for hook in map(dict, hooks):
        kind = type_name(hook)
        for key in ('by_epoch', 'interval'):
            hook.pop(key, None)
        if kind in WRITERS:
            arguments = {'init_kwargs': hook.pop('init_kwargs')} if 'init_kwargs' in hook else {}
            new.append(dict(type=WRITERS[kind], **arguments))
            lines.left(f'log_config.hooks.{kind}', hook)
        elif kind not in TEXT_LOGGERS:
            lines.name('log_config.hooks', hook, 'add a backend to visualizer.vis_backends')
    return new


def _hooks(hooks: list[dict], scope: str, lines: Lines) -> list[dict]:
    new = []
    for hook in map(dict, hooks):
        kind = type_name(hook)
        cls = found(HOOKS, scope, hook.get('type'))
        if kind == 'NumClassCheckHook':  # before every training the numbers are compared
            continue
        if kind in EMA:
            new.append(_ema(kind, hook, lines))
        elif cls is None:
            lines.name('custom_hooks', hook, 'is not known any more: write it as a hook of mmengine')
        else:
            known = [key for key in hook if key in ('type', 'priority') or takes(cls, key)]
            new.append({key: hook.pop(key) for key in known})
            if kind != 'SyncNormHook':  # acts before every evaluation now
                lines.left(f'custom_hooks.{kind}', hook)
    return new


def _ema(kind: str, hook: dict, lines: Lines) -> dict:
    """Return the hook of mmengine that averages weights, for one of mmcv 1.x or mmdet 2.x."""
    average, buffers = EMA[kind]
    new = dict(type='EMAHook', ema_type=average, momentum=hook.pop('momentum', 0.0002))
    steps = hook.pop('total_iter', EMA_STEPS)
    if kind == 'ExpMomentumEMAHook':
        new |= dict(gamma=steps) if steps != EMA_STEPS else {}
    else:
        steps = hook.pop('warm_up', 100)
        advice = 'the momentum does not rise in the first steps: it is the same in all'
        lines.name(f'custom_hooks.{kind}.warm_up', steps, advice)
    new['update_buffers'] = buffers and not hook.pop('skip_buffers', False)
    new |= {key: hook.pop(key) for key in ('interval', 'priority') if key in hook}
    lines.left(f'custom_hooks.{kind}', hook)
    return new
