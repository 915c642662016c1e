"""Reads the tables that name the numbers or colours of masks."""

import csv
import io
import json
from pathlib import PurePosixPath

from ..errors import UserError
from .reading import Reading

TABLES = ('classes.json', 'labelmap.txt', 'class_dict.csv', '_classes.csv', 'classes.txt', 'labels.txt')


def read_table(reading: Reading) -> tuple[list[str], list, list[int] | None]:
    """Return names, colours (or none) and values (``None``: 0, 1, ...) that a file of the folder states.

    Raises:
        UserError: the file is no table, or names a class twice.
    """
    for wanted in TABLES:
        for name in reading.files:
            if PurePosixPath(name).name.lower() == wanted:
                names, colours, values = _read_table(reading, name, wanted)
                if len(set(names)) < len(names):
                    raise UserError(
                        f'{reading.path(name)} names a class twice: give every class its own name'
                    )
                if names:
                    return names, colours, values
    return [], [], None


def _read_table(reading: Reading, name: str, kind: str) -> tuple[list[str], list, list[int] | None]:
    text = reading.needed_text(name)
    try:
        if kind.endswith('.json'):
            return _read_json(json.loads(text))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if kind == 'labelmap.txt':
            rows = [line.split(':') for line in lines if not line.startswith('#')]
            return [row[0] for row in rows], [_colour(row[1].split(',')) for row in rows], None
        if kind.endswith('.csv'):
            rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO('\n'.join(lines)))]
            if kind == '_classes.csv':
                return [row[1] for row in rows[1:]], [], [int(row[0]) for row in rows[1:]]
            rows = rows if rows[0][1].isdigit() else rows[1:]
            return [row[0] for row in rows], [_colour(row[1:4]) for row in rows], None
        return lines, [], None
    except (ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f'{reading.path(name)} is no table of classes ({error}): see docs/data.md') from error


def _read_json(content) -> tuple[list[str], list, list[int] | None]:
    """Read a list of names, ``{classes, palette}``, ``{name: value or colour}`` or ``{value: name}``."""
    if isinstance(content, dict) and isinstance(content.get('classes'), list):
        content, palette = content['classes'], content.get('palette') or []
        if all(isinstance(name, str) for name in content):
            if palette and len(palette) != len(content):
                raise ValueError(f'{len(content)} classes, {len(palette)} colours')
            return content, [_colour(colour) for colour in palette], None
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        content = {row['name']: row.get('color', row.get('colour', row.get('id'))) for row in content}
    if isinstance(content, list):
        return [str(name) for name in content], [], None
    if all(str(key).isdigit() and isinstance(name, str) for key, name in content.items()):
        content = {name: int(key) for key, name in content.items()}
    if all(isinstance(value, int) for value in content.values()):
        ordered = sorted(content, key=content.get)
        return ordered, [], [content[name] for name in ordered]
    return list(content), [_colour(colour) for colour in content.values()], None


def _colour(values) -> tuple[int, int, int]:
    colour = tuple(int(value) for value in values)
    if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise ValueError(f'{values} is no colour of three numbers 0 to 255')
    return colour
