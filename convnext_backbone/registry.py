"""Defines our registries, children of mmengine's, in the scope ``convnext_backbone``.

mmengine imports this module by itself when a config says ``type='convnext_backbone.Name'``, so no
``custom_imports`` is needed in any mmdet or mmseg config. ``locations`` are imported on the first
look-up only: reading the backbone needs neither mmdet, mmseg nor mmcv.
"""

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = 'convnext_backbone'
# Whose names are known without a scope: each of these scopes gives mmengine's and mmcv's, too.
LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch')
REGISTERED = dict(SyncBatchNorm='SyncBN', PretrainedInit='Pretrained')  # classes under another name

MODELS = Registry(
    'model',
    scope=SCOPE,
    parent=root.MODELS,
    locations=[
        f'{SCOPE}.backbones',
        f'{SCOPE}.classification',
        f'{SCOPE}.datasets.preprocessors',
        f'{SCOPE}.pretraining',
    ],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', scope=SCOPE, parent=root.WEIGHT_INITIALIZERS, locations=[f'{SCOPE}.checkpoint']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    scope=SCOPE,
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    locations=[f'{SCOPE}.engine'],
)
LOOPS = Registry('loop', scope=SCOPE, parent=root.LOOPS, locations=[f'{SCOPE}.engine'])
DATA_SAMPLERS = Registry(
    'data sampler', scope=SCOPE, parent=root.DATA_SAMPLERS, locations=[f'{SCOPE}.engine']
)
HOOKS = Registry(
    'hook', scope=SCOPE, parent=root.HOOKS, locations=[f'{SCOPE}.engine', f'{SCOPE}.pretraining']
)
DATASETS = Registry('dataset', scope=SCOPE, parent=root.DATASETS, locations=[f'{SCOPE}.classification'])
FUNCTIONS = Registry('function', scope=SCOPE, parent=root.FUNCTIONS, locations=[f'{SCOPE}.classification'])
METRICS = Registry('metric', scope=SCOPE, parent=root.METRICS, locations=[f'{SCOPE}.classification'])
TRANSFORMS = Registry('transform', scope=SCOPE, parent=root.TRANSFORMS, locations=[f'{SCOPE}.transforms'])


def class_of(node: dict, registry: Registry):
    """Return the class or function that the ``type`` of a config's dict names, ``None`` if it is not known.

    Args:
        node: a dict with ``type``, which may be the class itself, and perhaps ``_scope_``.
        registry: one of mmengine's; the default scope is looked into first, as it is when something is built.
    """
    kind = node.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(node.get('_scope_')) as scoped:
        return scoped.get(kind)


def type_name(node) -> str:
    """Return what the ``type`` of a config's dict is called, however it is written; empty without one.

    A config names it (``'EMAHook'``), with scope (``'mmengine.EMAHook'``) or module
    (``'mmengine.hooks.EMAHook'``), or holds the class: all are ``'EMAHook'``. Ours are
    ``'convnext_backbone.Name'``. Another package's keep what stands before the name: they are others.

    Args:
        node: a dict with or without ``type``, or a ``type`` itself.
    """
    kind = node.get('type') if isinstance(node, dict) else node
    if not isinstance(kind, str):
        kind = f'{kind.__module__}.{kind.__qualname__}' if hasattr(kind, '__qualname__') else ''
    package, _, path = kind.partition('.')
    name = path.rpartition('.')[2]
    if not name:
        return kind
    if package == SCOPE:
        return f'{SCOPE}.{name}'
    return REGISTERED.get(name, name) if package in LIBRARIES else kind
