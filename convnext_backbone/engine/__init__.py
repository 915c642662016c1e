"""Training and evaluation on mmengine: the runner, the optimizer's groups, the checks before a run."""

from .hooks import DataHook
from .layer_decay import LayerDecayConstructor
from .loops import EpochLoop, ResumableBatchSampler
from .runner import Runner

__all__ = ['DataHook', 'EpochLoop', 'LayerDecayConstructor', 'ResumableBatchSampler', 'Runner']
