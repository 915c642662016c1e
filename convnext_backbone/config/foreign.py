"""Translates other libraries' ConvNeXt backbones in a config into the line that builds ours."""

import importlib.util
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlparse

from mmengine.config import Config
from mmengine.registry import MODELS

from ..backbones.convnext import ARCHITECTURES, ConvNeXt
from ..checkpoint.zoo import RELEASED, released_as
from ..errors import UserError
from ..registry import SCOPE, type_name
from .legacy import own_values
from .text import as_written

OURS = f'{SCOPE}.ConvNeXt'
PRETRAINED = f'{SCOPE}.Pretrained'
PACKAGES = ('mmpretrain', 'mmcls')  # imported for their ConvNeXt, which is not needed
MADE_OF = {'ConvNeXt', 'ConvNeXtV2', 'ConvNextV2', 'ConvNext', 'TIMMBackbone'}  # the last of the dotted name
ARGUMENTS = [*inspect.signature(ConvNeXt.__init__).parameters][1:]
# What the others take and ours does not: how a classifier ends, layers that are the same here.
DROPPED = {
    *('gap_before_final_norm', 'linear_pw_conv', 'norm_cfg', 'act_cfg', 'use_grn', 'stem_patch_size'),
    *('head_init_scale', 'num_classes', 'features_only', 'model_name', 'in_chans', 'pretrained'),
    *(
        'checkpoint_path',
        'style',
        '_scope_',
        '_delete_',
        'type',
        'pretrained_cfg',
        'scriptable',
        'exportable',
    ),
}
FOREIGN_KEYS = {'in_chans', 'pretrained', 'gap_before_final_norm', 'use_grn', 'linear_pw_conv', 'model_name'}
MMPRETRAIN = [  # file names of mmpretrain, and the released names of their sources, by its metafile.yml
    (r'convnext-(\w+)_3rdparty_\w+-noema_in1k_', 'convnext_{}_1k_224'),
    (r'convnext-(\w+)_3rdparty_in1k-384px_', 'convnext_{}_1k_384'),
    (r'convnext-(\w+)_3rdparty_(?:\d+xb\d+_)?in1k_', 'convnext_{}_1k_224_ema'),
    (r'convnext-(\w+)_3rdparty_in21k_', 'convnext_{}_22k_224'),
    (r'convnext-(\w+)_in21k-pre[-_]3rdparty_(?:\w+_)?in1k_', 'convnext_{}_22k_1k_224'),
    (r'convnext-(\w+)_in21k-pre[-_]3rdparty_(?:\w+_)?in1k-384px_', 'convnext_{}_22k_1k_384'),
    (r'convnext-v2-(\w+)_3rdparty-fcmae_in1k_', 'convnextv2_{}_1k_224_fcmae'),
    (r'convnext-v2-(\w+)_fcmae-pre_3rdparty_in1k_', 'convnextv2_{}_1k_224_ema'),
    (r'convnext-v2-(\w+)_fcmae-in21k-pre_3rdparty_in1k_', 'convnextv2_{}_22k_224_ema'),
    (r'convnext-v2-(\w+)_fcmae-in21k-pre_3rdparty_in1k-(384|512)px_', 'convnextv2_{}_22k_{}_ema'),
]
TIMM = {  # tags of timm's names: the released weights that they are
    'fb_in1k': 'convnext_{}_1k_224_ema',
    'fb_in22k': 'convnext_{}_22k_224',
    'fb_in22k_ft_in1k': 'convnext_{}_22k_1k_224',
    'fb_in22k_ft_in1k_384': 'convnext_{}_22k_1k_384',
    'fcmae': 'convnextv2_{}_1k_224_fcmae',
    'fcmae_ft_in1k': 'convnextv2_{}_1k_224_ema',
    'fcmae_ft_in22k_in1k': 'convnextv2_{}_22k_224_ema',
    'fcmae_ft_in22k_in1k_384': 'convnextv2_{}_22k_384_ema',
}


def check_backbones(cfg: Config, path: str, found: list[tuple[str, str, str]]) -> None:
    """Stop at a backbone that is another library's ConvNeXt, which is not there.

    Args:
        cfg, path: the config, and what it is called in messages.
        found: what :func:`foreign_backbones` found.

    Raises:
        UserError: with the line that takes its place.
    """
    if not found:
        return
    texts = []
    for place, whose, line in found:
        key = place.rpartition('.')[2]
        texts.append(f'{place} is {whose}: write {key}={line}')
    raise UserError(f'{path}: {"; ".join(texts)}{_imports(cfg)}')


def _type_of(node: dict) -> str | type:
    """Return the ``type`` of a node; a class of a new-style config is imported here, if it can be."""
    try:
        kind = node.get('type')
    except ImportError:
        kind = dict.get(node, 'type')
    return kind if isinstance(kind, (str, type)) else str(kind)


def foreign_backbones(cfg: Config) -> Iterator[tuple[str, str, str]]:
    """Yield for each: its key, whose it is, and the ``dict(...)`` that takes its place."""
    model = cfg.get('model')
    if not isinstance(model, dict):
        return
    own = own_values(cfg.filename) if str(cfg.filename or '').endswith('.py') else {}
    scope = cfg.get('default_scope')
    for place, node, parent in _nodes(model, 'model', {}):
        kind = _type_of(node)
        name = type_name(kind).rpartition('.')[2]
        inner = dict.get(node, '_scope_') or scope
        if name not in MADE_OF or (name == 'TIMMBackbone' and not _timm_name(node)):
            continue
        if type_name(kind) == OURS:
            if not FOREIGN_KEYS & set(node):
                continue
            whose = f'{OURS} with arguments of another'
        elif _is_known(kind, inner):
            continue
        else:
            package = kind.partition('.')[0] if isinstance(kind, str) and '.' in kind else inner
            missing = package and importlib.util.find_spec(package) is None
            whose = f'{kind!r}, which is not known here' if isinstance(kind, str) else f'{name}'
            whose += f' ({package} is not installed, and not needed)' if missing else ''
        deletes = _own(own, place).get('_delete_', False)
        line = _line(node, parent, deletes)
        if place == 'model.backbone' and isinstance(dict.get(parent, 'pretrained'), str):
            line += ' in its place and in that of model.pretrained'
        yield place, whose, line


def own_backbones(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield, for each backbone that is another library's ConvNeXt, its key and the settings of ours."""
    model = cfg.get('model')
    for place, node, parent in list(_nodes(model, 'model', {})) if isinstance(model, dict) else ():
        name = type_name(_type_of(node)).rpartition('.')[2]
        if name not in MADE_OF or (name == 'TIMMBackbone' and not _timm_name(node)):
            continue
        if type_name(_type_of(node)) != OURS or FOREIGN_KEYS & set(node):
            yield place, _replacement(node, parent)[0]


def _nodes(node, place: str, parent: dict) -> Iterator[tuple[str, dict, dict]]:
    """Yield (key, dict, dict around it) without importing the classes of a new-style config."""
    if isinstance(node, dict):
        yield place, node, parent
        for key, value in dict.items(node):
            yield from _nodes(value, f'{place}.{key}', node)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _nodes(value, f'{place}.{index}', parent)


def _is_known(kind, scope: str | None) -> bool:
    """Return whether a registry has the type: then it is the user's own, or its library is installed."""
    if isinstance(kind, type):
        return True
    scope = scope if scope and importlib.util.find_spec(scope) else None
    with MODELS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind) is not None


def _own(own: dict, place: str) -> dict:
    """Return what the file itself says at a dotted key."""
    for part in place.split('.'):
        own = own.get(part) if isinstance(own, dict) else None
    return own if isinstance(own, dict) else {}


def divided_imports(given: dict | None, packages: tuple[str, ...] = PACKAGES) -> tuple[list, list]:
    """Return the modules of ``custom_imports`` that are of ``packages``, and the others."""
    names = (given or {}).get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    gone = [name for name in names if name.partition('.')[0] in packages]
    return gone, [name for name in names if name not in gone]


def _imports(cfg: Config) -> str:
    """Return what is to happen to ``custom_imports``."""
    gone, kept = divided_imports(cfg.get('custom_imports'))
    if not gone:
        return ''
    change = f'leave only {kept} in it' if kept else 'leave it out'
    if not kept and cfg.filename and 'custom_imports' not in own_values(cfg.filename):
        change = 'set custom_imports=dict(_delete_=True, imports=[])'  # a base has it
    return f'; custom_imports of {", ".join(gone)} goes away: {change}'


def _timm_name(node: dict) -> tuple[str, str] | None:
    """Return arch and tag of a timm network that is a ConvNeXt."""
    found = re.fullmatch(r'convnext(v2)?_([a-z]+)(?:\.(\w+))?', str(dict.get(node, 'model_name')))
    arch = found and ('v2_' if found[1] else '') + found[2]
    return (arch, found[3] or '') if arch in ARCHITECTURES else None


def _line(given: dict, model: dict, deletes: bool) -> str:
    """Return ``dict(type='convnext_backbone.ConvNeXt', ...)`` that is what was given."""
    new, left_out = _replacement(given, model)
    text = as_written({'_delete_': True, **new} if deletes else new)
    return text + (f' (it does not have {", ".join(left_out)})' if left_out else '')


def _replacement(given: dict, model: dict) -> tuple[dict, list[str]]:
    """Return the settings of ours that are what was given, and the names of those without counterpart."""
    given = dict(dict.items(given))
    arch, sizes = _arch(given)
    new = dict(type=OURS, arch=arch, **sizes)
    if given.get('in_chans', 3) != 3:
        new['in_channels'] = given['in_chans']
    left_out = []
    for key, value in given.items():
        if key in ('arch', 'depths', 'dims', 'init_cfg') or key in DROPPED:
            continue
        if key == 'out_indices':
            indices = [value] if isinstance(value, int) else list(value)
            new[key] = tuple(index + 4 if index < 0 else index for index in indices)
        elif key == 'frozen_stages':  # of mmpretrain, 0 freezes nothing
            if value and value > 0:
                new[key] = value
        elif key == 'layer_scale_init_value' and arch.startswith('v2_'):
            continue
        elif key in ARGUMENTS:
            new[key] = value
        else:
            left_out.append(key)
    if checkpoint := _checkpoint(given, model):
        new['init_cfg'] = dict(type=PRETRAINED, checkpoint=checkpoint)
    if given.get('stem_patch_size', 4) != 4:
        left_out.append(f'stem_patch_size={given["stem_patch_size"]}')
    return new, left_out


def _arch(given: dict) -> tuple[str, dict]:
    """Return the name of the size, and ``depths`` and ``dims`` where no name has them."""
    if timm := _timm_name(given):
        return timm[0], {}
    arch, kind = given.get('arch'), str(given.get('type'))
    v2 = bool(given.get('use_grn')) or 'V2' in kind
    if isinstance(arch, str) and not given.get('depths') and not given.get('dims'):
        name = f'v2_{arch}' if v2 and not arch.startswith('v2_') else arch
        if name in ARCHITECTURES:
            return name, {}
        # sizes that mmpretrain has in both versions
        base = ARCHITECTURES.get(arch) or ARCHITECTURES.get(f'v2_{arch}')
        if base is None:
            return arch, {}
    elif isinstance(arch, dict):
        base = arch.get('depths'), arch.get('channels')
    else:
        default = ARCHITECTURES.get(arch, ARCHITECTURES['tiny'])
        base = given.get('depths') or default[0], given.get('dims') or default[1]
    sizes = tuple(tuple(part) if isinstance(part, (list, tuple)) else part for part in base)
    for name, table in ARCHITECTURES.items():
        if name.startswith('v2_') == v2 and table == sizes:
            return name, {}
    return ('v2_tiny' if v2 else 'tiny'), dict(depths=sizes[0], dims=sizes[1])


def _checkpoint(given: dict, model: dict) -> str:
    """Return the weights that were asked for, by the name under which they were released if they have one."""
    inits = given.get('init_cfg') or []
    inits = [inits] if isinstance(inits, dict) else inits
    named = [init.get('checkpoint') for init in inits if type_name(init) in ('Pretrained', PRETRAINED)]
    asked = given.get('pretrained') or given.get('checkpoint_path') or next(iter(named), None)
    asked = asked or dict.get(model, 'pretrained')
    if not isinstance(asked, str):
        if asked is True and (timm := _timm_name(given)):
            name = TIMM.get(timm[1], '').format(timm[0].removeprefix('v2_'))
            found = next((n for n in (name, f'{name}_ema') if n in RELEASED), None)
            return found or f"FILE OF TIMM'S {given['model_name']}"
        return ''
    return released_name(asked) or asked


def released_name(weights: str) -> str:
    """Return the released name of a file or URL, of its authors or of mmpretrain; empty if it has none.

    A file of this machine stays what it is.
    """
    if weights in RELEASED or os.path.isfile(weights):
        return ''
    file = PurePosixPath(urlparse(weights).path).name
    stem = re.sub(r'\.(pth|pt|safetensors|bin)$', '', file)
    if stem in RELEASED:
        return stem
    if name := released_as(weights):
        return name
    for pattern, name in MMPRETRAIN:
        if found := re.match(pattern, file):
            name = name.format(*found.groups())
            return next((full for full in (name, f'{name}_ema') if full in RELEASED), '')
    return ''
