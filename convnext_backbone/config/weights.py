"""Chooses where the weights of a run come from: a checkpoint to resume, one to load, or pretrained ones."""

import os
from pathlib import Path

from mmengine.config import Config

from ..checkpoint import zoo
from ..checkpoint.write import checkpoints_in
from ..errors import UserError
from ..registry import type_name
from .keys import dicts

PRETRAINED = 'convnext_backbone.Pretrained'


def start_from(
    cfg: Config,
    resume: str | None,
    pretrained: str | None,
    weights: str | None = None,
    prefix: str | None = None,
) -> list[str]:
    """Set where the weights come from: ``--resume``, ``load_from`` of the config, or ``--pretrained``.

    A checkpoint that is resumed or named by ``load_from`` has every weight: pretrained ones are not
    read then.

    Args:
        resume: path of a checkpoint, ``'auto'`` for the newest of the work dir, ``None``.
        pretrained, weights, prefix: see :func:`set_pretrained`.

    Raises:
        UserError: a file is missing, or both are given.
    """
    begun = bool(checkpoints_in(Path(cfg.work_dir)))
    restarts = [os.environ.get(name, '0') for name in ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT')]
    if (begun or resume is None) and any(map(int, restarts)):
        resume = 'auto'  # torchrun or Slurm starts the job again: it goes on from what it has done itself
    if resume is None and cfg.get('resume') and not cfg.get('load_from'):
        resume = 'auto'
    if resume not in (None, 'auto'):
        if not Path(resume).is_file():
            raise UserError(f'--resume: no checkpoint at {resume}')
        cfg.resume, cfg.load_from = True, resume
    elif resume == 'auto':
        cfg.resume = begun  # the first start of a job that is always started with --resume
        if begun:
            cfg.load_from = None
    notes = [f'nothing to resume in {cfg.work_dir}: starting anew'] if resume == 'auto' and not begun else []
    source, going_on = cfg.get('load_from'), cfg.get('resume', False)
    if begun and not going_on:
        raise UserError(
            f'{cfg.work_dir} has checkpoints of a training, which this one would replace: go on with '
            '--resume, choose another --work-dir, or remove them'
        )
    if isinstance(source, str) and not going_on and pretrained not in (None, 'none'):
        raise UserError(f'--pretrained {pretrained} would be overwritten by load_from {source}: give one')
    if not going_on and (not source or isinstance(source, dict)):
        return notes + set_pretrained(
            cfg, pretrained, weights, prefix
        )  # a dict names parts that start afresh
    if option := _options(weights, prefix):
        raise UserError(f'{option}: another checkpoint has all the weights, leave the option out')
    drop_pretrained(cfg)
    return notes


def set_pretrained(
    cfg: Config, choice: str | None, weights: str | None = None, prefix: str | None = None
) -> list[str]:
    """Set path, URL or released name of the backbone's weights (``--pretrained``); ``none``: from scratch.

    Args:
        weights: ``'final'`` or ``'ema'``; see :func:`~convnext_backbone.checkpoint.load_checkpoint`.
        prefix: what is in front of the names in the file, where it holds several networks.

    Raises:
        UserError: there is no such file, or ``weights`` or ``prefix`` is given and the config loads no
            pretrained weights.
    """
    if choice is None:
        given = [init for node in dicts(cfg.model) for init in _inits(node) if type_name(init) == PRETRAINED]
        if (option := _options(weights, prefix)) and not given:
            raise UserError(f'{option}: the config loads no pretrained weights, give --pretrained FILE, too')
        for init in given:
            init['weights'] = weights or init.get('weights', 'final')
            if prefix is not None:
                init['prefix'] = prefix
        return []
    model = cfg.model
    own = any(type_name(init) == PRETRAINED for init in _inits(model))  # a classifier is loaded as a whole
    node = model if own or 'backbone' not in model else model.backbone
    given = _inits(node)
    others = [init for init in given if type_name(init) not in (PRETRAINED, 'Pretrained')]
    if choice.lower() == 'none':
        if option := _options(weights, prefix):
            raise UserError(f'{option}: --pretrained none loads no weights, leave one of the two out')
        node.init_cfg = others or None
        return ['no pretrained weights: --pretrained none']
    remote = choice in zoo.RELEASED or choice.startswith(('http://', 'https://'))
    if not remote and not Path(choice).is_file():
        raise UserError(f'--pretrained: no file of weights at {choice}{zoo.nearest(choice)}')
    kept = next((init for init in given if type_name(init) == PRETRAINED), {})
    chosen = {**kept, 'type': PRETRAINED, 'checkpoint': choice, 'weights': weights or 'final'}
    chosen.pop('prefix', None)  # that of the config is for another file
    if prefix:
        chosen['prefix'] = prefix
    node.init_cfg = [*others, chosen]
    return []


def _options(weights: str | None, prefix: str | None) -> str:
    """Return the options that say more about pretrained weights, as they were given; empty if none was."""
    given = [f'--pretrained-weights {weights}'] if weights else []
    given += [f'--pretrained-prefix {prefix}'] if prefix is not None else []
    return ' '.join(given)


def _inits(node: dict) -> list[dict]:
    """Return the entries of ``init_cfg``, which may be one or a list."""
    given = node.get('init_cfg') or []
    return [given] if isinstance(given, dict) else list(given)


def drop_pretrained(cfg: Config) -> None:
    """Take every pretrained ``init_cfg`` out of the model: its weights come from a checkpoint."""
    for node in dicts(cfg.model):
        if any(type_name(init) in (PRETRAINED, 'Pretrained') for init in _inits(node)):
            node['init_cfg'] = None
