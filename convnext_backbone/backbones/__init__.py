"""Networks that emit multi-scale feature maps."""

from .convnext import ConvNeXt

__all__ = ['ConvNeXt']
