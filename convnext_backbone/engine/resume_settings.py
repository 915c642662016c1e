"""Compares the settings of a resumed training with those it began with, and says which of the two hold.

What a checkpoint holds comes from there: the optimizer's settings (learning rate, weight decay, betas),
the schedules, the seed. Everything else comes from the config of today. A checkpoint has its config as
text, which is read as literals, never run.
"""

import ast
import math
from fnmatch import fnmatchcase
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict

from ..config.keys import READ
from ..config.literals import value_of
from ..errors import UserError

# Where things lie, how much is shown, and what sets nothing in a training that goes on.
COSMETIC = (
    *('work_dir', 'resume', 'load_from', 'launcher', 'experiment_name', 'log_level', 'log_processor*'),
    *('visualizer*', 'test_*', 'tta_*', 'auto_scale_lr*', '*init_cfg*'),
    *('default_hooks.logger*', 'default_hooks.timer*', 'default_hooks.visualization*'),
)
# What a checkpoint holds beside the weights, for one optimizer or for several by their names.
KEPT = (
    *('optim_wrapper*.optimizer.*', 'optim_wrapper.constructor', 'optim_wrapper*.paramwise_cfg*'),
    *('param_scheduler*', 'randomness.seed'),
)
LR = 'optim_wrapper*.optimizer.lr'
NONE = object()  # a setting that is not there
WIDTH = 60  # characters of a value that are shown


class _Text(str):
    """Holds what stands in a config and is no literal: the name of a class, a call."""

    def __repr__(self):
        return str(self)


def read_settings(text: str) -> dict[str, Any] | None:
    """Return the settings in the text of a config as mmengine writes it; nothing of it is run.

    Lines ``name = value``, whose values are literals and ``dict(...)``; anything else is kept as text.

    Returns:
        ``None`` if the text is no such config.
    """
    try:
        lines = ast.parse(text).body
        return {
            line.targets[0].id: value_of(line.value, _other)
            for line in lines
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _other(node: ast.expr) -> Any:
    """Return the value of what is no literal: infinity, NaN, or its text."""
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    return _Text(ast.unparse(node))


def _plain(value: Any) -> Any:
    """Return a setting of this run as :func:`read_settings` would give it from the text."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, type):
        return _Text(
            value.__name__ if value.__module__ == 'builtins' else f'{value.__module__}.{value.__name__}'
        )
    try:
        return value_of(ast.parse(str(value), mode='eval').body, _other)
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return _Text(value)


def differences(before: Any, now: Any, name: str = '') -> list[tuple[str, Any, Any]]:
    """Return (dotted name, value before, value now) of each setting that differs; :data:`NONE` for absent."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
    elif _has_dicts(before) and _has_dicts(now):
        if len(before) != len(now):  # transforms, hooks: what is in one list alone says its type
            return [(name, _types(before), _types(now))]
        before, now = ({str(i): each for i, each in enumerate(values)} for values in (before, now))
        keys = list(before)
    else:
        return [] if _same(before, now, name) else [(name, before, now)]
    found = []
    for key in keys:
        found += differences(before.get(key, NONE), now.get(key, NONE), f'{name}.{key}' if name else key)
    return found


def _types(values: list) -> list:
    return [_Text(each.get('type', each)) if isinstance(each, dict) else each for each in values]


def _has_dicts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _same(before: Any, now: Any, name: str) -> bool:
    if name.endswith('type') and isinstance(before, str) and isinstance(now, str):
        return before.rpartition('.')[2] == now.rpartition('.')[2]  # torch.optim.AdamW is AdamW
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-9) or (math.isnan(before) and math.isnan(now))
    return before == now and isinstance(before, bool) == isinstance(now, bool)


def _shown(value: Any, other: Any) -> str:
    """Return a value in one line, from where it begins to differ from the other if it is long."""
    if value is NONE:
        return 'nothing'
    text, against = repr(value), repr(other)
    if len(text) <= WIDTH:
        return text
    start = next((i for i, (a, b) in enumerate(zip(text, against)) if a != b), 0)
    start = max(0, start - WIDTH // 3) if start + 4 > WIDTH else 0
    return '... ' * bool(start) + text[start : start + WIDTH] + ' ...' * (len(text) > start + WIDTH)


class ResumedSettings:
    """Knows what a training had and what the config of today says.

    Args:
        runner: of the training that goes on, before anything is restored.
        checkpoint: what the file holds.
        new_lr: the learning rate of the config is to take the place of the checkpoint's; of several
            optimizers each takes its own.

    Raises:
        UserError: the state in the checkpoint is of other optimizers, of other parameters or of other
            schedules than the config asks for, so that it cannot be taken up.
    """

    def __init__(self, runner, checkpoint: dict, new_lr: bool = False):
        self.runner, self.checkpoint, self.new_lr = runner, checkpoint, new_lr
        self.now = {k: _plain(v) for k, v in runner.cfg.to_dict().items() if k in READ}
        text = (checkpoint.get('meta') or {}).get('cfg')
        before = read_settings(text) if isinstance(text, str) else None
        self.before = before and {key: value for key, value in before.items() if key in READ}
        self.saved, self.wrappers = _saved(checkpoint.get('optimizer')), _wrappers(runner.optim_wrapper)
        self._check_optimizers()
        self.rates = {  # by the name of the optimizer: full rate in the checkpoint, in the config
            name: (_base_lr(self.saved.get(name)), _base_lr(_state(wrapper)))
            for name, wrapper in self.wrappers.items()
        }
        for name, (old, _) in self.rates.items():
            if self.before and old is not None:
                _optimizer(self.before, name)['lr'] = old  # what holds, whatever the config said then
        randomness = [settings.get('randomness') for settings in (self.before or {}, self.now)]
        seed = (checkpoint.get('meta') or {}).get('seed')
        if all(isinstance(each, dict) for each in randomness) and randomness[1].get('seed') is not None:
            randomness[0]['seed'] = seed if seed is not None else randomness[0].get('seed')
        elif isinstance(randomness[0], dict):
            randomness[0].pop('seed', None)  # none was asked for
            self.now.get('randomness', {}).pop('seed', None)
        for name in self.wrappers:
            self._check_schedules(name)
        for name, (old, new) in self.rates.items() if new_lr else ():
            if old is None or new is None:
                raise UserError(
                    f'--new-lr: the checkpoint or the config has no learning rate{_of(name)}; leave it out'
                )
            if not old > 0:
                raise UserError(
                    f'--new-lr: the learning rate{_of(name)} in the checkpoint is {old:g}, not above 0'
                )

    def report(self) -> None:
        """Log every setting that differs, and which of the two holds."""
        logger, rows, kept = self.runner.logger, [], False
        if self.before is None:
            logger.warning(
                'the checkpoint has no config that can be read: what differs from it cannot be listed; '
                'learning rate, other settings of the optimizer and schedules are those of the checkpoint'
            )
            return
        for name, before, now in differences(self.before, self.now):
            if any(fnmatchcase(name, pattern) for pattern in COSMETIC):
                continue
            shown = dict(checkpoint=_shown(before, now), config=_shown(now, before))
            holds, other = ('checkpoint', 'config') if self._is_kept(name) else ('config', 'checkpoint')
            kept = kept or holds == 'checkpoint'
            option = "; --new-lr takes the config's" * (fnmatchcase(name, LR) and not self.new_lr)
            rows.append(f'  {name}: {shown[holds]} holds ({holds}), not {shown[other]} ({other}){option}')
        if rows:
            head = 'settings that differ between the checkpoint and the config of this run'
            logger.log(30 if kept else 20, '\n'.join([head, *rows]))
        else:
            logger.info('the settings are those of the checkpoint')

    def _is_kept(self, name: str) -> bool:
        if fnmatchcase(name, LR) and self.new_lr:
            return False
        if fnmatchcase(name, 'optim_wrapper*.loss_scale*'):
            which = name.removeprefix('optim_wrapper').partition('.loss_scale')[0].lstrip('.')
            return 'loss_scaler' in self.saved.get(which, {})
        return any(fnmatchcase(name, pattern) for pattern in KEPT)

    def apply(self) -> None:
        """Put the new learning rates in place, if asked; keep in the config what holds; log the rates."""
        runner = self.runner
        if self.new_lr:
            for name, wrapper in _wrappers(runner.optim_wrapper).items():
                old, new = self.rates[name]
                _scale(wrapper, _schedules(runner.param_schedulers, name), new / old)
        if self.before:
            self._keep()
        for name, wrapper in _wrappers(runner.optim_wrapper).items():
            old, new = self.rates[name]
            if old is not None:
                self._log_rate(name, [float(group['lr']) for group in wrapper.optimizer.param_groups])

    def _log_rate(self, name: str, rates: list[float]) -> None:
        """Log the learning rate that holds; ``rates`` are those of the groups at this step."""
        logger, (old, new) = self.runner.logger, self.rates[name]
        least, most = (f'{rate:.4g}' for rate in (min(rates), max(rates)))
        at = f'at this step {least}' + f' to {most}' * (least != most)
        if self.new_lr:
            logger.info(
                f'learning rate{_of(name)} {new:g} (config, --new-lr) in place of {old:g} (checkpoint): the '
                f'rates of all groups and what is left of the schedule times {new / old:g}; {at}'
            )
            return
        above = '; a table of rates above this line is that of the config'
        changed = new is None or not math.isclose(old, new)
        logger.info(f'learning rate{_of(name)} {old:g} (checkpoint), {at}' + above * changed)

    def _keep(self) -> None:
        """Set in the config what was taken from the checkpoint: the next checkpoint has it as text."""
        cfg, before = self.runner.cfg, self.before
        for name in {'': None, **self.wrappers}:
            kept, now, wrapper = (_part(settings, name) for settings in (before, self.now, cfg))
            if kept is None or wrapper is None:
                continue
            for key in ('optimizer', 'constructor', 'paramwise_cfg'):
                if key not in kept:
                    wrapper.pop(key, None)
                elif differences(kept[key], now.get(key, NONE)):
                    wrapper[key] = kept[key]
            if self.new_lr and name in self.rates and 'optimizer' in wrapper:
                wrapper['optimizer']['lr'] = self.rates[name][1]
        schedules = before.get('param_scheduler', NONE)
        if schedules is not NONE and differences(schedules, self.now.get('param_scheduler', NONE)):
            cfg.param_scheduler = schedules

    def _check_optimizers(self) -> None:
        if not self.checkpoint.get('optimizer'):
            return
        if self.saved.keys() != self.wrappers.keys():
            had, has = (
                ', '.join(filter(None, names)) or 'one optimizer' for names in (self.saved, self.wrappers)
            )
            raise UserError(
                f'the checkpoint has the state of {had}, the config asks for {has}: resume with the '
                'optimizers of the checkpoint, or start from the weights alone with load_from in the config'
            )
        for name, wrapper in self.wrappers.items():
            self._check_optimizer(name, self.saved[name], wrapper)

    def _check_optimizer(self, name: str, saved: dict, wrapper: OptimWrapper) -> None:
        if 'param_groups' not in saved:
            return
        types = [_optimizer(settings, name).get('type') for settings in (self.before or {}, self.now)]
        if None not in types and not _same(*map(str, types), 'type'):
            raise UserError(
                f'the checkpoint has the state of {types[0]}{_of(name)}, the config asks for {types[1]}: '
                f'resume with {types[0]}, or start from the weights alone with load_from in the config'
            )
        sizes, own = (
            [len(g['params']) for g in each]
            for each in (saved['param_groups'], wrapper.optimizer.param_groups)
        )
        if sizes != own:
            names = ('model*', 'optim_wrapper*.paramwise_cfg*', 'optim_wrapper.constructor*')
            changed = [each for each, *_ in differences(self.before or {}, self.now)]
            changed = [n for n in changed if any(fnmatchcase(n, p) for p in names) and 'init_cfg' not in n]
            said = f' ({", ".join(changed[:4])} differ from it)' if changed and self.before else ''
            raise UserError(
                f'the optimizer{_of(name)} in the checkpoint has {sum(sizes)} tensors in {len(sizes)} '
                f'groups, that of the config {sum(own)} in {len(own)}{said}: resume with the settings of the '
                'checkpoint, or start from the weights alone with load_from in the config'
            )

    def _check_schedules(self, name: str) -> None:
        saved, schedulers = self.checkpoint.get('param_schedulers'), self.runner.param_schedulers
        counts = [len(_schedules(each, name)) for each in (saved, schedulers)]
        kinds = [_kinds(settings, name) for settings in (self.before or {}, self.now)]
        told = self.before is not None
        if counts[0] != counts[1] or (told and kinds[0] != kinds[1]):
            had, has = (', '.join(kind) or 'none' for kind in kinds)
            if not told or kinds[0] == kinds[1]:
                had, has = map(str, counts)
            raise UserError(
                f'the schedules{_of(name)} in the checkpoint are {had}, those of the config {has}: a resumed '
                'training goes on with the former, so param_scheduler must have them, or start from the '
                'weights alone with load_from in the config'
            )


def _of(name: str) -> str:
    """Return which of several optimizers is meant, for messages; empty for a single one."""
    return f' of {name}' if name else ''


def _wrappers(wrapper: OptimWrapper) -> dict[str, OptimWrapper]:
    """Return the optimizers by name; a single one has the name ``''``."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def _saved(state: dict | None) -> dict[str, dict]:
    """Return the state of each optimizer in a checkpoint, by the names of :func:`_wrappers`."""
    several = state and all(isinstance(each, dict) and 'param_groups' in each for each in state.values())
    return state if several else {'': state or {}}


def _schedules(schedulers: dict | list | None, name: str) -> list:
    """Return the schedules of one optimizer, or their states in a checkpoint."""
    return (schedulers.get(name) if isinstance(schedulers, dict) else schedulers) or []


def _part(settings: dict, name: str) -> dict | None:
    """Return the settings of one optimizer's wrapper; ``None`` if they do not stand by its name."""
    wrapper = settings.get('optim_wrapper')
    wrapper = wrapper.get(name) if name and isinstance(wrapper, dict) else wrapper
    return wrapper if isinstance(wrapper, dict) else None


def _optimizer(settings: dict, name: str) -> dict:
    found = (_part(settings, name) or {}).get('optimizer')
    return found if isinstance(found, dict) else {}


def _kinds(settings: dict, name: str) -> list[str]:
    schedulers = settings.get('param_scheduler') or []
    if isinstance(schedulers, dict):
        schedulers = [schedulers] if 'type' in schedulers else schedulers.get(name) or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    return [str(each.get('type')).rpartition('.')[2] for each in schedulers if isinstance(each, dict)]


def _state(wrapper: OptimWrapper) -> dict:
    """Return from an optimizer that was just built what :func:`_base_lr` reads."""
    return dict(base_param_settings=wrapper.base_param_settings, param_groups=wrapper.optimizer.param_groups)


def _base_lr(state: dict | None) -> float | None:
    """Return the full learning rate, before any schedule; ``None`` if there is none."""
    state = state or {}
    groups = [state.get('base_param_settings') or {}]
    if not groups[0] and isinstance(state.get('param_groups'), list):  # mmengine before 0.5
        groups = state['param_groups']
    rates = [group.get('initial_lr', group.get('lr')) for group in groups if isinstance(group, dict)]
    return max((float(rate) for rate in rates if rate is not None), default=None)


def _scale(wrapper, schedulers, factor: float) -> None:
    """Multiply every learning rate and what the schedules know of it: the whole rest of the training."""
    settings = wrapper.base_param_settings
    for group in [*wrapper.optimizer.param_groups, *([settings] if settings else [])]:
        for key in ('lr', 'initial_lr', 'max_lr', 'min_lr'):
            if key in group:
                group[key] = group[key] * factor
    for scheduler in schedulers or []:
        if getattr(scheduler, 'param_name', '') != 'lr':
            continue
        for key in ('base_values', '_last_value', 'min_values', 'eta_min', 'eta_max'):
            value = getattr(scheduler, key, None)
            if isinstance(value, (list, tuple)):
                setattr(scheduler, key, [each * factor for each in value])
            elif value is not None:
                setattr(scheduler, key, value * factor)
