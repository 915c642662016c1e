"""Finds what is wrong with a config or its data before a run, all of it at once."""

from mmengine.config import Config

from ..findings import Findings
from .data import check_data
from .model import check_model
from .types import check_types
from .values import check_values

AMOUNTS = ('sample', 'all', 'none')

__all__ = ['AMOUNTS', 'check_config', 'check_data']


def check_config(cfg: Config, splits, amount: str = 'sample') -> Findings:
    """Return everything that is found wrong with a config and the data of ``splits``.

    Args:
        cfg: as :func:`convnext_backbone.config.read_config` returns it, fitted to the machine or not.
        splits: keys of the data loaders that will be used.
        amount: how many of the images and masks are read, see :data:`AMOUNTS`.
    """
    findings = Findings()
    check_values(cfg, findings)
    check_types(cfg, findings)
    check_model(cfg, findings, splits, amount)
    check_data(cfg, splits, findings, amount)
    return findings
