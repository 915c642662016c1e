"""Training and evaluation on mmengine: the runner, the optimizer's groups, the checks before a run."""

from .hooks import DataHook
from .layer_decay import LayerDecayConstructor
from .runner import Runner

__all__ = ['DataHook', 'LayerDecayConstructor', 'Runner']
