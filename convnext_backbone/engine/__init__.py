"""Training and evaluation on mmengine: the runner, the optimizer's groups, the checks before a run."""

from .hooks import CheckpointHook, DataHook, FiniteHook, HangHook, ProgressHook
from .layer_decay import LayerDecayConstructor
from .loops import EpochLoop, IterLoop, ResumableBatchSampler
from .runner import Runner

__all__ = [
    'CheckpointHook',
    'DataHook',
    'EpochLoop',
    'FiniteHook',
    'HangHook',
    'IterLoop',
    'LayerDecayConstructor',
    'ProgressHook',
    'ResumableBatchSampler',
    'Runner',
]
