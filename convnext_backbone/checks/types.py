"""Checks that every ``type`` of a config is known, before anything is built from it."""

import difflib
import importlib
import importlib.util
from collections.abc import Iterable

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry

from ..errors import suggest
from ..findings import Findings
from ..registry import SCOPE

MODEL = (root.MODELS, root.TASK_UTILS, root.WEIGHT_INITIALIZERS)
STEPS = (root.TRANSFORMS,)
# Key of a config: what its ``type`` is one of. Below it, keys of INNER change that.
TOP = {
    'model': MODEL,
    'tta_model': MODEL,
    'train_cfg': (root.LOOPS,),
    'val_cfg': (root.LOOPS,),
    'test_cfg': (root.LOOPS,),
    'train_dataloader': (),
    'val_dataloader': (),
    'test_dataloader': (),
    'optim_wrapper': (root.OPTIM_WRAPPERS,),
    'param_scheduler': (root.PARAM_SCHEDULERS,),
    'default_hooks': (root.HOOKS,),
    'custom_hooks': (root.HOOKS,),
    'val_evaluator': (root.METRICS, root.EVALUATOR),
    'test_evaluator': (root.METRICS, root.EVALUATOR),
    'visualizer': (root.VISUALIZERS,),
    'log_processor': (root.LOG_PROCESSORS,),
    'model_wrapper_cfg': (root.MODEL_WRAPPERS,),
    'tta_pipeline': STEPS,
}
IN_DATA = {
    'dataset': (root.DATASETS,),
    'datasets': (root.DATASETS,),
    'pipeline': STEPS,
    'transforms': STEPS,
    'sampler': (root.DATA_SAMPLERS,),
    'batch_sampler': (root.DATA_SAMPLERS,),
    'collate_fn': (root.FUNCTIONS,),
    'worker_init_fn': (root.FUNCTIONS,),
}
INNER = {
    **dict.fromkeys(('train_dataloader', 'val_dataloader', 'test_dataloader'), IN_DATA),
    'tta_pipeline': IN_DATA,
    'custom_hooks': {**IN_DATA, 'switch_pipeline': STEPS},
    'optim_wrapper': {'optimizer': (root.OPTIMIZERS,)},
    'visualizer': {'vis_backends': (root.VISBACKENDS,)},
    **dict.fromkeys(
        ('val_evaluator', 'test_evaluator'),
        {'metrics': (root.METRICS,), 'postprocess_tracklet_cfg': (root.TASK_UTILS,)},
    ),
}
NAMED = {  # keys of an ``optim_wrapper`` and the like whose text names a class
    ('optim_wrapper', 'constructor'): (root.OPTIM_WRAPPER_CONSTRUCTORS,),
    ('custom_hooks', 'ema_type'): (root.MODELS,),
    ('default_hooks', 'ema_type'): (root.MODELS,),
}
# Keys whose ``type`` is a word of the class around them, not a class.
WORDS = ('adapt_cfg', 'clip_grad')
ELSEWHERE = {'Albu', 'mmdet.Albu', 'mmseg.Albu'}  # whose parts are another library's, which names them itself
NMS = ('nms', 'soft_nms', 'nms_match', 'nms_rotated', 'nms_quadri', 'fast_nms')
OPERATORS = {  # keys whose ``type`` is a function or class of mmcv.ops
    'nms': NMS,
    'dqs_cfg': NMS,
    'roi_layer': (
        'RoIAlign',
        'RoIPool',
        'DeformRoIPoolPack',
        'ModulatedDeformRoIPoolPack',
        'RoIAlignRotated',
    ),
}
OTHERS = ('mmdet', 'mmseg', SCOPE)  # where a name that is not known here may be known


def check_types(cfg: Config, findings: Findings) -> None:
    """Report every ``type`` that no registry knows, with the nearest name that one does.

    Args:
        cfg: of a run, as :func:`~convnext_backbone.config.read_config` returns it.
        findings: gets an error (kind ``type``) for each.
    """
    _Types(cfg, findings).check()


class _Types:
    """Holds what the checks of one config share."""

    def __init__(self, cfg: Config, findings: Findings):
        self.cfg, self.findings = cfg, findings
        self.scope = cfg.get('default_scope')
        self._known: dict[tuple, bool] = {}
        self._unscoped: list[tuple[str, tuple]] = []

    def check(self) -> None:
        """Look at every part of the config that something is built from."""
        if self.scope is not None and not _is_installed(self.scope):
            text = f'{self.scope!r} is no package that is installed{suggest(str(self.scope), OTHERS, 0.6)}'
            self.findings.add('error', 'type', 'default_scope', text)
            return
        for key, kinds in TOP.items():
            if isinstance(self.cfg.get(key), (dict, list, tuple)):
                self._walk(self.cfg[key], key, key, kinds, self.scope)
        name = self.cfg.get('runner_type')
        if isinstance(name, str):
            self._look_up('runner_type', name, (root.RUNNERS,), self.scope)
        self._report_scope()

    def _walk(self, node, place: str, top: str, kinds: tuple, scope: str | None) -> None:
        if isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                self._walk(child, f'{place}.{index}', top, kinds, scope)
        if not isinstance(node, dict):
            return
        scope, kind = node.get('_scope_') or scope, node.get('type')
        if scope and not _is_installed(scope):
            text = f'the package {scope} is not installed: install it, or choose another type'
            self.findings.add('error', 'type', f'{place}._scope_', text)
            return
        if isinstance(kind, str):
            self._check(f'{place}.type', place.rpartition('.')[2], kind, kinds, scope)
        elif 'type' in node and not callable(kind):
            text = f'got {kind!r}, needs the name of a class, or a class'
            self.findings.add('error', 'type', f'{place}.type', text)
        if isinstance(kind, str) and kind in ELSEWHERE:
            return
        for key, child in node.items():
            if isinstance(child, str) and (named := NAMED.get((top, key))):
                self._look_up(f'{place}.{key}', child, named, scope)
                continue
            below = INNER.get(top, {}).get(key, kinds)
            self._walk(child, f'{place}.{key}', top, below, scope)

    def _check(self, where: str, key: str, kind: str, kinds: tuple, scope: str | None) -> None:
        """Check one ``type``: most are looked up in a registry, some are names of functions."""
        if key in WORDS or key.endswith('_trans'):
            return
        if key in OPERATORS:
            known = kind in OPERATORS[key] or _has('mmcv.ops', kind) or self._is_known(kind, MODEL, scope)
            self._report(known, where, kind, scope, kinds, OPERATORS[key])
        else:
            self._look_up(where, kind, kinds, scope)

    def _look_up(self, where: str, kind: str, kinds: tuple, scope: str | None) -> None:
        looked_in = kinds or tuple(child for child in vars(root).values() if isinstance(child, Registry))
        package = kind.partition('.')[0]
        if '.' in kind and package != SCOPE and not _is_installed(package):
            self.findings.add(
                'error',
                'type',
                where,
                f'{kind!r} is of the package {package}, which is not installed: install it, or choose '
                'another type',
            )
            return
        self._report(self._is_known(kind, looked_in, scope), where, kind, scope, kinds)

    def _is_known(self, kind: str, kinds: tuple, scope: str | None) -> bool:
        key = (kind, tuple(map(id, kinds)), scope)
        if key not in self._known:
            self._known[key] = any(_get(registry, kind, scope) for registry in kinds)
        return self._known[key]

    def _report(
        self, known: bool, where: str, kind: str, scope: str | None, kinds: tuple, names: tuple = ()
    ) -> None:
        if known:
            return
        near = _nearest(kind, names or self._names(kinds, scope))
        if scope is None and near in {f'{package}.{kind}' for package in ('mmdet', 'mmseg')}:
            self._unscoped.append((kind, kinds))
            return
        advice = (
            f'; did you mean {near!r}?'
            if near
            else ': import what defines it by custom_imports, or correct it'
        )
        self.findings.add('error', 'type', where, f'{kind!r} is not known{advice}')

    def _report_scope(self) -> None:
        """Report once, not for each type, that a library's types are used without naming the library."""
        if not self._unscoped:
            return
        fitting = [
            package
            for package in ('mmdet', 'mmseg')
            if _is_installed(package) and all(self._is_known(*used, package) for used in self._unscoped)
        ]
        packages = ' or '.join(f'default_scope={package!r}' for package in fitting or ('mmdet', 'mmseg'))
        text = f'is missing, and types of it are used: set {packages}'
        self.findings.add(
            'error', 'type', 'default_scope', text, dict.fromkeys(kind for kind, _ in self._unscoped)
        )

    @staticmethod
    def _names(kinds: tuple, scope: str | None) -> dict[str, None]:
        """Return the names that fit, those of other packages with their scope; an ordered set."""
        names = {}
        for base in kinds:
            for package in dict.fromkeys((scope, None, *OTHERS)):
                if package and not _is_installed(package):
                    continue
                with base.switch_scope_and_registry(package) as registry:
                    while registry is not None:
                        registry.import_from_location()
                        own = registry.scope in (scope, 'mmengine')
                        names |= dict.fromkeys(
                            name if own else f'{registry.scope}.{name}' for name in registry.module_dict
                        )
                        registry = registry.parent
        return names


def _get(base: Registry, kind: str, scope: str | None) -> object:
    """Return what a registry has under a name in a scope."""
    scope = scope if scope and _is_installed(scope) else None
    with base.switch_scope_and_registry(scope) as registry:
        try:
            return registry.get(kind)
        except Exception:  # a module of that name that cannot be imported says so when it is built
            return None


def _nearest(kind: str, names: Iterable[str]) -> str:
    """Return the nearest name: the same in other case, then one nearly the same; those of its scope first."""
    scope, _, name = kind.rpartition('.')
    own, others = {}, {}
    for full in names:
        package, _, short = full.rpartition('.')
        (own if package == scope else others).setdefault(short, full)
    for table in (own, others):
        for short, full in table.items():
            if short.casefold() == name.casefold():
                return full
    for table in (own, others):
        if near := difflib.get_close_matches(name, table, 1, 0.6):
            return table[near[0]]
    return ''


def _has(module: str, name: str) -> bool:
    return (
        hasattr(importlib.import_module(module), name) if _is_installed(module.partition('.')[0]) else False
    )


def _is_installed(package) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError, AttributeError, TypeError):  # the last two of what is no text
        return False
