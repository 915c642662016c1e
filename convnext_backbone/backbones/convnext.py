"""ConvNeXt: table of sizes, block, network.

Source: "A ConvNet for the 2020s", arXiv:2201.03545. Sizes from its Sec. 3 (tiny ... xlarge) and from
"ConvNeXt V2", arXiv:2301.00808, App. A (atto ... nano). Attribute names are the keys of the released
checkpoints, so those load without renaming.
"""

import difflib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..registry import MODELS
from .base import DenseBackbone
from .layers import DropPath, LayerNorm2d

# name: blocks per stage, channels per stage
ARCHITECTURES = {
    'atto': ((2, 2, 6, 2), (40, 80, 160, 320)),
    'femto': ((2, 2, 6, 2), (48, 96, 192, 384)),
    'pico': ((2, 2, 6, 2), (64, 128, 256, 512)),
    'nano': ((2, 2, 8, 2), (80, 160, 320, 640)),
    'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
    'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
    'base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
    'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
    'xlarge': ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
EXPANSION = 4  # hidden channels of a block's MLP per channel
STRIDES = (4, 8, 16, 32)  # of the maps of the four stages
BLOCKS_PER_GROUP = 3  # in the third stage, for layer-wise decay


class Block(nn.Module):
    """Depthwise 7x7 convolution, norm, two-layer MLP over the channels, residual sum (Fig. 4).

    Between the permutes everything works on (N, H, W, C); with the input in channels_last memory
    they are views and nothing is copied.

    Args:
        dim: channels in and out.
        drop_path: probability, per sample, that the branch is skipped in training.
        layer_scale: starting value of the per-channel gain ``gamma``; ``None`` leaves it out.
    """

    def __init__(self, dim: int, *, drop_path: float = 0.0, layer_scale: float | None = 1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, EXPANSION * dim)
        self.pwconv2 = nn.Linear(EXPANSION * dim, dim)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> same
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (N, H, W, C)
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        y = y if self.gamma is None else self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


@MODELS.register_module()
class ConvNeXt(DenseBackbone):
    """ConvNeXt as a dense backbone: four maps at strides 4, 8, 16 and 32.

    In a config: ``backbone=dict(type='convnext_backbone.ConvNeXt', arch='tiny')``.

    Args:
        arch: one of atto, femto, pico, nano, tiny, small, base, large, xlarge.
        depths: blocks of the four stages, in place of the table's.
        dims: channels of the four stages, in place of the table's.
        in_channels: channels of the image. With other than 3, the stem of a checkpoint made for
            three channels is inflated when it is loaded.
        out_indices: stages whose maps are emitted; see :class:`DenseBackbone`.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.
        layer_scale_init_value: starting value of every ``gamma``; ``None`` or 0: no ``gamma``.
            1e-6 to train from scratch, 1.0 in the published detection and segmentation recipes
            (whose checkpoints overwrite it).
        frozen_stages: as in mmdet's ResNet; see :class:`DenseBackbone`.
        with_cp: gradient checkpointing: keep each block's input only and compute the rest again
            in the backward pass. Less memory, about a third more time.
        output_norm: a norm on every emitted map; ``False`` for a classifier, which has its own.
        init_cfg: as in mmengine.

    Raises:
        UserError: an unknown ``arch``, or a value out of the ranges above.
    """

    def __init__(
        self,
        arch: str = 'tiny',
        *,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        frozen_stages: int = -1,
        with_cp: bool = False,
        output_norm: bool = True,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(
            num_stages=len(STRIDES),
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            output_norm=output_norm,
            init_cfg=init_cfg,
        )
        self.arch = arch if depths is None and dims is None else 'custom'
        self.depths, self.dims = _sizes(arch, depths, dims)
        self.in_channels = in_channels
        self.with_cp = with_cp
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate must lie in [0, 1), got {drop_path_rate}')
        self.out_channels = tuple(self.dims[i] for i in self.out_indices)
        self.out_strides = tuple(STRIDES[i] for i in self.out_indices)
        self.num_groups = 3 + math.ceil(self.depths[2] / BLOCKS_PER_GROUP)
        # stages behind the last emitted one are not built: a checkpoint has them nevertheless
        self.may_skip += tuple(
            f'{part}.{i}.*'
            for i in range(self.num_built, len(STRIDES))
            for part in ('downsample_layers', 'stages')
        )

        drop_rates = torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu').tolist()
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(self.depths[: self.num_built], self.dims)):
            if i == 0:
                down = nn.Sequential(nn.Conv2d(in_channels, dim, 4, stride=4), LayerNorm2d(dim))
            else:
                before = self.dims[i - 1]
                down = nn.Sequential(LayerNorm2d(before), nn.Conv2d(before, dim, 2, stride=2))
            self.downsample_layers.append(down)
            first = sum(self.depths[:i])
            self.stages.append(
                nn.Sequential(
                    *[
                        Block(dim, drop_path=rate, layer_scale=layer_scale_init_value or None)
                        for rate in drop_rates[first : first + depth]
                    ]
                )
            )
        self.add_output_norms(LayerNorm2d)
        self.apply(init_layer)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W) -> for each of ``out_indices`` (N, dim, H / stride, W / stride)."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x)
            for block in stage:
                if self.with_cp and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            if i in self.out_indices:
                maps.append(self.output(i, x))
        return tuple(maps)

    def frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        stem_and_downsampling = self.downsample_layers[: max(1, self.frozen_stages)]
        return [*stem_and_downsampling, *self.stages[: self.frozen_stages]]

    def layer_depth(self, name: str, by: str = 'layer_wise') -> int:
        """See :meth:`DenseBackbone.layer_depth`.

        Layer-wise (paper, App. A.2; fine-tuning and detection): three blocks of the third stage form
        one group, so 6 groups for tiny and 12 from small up. Stage-wise (segmentation recipe): the
        stem and all downsampling layers are 0, stage ``i`` (from 0) is ``i + 1``.
        """
        part, *numbers = name.split('.')[:3]
        if by not in ('layer_wise', 'stage_wise'):
            raise UserError(f"layer decay goes by 'layer_wise' or 'stage_wise', got {by!r}")
        if part not in ('downsample_layers', 'stages'):
            return self.num_groups + 1
        stage = int(numbers[0])
        if by == 'stage_wise':
            return 0 if part == 'downsample_layers' else stage + 1
        if part == 'downsample_layers':
            return (0, 2, 3, self.num_groups)[stage]
        return (1, 2, 3 + int(numbers[1]) // BLOCKS_PER_GROUP, self.num_groups)[stage]


def init_layer(module: nn.Module) -> None:
    """Starting values of the paper's training: truncated normal (std 0.02), biases zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _sizes(arch: str, depths, dims) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if arch not in ARCHITECTURES:
        near = difflib.get_close_matches(str(arch), ARCHITECTURES, 1)
        raise UserError(
            f'arch must be one of {", ".join(ARCHITECTURES)}, got {arch!r}'
            + (f'; did you mean {near[0]!r}?' if near else '')
        )
    sizes = []
    for name, given, default in zip(('depths', 'dims'), (depths, dims), ARCHITECTURES[arch]):
        value = tuple(default if given is None else given)
        if len(value) != len(STRIDES) or not all(isinstance(v, int) and v > 0 for v in value):
            raise UserError(f'{name} must be {len(STRIDES)} positive integers, got {given!r}')
        sizes.append(value)
    return sizes[0], sizes[1]
