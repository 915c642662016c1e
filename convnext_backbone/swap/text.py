"""Writes a swapped config: what it inherits from, and only the differences, each with its reason.

A config that was translated from one of mmdet 2.x or mmseg 0.x is written whole.
"""

import os
import textwrap
from collections.abc import Iterator

from mmengine.config import Config

from ..config.text import as_written
from ..errors import UserError
from .plan import Change, Plan
from .source import Source

WIDTH = 110
TWINS = {'test_dataloader': 'val_dataloader', 'test_evaluator': 'val_evaluator'}  # often the same


def config_text(source: Source, plan: Plan, arch: str, folder: str | os.PathLike) -> str:
    """Return the text of a config that inherits from the original, in the way in which that is written.

    Args:
        source: the original.
        plan: what changes.
        arch: of the ConvNeXt.
        folder: in which the text will lie: a base that is a path is written relative to it.
    """
    base = source.base
    if source.old:
        return _whole_text(plan, arch)
    if '::' not in base and not source.installed:
        base = os.path.relpath(base, folder)
        base = base if base.startswith('.') else f'./{base}'
    tree = nested(plan.changes)
    lines = _head(f'ConvNeXt {arch} in the place of the backbone, written by `convnext swap`.', plan.notes)
    if source.lazy:
        return _lazy_text(source, base, tree, lines)
    lines += [f'_base_ = {base!r}', '']
    for name, node in tree.items():
        lines += assignment(name, node, source.cfg, f'_base_.{name}')
    return '\n'.join(lines).rstrip() + '\n'


def _head(first: str, notes: list[str]) -> list[str]:
    """Return the lines of the docstring, and an empty one."""
    rows = [line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent='    ')]
    rows = [row.replace('\\', '\\\\').replace('"""', "'''") for row in rows]
    return [f'"""{first}', '', *rows, '"""', ''] if rows else [f'"""{first}"""', '']


def _whole_text(plan: Plan, arch: str) -> str:
    """Return the text of a config that inherits from nothing."""
    first = f'ConvNeXt {arch} in the place of the backbone, written by `convnext swap` from an older config.'
    lines, tree, cfg = _head(first, plan.notes), nested(plan.changes), plan.cfg.to_dict()
    for name, value in cfg.items():
        twin = TWINS.get(name)
        if twin in cfg and cfg[twin] == value and name not in tree:
            lines += [f'{name} = {twin}', '']
        else:
            lines += [*_full(f'{name} = ', value, tree.get(name), '', '', []), '']
    return '\n'.join(lines).rstrip() + '\n'


def _full(start: str, value, node, indent: str, end: str, before: list[str]) -> list[str]:
    """Return the lines of a whole value of which some parts changed, with the reasons at these.

    Args:
        start, indent, end: as of :func:`_entry`.
        node: a :class:`Change`, a dict of such by the parts of their keys, or ``None``.
        before: the lines above.
    """
    if isinstance(node, Change):
        return _reasoned(node.why, _value(start, value, indent, end), indent, before)
    if not node:
        return _value(start, value, indent, end)
    several = isinstance(value, (list, tuple))
    inner, (left, right) = indent + '    ', '[]' if several else ('dict(', ')')
    lines = [f'{indent}{start}{left}']
    for name, child in enumerate(value) if several else value.items():
        begin = '' if several else f'{name}='
        lines += _full(begin, child, node.get(str(name)), inner, ',', lines)
    return [*lines, f'{indent}{right}{end}']


def _lazy_text(source: Source, base: str, tree: dict, lines: list[str]) -> str:
    """Return the text of a config that inherits by a Python import."""
    if '::' in base:
        module = base.replace('::', '/').removesuffix('.py').replace('/', '.').replace('-', '_')
    else:
        parts = os.path.normpath(base).removesuffix('.py').split(os.sep)
        ups = sum(part == '..' for part in parts)
        module = '.' * (ups + 1) + '.'.join(part for part in parts if part != '..')
    if not all(map(str.isidentifier, filter(None, module.split('.')))):
        raise UserError(
            f'{base} is written as Python imports, and no other config can import it: rename it or its '
            'folder, so that both are names of Python modules'
        )
    lines += [
        'from mmengine.config import read_base',
        '',
        'with read_base():',
        f'    from {module} import *',
        '',
    ]
    for name, node in tree.items():
        old = source.cfg.get(name)
        text = assignment(name, node, source.cfg, name)
        lines += _merged(name, text) if isinstance(old, dict) else text
    return '\n'.join(lines).rstrip() + '\n'


def _merged(name: str, lines: list[str]) -> list[str]:
    """Return an assignment of a dict as a change of the one that was imported."""
    first = next(i for i, line in enumerate(lines) if line.startswith(f'{name} = '))
    last = max(i for i, line in enumerate(lines) if line.startswith(')') or i == first)
    code, mark, why = lines[last].partition('  # ')
    lines[last] = f'{code}){mark}{why}'
    lines[first] = lines[first].replace(f'{name} = ', f'{name}.merge(', 1)
    return lines


def nested(changes: list[Change]) -> dict:
    """Return the changes as nested dicts by the parts of their keys."""
    tree = {}
    for change in changes:
        *way, last = change.key.split('.')
        node = tree
        for part in way:
            node = node.setdefault(part, {})
            if isinstance(node, Change):  # a part of what changes as a whole: it is in there already
                break
        else:
            node[last] = change
    return tree


def assignment(name: str, node, cfg: Config, base: str) -> list[str]:
    """Return the lines that set a variable at the top level, and an empty one."""
    return [*_entry(f'{name} = ', node, cfg.get(name), base, '', '', []), '']


def _entry(start: str, node, old, base: str, indent: str, end: str, before: list[str]) -> list[str]:
    """Return the lines of one change, or of a dict or list that holds some.

    Args:
        start: what stands before the value.
        node: a :class:`Change`, or a dict of such by the parts of their keys.
        old: what the original has there.
        base: how a config names that.
        indent, end: what stands before and behind the value's lines.
        before: the lines above: a reason that has just been given is not repeated.
    """
    if isinstance(node, Change):
        return _reasoned(node.why, _value(start, node.new, indent, end), indent, before)
    several = isinstance(old, (list, tuple))
    if len(node) == 1 and not several:  # one line, if it fits
        ((name, child),) = node.items()
        inner = _entry(f'{name}=', child, _item(old, name), f'{base}.{name}', '', '', [])
        if len(inner) == 1:
            code, _, why = inner[0].partition('  # ')
            line = f'{indent}{start}dict({code}){end}'
            if len(line) <= WIDTH:
                return _reasoned(why, [line], indent, before)
    left, right = '[]' if several else ('dict(', ')')
    lines, inner = [f'{indent}{start}{left}'], indent + '    '
    if not several:
        for name, child in node.items():
            lines += _entry(f'{name}=', child, _item(old, name), f'{base}.{name}', inner, ',', lines)
        return [*lines, f'{indent}{right}{end}']
    for index in range(len(old)):
        child, item = node.get(str(index)), f'{base}[{index}]'
        if child is None:
            lines.append(f'{inner}{item},')
        elif isinstance(child, Change):
            lines += _entry('', child, old[index], item, inner, ',', lines)
        else:
            lines += _changed_item(child, old[index], item, inner, '', lines)
    return [*lines, f'{indent}{right}{end}']


def _changed_item(node: dict, old, base: str, indent: str, start: str, before: list[str]) -> list[str]:
    """Return the lines of a dict that is the base's with some keys changed: items of lists do not inherit."""
    if isinstance(old, (list, tuple)):
        return _entry(start, node, old, base, indent, ',', [])
    if len(node) == 1 and isinstance(child := next(iter(node.values())), Change):
        line = f'{indent}{start}dict({base}, {next(iter(node))}={as_written(child.new)}),'
        if len(line) <= WIDTH:
            return _reasoned(child.why, [line], indent, before)
    lines, inner = [f'{indent}{start}dict(', f'{indent}    {base},'], indent + '    '
    for name, child in node.items():
        if isinstance(child, Change):
            lines += _entry(f'{name}=', child, None, '', inner, ',', lines)
        else:
            lines += _changed_item(child, _item(old, name), f'{base}.{name}', inner, f'{name}=', lines)
    return [*lines, f'{indent}),']


def _item(old, name: str):
    return old.get(name) if isinstance(old, dict) else None


def _reasoned(why: str, lines: list[str], indent: str, before: list[str]) -> list[str]:
    """Return lines with their reason: at the end of a single one if it fits, else above."""
    said = next((line for line in reversed(before) if '# ' in line), '')
    if said.endswith(f'# {why}'):
        return lines
    if len(lines) == 1 and len(lines[0]) + len(why) + 4 <= WIDTH:
        return [f'{lines[0]}  # {why}']
    return [f'{indent}# {why}', *lines]


def _value(start: str, value, indent: str, end: str) -> list[str]:
    """Return the lines of a value: one if it fits."""
    line = f'{indent}{start}{as_written(value)}{end}'
    if len(line) <= WIDTH or not isinstance(value, (dict, list, tuple)) or not value:
        return [line]
    inner = indent + '    '
    if isinstance(value, dict):
        named = all(map(str.isidentifier, value))
        starts = [f'{name}=' if named else f'{name!r}: ' for name in value]
        left, right = ('dict(', ')') if named else ('{', '}')
        rows = _filled(list(zip(starts, value.values())), inner)
    else:
        left, right = '[]' if isinstance(value, list) else '()'
        rows = [row for child in value for row in _value('', child, inner, ',')]
    return [f'{indent}{start}{left}', *rows, f'{indent}{right}{end}']


def _filled(items: list[tuple[str, object]], indent: str) -> list[str]:
    """Return the lines of named values, as many in a line as fit."""
    rows = []
    for start, value in items:
        text = f'{start}{as_written(value)},'
        plain = rows and rows[-1].endswith(',') and rows[-1].lstrip()[0] not in ')]}'
        if plain and len(rows[-1]) + len(text) < WIDTH:
            rows[-1] += f' {text}'
        else:
            rows += _value(start, value, indent, ',')
    return rows


def table(plan: Plan) -> Iterator[str]:
    """Yield the lines of a table of the changes: field, from, to, why."""
    rows = [('field', 'from', 'to', 'why')]
    rows += [(c.key, _cut(c.old), _cut(c.new), c.why) for c in plan.changes]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        yield '  '.join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]])


def _cut(value) -> str:
    if isinstance(value, dict):
        inner = value.get('optimizer', value)
        shown = {k: v for k, v in inner.items() if k in ('type', 'arch', 'lr', 'depth', 'out_indices')}
        text = as_written(shown or {k: inner[k] for k in list(inner)[:2]})
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        text = ', '.join(str(item.get('type')).rpartition('.')[2] for item in value)
    else:
        text = '-' if value is None else as_written(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
