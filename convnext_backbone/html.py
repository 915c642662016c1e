"""Writes pages of one file that need nothing else: no script, nothing from the network, dark where asked."""

import base64
import colorsys
from collections.abc import Iterable
from html import escape

__all__ = ['bar', 'colour', 'document', 'escape', 'picture', 'table']

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
img { max-width: 100%; }
.table { overflow-x: auto; }
.table td, .table th { overflow-wrap: normal; }
table { border-collapse: collapse; }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.wrong { color: #a40000; font-weight: 600; }
.bar { display: flex; align-items: center; gap: .4rem; font-size: .8rem; line-height: 1.3; }
.bar span { background: #3b6ea5; height: .7em; min-width: 1px; flex: none; border-radius: 2px;
  width: calc((100% - 8.5rem) * var(--share)); }
.bar.second span { background: #d08a2e; }
summary { cursor: pointer; padding: .3rem 0; }
@media (max-width: 30rem) { h1 { font-size: 1.5rem; } table { font-size: .85rem; }
  td, th { padding-right: .5rem; } }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #eee; }
  a { color: #9cf; } td, th { border-color: #444; } .wrong { color: #ff8a8a; } }
"""


def document(title: str, parts: Iterable[str], style: str = '') -> str:
    """Return a whole page.

    Args:
        title: plain text, also the first heading.
        parts: what follows, as HTML.
        style: CSS beside :data:`STYLE`.
    """
    head = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{escape(title)}</title><style>{STYLE}{style}</style>',
        f'<h1>{escape(title)}</h1>',
    ]
    return '\n'.join([*head, *parts, '</html>\n'])


def table(head: list[str], rows: Iterable[list[str]], numbers: Iterable[int] = ()) -> str:
    """Return a table that scrolls where it is too wide.

    Args:
        head: plain text; empty for a table without.
        rows: of cells in HTML.
        numbers: columns that are set to the right.
    """
    marks = dict.fromkeys(numbers, ' class="number"')
    cells = ''.join(f'<th{marks.get(i, "")}>{escape(text)}</th>' for i, text in enumerate(head))
    lines = [f'<tr>{cells}</tr>'] if head else []
    for row in rows:
        cells = ''.join(f'<td{marks.get(i, "")}>{cell}</td>' for i, cell in enumerate(row))
        lines.append(f'<tr>{cells}</tr>')
    return f'<div class="table"><table>{"".join(lines)}</table></div>'


def bar(share: float, text: str, second: bool = False) -> str:
    """Return a bar with a text behind it.

    Args:
        share: of the longest possible bar, 0 to 1; that one leaves room for the text.
        text: plain text.
        second: in the second of two colours.
    """
    kind = ' second' if second else ''
    strip = f'<span style="--share:{share:.4f}"></span>' if share else ''
    return f'<div class="bar{kind}">{strip}{escape(text)}</div>'


def colour(label: int) -> str:
    """Return the colour of a class, unlike that of the classes before it."""
    hue, value = label * 0.618034 % 1, (1, 0.75)[label // 8 % 2]
    return '#' + ''.join(f'{round(255 * part):02x}' for part in colorsys.hsv_to_rgb(hue, 0.85, value))


def picture(data: bytes, description: str, kind: str = 'jpeg') -> str:
    """Return an image that is part of the page.

    Args:
        data: content of an image file.
        description: plain text for those who do not see it.
        kind: of the file: ``jpeg`` or ``png``.
    """
    return (
        f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(description)}">'
    )
