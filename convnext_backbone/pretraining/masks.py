"""Hides patches of images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass
class Hidden:
    """Says which patches of each image are hidden.

    Attributes:
        patches: (N, rows, columns) bool, the same number in each image.
    """

    patches: Tensor

    @classmethod
    def random(cls, number: int, rows: int, columns: int, ratio: float, device) -> 'Hidden':
        """Hide patches at random: as many are visible as ``(1 - ratio) * rows * columns``, rounded down.

        Raises:
            UserError: none would be visible.
        """
        total = rows * columns
        shown = int(total * (1 - ratio))
        if not shown:
            raise UserError(
                f'mask_ratio {ratio} leaves none of {rows} x {columns} patches visible: take larger images'
            )
        order = torch.rand(number, total, device=device).argsort(1)
        patches = torch.ones(number, total, dtype=torch.bool, device=device)
        patches.scatter_(1, order[:, :shown], False)
        return cls(patches.reshape(number, rows, columns))

    def visible(self, cells: int) -> Tensor:
        """Return 1 at visible positions, else 0; (N, 1, H, W) float32, ``cells`` positions along a patch."""
        shown = (~self.patches).float()
        return shown.repeat_interleave(cells, 1).repeat_interleave(cells, 2)[:, None]

    def positions(self, cells: int) -> Tensor:
        """Return the numbers of visible positions in a map, row by row; (N, P), ascending."""
        shown = self.visible(cells).flatten(1)
        number = int(shown[0].sum())
        return shown.argsort(dim=1, descending=True, stable=True)[:, :number].sort(1)[0]
