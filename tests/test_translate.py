"""Translates configs of mmdet 2.x and mmseg 0.x, and compares with the configs that mmdet 3 and mmseg 1 ship.

The authors of mmdet and mmseg have moved their own configs to the new form: these are what a translation of the
old one has to give. The old ones are in tests/data/old_configs; where a model did not change between the
versions, it is taken from the new one.
"""

import copy

import pytest
from conftest import ROOT
from mmengine.config import Config

from convnext_backbone.swap.source import shipped_configs
from convnext_backbone.swap.translate import translated

OLD = ROOT / 'tests' / 'data' / 'old_configs'
ASIDE = {'auto_scale_lr', 'tta_model', 'tta_pipeline'}  # the old ones have none, or say it otherwise


def shipped(name: str) -> dict:
    package, _, file = name.partition('::')
    return Config.fromfile(shipped_configs(package)[file], import_custom_modules=False).to_dict()


def old_config(name: str, model: str = '', **more) -> Config:
    """Read an old config, with the model of a new one if that is named."""
    cfg = Config.fromfile(OLD / f'{name}.py').to_dict()
    if model:
        cfg['model'] = shipped(model)['model']
        del cfg['model']['data_preprocessor']
        cfg['model'].update(more.pop('model_keys', {}))
    return Config(cfg | more)


def differences(ours, theirs, place='') -> dict:
    """Return what differs, by dotted key; None stands for a key that is not there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = {}
        for key in {**ours, **theirs}:
            found |= differences(ours.get(key), theirs.get(key), f'{place}.{key}' if place else str(key))
        return found
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        found = {}
        for index, pair in enumerate(zip(ours, theirs)):
            found |= differences(*pair, f'{place}.{index}')
        return found
    return {} if ours == theirs else {place: (ours, theirs)}


def compare(cfg: Config, name: str) -> tuple[dict, list[str]]:
    new, lines = translated(cfg)
    new, there = new.to_dict(), shipped(name)
    read = [key for key in there if key in new or key.endswith(('_cfg', '_dataloader', '_evaluator', '_hooks'))]
    return differences({k: v for k, v in new.items() if k not in ASIDE}, {k: there[k] for k in read if k not in ASIDE}), lines
