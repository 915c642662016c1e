"""Measures models by building and running them: maps, channels, strides, and one training step."""

from .build import build_model, build_on_meta, building, without_weights
from .maps import measure
from .network import Map, Measured, Misfit, Network, Reader, channel_keys, networks_of, owner, settings
from .tracing import BATCH_NORMS, PREDICTORS, regions, run, samples_of, size_of_regions
from .trial import Trial, make_batch, train_step, try_training

__all__ = [
    'BATCH_NORMS',
    'Map',
    'Measured',
    'Misfit',
    'Network',
    'PREDICTORS',
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
    'samples_of',
    'settings',
    'size_of_regions',
    'train_step',
    'try_training',
    'without_weights',
]
