"""Reads images as the test data of a config does, and describes how, for programs without this package."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import Tensor

from ..classification.data import image_transform, open_image
from ..config import image_format, task_of, transform_of, use_stand_ins, without_annotations
from ..errors import UserError
from ..registry import SCOPE, type_name

LOADS = ('LoadImageFromFile', f'{SCOPE}.LoadImage')
PACKS = ('PackDetInputs', 'PackSegInputs')


def describe(cfg: Config, classes: Sequence[str] | None, palette=None) -> dict:
    """Return what a program must know to use an exported file, as JSON has it.

    ``channels``, ``range``, ``mean`` and ``std`` are of the pixels; ``steps`` is what is done with an image
    before, in order, ``None`` where the config does something that is not named here; of a detector
    ``min_score`` and ``mask_threshold``.
    """
    facts = dict(
        task=task_of(cfg.model),
        **image_format(cfg),
        steps=_steps(cfg),
        classes=None if classes is None else list(classes),
    )
    if palette is not None:
        facts['palette'] = [list(map(int, colour)) for colour in palette]
    test_cfg = cfg.model.get('test_cfg') or {}
    if facts['task'] == 'detection':
        test_cfg = test_cfg.get('rcnn') or test_cfg
        facts.update(min_score=test_cfg.get('score_thr'), mask_threshold=test_cfg.get('mask_thr_binary'))
    if facts['task'] == 'segmentation':
        facts.update(
            mode=test_cfg.get('mode', 'whole'),
            align_corners=bool((cfg.model.get('decode_head') or {}).get('align_corners')),
        )
    return facts


def _steps(cfg: Config) -> list[dict] | None:
    """Return the steps of the test data's pipeline."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if task_of(cfg.model) == 'classification':
        return _of_timm(transform_of(cfg))
    steps = []
    for step in without_annotations(dataset.get('pipeline') or [{}]):
        kind = type_name(step)
        if kind in PACKS or (kind in LOADS and step.get('color_type', 'color') == 'color'):
            continue
        scale, pad = step.get('scale'), step.get('pad_val', 0)
        value = pad.get('img', 0) if isinstance(pad, dict) else pad
        if (
            kind == 'Resize'
            and isinstance(scale, (list, tuple))
            and step.get('interpolation', 'bilinear') == 'bilinear'
        ):
            steps.append(dict(resize=list(scale), keep_ratio=bool(step.get('keep_ratio'))))
        elif kind == 'Pad' and isinstance(step.get('size'), (list, tuple)):
            steps.append(
                dict(pad=list(step['size']), value=value if isinstance(value, (int, float)) else list(value))
            )
        else:
            return None
    return steps


def _of_timm(transform: dict | None) -> list[dict] | None:
    """Return the steps before an image becomes a tensor."""
    if transform is None:
        return None
    steps = []
    for step in image_transform(**transform).transforms:
        kind = type(step).__name__
        if kind in ('ToTensor', 'MaybeToTensor', 'Normalize'):
            continue
        if kind == 'Resize' and isinstance(step.size, int):
            steps.append(dict(resize_shorter=step.size, interpolation=step.interpolation.value))
        elif kind == 'CenterCrop':
            steps.append(dict(crop=list(step.size)))  # height, width
        else:
            return None
    return steps


def read_images(cfg: Config, files: Sequence[Path]) -> list[Tensor]:
    """Return images as the network takes them, (1, C, H, W), normalised, not padded.

    Raises:
        UnreadableImage: a file is no image, or, for a classifier, has more than 8 bits.
        UserError: the config has no test data, so that it is not known how the files are read.
    """
    if not files:
        return []
    cfg = cfg.copy()
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if task_of(cfg.model) == 'classification' and (given := transform_of(cfg)):
        transform = image_transform(**given)
        return [transform(open_image(file))[None] for file in files]
    if not dataset.get('pipeline'):
        raise UserError('the config has no test_dataloader: it does not say how images are read')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    use_stand_ins(cfg)
    pipeline = Compose(without_annotations(cfg.test_dataloader.dataset.pipeline))
    form = image_format(cfg)
    return [_normalised(pipeline(dict(img_path=str(file), img_id=0))['inputs'], form) for file in files]


def _normalised(pixels: Tensor, form: dict) -> Tensor:
    """Return (C, H, W) pixels in BGR as (1, C, H, W) in the order and range of the model."""
    pixels = pixels.flip(0) if form['channels'] == 'RGB' and len(pixels) == 3 else pixels
    mean, std = (
        torch.tensor(form[key] or default)[:, None, None]
        for key, default in (('mean', [0.0]), ('std', [1.0]))
    )
    return ((pixels.float() - mean) / std)[None]
