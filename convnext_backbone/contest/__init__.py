"""Times this package and others in turn, in one process: backbones, and whole steps of models around them."""

from . import steps
from .backbones import DROP_PATH, admitted, contest
from .cell import Cell
from .networks import OURS, PEERS, ours, random_weights
from .timing import about

__all__ = [
    'Cell',
    'DROP_PATH',
    'OURS',
    'PEERS',
    'about',
    'admitted',
    'contest',
    'ours',
    'random_weights',
    'steps',
]
