"""Draws curves as SVG, matrices as tables, and pictures with truth and prediction side by side."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..html import colour, escape, picture

WIDE = 420  # pixels of a picture's longer side
STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: .5rem; }
.pair.many { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
.pair figure { margin: 0; } .pair img { width: 100%; }
td .bar { min-width: 11rem; }
figcaption { font-size: .8rem; line-height: 1.4; }
svg.curve { width: 100%; max-width: 26rem; height: auto; }
svg.curve text { font: 11px system-ui, sans-serif; fill: CanvasText; }
svg.curve .axis { stroke: CanvasText; stroke-opacity: .4; fill: none; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.matrix td { text-align: center; padding: .15rem .3rem; min-width: 2rem; border: 0; font-size: .8rem; }
.matrix th { font-size: .75rem; font-weight: 400; }
:root { color-scheme: light dark; }
"""
COLOURS = ('#3b6ea5', '#d08a2e', '#4b9d5a', '#b0485e', '#7a5ab0', '#5b8c9c', '#9c7a3b', '#777777')


def curve(
    title: str,
    lines: dict[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    diagonal: bool = False,
) -> str:
    """Return curves from 0 to 1 in both directions.

    Args:
        title: plain text above.
        lines: x and y values by their names; NaN leaves a gap.
        x, y: names of the axes.
        diagonal: draw where x and y are equal.
    """
    left, top, side = 34, 8, 240

    def place(a: float, b: float) -> str:
        return f'{left + a * side:.1f},{top + (1 - b) * side:.1f}'

    parts = [f'<rect class="axis" x="{left}" y="{top}" width="{side}" height="{side}"/>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<text x="{left - 4}" y="{top + (1 - tick) * side + 4}" text-anchor="end">{tick:g}</text>'
        )
        parts.append(
            f'<text x="{left + tick * side}" y="{top + side + 14}" text-anchor="middle">{tick:g}</text>'
        )
    if diagonal:
        parts.append(f'<path class="axis" d="M{place(0, 0)} L{place(1, 1)}"/>')
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        colour, row = COLOURS[number % len(COLOURS)], top + 12 + 14 * number
        points = [place(a, b) for a, b in zip(xs, ys) if a == a and b == b]
        if points:
            parts.append(
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        label = f'<text x="{left + side + 22}" y="{row}">{escape(name)}</text>'
        parts.append(
            f'<rect x="{left + side + 8}" y="{row - 9}" width="9" height="9" fill="{colour}"/>{label}'
        )
    width, height = left + side + 130, top + side + 34
    parts.append(
        f'<text x="{left + side / 2}" y="{height - 4}" text-anchor="middle">{escape(x)}, {escape(y)}</text>'
    )
    name = escape(f'{title}: {y} against {x}')
    body = ''.join(parts)
    drawn = f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{body}</svg>'
    return f'<div><h3>{escape(title)}</h3>{drawn}</div>'


def folded(title: str, content: str, count: int, most: int = 30) -> str:
    """Return a part under a heading; of more than ``most`` rows it is shut until it is opened."""
    if count <= most:
        return f'<h3>{escape(title)}</h3>{content}'
    return f'<details><summary>{escape(title)}: {count}</summary>{content}</details>'


def matrix(counts: np.ndarray, names: Sequence[str], most: int = 15) -> str:
    """Return shares of each row as shades; of many classes those that are confused most.

    Args:
        counts: (classes, classes), row the truth, column what it was taken for.
        names: of the classes.
        most: classes that are shown.
    """
    counts = np.asarray(counts, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = counts - np.diag(counts.diagonal())
    kept = sorted(np.argsort(-wrong.sum(1) - wrong.sum(0), kind='stable')[:most].tolist())
    head = ''.join(f'<th>{escape(names[c])}</th>' for c in kept)
    lines = [f'<tr><th></th>{head}</tr>']
    for r in kept:
        cells = []
        for c in kept:
            share = shares[r, c]
            style = f'background:rgba(59,110,165,{share:.2f});color:{"#fff" if share > 0.5 else "inherit"}'
            text = f'{share:.0%}' if counts[r, c] else ''
            cells.append(f'<td style="{style}" title="{counts[r, c]:.0f}">{text}</td>')
        lines.append(f'<tr><th>{escape(names[r])}</th>{"".join(cells)}</tr>')
    size = len(names)
    note = f'<p>The {len(kept)} of {size} classes that are confused most.</p>' if size > len(kept) else ''
    return f'{note}<div class="table"><table class="matrix">{"".join(lines)}</table></div>'


def percent(value: float | None) -> str:
    """Return a share as a number of percent; a dash where there is none."""
    return '-' if value is None or np.isnan(value) or value < 0 else f'{100 * value:.1f}'


def reduced(image: np.ndarray, nearest: bool = False) -> tuple[np.ndarray, float]:
    """Return an image at most :data:`WIDE` pixels long, and by how much it was reduced."""
    factor = min(1.0, WIDE / max(image.shape[:2]))
    if factor == 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA), factor


def read_image(file: str) -> np.ndarray | None:
    """Return an image (H, W, 3) BGR, ``None`` if it cannot be read any more."""
    try:
        return cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None


def encoded(image: np.ndarray, description: str) -> str:
    """Return an image (H, W, 3) BGR as a part of the page."""
    return picture(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes(), description)


def side_by_side(pictures: dict[str, np.ndarray], caption: str) -> str:
    """Return pictures in a row, with their names below them."""
    figures = [
        f'<figure>{encoded(image, name)}<figcaption>{escape(name)}</figcaption></figure>'
        for name, image in pictures.items()
    ]
    return f'<h4>{escape(caption)}</h4><div class="pair">{"".join(figures)}</div>'


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour of a class as OpenCV has it: blue, green, red."""
    return tuple(reversed(bytes.fromhex(colour(label)[1:])))
