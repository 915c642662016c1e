"""ConvNeXt V1 and V2: table of sizes, block, network.

Sources: "A ConvNet for the 2020s", arXiv:2201.03545 (V1), and "ConvNeXt V2", arXiv:2301.00808, whose
App. A has the sizes atto ... nano, which V1 networks were trained with too. Attribute names are the keys
of the released checkpoints of both, so those load without renaming.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import UserError, suggest
from ..registry import MODELS
from .base import STRIDES, FourStageBackbone, positive_integers
from .layers import DropPath, GlobalResponseNorm, LayerNorm2d, Skip

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
FUSED = (True, False, 'triton')  # ways to compute a block
EXPANSION = 4  # hidden channels of a block's MLP per channel
LAYER_SCALE = 1e-6  # starting value in training from scratch (V1, Table 5)


class Block(nn.Module):
    """Depthwise 7x7 convolution, norm, two-layer MLP over the channels, residual sum (V1, Fig. 4).

    Between the permutes everything works on (N, H, W, C); with the input in channels_last memory
    they are views and nothing is copied.

    Args:
        dim: channels in and out.
        drop_path: probability, per sample, that the branch is skipped in training.
        layer_scale: starting value of the per-channel gain ``gamma``; ``None`` leaves it out (V2).
        grn: response norm after the activation (V2).
        dilation: of the depthwise convolution.
        fused: see :class:`ConvNeXt`.
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
        self.fused = choose('fused', fused, FUSED)
        self.triton = fused == 'triton'
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3 * dilation, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, EXPANSION * dim)
        self.grn = GlobalResponseNorm(EXPANSION * dim) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(EXPANSION * dim, dim)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path)
        self.unfold()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> same
        if not self.fused or not ops.available(x, self.triton) or not self._ordinary():
            return x + self.drop_path(self._branch(x))
        # Under autocast the sum is in float32: in bfloat16 it would lose a branch of small layer scale.
        x = x.to(self.pwconv2.weight.dtype)
        rate = self.drop_path.rate if self.training else 0.0
        if rate == 0.0:
            return self._sum(x)
        if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            return self._sum(x, self.drop_path.scale(x))  # of a shape that does not depend on the draw
        # Drawn on the CPU, so that the number of samples is known without waiting for a GPU.
        kept = (torch.rand(len(x), device='cpu') >= rate).nonzero().flatten()
        if not len(kept):
            return Skip.apply(x, *self.parameters())
        if len(kept) == len(x):
            return self._sum(x, 1 / (1 - rate))
        x, kept = x.permute(0, 2, 3, 1), kept.to(x.device, non_blocking=True)
        part = x.index_select(0, kept).permute(0, 3, 1, 2)
        part = self._sum(part, 1 / (1 - rate)).permute(0, 2, 3, 1)
        return x.index_copy(0, kept, part).permute(0, 3, 1, 2)

    def _ordinary(self, watched: bool = True) -> bool:
        """Whether the layers are those that were built: no adapter; and, if ``watched``, no hook."""
        return all(
            type(layer) is kind
            and type(layer.weight) is nn.Parameter
            and layer.bias is not None
            and not (watched and (layer._forward_hooks or layer._forward_pre_hooks))
            for layer, kind in (
                (self.dwconv, nn.Conv2d),
                (self.norm, nn.LayerNorm),
                (self.pwconv1, nn.Linear),
                (self.pwconv2, nn.Linear),
            )
        )

    def _sum(self, x: Tensor, scale: float | Tensor | None = None) -> Tensor:
        """``x + scale * branch(x)`` by :mod:`convnext_backbone.ops`; one scale, or (N, 1, 1, 1)."""
        conv, plain = self.dwconv, isinstance(self.grn, nn.Identity)
        options = conv.dilation[0], self.triton, plain
        y, statistics = ops.depthwise_conv(x, conv.weight, conv.bias, *options)
        y = y.permute(0, 2, 3, 1)  # (N, H, W, C)
        if not plain:
            y = self._mlp(y).permute(0, 3, 1, 2)
            return x + (y if scale is None else y * scale)
        folded = self._folded()
        if folded:
            norm, gain = (None, None, self.norm.eps), None
            first, second = (self.folded_w1, self.folded_b1), (self.folded_w2, self.folded_b2)
        else:
            norm, gain = (self.norm.weight, self.norm.bias, self.norm.eps), self.gamma
            first = self.pwconv1.weight, self.pwconv1.bias
            second = self.pwconv2.weight, self.pwconv2.bias
        of_samples = scale.flatten() if isinstance(scale, Tensor) else None
        if scale is not None and of_samples is None:
            gain = y.new_full((y.shape[-1],), scale) if gain is None else gain * scale
        x = x.permute(0, 2, 3, 1)
        y = ops.norm_mlp(y, x, norm, first, second, gain, of_samples, folded, self.triton, statistics)
        return y.permute(0, 3, 1, 2)

    def _branch(self, x: Tensor) -> Tensor:
        """By the ordinary layers."""
        return self._mlp(self.dwconv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _mlp(self, y: Tensor) -> Tensor:  # (N, H, W, C) -> same
        if self._folded():
            y = F.layer_norm(y, self.norm.normalized_shape, eps=self.norm.eps)
            y = F.gelu(F.linear(y, self.folded_w1, self.folded_b1))
            y = y if isinstance(self.grn, nn.Identity) else self.grn.without_shift(y)
            return F.linear(y, self.folded_w2, self.folded_b2)
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(y)))))
        return y if self.gamma is None else self.gamma * y

    def _folded(self) -> bool:
        return self.folded_w1 is not None and not torch.is_grad_enabled()

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply what is linear into the two linear layers: see :func:`fuse_for_inference`."""
        if not self._ordinary(watched=False):
            raise UserError(
                'fuse_for_inference: a layer of a block was replaced (by an adapter, quantisation ...): '
                'merge it into the weights first, or leave the model as it is'
            )
        wide = torch.promote_types(self.pwconv1.weight.dtype, torch.float32)
        w1, b1 = self.pwconv1.weight.to(wide), self.pwconv1.bias.to(wide)
        w2, b2 = self.pwconv2.weight.to(wide), self.pwconv2.bias.to(wide)
        b1 = b1 + w1 @ self.norm.bias.to(wide)
        w1 = w1 * self.norm.weight.to(wide)
        if not isinstance(self.grn, nn.Identity):
            b2 = b2 + w2 @ self.grn.beta.to(wide).flatten()
        if self.gamma is not None:
            w2, b2 = w2 * self.gamma.to(wide)[:, None], b2 * self.gamma.to(wide)
        for name, tensor in dict(w1=w1, b1=b1, w2=w2, b2=b2).items():
            own = tensor.detach().to(self.pwconv1.weight.dtype, copy=True)
            self.register_buffer(f'folded_{name}', own, persistent=False)

    def unfold(self) -> None:
        """Compute with the parameters themselves again."""
        for name in ('w1', 'b1', 'w2', 'b2'):
            self.register_buffer(f'folded_{name}', None, persistent=False)

    def train(self, mode: bool = True) -> 'Block':
        if mode:  # the parameters are about to change
            self.unfold()
        return super().train(mode)

    def _load_from_state_dict(self, *args) -> None:
        self.unfold()
        super()._load_from_state_dict(*args)


class Downsample(nn.Conv2d):
    """2x2 convolution that halves the map; with ``stride=1`` it keeps the size (output stride).

    Then its taps lie ``dilation`` apart, and every ``2 * dilation``-th position has the value that
    the halving convolution gives there.
    """

    def __init__(self, dim_in: int, dim_out: int, *, stride: int = 2, dilation: int = 1):
        super().__init__(dim_in, dim_out, 2, stride=stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, D, H / stride, W / stride)
        if self.stride == (1, 1):
            x = F.pad(x, (0, self.dilation[0], 0, self.dilation[0]))
        return super().forward(x)


@MODELS.register_module()
class ConvNeXt(FourStageBackbone):
    """ConvNeXt V1 or V2 as a dense backbone: four maps at strides 4, 8, 16 and 32.

    In a config: ``backbone=dict(type='convnext_backbone.ConvNeXt', arch='tiny')``.

    Args:
        arch: V1 is one of atto, femto, pico, nano, tiny, small, base, large, xlarge; V2 one of v2_atto,
            v2_femto, v2_pico, v2_nano, v2_tiny, v2_base, v2_large, v2_huge.
        depths: blocks of the four stages, in place of the table's.
        dims: channels of the four stages, in place of the table's.
        in_channels: channels of the image. With other than 3, the stem of a checkpoint made for
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
        fused: ``True``: blocks compute by :mod:`convnext_backbone.ops`, and in training leave out the samples
            whose branch is dropped. ``'triton'``: on CUDA also by our Triton kernels, which have run in
            Triton's interpreter only so far. ``False``: by the ordinary layers.
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
                down = nn.Sequential(nn.Conv2d(in_channels, dim, 4, stride=4), LayerNorm2d(dim))
            else:
                before = self.dims[i - 1]
                halve = STRIDES[i] <= output_stride
                resample = Downsample(before, dim, stride=2 if halve else 1, dilation=dilation)
                dilation *= 1 if halve else 2
                down = nn.Sequential(LayerNorm2d(before), resample)
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
        self.finish(LayerNorm2d)


def fuse_for_inference(module: nn.Module) -> int:
    """Fold norm affine, layer scale and response-norm shift into the linear layers of every block.

    The folded weights stand beside the parameters and work only without gradients (``torch.no_grad()``,
    ``torch.inference_mode()``); parameters and ``state_dict()`` stay as they are. ``train()`` and loading
    weights undo it, :meth:`Block.unfold` too. Call it again after changing a parameter by hand.

    Args:
        module: a backbone, or a classifier, detector or segmenter around one, in evaluation mode.

    Returns:
        How many blocks were folded.

    Raises:
        UserError: ``module`` is in training mode, or a layer of a block was replaced.
    """
    if module.training:
        raise UserError('fuse_for_inference: the module is in training mode, call eval() first')
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for block in blocks:
        block.fold()
    return len(blocks)


def init_layer(module: nn.Module) -> None:
    """Starting values of the paper's training: truncated normal (std 0.02), biases zero."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def choose(name: str, value: str, table) -> str:
    """``value``, if it is in ``table``; else a :class:`UserError` with the nearest that is."""
    if value in table:
        return value
    raise UserError(
        f'{name} must be one of {", ".join(map(str, table))}, got {value!r}{suggest(str(value), table, 0.6)}'
    )


def _sizes(arch: str, depths, dims) -> tuple[tuple[int, ...], tuple[int, ...]]:
    table = ARCHITECTURES[choose('arch', arch, ARCHITECTURES)]
    given = [default if value is None else value for value, default in zip((depths, dims), table)]
    return tuple(positive_integers(n, v, len(STRIDES)) for n, v in zip(('depths', 'dims'), given))
