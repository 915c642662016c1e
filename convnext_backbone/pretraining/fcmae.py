"""Defines the masked autoencoder that ConvNeXt V2 is pretrained as (FCMAE, arXiv:2301.00808, Sec. 3)."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..backbones.block import Block
from ..backbones.convnext import ConvNeXt
from ..backbones.layers import init_layer
from ..checkpoint.formats import released_names
from ..errors import UserError
from ..registry import MODELS
from .masks import Hidden

STRIDE = 32  # of the last map


@MODELS.register_module()
class FCMAE(BaseModel):
    """Reconstructs the hidden patches of an image from the visible ones.

    The encoder computes what a sparse convolution over the visible positions computes: hidden positions are
    zero wherever a convolution reads them, and count in no response norm. Its maps have few visible
    positions, so norm and MLP are computed on these alone. In the decoder one learned vector stands at every
    hidden position. The loss is the mean squared difference on hidden patches, each normalised by its own
    mean and deviation.

    As in the paper's own (JAX) code the response norm is that of each image; the released PyTorch code takes
    it over the whole batch.

    Args:
        backbone: config of a :class:`~convnext_backbone.backbones.ConvNeXt`, V2 or V1.
        mask_ratio: share of the patches that is hidden, in (0, 1); of 7 x 7 patches and 0.6 it is 30.
        patch_size: side of a patch in pixels, a multiple of 32.
        decoder_dim: channels of the decoder.
        decoder_depth: blocks of the decoder.
        gather: ``False`` computes norm and MLP at hidden positions, too, and multiplies the results out; the
            same numbers, slower.

    Raises:
        UserError: the backbone is no ConvNeXt of stride 32, or a number is out of range.
    """

    checkpoint_names = staticmethod(released_names)

    def __init__(
        self,
        backbone: dict,
        *,
        mask_ratio: float = 0.6,
        patch_size: int = STRIDE,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        gather: bool = True,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        if not 0 < mask_ratio < 1:
            raise UserError(f'mask_ratio is the share of hidden patches, between 0 and 1, got {mask_ratio}')
        if patch_size < STRIDE or patch_size % STRIDE:
            raise UserError(f'patch_size is a multiple of {STRIDE} pixels, got {patch_size}')
        self.backbone = MODELS.build(dict(backbone, out_indices=(3,), output_norm=False))
        if not isinstance(self.backbone, ConvNeXt) or self.backbone.out_strides != (STRIDE,):
            raise UserError(
                f'FCMAE pretrains a convnext_backbone.ConvNeXt of stride {STRIDE}, got {backbone.get("type")}'
            )
        self.mask_ratio, self.patch_size, self.gather = mask_ratio, patch_size, gather
        (dim,) = self.backbone.out_channels
        self.proj = nn.Conv2d(dim, decoder_dim, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim, 1, 1))
        self.decoder = nn.Sequential(
            *(Block(decoder_dim, layer_scale=None, grn=True) for _ in range(decoder_depth))
        )
        cells = patch_size // STRIDE  # positions of the last map along a patch
        pixels = STRIDE**2 * self.backbone.in_channels
        self.pred = nn.Conv2d(decoder_dim, pixels, 1)
        self._cells = cells
        self.proj.apply(init_layer)
        self.decoder.apply(init_layer)
        self.pred.apply(init_layer)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Return the loss, or what is seen of a reconstruction.

        Args:
            inputs: (N, channels, H, W), normalised, H and W multiples of the patch size.
            labels: not looked at.
            mode: ``'loss'``: dict of the loss. Else :meth:`reconstruct`.

        Raises:
            UserError: the images do not divide into patches.
        """
        if mode != 'loss':
            return self.reconstruct(inputs)
        hidden = self.hide(inputs)
        predicted = self.decode(self.encode(inputs, hidden), hidden)
        return dict(loss=self.loss(inputs, predicted, hidden))

    def hide(self, images: Tensor) -> Hidden:
        """Choose the hidden patches of each image at random, in each the same number.

        Raises:
            UserError: the images do not divide into patches, or no patch would be visible or hidden.
        """
        height, width = images.shape[-2:]
        side = self.patch_size
        if height % side or width % side:
            raise UserError(f'FCMAE needs images whose sides are multiples of {side}, got {height} x {width}')
        return Hidden.random(len(images), height // side, width // side, self.mask_ratio, images.device)

    def encode(self, images: Tensor, hidden: Hidden) -> Tensor:
        """Return the last map, (N, C, H / 32, W / 32), zero at hidden positions."""
        backbone = self.backbone
        x = images.contiguous(memory_format=torch.channels_last)
        for i, (downsample, stage) in enumerate(zip(backbone.downsample_layers, backbone.stages)):
            cells = self.patch_size // (4 * 2**i)  # positions along a patch
            visible = hidden.visible(cells).to(x.dtype)
            x = downsample(x) * visible
            where = hidden.positions(cells) if self.gather else None
            for block in stage:
                if backbone.with_cp and torch.is_grad_enabled():
                    x = checkpoint(_masked_block, block, x, visible, where, use_reentrant=False)
                else:
                    x = _masked_block(block, x, visible, where)
        return x

    def decode(self, x: Tensor, hidden: Hidden) -> Tensor:
        """Return the pixels of every position of the last map, (N, 32 * 32 * channels, H / 32, W / 32)."""
        visible = hidden.visible(self._cells).to(x.dtype)
        x = self.proj(x)
        x = x * visible + self.mask_token.to(x.dtype) * (1 - visible)
        return self.pred(self.decoder(x.contiguous(memory_format=torch.channels_last)))

    def loss(self, images: Tensor, predicted: Tensor, hidden: Hidden) -> Tensor:
        """Return the mean squared difference from the normalised pixels of hidden patches."""
        target, _, _ = self.targets(images)
        error = (predicted.to(target.dtype).flatten(2) - target).square().mean(1)  # (N, positions)
        weight = 1 - hidden.visible(self._cells).flatten(1).to(target.dtype)
        return (error * weight).sum() / weight.sum()

    def targets(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised pixels at each position of the last map, with mean and deviation.

        Each is (N, 32 * 32 * channels or 1, positions), float32 at least; pixels row by row, channels last.
        """
        n, channels, height, width = images.shape
        x = images.to(torch.promote_types(images.dtype, torch.float32)).reshape(
            n, channels, height // STRIDE, STRIDE, width // STRIDE, STRIDE
        )
        x = x.permute(0, 3, 5, 1, 2, 4).reshape(n, STRIDE**2 * channels, -1)
        mean = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True) + 1e-6).sqrt()
        return (x - mean) / deviation, mean, deviation

    @torch.no_grad()
    def reconstruct(self, images: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Return the images with hidden patches as predicted, and with hidden patches zero.

        Both (N, channels, H, W), normalised as ``images``; the mean and deviation of each hidden patch are
        the true ones, which the network is not asked for.
        """
        hidden = hidden or self.hide(images)
        predicted = self.decode(self.encode(images, hidden), hidden).flatten(2)
        _, mean, deviation = self.targets(images)
        n, channels, height, width = images.shape
        x = (predicted * deviation + mean).reshape(
            n, STRIDE, STRIDE, channels, height // STRIDE, width // STRIDE
        )
        x = x.permute(0, 3, 4, 1, 5, 2).reshape(n, channels, height, width)
        visible = hidden.visible(self.patch_size).to(images.dtype)
        return images * visible + x * (1 - visible), images * visible


def _masked_block(block: nn.Module, x: Tensor, visible: Tensor, where: Tensor | None) -> Tensor:
    """Compute a block at visible positions.

    Args:
        block: of the encoder.
        x: (N, C, H, W), zero at hidden positions.
        visible: (N, 1, H, W), 1 at visible positions, else 0.
        where: (N, P) numbers of the visible positions, at which norm and MLP are computed; ``None``: at all.
    """
    y = _depthwise(block.dwconv, x).permute(0, 2, 3, 1)  # (N, H, W, C)
    n, height, width, channels = y.shape
    if where is None:
        y = y * visible.permute(0, 2, 3, 1)
    else:
        index = where[..., None].expand(-1, -1, channels)
        y = y.flatten(1, 2).gather(1, index)[:, :, None]  # (N, P, 1, C)
    y = F.gelu(block.pwconv1(block.norm(y)))
    if where is None:  # outside, norm and MLP give what their biases give
        y = y * visible.permute(0, 2, 3, 1)
    y = block.pwconv2(block.grn(y))
    y = y if block.gamma is None else block.gamma * y
    y = block.drop_path(y)
    if where is None:
        y = y * visible.permute(0, 2, 3, 1)
    else:
        empty = y.new_zeros(n, height * width, channels)
        y = empty.scatter(1, index, y[:, :, 0]).reshape(n, height, width, channels)
    return x + y.permute(0, 3, 1, 2)


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute a depthwise convolution, on a CPU by our operator, whose weight gradient is fast."""
    if x.device.type == 'cpu' and x.is_contiguous(memory_format=torch.channels_last):
        return ops.depthwise_conv(x, conv.weight, conv.bias)
    return conv(x)
