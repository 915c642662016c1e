"""Our registries, children of mmengine's, in the scope ``convnext_backbone``.

mmengine imports this module by itself when a config says ``type='convnext_backbone.Name'``, so no
``custom_imports`` is needed in any mmdet or mmseg config. ``locations`` are imported on the first
look-up only: reading the backbone needs neither mmdet, mmseg nor mmcv.
"""

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = 'convnext_backbone'

MODELS = Registry(
    'model', scope=SCOPE, parent=root.MODELS, locations=[f'{SCOPE}.backbones', f'{SCOPE}.classification']
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
HOOKS = Registry('hook', scope=SCOPE, parent=root.HOOKS, locations=[f'{SCOPE}.engine'])
DATASETS = Registry('dataset', scope=SCOPE, parent=root.DATASETS, locations=[f'{SCOPE}.classification'])
FUNCTIONS = Registry('function', scope=SCOPE, parent=root.FUNCTIONS, locations=[f'{SCOPE}.classification'])
METRICS = Registry('metric', scope=SCOPE, parent=root.METRICS, locations=[f'{SCOPE}.classification'])
TRANSFORMS = Registry('transform', scope=SCOPE, parent=root.TRANSFORMS, locations=[f'{SCOPE}.transforms'])
