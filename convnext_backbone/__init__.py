"""Provides ConvNeXt for dense prediction: a backbone for mmdetection and mmsegmentation, and its tools.

    import convnext_backbone as cb

    model = cb.create_model('convnext_tiny', pretrained=True)
    backbone = cb.ConvNeXt('base', out_indices=(1, 2, 3))

The names below are loaded when they are first used: importing this package takes milliseconds, and neither
mmdet, mmseg nor mmcv is needed to build a backbone.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from .mmcv_ops import install as _install_mmcv_operators

if sys.version_info < (3, 11):
    raise ImportError(f'convnext_backbone needs Python 3.11 or later, this is {sys.version.split()[0]}')

__version__ = '0.2.0'

_HOMES = {  # public name: module
    'ConvNeXt': 'backbones',
    'IsotropicConvNeXt': 'backbones',
    'Roadmap': 'backbones',
    'fuse_for_inference': 'backbones',
    'Classifier': 'classification',
    'create_model': 'hub',
    'list_models': 'hub',
    'list_pretrained': 'hub',
    'load_checkpoint': 'checkpoint',
    'Predictor': 'inference',
    'train': 'engine.run',
    'test': 'engine.run',
    'UserError': 'errors',
}
__all__ = ['__version__', *_HOMES]

if TYPE_CHECKING:
    from .backbones import ConvNeXt, IsotropicConvNeXt, Roadmap, fuse_for_inference
    from .checkpoint import load_checkpoint
    from .classification import Classifier
    from .engine.run import test, train
    from .errors import UserError
    from .hub import create_model, list_models, list_pretrained
    from .inference import Predictor

_install_mmcv_operators()


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .errors import check_torch, missing_package

    check_torch()
    try:
        value = getattr(importlib.import_module(f'.{_HOMES[name]}', __name__), name)
    except ModuleNotFoundError as error:
        if line := missing_package(error):
            raise ModuleNotFoundError(line, name=error.name) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
