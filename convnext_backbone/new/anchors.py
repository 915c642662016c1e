"""Chooses the anchors of a detector for the boxes that it is to learn."""

import numpy as np
from mmengine.config import Config

from ..labels import Labels
from ..measure.anchors import better_scales, coverage, generators
from ..swap.plan import Change
from .recipe import Recipe

KEPT = ('scales', 'ratios', 'octave_base_scale')


def box_sizes(labels: Labels, recipe: Recipe) -> np.ndarray:
    """Return width and height (n, 2) of the boxes to train on, in pixels of the image that the model sees."""
    found = []
    for sample in labels.splits['train']:
        short, long = sorted((sample.width, sample.height))
        factor = min(recipe.short / short, recipe.long / long)
        for item in sample.objects:
            x1, y1, x2, y2 = item.box
            if not item.crowd:
                found.append(((x2 - x1) * factor, (y2 - y1) * factor))
    return np.array(found).reshape(-1, 2)


def anchor_changes(labels: Labels, base: Config, recipe: Recipe) -> tuple[list[Change], list[str]]:
    """Return the changes of the anchor generators, and lines that say what the anchors cover.

    Args:
        labels: of the task ``boxes`` or ``segments``; others have no anchors.
        base: the config that is inherited from.
        recipe: with the size of the images.
    """
    changes, said = [], []
    if labels.task not in ('boxes', 'segments') or not len(sizes := box_sizes(labels, recipe)):
        return changes, said
    for key, generator in generators(base).items():
        if not generator.get('ratios'):  # points
            continue
        before, better = coverage(generator, sizes), better_scales(generator, sizes)
        line = f'anchors: {before:.1%} of the boxes have one of IoU >= 0.5'
        if better:
            line += f', {coverage(better, sizes):.1%} with those of the config'
            why = f'for {coverage(better, sizes):.1%} of the boxes, {before:.1%} before'
            new = {name: better[name] for name in KEPT if better.get(name) != generator.get(name)}
            changes += [
                Change(f'{key}.{name}', generator.get(name), value, why) for name, value in new.items()
            ]
        else:
            line += ', and no others reach more'
        said.append(line)
    return changes, said
