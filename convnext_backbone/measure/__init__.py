"""Measures models by building and running them: maps, channels, strides, and one training step."""

from .build import build_model, build_on_meta
from .maps import Map, Measured, Misfit, Network, Reader, measure, networks_of, owner, regions, run, settings

__all__ = [
    'Map',
    'Measured',
    'Misfit',
    'Network',
    'Reader',
    'build_model',
    'build_on_meta',
    'measure',
    'networks_of',
    'owner',
    'regions',
    'run',
    'settings',
]
