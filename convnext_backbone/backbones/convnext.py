"""Defines ConvNeXt V1 and V2: table of sizes, network.

Sources: "A ConvNet for the 2020s", arXiv:2201.03545 (V1), and "ConvNeXt V2", arXiv:2301.00808, whose
App. A has the sizes atto ... nano, which V1 networks were trained with too. Attribute names are the keys
of the released checkpoints of both, so those load without renaming.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, check_choice
from ..registry import MODELS
from .base import STRIDES, FourStageBackbone, check_positive_integers
from .block import LAYER_SCALE, Block
from .layers import LayerNorm2d, init_layer

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
    'v2_atto': ((2, 2, 6, 2), (40, 80, 160, 320)),
    'v2_femto': ((2, 2, 6, 2), (48, 96, 192, 384)),
    'v2_pico': ((2, 2, 6, 2), (64, 128, 256, 512)),
    'v2_nano': ((2, 2, 8, 2), (80, 160, 320, 640)),
    'v2_tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
    'v2_base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
    'v2_large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
    'v2_huge': ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}


class Downsample(nn.Conv2d):
    """Halves the map by a 2x2 convolution; with ``stride=1`` it keeps the size (output stride).

    Then its taps lie ``dilation`` apart, and every ``2 * dilation``-th position has the value that
    the halving convolution gives there.
    """

    def __init__(self, dim_in: int, dim_out: int, *, stride: int = 2, dilation: int = 1):
        super().__init__(dim_in, dim_out, 2, stride=stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, D, H / stride, W / stride)
        """Convolve; without a stride, zeros at the right and lower border keep the size."""
        if self.stride == (1, 1):
            x = F.pad(x, (0, self.dilation[0], 0, self.dilation[0]))
        return super().forward(x)


@MODELS.register_module()
class ConvNeXt(FourStageBackbone):
    """Computes ConvNeXt V1 or V2 as a dense backbone: four maps at strides 4, 8, 16 and 32.

    In a config: ``backbone=dict(type='convnext_backbone.ConvNeXt', arch='tiny')``.

    Args:
        arch: V1 is one of atto, femto, pico, nano, tiny, small, base, large, xlarge; V2 one of v2_atto,
            v2_femto, v2_pico, v2_nano, v2_tiny, v2_base, v2_large, v2_huge.
        depths: blocks of the four stages, in place of the table's.
        dims: channels of the four stages, in place of the table's.
        in_channels: channels of the image. With a number different from 3, the stem of a checkpoint made for
            three channels is inflated when it is loaded.
        out_indices: stages whose maps are emitted; see :class:`DenseBackbone`.
        output_stride: 32, 16 or 8: no map is coarser. Instead of halving the map, the last or the last
            two stages dilate their convolutions, as heads like PSPNet and DeepLab expect. Parameters are
            the same, so the weights of the ordinary network load.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.
        layer_scale_init_value: starting value of every ``gamma``; ``None`` or 0: no ``gamma``.
            1e-6 to train from scratch, 1.0 in the published detection and segmentation recipes
            (whose checkpoints overwrite it). V2 has no ``gamma``: leave it out there.
        frozen_stages: as in mmdet's ResNet; see :class:`DenseBackbone`.
        with_cp: gradient checkpointing; see :class:`DenseBackbone`.
        output_norm: a norm on every emitted map; ``False`` for a classifier, which has its own.
        fused: ``True``: blocks compute by :mod:`convnext_backbone.ops`: on a CPU by our kernels, in training
            without the samples whose branch is dropped; on CUDA by our Triton kernels where a trial at first
            use finds them right and faster (see docs/speed.md). ``'triton'``: by those without a trial,
            wherever they support it. ``False``: by the ordinary layers.
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
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = LAYER_SCALE,
        frozen_stages: int = -1,
        with_cp: bool = False,
        output_norm: bool = True,
        fused: bool | str = True,
        init_cfg: dict | list | None = None,
    ):
        depths, widths = _sizes(arch, depths, dims)
        if type(output_stride) is not int or output_stride not in (8, 16, 32):
            raise UserError(f'output_stride must be 8, 16 or 32, got {output_stride}')
        v2 = arch.startswith('v2_')
        if v2 and layer_scale_init_value not in (LAYER_SCALE, None, 0):
            raise UserError(
                f'layer_scale_init_value is {layer_scale_init_value}, but {arch} has no layer scale: '
                'leave it out'
            )
        super().__init__(
            depths,
            widths,
            drop_path_rate=drop_path_rate,
            output_stride=output_stride,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            output_norm=output_norm,
            init_cfg=init_cfg,
        )
        self.arch = arch if (depths, widths) == ARCHITECTURES[arch] else 'custom'
        self.dims = widths

        dilation = 1  # of the stage before, then of the stage at hand
        for i, dim in enumerate(self.dims[: self.num_built]):
            if i == 0:
                down = nn.Sequential(nn.Conv2d(in_channels, dim, 4, stride=4), LayerNorm2d(dim, fused=fused))
            else:
                before = self.dims[i - 1]
                halve = STRIDES[i] <= output_stride
                resample = Downsample(before, dim, stride=2 if halve else 1, dilation=dilation)
                dilation *= 1 if halve else 2
                down = nn.Sequential(LayerNorm2d(before, fused=fused), resample)
            self.downsample_layers.append(down)
            block = dict(
                layer_scale=None if v2 else layer_scale_init_value or None,
                grn=v2,
                dilation=dilation,
                fused=fused,
            )
            stage = [Block(dim, drop_path=rate, **block) for rate in self.drop_rates[i]]
            self.stages.append(nn.Sequential(*stage))
        self.apply(init_layer)
        self.add_output_norms_and_freeze(partial(LayerNorm2d, fused=fused))


def _sizes(arch: str, depths, dims) -> tuple[tuple[int, ...], tuple[int, ...]]:
    table = ARCHITECTURES[check_choice('arch', arch, ARCHITECTURES)]
    given = [default if value is None else value for value, default in zip((depths, dims), table)]
    return tuple(check_positive_integers(n, v, len(STRIDES)) for n, v in zip(('depths', 'dims'), given))
