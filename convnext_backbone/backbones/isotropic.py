"""Defines isotropic ConvNeXt: one resolution, stride 16, as in a vision transformer.

Source: "A ConvNet for the 2020s", arXiv:2201.03545, Sec. 3.3, Table 2. Attribute names are the keys of
the released checkpoints, so those load without renaming.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import UserError, check_choice
from ..registry import MODELS
from .base import (
    BLOCKS_PER_GROUP,
    STRIDES,
    DenseBackbone,
    check_positive_integers,
    drop_rates,
)
from .block import LAYER_SCALE, Block
from .layers import LayerNorm2d, init_layer

# name: blocks, channels, starting value of layer scale (Table 5)
ARCHITECTURES = {
    'small': (18, 384, None),
    'base': (18, 768, None),
    'large': (36, 1024, LAYER_SCALE),
}
PATCH = 16


@MODELS.register_module()
class IsotropicConvNeXt(DenseBackbone):
    """Computes isotropic ConvNeXt as a dense backbone: a simple feature pyramid from its one map.

    The pyramid is that of ViTDet (arXiv:2203.16527, Sec. 3), without its last convolutions, which FPN or
    UPerNet have themselves: strides 4, 8, 16 and 32 by two transposed convolutions, one, none, and a
    maximum over 2x2. A classifier uses the map at stride 16 alone, and no pyramid is built.

    In a config: ``backbone=dict(type='convnext_backbone.IsotropicConvNeXt', arch='small')``, with
    ``neck=dict(in_channels=[96, 192, 384, 384])``.

    Args:
        arch: small, base or large.
        depth: number of blocks, in place of the table's.
        dim: channels, in place of the table's; a multiple of 4.
        in_channels: channels of the image; see :class:`ConvNeXt`.
        out_indices: maps that are emitted, 0 to 3, with ``dim / 4``, ``dim / 2``, ``dim`` and ``dim``
            channels.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.
        frozen_stages: -1 freezes nothing, 0 the stem, ``k`` the stem and the first ``k`` blocks.
        with_cp: gradient checkpointing; see :class:`DenseBackbone`.
        output_norm: a norm on every emitted map; ``False`` for a classifier, which has its own.
        fused: as of :class:`ConvNeXt`.
        init_cfg: as in mmengine.

    Raises:
        UserError: an unknown ``arch``, or a value out of the ranges above.
    """

    classifier_map = STRIDES.index(PATCH)
    may_be_fresh = (*DenseBackbone.may_be_fresh, 'pyramid.*')

    def __init__(
        self,
        arch: str = 'small',
        *,
        depth: int | None = None,
        dim: int | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        output_norm: bool = True,
        fused: bool | str = True,
        init_cfg: dict | list | None = None,
    ):
        *sizes, layer_scale = ARCHITECTURES[check_choice('arch', arch, ARCHITECTURES)]
        given = [default if value is None else value for value, default in zip((depth, dim), sizes)]
        depth, dim = check_positive_integers('depth and dim', given, 2)
        if dim % 4:
            raise UserError(f'dim must be a multiple of 4, got {dim}')
        super().__init__(
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            num_stages=depth,
            with_cp=with_cp,
            output_norm=output_norm,
            init_cfg=init_cfg,
        )
        self.arch = arch if [depth, dim] == sizes else 'custom'
        channels = (dim // 4, dim // 2, dim, dim)
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(STRIDES[i] for i in self.out_indices)
        others = [i for i in range(len(STRIDES)) if i not in self.out_indices]
        self.may_skip += tuple(f'pyramid.{i}.*' for i in others)  # a dense checkpoint may have them
        self.least_size = max(PATCH, *self.out_strides)
        self.num_groups = math.ceil(depth / BLOCKS_PER_GROUP)

        self.stem = nn.Conv2d(in_channels, dim, PATCH, stride=PATCH)
        rates = drop_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(
            *[Block(dim, drop_path=rate, layer_scale=layer_scale, fused=fused) for rate in rates]
        )
        norm = partial(LayerNorm2d, fused=fused)
        pyramid = [
            nn.Sequential(
                nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
                norm(dim // 2),
                nn.GELU(),
                nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
            ),
            nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(2),
        ]
        self.pyramid = nn.ModuleDict({str(i): pyramid[i] for i in self.out_indices})
        self.apply(init_layer)
        self.add_output_norms_and_freeze(norm)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps that are emitted.

        (N, in_channels, H, W) -> for each of ``out_indices`` (N, channels, H / stride, W / stride).
        """
        self.check_size(x)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))  # (N, dim, H / 16, W / 16)
        x = self.run_blocks(self.blocks, x)
        return tuple(self.output(i, self.pyramid[str(i)](x)) for i in self.out_indices)

    def frozen_modules(self) -> list[nn.Module]:
        """Return the stem and the first ``frozen_stages`` blocks; none if it is -1."""
        return [self.stem, *self.blocks[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks in the order of ``forward``."""
        return list(self.blocks)

    def layer_depth(self, name: str, by: str = 'layer_wise') -> int:
        """Return the depth group of the parameter ``name``; three blocks form one group, from 1 on.

        See :meth:`DenseBackbone.layer_depth`.

        Raises:
            UserError: a ``by`` different from ``'layer_wise'``.
        """
        if by != 'layer_wise':
            raise UserError(
                f'an isotropic network has one stage: its layer decay goes by layer_wise, got {by!r}'
            )
        part, number = name.split('.')[:2]
        if part == 'stem':
            return 0
        return 1 + int(number) // BLOCKS_PER_GROUP if part == 'blocks' else self.num_groups + 1
