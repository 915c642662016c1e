"""Reads a config by path or name, merges changes, and reports in one line what cannot be built from it."""

import copy
import importlib
import os

from mmengine.config import Config

from ..checkpoint.read import close_unsafe_reader
from ..errors import UserError, message, missing_package
from .files import find_config
from .keys import apply_options, check_keys
from .stand_ins import add_default_hooks


def read_config(config: str | os.PathLike | Config, options: dict | None = None) -> Config:
    """Read a config and merge changes; every key of it is read by something.

    Args:
        config: path of a file, the name of a config that comes along, such as ``cascade_convnext_t``, or a
            config that was read already, which stays as it is.
        options: changes of entries, by their dotted names.

    Raises:
        UserError: no such file, no valid config, a key that nothing reads.
    """
    close_unsafe_reader()
    if isinstance(config, Config):
        path, cfg = config.filename or 'the config', copy.deepcopy(config)
    else:
        path = str(find_config(config))
        try:
            cfg = Config.fromfile(path)
        except Exception as error:
            text = ' '.join(message(error).split())
            raise UserError(f'{path} is no valid config: {type(error).__name__}: {text}') from error
    if 'model' not in cfg:
        raise UserError(f'{path} has no model: it is a part of a config (a _base_), not one to run')
    _check_scope(cfg)
    add_default_hooks(cfg)
    apply_options(cfg, options or {})
    check_keys(cfg)
    return cfg


def _check_scope(cfg: Config) -> None:
    """Raise :class:`UserError` where the library that the config's models come from is not installed."""
    scope = cfg.get('default_scope')
    if scope in ('mmdet', 'mmseg'):
        try:
            importlib.import_module(scope)
        except ModuleNotFoundError as error:
            raise UserError(missing_package(error) or f'{scope} cannot be imported: {error}') from error
