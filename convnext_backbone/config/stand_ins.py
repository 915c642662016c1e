"""Puts our classes in the place of mmengine's and mmcv's: one table, applied once, one line of the log."""

from mmengine.config import Config

from ..errors import UserError
from ..registry import SCOPE, type_name
from .data import DATALOADERS
from .keys import dicts, hooks_of

# Name of mmengine's or mmcv's class: name of ours, which does the same and what its docstring adds.
STAND_INS = {
    'EpochBasedTrainLoop': 'EpochLoop',
    'IterBasedTrainLoop': 'IterLoop',
    'CheckpointHook': 'CheckpointHook',
    'LoadImageFromFile': 'LoadImage',
}
# Preprocessors of mmdet and mmseg take means of one or three channels, ours of the same name any number.
PREPROCESSORS = ('DetDataPreprocessor', 'SegDataPreProcessor')
MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
# Hooks of every training, beside those that mmengine adds by itself.
DEFAULT_HOOKS = {
    'logger': dict(type='LoggerHook'),
    'checkpoint': dict(type='CheckpointHook', interval=1),
    'data': dict(type=f'{SCOPE}.DataHook'),
    'finite': dict(type=f'{SCOPE}.NonFiniteGuardHook'),
    'hang': dict(type=f'{SCOPE}.HangHook'),
    'progress': dict(type=f'{SCOPE}.ProgressHook'),
}


def add_default_hooks(cfg: Config) -> None:
    """Complete ``default_hooks`` of a config that has a training.

    ``default_hooks=dict(hang=dict(timeout=60), progress=None)`` changes one and leaves out another.

    Raises:
        UserError: ``default_hooks`` is no dict.
    """
    given = cfg.get('default_hooks') or {}
    if not isinstance(given, dict):
        raise UserError(f'default_hooks must be a dict of hooks by name, got {type(given).__name__}')
    given = dict(given)
    for name, hook in DEFAULT_HOOKS.items():
        own = given.setdefault(name, {}) if cfg.get('train_cfg') else given.get(name)
        if isinstance(own, dict) and 'type' not in own:
            given[name] = {**hook, **own}
    if given:
        cfg.default_hooks = given


def use_stand_ins(cfg: Config) -> list[str]:
    """Put our classes in the place of those in :data:`STAND_INS`, and add our default hooks.

    Preprocessors are replaced as :func:`use_preprocessors` says.

    Returns:
        One line that names what was replaced; none if nothing was.

    Raises:
        UserError: ``default_hooks`` is no dict, or images are reduced where predictions are compared.
    """
    for key in ('val_dataloader', 'test_dataloader', 'tta_pipeline'):
        if any(node.get('reduce_to') and 'Load' in type_name(node) for node in dicts(cfg.get(key))):
            raise UserError(
                f'{key}: reduce_to of LoadImageFromFile is for the training pipeline: predictions belong to '
                'the whole image; leave it out there'
            )
    add_default_hooks(cfg)
    train_cfg = cfg.get('train_cfg') or {}
    if train_cfg and 'type' not in train_cfg:
        by_epoch = train_cfg.pop('by_epoch', True)
        train_cfg['type'] = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    hooks = hooks_of(cfg)
    pipelines = [node for key in (*DATALOADERS, 'tta_pipeline') for node in dicts(cfg.get(key))]
    replaced = use_preprocessors(cfg)
    for node in [train_cfg, *hooks, *pipelines]:
        if not isinstance(node, dict):
            continue
        if loads_mask(cfg, node):
            replaced['mmseg.LoadAnnotations'] = 'LoadMask'
            node['type'] = f'{SCOPE}.LoadMask'
        elif ours := STAND_INS.get(type_name(node)):
            replaced[type_name(node)] = ours
            node['type'] = f'{SCOPE}.{ours}'
            if node is train_cfg:  # mmengine takes one of both
                node.pop('by_epoch', None)
    for hook in hooks:
        if isinstance(hook, dict) and type_name(hook) == 'LoggerHook' and 'max_iters' in train_cfg:
            hook.setdefault('log_metric_by_epoch', False)  # else every validation would be of epoch 0
    for name in [name for name, hook in (cfg.get('default_hooks') or {}).items() if hook is None]:
        if name not in MMENGINE_HOOKS:  # which mmengine would add, were they not named
            del cfg.default_hooks[name]
    if not replaced:
        return []
    pairs = ', '.join(f'{SCOPE}.{ours} for {theirs}' for theirs, ours in sorted(replaced.items()))
    return [f'stand-ins: {pairs}']


def use_preprocessors(cfg: Config) -> dict[str, str]:
    """Put ours in the place of :data:`PREPROCESSORS` where the means are not one or three.

    Whatever builds a model from a config calls it first.

    Returns:
        Name of ours, by name of what it stands in for.
    """
    replaced = {}
    for node in dicts(cfg.get('model')):
        numbers = {len(node[key]) for key in ('mean', 'std') if isinstance(node.get(key), (list, tuple))}
        if (name := type_name(node)) in PREPROCESSORS and not numbers <= {1, 3}:
            replaced[name] = name
            node['type'] = f'{SCOPE}.{name}'
    return replaced


def loads_mask(cfg: Config, node: dict) -> bool:
    """Return whether a step of a pipeline is mmseg's ``LoadAnnotations``; mmdet has another of that name."""
    kind = node.get('type')
    if type_name(kind) != 'LoadAnnotations':
        return False
    module = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    package = module.partition('.')[0]
    return package == 'mmseg' or (module == 'LoadAnnotations' and cfg.get('default_scope') == 'mmseg')
