"""Reads the config whose backbone is to be replaced, wherever it lies and however it is written."""

import contextlib
import difflib
import functools
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..checkpoint.read import close_unsafe_reader
from ..config.files import find_config
from ..config.foreign import own_backbones
from ..config.keys import set_at
from ..config.legacy import check_source, is_old
from ..errors import UserError, message, suggest
from ..measure import Measured, measure
from .translate import translated

FOLDER = '.mim'  # in which packages of OpenMMLab install their configs
PACKAGES = ('mmdet', 'mmseg')  # whose configs are named by ``mmdet::folder/file.py``


@dataclass
class Source:
    """Is a config to be swapped.

    Attributes:
        cfg: with everything that it inherits.
        base: what a config that inherits from it writes as ``_base_``; absolute if it is a path.
        lazy: whether it is written as Python imports (``with read_base()``).
        old: whether it was translated from mmdet 2.x or mmseg 0.x: nothing can inherit from its file.
        notes: for each setting of such a one that has no counterpart, a line.
    """

    cfg: Config
    base: str
    lazy: bool
    old: bool = False
    notes: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Return whether its base is a file that mmdet or mmseg has installed, which stays where it is."""
        return '::' not in self.base and FOLDER in Path(self.base).parts

    @functools.cached_property
    def known(self) -> Config:
        """Return the config as plain settings, with ours in the place of another library's ConvNeXt."""
        cfg = Config(self.cfg.to_dict(), filename=self.cfg.filename)
        for place, node in own_backbones(cfg):  # which may not be there
            set_at(cfg, place, node)
        return cfg

    @functools.cached_property
    def measured(self) -> Measured:
        """Measure the maps of its backbones, and what reads them."""
        return measure(self.known)


def shipped_configs(package: str) -> dict[str, Path]:
    """Return the configs that mmdet or mmseg installs, by their path below its folder of configs.

    Raises:
        UserError: another package, or it is not installed.
    """
    if package not in PACKAGES:
        raise UserError(f'configs are shipped by {" and ".join(PACKAGES)}, got {package!r}')
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f'{package} is not installed, so its configs are not here: see docs/install.md')
    folder = Path(spec.origin).parent / FOLDER / 'configs'
    files = (path.relative_to(folder) for path in sorted(folder.rglob('*.py')))
    return {file.as_posix(): folder / file for file in files if '_base_' not in file.parts}


def read_source(name: str | os.PathLike) -> Source:
    """Read a config by its path, by ``mmdet::folder/file.py``, or by the name of a file of these packages.

    Configs of either way to write them, dumped ones, and those that need a package that is not here only to
    be read (mmpretrain) are taken; those of mmdet 2.x and mmseg 0.x are translated.

    Raises:
        UserError: no such config, with the nearest name; it cannot be read or translated; it has no model.
    """
    close_unsafe_reader()
    path, base = _find(str(name))
    try:
        cfg = _read(path)
    except Exception as error:  # whatever a config runs
        if path.suffix == '.py':
            check_source(str(path))
        text = ' '.join(message(error).split())
        raise UserError(f'{name} cannot be read: {type(error).__name__}: {text}') from error
    if not isinstance(cfg.get('model'), dict):
        raise UserError(f'{name} has no model: it is a part of a config (a _base_), not one to swap')
    if is_old(cfg):  # a new one may have a key of the old ones left, which nothing reads
        try:
            cfg, lines = translated(cfg)
        except Exception as error:  # whatever someone wrote into it
            text = ' '.join(message(error).split())
            raise UserError(
                f'{name} is a config of mmdet 2.x or mmseg 0.x that could not be translated: '
                f'{type(error).__name__}: {text}'
            ) from error
        return Source(cfg, base, False, True, tuple(lines))
    return Source(cfg, base, path.suffix == '.py' and Config._is_lazy_import(str(path)))


def _read(path: Path) -> Config:
    """Return the config of a file, also where its ``custom_imports`` name what is not installed."""
    with contextlib.suppress(ImportError):
        return Config.fromfile(path)
    return Config.fromfile(path, import_custom_modules=False)


def _find(name: str) -> tuple[Path, str]:
    package, colons, inner = name.partition('::')
    if colons:
        configs = shipped_configs(package)
        if inner not in configs:
            raise UserError(f'{package} has no config {inner}{suggest(inner, configs, 0.6)}')
        return configs[inner], name if _is_base(name) else str(configs[inner])
    with contextlib.suppress(OSError):
        if (path := Path(name).expanduser()).is_file():
            return path, str(path.resolve())
    found = []
    for package in PACKAGES:
        if importlib.util.find_spec(package) is not None:
            configs = shipped_configs(package)
            found += [f'{package}::{c}' for c in configs if c == name or c.endswith(f'/{name}')]
    if len(found) > 1:
        raise UserError(f'{name} is the name of {len(found)} configs: write {" or ".join(found)}')
    if found:
        return _find(found[0])
    try:
        path = find_config(name)
    except UserError:
        names = [c for p in PACKAGES if importlib.util.find_spec(p) for c in shipped_configs(p)]
        near = suggest(Path(name).name, [Path(c).name for c in names], 0.6)
        raise UserError(f'no config file at {name}, and neither mmdet nor mmseg ships one{near}') from None
    return path, str(path)


def similar_configs(name: str, number: int = 8) -> list[str]:
    """Return names of shipped configs that are called nearly like a config, the nearest first."""
    inner = name.rpartition('::')[2]
    names = [f'{p}::{c}' for p in PACKAGES if importlib.util.find_spec(p) for c in shipped_configs(p)]
    stems = {full.rpartition('::')[2]: full for full in names}
    near = difflib.get_close_matches(inner, stems, number + 1, 0.3)
    near += difflib.get_close_matches(Path(inner).name, [Path(s).name for s in stems], number, 0.5)
    full = [stems.get(n) or next(f for s, f in stems.items() if s.endswith(f'/{n}')) for n in near]
    return [n for n in dict.fromkeys(full) if not n.endswith(f'::{inner}')]


@functools.cache
def _is_base(name: str) -> bool:
    """Return whether mmengine finds ``package::file``: it asks for a distribution by its original name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'config.py'
        file.write_text(f'_base_ = {name!r}\n')
        try:
            Config.fromfile(file, import_custom_modules=False)
        except Exception:
            return False
    return True
