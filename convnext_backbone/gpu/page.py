"""Writes what the check of a GPU found as one page that needs nothing else."""

import html

from . import PARTS, Outcome
from .rows import Row

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
.number { text-align: right; }
.wrong { color: #a40000; font-weight: 600; }
summary { cursor: pointer; padding: .3rem 0; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #eee; }
  td, th { border-color: #444; } .wrong { color: #ff8a8a; } }
"""


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = ''.join(f'<th>{html.escape(text)}</th>' for text in head)
    lines = [f'<tr>{cells}</tr>']
    lines += [f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in rows]
    return f'<div class="table"><table>{"".join(lines)}</table></div>'


def _marked(row: Row) -> list[str]:
    mark = '' if row.right else ' class="wrong"'
    return [f'<span{mark}>{html.escape(text)}</span>' for text in (row.what, row.found)]


def page(machine: str, outcomes: dict[str, Outcome]) -> str:
    """Return the page: what is wrong first, then each part, then every comparison.

    Args:
        machine: GPU, versions and date, in one line.
        outcomes: by the names of the parts.
    """
    wrong = [(name, row) for name, outcome in outcomes.items() for row in outcome.rows if not row.right]
    failed = [name for name, outcome in outcomes.items() if outcome.failure]
    count = len(wrong) + len(failed)
    title = (
        f'{count} things are wrong' if count > 1 else '1 thing is wrong' if count else 'Everything is right'
    )
    parts = []
    for name, outcome in outcomes.items():
        bad = sum(not row.right for row in outcome.rows)
        mark = '' if outcome.right else ' class="wrong"'
        said = outcome.failure or ('right' if not bad else f'{bad} wrong')
        parts.append(
            [
                f'<a href="#{name}">{name}</a>',
                html.escape(PARTS[name].what),
                str(len(outcome.rows)),
                f'<span{mark}>{html.escape(said)}</span>',
                f'{outcome.seconds:.0f} s',
            ]
        )
    text = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{title}</title><style>{STYLE}</style>',
        f'<h1>{title}</h1><p>{html.escape(machine)}</p>',
        _table(['part', '', 'comparisons', 'found', 'time'], parts),
    ]
    if wrong:
        rows = [[name, *_marked(row)] for name, row in wrong]
        text += ['<h2>What is wrong</h2>', _table(['part', 'what', 'found'], rows)]
    for name, outcome in outcomes.items():
        shown = ' open' if name in ('choice', 'speed') else ''
        text.append(f'<details id="{name}"{shown}><summary>{html.escape(PARTS[name].what)}</summary>')
        text += [_table(['what', 'found'], list(map(_marked, outcome.rows))), '</details>']
    return '\n'.join([*text, '</html>\n'])
