"""Contains the networks that emit multi-scale feature maps."""

from .base import DenseBackbone
from .convnext import ConvNeXt
from .folding import fuse_for_inference
from .isotropic import IsotropicConvNeXt
from .roadmap import Roadmap

__all__ = ['ConvNeXt', 'DenseBackbone', 'IsotropicConvNeXt', 'Roadmap', 'fuse_for_inference']
