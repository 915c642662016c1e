"""Defines the block of ConvNeXt V1 and V2, as the papers draw it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import check_choice
from .folding import FoldableBlock
from .layers import DropPath, GlobalResponseNorm

EXPANSION = 4  # hidden channels of the MLP per channel
LAYER_SCALE = 1e-6  # starting value in training from scratch (V1, Table 5)


class Block(FoldableBlock):
    """Computes a depthwise 7x7 convolution, norm, a two-layer MLP over the channels and a residual sum.

    Sources: ConvNeXt (arXiv:2201.03545) Fig. 4; response norm of V2 (arXiv:2301.00808) Sec. 4. Attribute
    names are the keys of the released checkpoints, so those load without renaming.

    Args:
        dim: channels in and out.
        drop_path: probability in [0, 1), per sample, that the branch is skipped in training.
        layer_scale: starting value of the per-channel gain ``gamma``; ``None`` leaves it out (V2).
        grn: response norm after the activation (V2).
        dilation: of the depthwise convolution.
        fused: see :class:`ConvNeXt`.

    Raises:
        UserError: an unknown ``fused``.
    """

    def __init__(
        self,
        dim: int,
        *,
        drop_path: float = 0.0,
        layer_scale: float | None = LAYER_SCALE,
        grn: bool = False,
        dilation: int = 1,
        fused: bool | str = True,
    ):
        super().__init__()
        self.fused = check_choice('fused', fused, ops.FUSED)
        if fused is True:
            ops.expect(self, dim, *['depthwise' if grn else 'block'] * (dilation == 1))
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3 * dilation, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, EXPANSION * dim)
        self.grn = GlobalResponseNorm(EXPANSION * dim) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(EXPANSION * dim, dim)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> same
        """Compute the block, by the fused operators where they support ``x``."""
        if compute := ops.block_implementation(self, x):
            return compute(self, x)  # the same, faster
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (N, H, W, C); a view of channels_last memory
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(y)))))
        y = y if self.gamma is None else self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))
