"""Reads a config by path or name, merges changes, and reports in one line what cannot be built from it."""

import contextlib
import copy
import importlib
import os

from mmengine.config import Config

from ..checkpoint.read import close_unsafe_reader
from ..errors import UserError, message, missing_package
from .files import find_config
from .foreign import check_backbones, foreign_backbones
from .keys import apply_options, check_keys, nodes
from .legacy import check_legacy, check_source
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
        cfg = _read_file(path)
    _check_origin(cfg, path)
    if 'model' not in cfg:
        raise UserError(f'{path} has no model: it is a part of a config (a _base_), not one to run')
    _check_scope(cfg)
    add_default_hooks(cfg)
    apply_options(cfg, options or {})
    check_keys(cfg)
    return cfg


def _read_file(path: str) -> Config:
    """Return the config at ``path``.

    Raises:
        UserError: it cannot be read, is one of an older library, or imports what is not there.
    """
    try:
        return Config.fromfile(path)
    except Exception as error:
        cfg = None
        if isinstance(error, ImportError):
            with contextlib.suppress(Exception):
                cfg = Config.fromfile(path, import_custom_modules=False)
        if cfg is None:
            check_source(path)
            text = ' '.join(message(error).split())
            raise UserError(f'{path} is no valid config: {type(error).__name__}: {text}') from error
        _check_origin(cfg, path)
        given = (cfg.get('custom_imports') or {}).get('imports')
        names = ', '.join([given] if isinstance(given, str) else map(str, given or ()))
        raise UserError(
            f'{path}: custom_imports names {names}, which cannot be imported: {_first_cause(error)}; install '
            'it, put its folder on PYTHONPATH, or take it out of custom_imports'
        ) from error


def _first_cause(error: BaseException) -> str:
    """Return what went wrong first: mmengine hides the name of the module that is missing."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return ' '.join(message(error).split())


def _check_origin(cfg: Config, path: str) -> None:
    """Stop at what comes from elsewhere and has another name here: older configs, other ConvNeXts.

    Raises:
        UserError: with the names that are right here; or a class of a new-style config cannot be imported.
    """
    found = list(foreign_backbones(cfg))
    check_legacy(cfg, path, '; '.join(line for _, _, line in found))
    check_backbones(cfg, path, found)
    try:
        list(nodes(dict(cfg.items())))  # a new-style config imports its classes when it is looked at
    except ImportError as error:
        raise UserError(f'{path}: a class of it cannot be imported: {_first_cause(error)}') from error


def _check_scope(cfg: Config) -> None:
    """Raise :class:`UserError` where the library that the config's models come from is not installed."""
    scope = cfg.get('default_scope')
    if scope in ('mmdet', 'mmseg'):
        try:
            importlib.import_module(scope)
        except ModuleNotFoundError as error:
            raise UserError(missing_package(error) or f'{scope} cannot be imported: {error}') from error
