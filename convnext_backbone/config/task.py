"""Tells what kind of model a config describes, and what that kind takes."""

from typing import Literal

from mmengine.config import Config
from torch import nn

from ..registry import SCOPE, type_name

Task = Literal['classification', 'detection', 'segmentation', 'pretraining', 'other']
OURS = {f'{SCOPE}.Classifier': 'classification', f'{SCOPE}.FCMAE': 'pretraining'}  # known by their type
PARTS = {  # by which a model is known, as keys of its config and as attributes of what is built from it
    'segmentation': ('decode_head',),
    'detection': ('roi_head', 'bbox_head', 'rpn_head', 'mask_head', 'query_head', 'panoptic_head'),
}


def task_of(model: dict | nn.Module) -> Task:
    """Return what a model is for; the wrapper of test-time augmentation is looked through.

    Args:
        model: ``cfg.model``, or the module that was built from it.
    """
    is_config = isinstance(model, dict)
    has = model.__contains__ if is_config else lambda part: getattr(model, part, None) is not None
    if has('module'):
        return task_of(model['module'] if is_config else model.module)
    for task, parts in PARTS.items():
        if any(map(has, parts)):
            return task
    return OURS.get(type_name(model if is_config else type(model)), 'other')


def image_format(cfg: Config) -> dict:
    """Return the order of the channels and the range of their values before ``mean`` and ``std``."""
    source = cfg.model.get('data_preprocessor') or {}
    given = dict(channels='RGB' if source.get('bgr_to_rgb') else 'BGR', range=[0, 255])
    if task_of(cfg.model) in ('classification', 'pretraining'):  # their dataset gives normalised images
        loader = cfg.get('test_dataloader') or cfg.get('train_dataloader') or {}
        source = loader.get('dataset', {}).get('transform') or {}
        given = dict(channels='RGB', range=[0, 1])
    return dict(**given, mean=source.get('mean'), std=source.get('std'))
