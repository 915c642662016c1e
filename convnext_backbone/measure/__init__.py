"""Measures models by building and running them: maps, channels, strides, and one training step."""

from .build import build_model, build_on_meta, building
from .maps import measure
from .network import Map, Measured, Misfit, Network, Reader, channel_keys, networks_of, owner, settings
from .tracing import BATCH_NORMS, regions, run
from .trial import Trial, make_batch, train_step, try_training

__all__ = [
    'BATCH_NORMS',
    'Map',
    'Measured',
    'Misfit',
    'Network',
    'Reader',
    'Trial',
    'build_model',
    'build_on_meta',
    'building',
    'channel_keys',
    'make_batch',
    'measure',
    'networks_of',
    'owner',
    'regions',
    'run',
    'settings',
    'train_step',
    'try_training',
]
