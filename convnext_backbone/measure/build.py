"""Builds the model of a config to measure it: without weights, files or network, without memory if asked."""

import contextlib
import copy
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..config import drop_pretrained, use_plain_batch_norm, use_preprocessors
from ..config.keys import dicts
from ..errors import report_build_errors
from .text import made_up_encoders

FILES = ('pretrained', 'teacher_ckpt', 'checkpoint_path')  # keys of a model that name a file of weights


_linspace = torch.linspace


def _linspace_on_cpu(*args, device=None, **kwargs):
    """Compute numbers that constructors read one by one, such as rates of stochastic depth."""
    return _linspace(*args, device=device or 'cpu', **kwargs)


@contextlib.contextmanager
def building(scope: str | None, device: str) -> Iterator[None]:
    """Build on a device, in a scope of registries; no hub of weights is asked, and nothing is logged."""
    hub = sys.modules.get('huggingface_hub.constants')  # which has read the environment already
    offline = mock.patch.object(hub, 'HF_HUB_OFFLINE', True) if hub else contextlib.nullcontext()
    with (
        offline,
        mock.patch.dict(os.environ, {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_OFFLINE': '1'}),
        torch.device(device),
        mock.patch.object(torch, 'linspace', _linspace_on_cpu),
        DefaultScope.overwrite_default_scope(scope or 'mmengine'),
        warnings.catch_warnings(action='ignore'),  # of mmseg's losses, about their own defaults
    ):
        disabled = logging.root.manager.disable
        _disable_log(logging.INFO)  # a line for each weight
        try:
            yield
        finally:
            _disable_log(disabled)


def _disable_log(level: int) -> None:
    """Disable lines up to a level; mmengine's logger remembers what was enabled, which it forgets here."""
    logging.disable(level)
    if getattr(MMLogger, '_instance_dict', None):  # without one, asking would make it
        logger = MMLogger.get_current_instance()
        logger.setLevel(logger.level)


def without_weights(cfg: Config) -> Config:
    """Return a config with the model alone, in which nothing is loaded and SyncBN is BN.

    Args:
        cfg: any config with a ``model``; it stays as it is.
    """
    model = copy.deepcopy(cfg.model)
    alone = Config(dict(model=model.to_dict() if isinstance(model, ConfigDict) else model))
    use_plain_batch_norm(alone)
    use_preprocessors(alone)
    drop_pretrained(alone)
    for node in dicts(alone.model):
        for key in FILES:
            if node.get(key):
                node[key] = False if node[key] is True else None
        if node.get('num_cp'):  # layers whose activations are computed again, which needs fairscale
            node['num_cp'] = 0
        if isinstance(node.get('tracker'), dict) and 'detector' in node:  # it is not trained
            node['tracker'] = None
    return alone


def settled(module: nn.Module, device: str) -> nn.Module:
    """Return a module in evaluation mode, as a whole on a device: not every constructor asks for one."""
    module.to(device)
    module.train(False)  # eval() of some models returns nothing
    return module


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build the model of a config, in evaluation mode, without its weights.

    Args:
        cfg: any config with a ``model``; it stays as it is.
        device: ``'meta'``: shapes without values, which needs neither time nor memory for them; or ``'cpu'``.

    Raises:
        Exception: whatever the model's own constructors raise.
    """
    alone = without_weights(cfg)
    with building(cfg.get('default_scope'), device), made_up_encoders(alone):
        return settled(MODELS.build(alone.model), device)


@report_build_errors
def build_on_meta(cfg: Config) -> nn.Module:
    """Build the model of a config without its memory: shapes, but no values.

    Raises:
        UserError: it cannot be built; one line that begins with the key of the part.
    """
    return build_model(cfg)
