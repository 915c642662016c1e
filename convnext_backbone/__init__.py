"""ConvNeXt for dense prediction: a backbone for mmdetection and mmsegmentation, and the tools around it.

Importing this package costs nothing: the parts live in :mod:`convnext_backbone.backbones`,
:mod:`convnext_backbone.checkpoint`, :mod:`convnext_backbone.engine` and so on, and the heavy
dependencies (mmdet, mmseg, mmcv) are imported where they are used.
"""

__version__ = '0.1.0'

from .mmcv_ops import install

install()
