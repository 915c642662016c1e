"""Defines what every backbone here shares: which maps it emits, what is frozen, how deep a parameter lies."""

import math
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError

STRIDES = (4, 8, 16, 32)  # of the four maps
BLOCKS_PER_GROUP = 3  # for layer-wise decay


def check_positive_integers(name: str, values, length: int) -> tuple[int, ...]:
    """Return ``values`` as a tuple.

    Raises:
        UserError: they are not ``length`` positive integers.
    """
    given = tuple(values) if isinstance(values, (list, tuple)) else ()
    if len(given) != length or not all(type(value) is int and value > 0 for value in given):
        raise UserError(f'{name} must be {length} positive integers, got {values!r}')
    return given


def drop_rates(last: float, blocks: int) -> list[float]:
    """Return the stochastic-depth rate of each block: linear from 0 to ``last``, which must lie in [0, 1).

    Raises:
        UserError: ``last`` lies outside [0, 1).
    """
    if not isinstance(last, (int, float)) or not 0 <= last < 1:
        raise UserError(f'drop_path_rate must lie in [0, 1), got {last}')
    return torch.linspace(0, last, blocks, device='cpu').tolist()


class DenseBackbone(BaseModule):
    """Emits up to four feature maps, each through an output norm of its own.

    A subclass builds its parts, then calls :meth:`add_output_norms_and_freeze`.

    Args:
        in_channels: channels of the image.
        out_indices: maps that are emitted, ascending, counted from 0. What only the others need is
            not built, so that every parameter receives a gradient.
        frozen_stages: -1 freezes nothing, 0 the stem, ``k`` the stem and the first ``k`` stages (with
            the downsampling in front of each), as in mmdet's ResNet. Frozen parts take no gradient
            and stay in evaluation mode under ``train()``. Output norms are never frozen: no
            classification checkpoint contains them.
        num_stages: what ``frozen_stages`` may be at most.
        with_cp: gradient checkpointing: keep each block's input only and compute the rest again in
            the backward pass. Less memory, about a third more time.
        output_norm: ``False`` leaves the output norms out (a classifier has its own).
        init_cfg: as in mmengine, e.g. ``dict(type='convnext_backbone.Pretrained', checkpoint=...)``.

    Attributes:
        out_channels: channels of each emitted map.
        out_strides: input pixels per map pixel, for each emitted map.
        least_size: pixels of the smallest image, high and wide, of which every map has a position.
        num_groups: depth groups of layer-wise learning-rate decay, see :meth:`layer_depth`.
        classifier_map: the map that a classifier pools.
        classifier_norm: whether a classifier norms what it has pooled.
        may_skip: patterns of tensors that a checkpoint may hold and this network leaves out.
        may_be_fresh: patterns of tensors of this network that a checkpoint may lack.

    Raises:
        UserError: ``in_channels``, ``out_indices`` or ``frozen_stages`` out of its range.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    least_size: int
    num_groups: int
    classifier_map: int = 3
    classifier_norm: bool = True
    may_skip: tuple[str, ...] = ('head.*', 'norm.*', 'norm[0-9].*')
    may_be_fresh: tuple[str, ...] = ('norm[0-9].*',)

    def __init__(
        self,
        *,
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        num_stages: int | None = None,
        with_cp: bool,
        output_norm: bool,
        init_cfg: dict | list | None,
    ):
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices) if isinstance(out_indices, (list, tuple)) else ()
        maps = set(range(len(STRIDES)))
        if not self.out_indices or sorted(maps & set(self.out_indices)) != list(self.out_indices):
            raise UserError(
                f'out_indices must be ascending stage numbers from 0 to {len(STRIDES) - 1}, got {out_indices}'
            )
        check_positive_integers('in_channels', [in_channels], 1)
        self.in_channels = in_channels
        num_stages = self.out_indices[-1] + 1 if num_stages is None else num_stages
        if frozen_stages not in range(-1, num_stages + 1):
            raise UserError(
                f'frozen_stages must lie between -1 (nothing) and {num_stages} (all that is built '
                f'for out_indices={self.out_indices}), got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.output_norm = output_norm

    def add_output_norms_and_freeze(self, norm: type[nn.Module]) -> None:
        """Add ``norm0 ... normN`` for the emitted maps, and freeze what ``frozen_stages`` covers."""
        if self.output_norm:
            for index, channels in zip(self.out_indices, self.out_channels):
                self.add_module(f'norm{index}', norm(channels))
        for module in self.frozen_modules():
            module.requires_grad_(False).eval()

    def check_size(self, x: Tensor) -> None:
        """Check that an image is large enough for every map.

        Raises:
            UserError: it is smaller than :attr:`least_size`.
        """
        height, width = x.shape[-2:]
        if height < self.least_size or width < self.least_size:
            least = self.least_size
            raise UserError(
                f'an image of {height} x {width} pixels is too small for {type(self).__name__}, which needs '
                f'at least {least} x {least}: enlarge it (Resize), pad it (data_preprocessor: '
                f'pad_size_divisor={least} of a detector, test_cfg=dict(size_divisor={least}) of a '
                'segmenter), or choose out_indices without the last maps'
            )

    def run_blocks(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        """Apply ``blocks`` in turn to a map (N, C, H, W), with gradient checkpointing if ``with_cp``."""
        if not (self.with_cp and torch.is_grad_enabled()):
            return blocks(x)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def output(self, index: int, x: Tensor) -> Tensor:
        """Return map number ``index`` as it is emitted, in the shape of ``x``: the output of its stage.

        What goes to a neck or a head lies in NCHW memory: mmcv's RoIAlign (and other operators of it)
        reads memory in that order whatever the strides say, and gives wrong numbers, without an
        error, for a map in channels_last.
        """
        return getattr(self, f'norm{index}')(x).contiguous() if self.output_norm else x

    def frozen_modules(self) -> list[nn.Module]:
        """Return the modules that ``frozen_stages`` covers."""
        raise NotImplementedError

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks in their order: parts of like size that are computed one after the other."""
        raise NotImplementedError

    def layer_depth(self, name: str, by: str = 'layer_wise') -> int:
        """Return the depth group of the parameter ``name`` (as in this network's ``named_parameters()``).

        0 is the stem, ``depth_groups(by) + 1`` whatever lies outside the stages (output norms; a head):
        learning-rate decay gives it ``decay ** (depth_groups(by) + 1 - depth)``.

        Args:
            by: ``'layer_wise'``, ``'stage_wise'`` or ``'block_wise'``.
        """
        raise NotImplementedError

    def depth_groups(self, by: str = 'layer_wise') -> int:
        """Return the number of depth groups from which :meth:`layer_depth` counts."""
        return self.num_groups

    def train(self, mode: bool = True) -> 'DenseBackbone':
        """Set training or evaluation mode as in torch, but keep what is frozen in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self


class FourStageBackbone(DenseBackbone):
    """Holds stem and downsampling layers in ``downsample_layers``, blocks in ``stages``: names as released.

    Stages behind the last that is emitted are not built. A subclass fills both lists, from
    ``drop_rates``, then calls :meth:`add_output_norms_and_freeze`.

    Args:
        depths: blocks of the four stages.
        channels: of the maps of the four stages.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.
        output_stride: no map is coarser than this.
    """

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        *,
        drop_path_rate: float,
        output_stride: int = STRIDES[-1],
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.depths = tuple(depths)
        self.num_built = self.out_indices[-1] + 1
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(min(STRIDES[i], output_stride) for i in self.out_indices)
        self.least_size = self.out_strides[-1]
        self.num_groups = 3 + math.ceil(self.depths[2] / BLOCKS_PER_GROUP)
        # stages behind the last emitted one are not built: a checkpoint has them nevertheless
        self.may_skip += tuple(
            f'{part}.{i}.*'
            for i in range(self.num_built, len(STRIDES))
            for part in ('downsample_layers', 'stages')
        )
        rates = iter(drop_rates(drop_path_rate, sum(self.depths)))
        self.drop_rates = [[next(rates) for _ in range(depth)] for depth in self.depths]
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps that are emitted.

        (N, in_channels, H, W) -> for each of ``out_indices`` (N, channels, H / stride, W / stride).
        """
        self.check_size(x)
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = self.run_blocks(stage, downsample(x))
            if i in self.out_indices:
                maps.append(self.output(i, x))
        return tuple(maps)

    def frozen_modules(self) -> list[nn.Module]:
        """Return stem, downsampling layers and stages up to ``frozen_stages``; none if it is -1."""
        if self.frozen_stages < 0:
            return []
        stem_and_downsampling = self.downsample_layers[: max(1, self.frozen_stages)]
        return [*stem_and_downsampling, *self.stages[: self.frozen_stages]]

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks of all stages that are built, in the order of ``forward``."""
        return [block for stage in self.stages for block in stage]

    def layer_depth(self, name: str, by: str = 'layer_wise') -> int:
        """Return the depth group of the parameter ``name``; see :meth:`DenseBackbone.layer_depth`.

        Layer-wise (paper, App. A.2; fine-tuning and detection): three blocks of the third stage form
        one group, so 6 groups for tiny and 12 from small up. Stage-wise (segmentation recipe): the
        stem and all downsampling layers are 0, stage ``i`` (from 0) is ``i + 1``. Block-wise (``single``
        of the official V2, fine-tuning of its small networks): every block is a group, from 1 on, and a
        stem or downsampling layer is in that of the block behind it.

        Raises:
            UserError: an unknown ``by``.
        """
        part, *numbers = name.split('.')[:3]
        if by not in ('layer_wise', 'stage_wise', 'block_wise'):
            raise UserError(f"layer decay goes by 'layer_wise', 'stage_wise' or 'block_wise', got {by!r}")
        if part not in ('downsample_layers', 'stages'):
            return self.depth_groups(by) + 1
        stage = int(numbers[0])
        if by == 'stage_wise':
            return 0 if part == 'downsample_layers' else stage + 1
        if by == 'block_wise':
            block = 0 if part == 'downsample_layers' else int(numbers[1])
            return sum(self.depths[:stage]) + block + 1
        if part == 'downsample_layers':
            return (0, 2, 3, self.num_groups)[stage]
        return (1, 2, 3 + int(numbers[1]) // BLOCKS_PER_GROUP, self.num_groups)[stage]

    def depth_groups(self, by: str = 'layer_wise') -> int:
        """Return the number of depth groups; block-wise the number of blocks of all four stages."""
        return sum(self.depths) if by == 'block_wise' else self.num_groups
