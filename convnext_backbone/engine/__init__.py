"""Training and evaluation on mmengine: the runner, the optimizer's groups, the checks before a run."""

from .layer_decay import LayerDecayConstructor
from .runner import Runner

__all__ = ['LayerDecayConstructor', 'Runner']
