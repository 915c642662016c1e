"""Translates optimizer, learning rates and length of a training of mmdet 2.x or mmseg 0.x."""

from ...registry import SCOPE, type_name
from .lines import Lines

RUNNERS = {  # old runner: whether it counts epochs
    'EpochBasedRunner': True,
    'EpochBasedRunnerAmp': True,
    'IterBasedRunner': False,
    'IterBasedRunnerAmp': False,
}
OPTIMIZER_HOOKS = {  # old type of optimizer_config: whether it trains in half precision
    'OptimizerHook': False,
    'DistOptimizerHook': False,
    'GradientCumulativeOptimizerHook': False,
    'Fp16OptimizerHook': True,
    'GradientCumulativeFp16OptimizerHook': True,
}
DECAYS = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
WARM = {'kind': 'warmup', 'length': 'warmup_iters', 'ratio': 'warmup_ratio', 'by_epoch': 'warmup_by_epoch'}
LENGTH = {True: 12, False: 80000}  # epochs, steps, where the old config says nothing


def length_of(old: dict, lines: Lines) -> tuple[bool, int]:
    """Return whether the training counts epochs, and how many epochs or steps it has."""
    runner = dict(old.pop('runner', None) or {})
    ends = {
        True: (runner.pop('max_epochs', None), old.pop('total_epochs', None)),
        False: (runner.pop('max_iters', None), old.pop('total_iters', None)),
    }
    kind = type_name(runner)
    by_epoch = RUNNERS.get(kind, not any(ends[False]))
    if kind and kind not in RUNNERS:
        lines.name('runner.type', kind, 'the ordinary loop of mmengine takes its place')
    lines.left('runner', runner)
    length = next((end for end in ends[by_epoch] if end is not None), None)
    if length is None:
        length = LENGTH[by_epoch]
        lines.name('runner', None, f'says no length of the training: it is {length} now, set train_cfg')
    return by_epoch, length


def loops(old: dict, by_epoch: bool, length: int, evaluation: dict, lines: Lines) -> dict:
    """Return ``train_cfg``, ``val_cfg`` and ``test_cfg``; what they take is taken from ``evaluation``."""
    kind, end = ('Epoch', 'max_epochs') if by_epoch else ('Iter', 'max_iters')
    train = {'type': f'{kind}BasedTrainLoop', end: length, 'val_interval': evaluation.pop('interval', 1)}
    if (begin := evaluation.pop('start', None)) is not None:
        train['val_begin'] = begin
    if pairs := evaluation.pop('dynamic_intervals', None):
        train['dynamic_intervals'] = pairs
    if evaluation.pop('by_epoch', by_epoch) != by_epoch:
        unit = 'epochs' if by_epoch else 'steps'
        lines.name('evaluation.by_epoch', not by_epoch, f'set train_cfg.val_interval, which counts {unit}')
    flow = old.pop('workflow', None)
    if any(step[0] != 'train' for step in flow or ()):
        lines.name('workflow', flow, 'losses of validation images are not computed; metrics are')
    return dict(train_cfg=train, val_cfg=dict(type='ValLoop'), test_cfg=dict(type='TestLoop'))


def optimizer(old: dict, ours: bool, lines: Lines) -> dict:
    """Return ``optim_wrapper``.

    Args:
        old: the old config; what is translated is taken from it.
        ours: whether the backbone is one of this package, for which it decays rates layer by layer.
        lines: for what has no counterpart.
    """
    given, hook = dict(old.pop('optimizer', None) or {}), dict(old.pop('optimizer_config', None) or {})
    half = old.pop('fp16', None)
    kind = hook.pop('type', 'OptimizerHook')
    amp = OPTIMIZER_HOOKS.get(kind, False) or half is not None
    amp = bool(hook.pop('use_fp16', False)) or amp
    if kind not in OPTIMIZER_HOOKS:
        lines.name('optimizer_config.type', kind, 'the ordinary step of an optimizer takes its place')
    if given and 'type' not in given:
        lines.name('optimizer', given, 'several optimizers: write optim_wrapper by hand (OptimWrapperDict)')
        given = {}
    if not given:
        lines.left('optimizer_config', hook)
        return {}
    new = dict(type='AmpOptimWrapper' if amp else 'OptimWrapper')
    scale = hook.pop('loss_scale', 'dynamic')
    if amp:
        new['loss_scale'] = (half or {}).get('loss_scale', scale)
    constructor, paramwise = given.pop('constructor', None), given.pop('paramwise_cfg', None)
    new['optimizer'] = given
    if (clip := hook.pop('grad_clip', None)) is not None:
        new['clip_grad'] = clip
    steps = [hook.pop(key, None) for key in ('update_interval', 'cumulative_iters')]
    if (number := next(filter(None, steps), 1)) != 1:
        new['accumulative_counts'] = number
    if constructor in DECAYS and ours:
        paramwise = {key: value for key, value in (paramwise or {}).items() if key != 'num_layers'}
        constructor = f'{SCOPE}.LayerDecayConstructor'  # the number of layers is known by the backbone
    if constructor and constructor != 'DefaultOptimizerConstructor':
        new['constructor'] = constructor
    if paramwise:
        new['paramwise_cfg'] = paramwise
    lines.left('optimizer_config', hook)
    return dict(optim_wrapper=new)


def schedule(old: dict, by_epoch: bool, length: int, lines: Lines) -> list[dict]:
    """Return ``param_scheduler``.

    The old warm-up was a factor on the rate of the schedule at that step, so both begin at 0 here, too.
    """
    given = dict(old.pop('lr_config', None) or {})
    policy = given.pop('policy', 'step' if given else 'fixed')
    warm = {name: given.pop(key, None) for name, key in WARM.items()}
    new = [_warm_up(warm, policy, lines)] if warm['kind'] else []
    low = {'eta_min': given.pop('min_lr', None), 'eta_min_ratio': given.pop('min_lr_ratio', None)}
    low = {key: value for key, value in low.items() if value is not None}
    span = dict(begin=0, end=length, by_epoch=by_epoch)
    if given.pop('by_epoch', True) != by_epoch and by_epoch:  # a rate for each step of so many epochs
        span = dict(begin=0, by_epoch=False) if policy == 'step' else dict(span, convert_to_iter_based=True)
    if policy == 'step':
        if low:
            lines.name('lr_config.min_lr', next(iter(low.values())), 'steps go below it')
        step, gamma = given.pop('step', []), given.pop('gamma', 0.1)
        if isinstance(step, int):
            new.append(dict(type='StepLR', **span, step_size=step, gamma=gamma))
        elif step:
            new.append(dict(type='MultiStepLR', **span, milestones=list(step), gamma=gamma))
    elif policy == 'poly':
        new.append(dict(type='PolyLR', **(low or dict(eta_min=0.0)), power=given.pop('power', 1.0), **span))
    elif policy == 'CosineAnnealing':
        new.append(dict(type='CosineAnnealingLR', **low, T_max=length, **span))
    elif policy == 'FlatCosineAnnealing':
        start = round(length * given.pop('start_percent', 0.75))
        new.append(dict(type='CosineAnnealingLR', **low, T_max=length - start, **{**span, 'begin': start}))
    elif policy == 'CosineRestart':
        periods, weights = given.pop('periods', [length]), given.pop('restart_weights', [1])
        new.append(dict(type='CosineRestartLR', **low, periods=periods, restart_weights=weights, **span))
    elif policy == 'exp':
        new.append(dict(type='ExponentialLR', gamma=given.pop('gamma', 0.1), **span))
    elif policy == 'YOLOX':
        last = length - given.pop('num_last_epochs', 0)
        span = dict(by_epoch=True, begin=warm['length'] or 0, end=last, convert_to_iter_based=True)
        new.append(dict(type='CosineAnnealingLR', **low, T_max=last, **span))
        new.append(dict(type='ConstantLR', by_epoch=True, factor=1, begin=last, end=length))
    elif policy != 'fixed':
        lines.name('lr_config.policy', policy, 'the rate does not change now: write param_scheduler by hand')
    lines.left('lr_config', given)
    return new


def _warm_up(warm: dict, policy: str, lines: Lines) -> dict:
    kind, ratio = warm['kind'], 0.1 if warm['ratio'] is None else warm['ratio']
    span = dict(by_epoch=bool(warm['by_epoch']), begin=0, end=warm['length'] or 0)
    if span['by_epoch']:
        span['convert_to_iter_based'] = True
    if policy == 'YOLOX' and kind == 'exp' and ratio == 1:
        return dict(type='mmdet.QuadraticWarmupLR', **span)
    if kind == 'constant':
        if not span['by_epoch']:
            span['end'] += 1  # the last step of mmengine's has the whole rate already
        return dict(type='ConstantLR', factor=ratio, **span)
    if kind != 'linear':
        lines.name('lr_config.warmup', kind, 'the rate rises linearly now, from the same to the same')
    return dict(type='LinearLR', start_factor=ratio, **span)
