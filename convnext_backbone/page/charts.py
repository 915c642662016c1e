"""Draws what the data holds as tables and bars."""

from collections.abc import Iterator

import numpy as np

from ..html import bar, escape, table
from .samples import chip
from .statistics import Statistics

LONGEST = 40  # list of classes that is shown whole
SMALL, MEDIUM = 32, 96  # pixels: COCO's limits of the square root of a box's area
SIDES = (0, 8, 16, 32, 64, 128, 256, 512, np.inf)
NUMBERS = (0, 1, 2, 4, 8, 16, 32, 64, np.inf)


def percent(share: float) -> str:
    """Return a share in words; what is nearly everything does not become 100 %."""
    return f'{share:.1%}' if share < 0.995 or share == 1 else f'{share:.2%}'


def sides(boxes: np.ndarray) -> np.ndarray:
    """Return the square roots of the areas of boxes (n, 2)."""
    return np.sqrt(np.clip(boxes, 0, None).prod(1))


def classes(known: dict[str, Statistics]) -> str:
    """Return a row for each class with a bar for each split, the most frequent first."""
    first = next(iter(known.values()))
    lines = []
    for label in np.argsort(-first.counts, kind='stable').tolist():
        bars = []
        for second, (title, one) in enumerate(known.items()):
            if label >= len(one.counts):
                continue
            count = f'{one.counts[label]}'
            if one.what == 'pixels':
                count = f'{one.share[label]:.2%}'
            elif one.share is not None:
                count += f' ({one.share[label]:.2%} of the pixels)'
            bars.append(bar(one.counts[label] / max(one.counts.max(), 1), f'{title} {count}', bool(second)))
        lines.append(f'<div>{chip(label, first.classes[label])}</div><div>{"".join(bars)}</div>')
    text = [f'<h3>{first.what.capitalize()} of each class</h3>']
    if len(lines) > LONGEST:
        half = LONGEST // 2
        text.append(f'<div class="classes">{"".join(lines[:half])}</div>')
        text.append(f'<details><summary>{len(lines) - LONGEST} more</summary>')
        text.append(f'<div class="classes">{"".join(lines[half:-half])}</div></details>')
        lines = lines[-half:]
    text.append(f'<div class="classes">{"".join(lines)}</div>')
    ignored = [f'{title} {one.ignored:.2%}' for title, one in known.items() if one.ignored is not None]
    if ignored:
        text.append(f'<p>Ignored pixels: {escape(", ".join(ignored))}.</p>')
    return '\n'.join(text)


def _histogram(title: str, values: dict[str, np.ndarray], limits: tuple) -> str:
    """Return bars of the share of values between limits, for each of several sets."""
    lines, whole = [], limits is NUMBERS
    for low, high in zip(limits[:-1], limits[1:]):
        name = f'{low} – {high - whole}' if np.isfinite(high) else f'{low} +'
        name = str(low) if whole and high - low == 1 else name
        bars = []
        for second, (kind, own) in enumerate(values.items()):
            share = ((own >= low) & (own < high)).sum() / max(len(own), 1)
            bars.append(bar(share, f'{kind} {percent(share)}', bool(second)))
        lines.append(f'<div>{name}</div><div>{"".join(bars)}</div>')
    return f'<div><h3>{title}</h3><div class="classes">{"".join(lines)}</div></div>'


def sizes(numbers: dict[str, Statistics]) -> Iterator[str]:
    """Yield a table of the sizes of images of each split."""
    rows = []
    for title, one in numbers.items():
        if len(one.sizes):
            kinds, counts = np.unique(one.sizes, axis=0, return_counts=True)
            low, high, most = one.sizes.min(0), one.sizes.max(0), kinds[counts.argmax()]
            ranges = [f'{a:g} – {b:g}' if a < b else f'{a:g}' for a, b in zip(low, high)]
            share = f'{most[0]:g} x {most[1]:g} ({percent(counts.max() / len(one.sizes))})'
            rows.append([title, str(len(one.sizes)), *ranges, share])
    if rows:
        head = ['', 'images', 'width', 'height', 'most often']
        yield f'<div><h3>Sizes of images</h3>{table(head, rows)}</div>'


def boxes(known: dict[str, Statistics], seen: dict[str, np.ndarray] | None) -> Iterator[str]:
    """Yield a table and histograms of the sizes of boxes, and how many an image has.

    Args:
        known: by names of splits.
        seen: the square roots of the areas at the scale that is trained on, by what they are called.
    """
    given = {title: sides(one.boxes) for title, one in known.items() if one.boxes is not None}
    if not given:
        return
    rows = []
    for title, own in {**given, **(seen or {})}.items():
        if len(own):
            shares = [(own < SMALL).mean(), ((own >= SMALL) & (own < MEDIUM)).mean(), (own >= MEDIUM).mean()]
            rows.append([escape(title), str(len(own)), *map(percent, shares)])
    head = ['', 'boxes', 'small', 'medium', 'large']
    limits = f'Small: below {SMALL} x {SMALL} pixels, large: {MEDIUM} x {MEDIUM} and more.'
    yield f'<div><h3>Boxes by COCO’s sizes</h3>{table(head, rows, range(1, 5))}'
    yield f'<p class="looked">{limits}</p></div>'
    shown = {'train': next(iter(seen.values()))} if seen else given
    yield _histogram(f'Root of a box’s area, pixels{", as resized" * bool(seen)}', shown, SIDES)
    yield _histogram('Boxes in an image', {title: one.per_image for title, one in known.items()}, NUMBERS)
