"""Finds keys of a config that nothing reads: a misspelling there is a setting that silently does not hold."""

import ast
import difflib
import inspect
import os
import re
import tempfile
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError, suggest
from ..registry import SCOPE, type_name

# Top-level keys that mmengine's Runner, this package's tools or mmdet's and mmseg's tools read.
READ = {
    *inspect.signature(Runner.__init__).parameters,
    *('activation_checkpointing', 'efficient_conv_bn_eval', 'compile', 'custom_imports'),
    *('fsdp', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'tta_model', 'tta_pipeline'),
} - {'self', 'cfg'}


def apply_options(cfg: Config, options: dict) -> None:
    """Merge ``--cfg-options``, each of which must name something that exists.

    A new key is allowed only where something will check it: among the arguments of a ``type``.

    Raises:
        UserError: naming the key and the nearest that exists.
    """
    for key in options:
        node, parts = dict(cfg.items()), key.split('.')
        for depth, part in enumerate(parts):
            if isinstance(node, (list, tuple)):
                if not part.isdigit() or int(part) >= len(node):
                    raise UserError(
                        f'--cfg-options {key}: {".".join(parts[:depth])} is a list of {len(node)}, '
                        f'{part!r} is no index of it'
                    )
                node = node[int(part)]
                continue
            names = list(node) if isinstance(node, dict) else []
            if part in names:
                node = node[part]
                continue
            argument = 'type' in names and depth == len(parts) - 1
            if argument or (depth == 0 and part in READ):
                break
            raise UserError(
                f'--cfg-options {key}: the config has no {".".join(parts[: depth + 1])}'
                + suggest(part, [*names, *(READ if depth == 0 else ())])
            )
    variables = {key.split('.')[0] for key in options} - READ
    if variables:
        name = min(variables)
        raise UserError(
            f'--cfg-options {name}: this is a variable of the config file; what uses it has its value '
            'already, set that instead (e.g. train_cfg.max_epochs, train_dataloader.dataset.data_root)'
        )
    cfg.merge_from_dict(options)


def check_keys(cfg: Config) -> None:
    """Check that every key is read by something, and remove variables that have done their part.

    At the top level see :func:`unread`. Below, the arguments of a ``type`` are checked when it is built; in a
    dict without one, and for hooks that take any argument, a key that is nearly the name of another is taken
    for a misspelling.

    Raises:
        UserError: naming the key, the file and the nearest key that is read.
    """
    where = cfg.filename or 'the config'
    for key, file, advice in unread(cfg):
        raise UserError(f'{file} sets {key!r}, and nothing reads it{advice}')
    for key in [key for key in cfg if key not in READ]:
        cfg.pop(key)
    _check_untyped(dict(cfg.items()), where, '')
    for hook in hooks_of(cfg):
        _check_hook(hook, where)


def unread(cfg: Config) -> Iterator[tuple[str, str, str]]:
    """Yield (key, file that sets it, what to do) for each key at the top level that nothing reads.

    Read are the keys in :data:`READ`, and a variable that the file which sets it, or one that inherits from
    that file, uses by name, or whose value has arrived in what is read, if some file uses its name or it is
    set by files without names only (dumped configs). ``None`` is as good as not set. In a new-style config,
    whose bases are imported, everything is a variable that is not nearly the name of a key that is read.
    """
    exists = bool(cfg.filename) and os.path.isfile(cfg.filename)  # a Config may outlive its file
    source = cfg.filename if exists else None
    where = cfg.filename or 'the config'
    files = list(_sources(source)) if source else []
    dumped = {file for file, sets, used in files if used <= {'dict'} and '_base_' not in sets}
    new_style = source is not None and Config._is_lazy_import(source)
    arrived = [node for key in cfg if key in READ for node in nodes(cfg[key])]
    imported = set(cfg.keys()) - cfg.to_dict().keys()
    for key in [key for key in cfg if key not in READ]:
        value = cfg[key]
        if value is None or key in imported or isinstance(value, type):  # off; a class that some ``type`` is
            continue
        setters = [(file, used) for file, sets, used in files if key in sets]
        if setters and all(key in used for _, used in setters):
            continue
        a_variable = any(key in used for _, used in setters)
        written = all(file in dumped for file, _ in setters)  # by a program, or in JSON or YAML
        near = difflib.get_close_matches(key, READ, 1, 0.9)
        parts = value if isinstance(value, list) else [value]
        if (a_variable or (written and not near)) and all(part in arrived for part in parts):
            continue
        if new_style and not near:
            continue
        file = next((file for file, used in setters if key not in used), where)
        if a_variable:
            advice = ': what a base file made of it stays as it was; set that, or remove it'
        else:
            advice = suggest(key, READ) or ': remove it'
        yield key, file, advice


def _check_untyped(node, file: str, path: str) -> None:
    """Raise :class:`UserError` where two keys of a dict that nothing is built from are nearly the same."""
    if path.endswith('custom_keys.'):  # patterns of parameter names
        return
    if isinstance(node, dict):
        names = [name for name in node if isinstance(name, str)]
        for i, name in enumerate(names if path and 'type' not in node else ()):
            if near := difflib.get_close_matches(name, names[:i], 1, 0.92):
                raise UserError(f'{file}: nothing reads {path}{name}; did you mean {near[0]!r}?')
        for name, child in node.items():
            _check_untyped(child, file, f'{path}{name}.')
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            _check_untyped(child, file, f'{path}{index}.')


def dicts(value) -> list[dict]:
    """Return every dict in a config's value, itself included; they may be changed."""
    return [node for node in nodes(value) if isinstance(node, dict)]


def hooks_of(cfg: Config) -> list:
    """Return the hooks that a config changes or adds."""
    given = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return [hook for hook in given if hook]


def _check_hook(hook: dict, file: str) -> None:
    kind = hook.get('type') if isinstance(hook, dict) else None
    if type_name(kind).startswith(f'{SCOPE}.'):  # takes no arguments but those it names
        return
    cls = HOOKS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        return
    known = [name for name in inspect.signature(cls.__init__).parameters if name != 'kwargs']
    for name in hook:
        if name not in known and (near := difflib.get_close_matches(name, known, 1, 0.85)):
            raise UserError(f'{file}: {type_name(kind)} does not know {name}; did you mean {near[0]!r}?')


def nodes(value) -> Iterator:
    """Yield the value, and every value inside it."""
    yield value
    if isinstance(value, (dict, list, tuple)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from nodes(child)


def walk(value, place: str) -> Iterator[tuple[str, dict]]:
    """Yield every dict in a value, with its dotted key."""
    if isinstance(value, dict):
        yield place, value
        for key, child in value.items():
            yield from walk(child, f'{place}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from walk(child, f'{place}.{index}')


def value_at(cfg, key: str):
    """Return what stands at a dotted key; ``None`` if nothing does."""
    node = cfg
    for part in key.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if hasattr(node, 'get') else None
    return node


def set_at(cfg, key: str, value) -> None:
    """Set what stands at a dotted key; dicts on the way are made, tuples become lists."""
    *way, last = key.split('.')
    node = cfg
    for part in way:
        place = int(part) if isinstance(node, list) else part
        if isinstance(node, (dict, Config)):
            if node.get(part) is None:
                node[part] = {}
            if isinstance(node[part], tuple):
                node[part] = list(node[part])
        elif isinstance(node[place], tuple):
            node[place] = list(node[place])
        node = node[place]
    node[int(last) if isinstance(node, list) else last] = value


def _sources(filename: str, heirs: frozenset = frozenset()) -> Iterator[tuple[str, set, set]]:
    """Yield for a config file and all its bases: (file, names it sets, names used there or in its heirs)."""
    if not str(filename).endswith('.py') or Config._is_lazy_import(filename):
        return
    text, bases = _filled(filename)
    tree = ast.parse(text)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    inherited = heirs | set(re.findall(r'_base_\.(\w+)', text))
    sets = {
        name.id
        for statement in tree.body
        if isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        for target in getattr(statement, 'targets', None) or [statement.target]
        for name in (target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target])
        if isinstance(name, ast.Name)
    }
    yield str(filename), sets, used | inherited
    for base in bases:
        yield from _sources(base, inherited)


def _filled(filename: str) -> tuple[str, list[str]]:
    """Return the text of a config file as mmengine runs it, and the files of its ``_base_``.

    That is with ``{{ fileDirname }}`` and its like and ``{{$VARIABLE:default}}`` replaced by their values.
    """
    path = os.path.abspath(filename)
    with tempfile.TemporaryDirectory() as folder:
        filled = os.path.join(folder, 'config.py')
        Config._substitute_predefined_vars(path, filled)
        Config._substitute_env_variables(filled, filled)
        with open(filled, encoding='utf-8') as stream:
            text = stream.read()
        return text, [Config._get_cfg_path(base, path)[0] for base in Config._get_base_files(filled)]
