"""Holds what one comparison of the check of a GPU found."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """Holds one comparison: what was compared, whether it is right, what was found; numbers for programs."""

    what: str
    right: bool
    found: str
    numbers: dict = field(default_factory=dict)


def close(what: str, found: Tensor, exact: Tensor, bound: float) -> Row:
    """Compare with exact numbers: the largest difference, relative to the largest number.

    Args:
        what: name of the row.
        found: any data type and device; the shape of ``exact``.
        exact: what it should be, in float64.
        bound: of the difference.
    """
    if found.shape != exact.shape:
        return Row(what, False, f'shape {tuple(found.shape)} in place of {tuple(exact.shape)}')
    exact = exact.detach().double()
    if not exact.numel():
        return Row(what, True, 'empty')
    difference = (found.detach().double().to(exact.device) - exact).abs().max() / exact.abs().max().clamp(
        1e-30
    )
    difference = difference.item()
    return Row(what, difference <= bound, f'{difference:.1e}, at most {bound:.0e}')  # NaN is wrong


def wrong(rows: Iterable[Row]) -> list[str]:
    """Return a line for each comparison that is not right."""
    return [f'{row.what}: {row.found}' for row in rows if not row.right]


def same(what: str, right: bool, found: str = '') -> Row:
    """Return the row of something that is either so or not."""
    return Row(what, bool(right), found or ('yes' if right else 'no'))
