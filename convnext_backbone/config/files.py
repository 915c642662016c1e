"""Finds the configs that come along, by path or by name, and what is printed about them."""

import functools
import json
import os
import tempfile
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError, suggest
from ..registry import SCOPE

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(  # in a wheel within the package, in a checkout beside it
    (folder for folder in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs') if folder.is_dir()),
    _PACKAGE / 'configs',
)


_of_mmengine = Config._get_cfg_path


def _path_of_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Return the path of a ``_base_``; of ``convnext_backbone::...`` too, which mmengine does not know."""
    package, mark, name = cfg_path.partition('::')
    if mark and package == SCOPE:
        return str(find_config(name)), None
    return _of_mmengine(cfg_path, filename)


Config._get_cfg_path = staticmethod(_path_of_base)


@functools.cache
def config_names() -> dict[str, Path]:
    """Return the name of each config that can be run, and its path below :data:`CONFIGS`."""
    files = (path.relative_to(CONFIGS) for path in sorted(CONFIGS.rglob('*.py')))
    return {file.stem: file for file in files if file.parts[0] != '_base_' and file.name != '__init__.py'}


def find_config(config: str | os.PathLike) -> Path:
    """Return the file of a config that is given by its path, or by the name of one that comes along.

    ``cascade_convnext_t``, ``detection/cascade_convnext_t`` and ``configs/detection/cascade_convnext_t.py``
    are found wherever the package is installed.

    Raises:
        UserError: no such file and no such name; the nearest name is in the message.
    """
    if not isinstance(config, (str, os.PathLike)):
        raise UserError(f'a config is given by its path or name, got a {type(config).__name__}')
    try:
        path = Path(config).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, no such user
        raise UserError(f'no config file at {str(config)[:100]}: {error}') from error
    parts = path.with_suffix('').parts if path.suffix == '.py' else path.parts
    below = Path(*(parts[1:] if parts[:1] == ('configs',) else parts)) if parts else path
    name = config_names().get(below.name)
    if not path.is_absolute() and name and name.with_suffix('').as_posix().endswith(below.as_posix()):
        return CONFIGS / name
    raise UserError(
        f'no config file at {config}, and none that comes along is called so'
        f'{suggest(below.name, config_names(), 0.6) or "; `convnext configs` lists them"}'
    )


def published() -> dict[str, dict]:
    """Return what the papers print about each config, as printed, by its path without suffix."""
    rows = json.loads((CONFIGS / 'published.json').read_text())
    return {name: row for name, row in rows.items() if name != 'source'}


def sizes() -> dict[str, dict]:
    """Return parameters, GFLOPs and image size of each config, as ``tools/dev/results.py`` counted them."""
    return json.loads((CONFIGS / 'sizes.json').read_text())


def check_new_config(out: Path) -> None:
    """Raise :class:`UserError` unless a new config can be written to ``out``, the value of ``--out``."""
    try:
        there = out.exists()
    except OSError as error:  # a name that is too long
        raise UserError(f'--out {str(out)[:60]}...: {error.strerror}') from error
    if there:
        raise UserError(f'{out} exists: remove it or choose another --out; nothing was changed')
    if out.suffix != '.py' or not out.parent.is_dir():
        raise UserError(f'--out {out}: give a file that ends in .py, in a folder that exists')
    check_work_dir(out.parent, '--out')


def check_work_dir(work_dir: str | os.PathLike, option: str = '--work-dir') -> None:
    """Raise :class:`UserError` unless a file can be written into ``work_dir``."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UserError(
            f'cannot write into {work_dir} ({error.strerror}): choose another {option}'
        ) from error
