"""Writes what the check of a GPU found as one page that needs nothing else."""

from ..html import document, escape, table
from . import PARTS, Outcome
from .rows import Row


def _marked(row: Row) -> list[str]:
    mark = '' if row.right else ' class="wrong"'
    return [f'<span{mark}>{escape(text)}</span>' for text in (row.what, row.found)]


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
                escape(PARTS[name].what),
                str(len(outcome.rows)),
                f'<span{mark}>{escape(said)}</span>',
                f'{outcome.seconds:.0f} s',
            ]
        )
    text = [
        f'<p>{escape(machine)}</p>',
        table(['part', '', 'comparisons', 'found', 'time'], parts),
    ]
    if wrong:
        rows = [[name, *_marked(row)] for name, row in wrong]
        text += ['<h2>What is wrong</h2>', table(['part', 'what', 'found'], rows)]
    for name, outcome in outcomes.items():
        shown = ' open' if name in ('choice', 'speed') else ''
        text.append(f'<details id="{name}"{shown}><summary>{escape(PARTS[name].what)}</summary>')
        text += [table(['what', 'found'], list(map(_marked, outcome.rows))), '</details>']
    return document(title, text)
