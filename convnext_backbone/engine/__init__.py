"""Trains and evaluates on mmengine: the runner, the optimizer's groups, the checks before a run."""

from .checkpoint_hook import CheckpointHook
from .hooks import DataHook, HangHook, NonFiniteGuardHook, ProgressHook
from .layer_decay import LayerDecayConstructor
from .loops import EpochLoop, IterLoop
from .runner import Runner
from .sampler import ResumableBatchSampler

__all__ = [
    'CheckpointHook',
    'DataHook',
    'EpochLoop',
    'HangHook',
    'IterLoop',
    'NonFiniteGuardHook',
    'LayerDecayConstructor',
    'ProgressHook',
    'ResumableBatchSampler',
    'Runner',
]
