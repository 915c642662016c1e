"""Writes the config of a training on one's own images, from a folder of labels."""

from .anchors import anchor_changes
from .models import MODELS, model_for
from .pixels import Pixels, pixels_of
from .recipe import Machine, Recipe, machine_at_hand, recipe_for
from .text import write_config

__all__ = [
    'MODELS',
    'Machine',
    'Pixels',
    'Recipe',
    'anchor_changes',
    'machine_at_hand',
    'model_for',
    'pixels_of',
    'recipe_for',
    'write_config',
]
