"""Convolves maps of several sizes at once, each at its own size.

UPerNet (arXiv:1807.10221, Sec. 3.1) enlarges the maps of all levels to the first one's size, concatenates
them and convolves: of its 2048 channels three quarters are enlarged ones, and this one convolution is most
of its FLOPs. Both steps are linear, so that they may change places: the products of pixels and weights are
computed at the size of each map, a 4th, 16th and 64th of the pixels, and what is enlarged, by matrices, is
their sums.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bilinear import shares
from .change import heads_of, override
from .rpn import is_plain

MOST = 0.5  # of the products of the usual way


class FusingConv2d(nn.Conv2d):
    """Convolves one map as ``nn.Conv2d``; or a tuple of maps, as if enlarged to the first one's size.

    Attributes:
        align_corners: how they are enlarged, see ``torch.nn.functional.interpolate``; bilinear.
    """

    align_corners = False

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Convolve, in the data type of autocast where that is on.

        Args:
            x: a map (N, C, H, W), or maps (N, Ci, Hi, Wi), whose channels are C together.

        Returns:
            (N, D, H, W), in the second case the size of the first map.
        """
        if isinstance(x, Tensor):
            return super().forward(x)
        size = x[0].shape[2:]
        small = [self._is_cheaper(each, size) for each in x]
        device = x[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x[0].dtype
        slower = device != 'cpu' and dtype == torch.float32  # convolutions are TF32 there, products are not
        if slower or torch.compiler.is_compiling() or not any(small):
            return super().forward(torch.cat([self._enlarged(each, size) for each in x], 1))
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(device):
            x = [each.to(dtype) for each in x]
            weight, bias = weight.to(dtype), bias if bias is None else bias.to(dtype)
        weights = weight.split([each.shape[1] for each in x], 1)
        large = [k for k, each in enumerate(small) if not each]
        full = torch.cat([self._enlarged(x[k], size) for k in large], 1)
        out = F.conv2d(full, torch.cat([weights[k] for k in large], 1), bias, padding=self.padding)
        pairs = [(x[k], weights[k]) for k, each in enumerate(small) if each]
        return _add_small(out, pairs, self.align_corners)

    def _enlarged(self, x: Tensor, size: torch.Size) -> Tensor:
        if x.shape[2:] == size:
            return x
        return F.interpolate(x, size, mode='bilinear', align_corners=self.align_corners)

    def _is_cheaper(self, x: Tensor, size: torch.Size) -> bool:
        """Return whether the products at a map's own size and with the matrices are few enough."""
        (rows, columns), (channels, height, width), (high, wide) = self.kernel_size, x.shape[1:], size
        ours = rows * columns * height * width * (channels + high) + columns * high * width * wide
        return (height, width) != size and ours <= MOST * rows * columns * high * wide * channels


def _add_small(out: Tensor, pairs: list[tuple[Tensor, Tensor]], align_corners: bool) -> Tensor:
    """Add the convolutions of enlarged maps to a map.

    A pixel of the result is a sum over the rows and columns of the kernel, each a sum over pixels of the
    small map, weighted by how much of them the enlarged pixel there contains: once more a product of
    matrices, first for the rows, then for the columns.

    Args:
        out: (N, D, H, W).
        pairs: maps (N, C, h, w) with weights (D, C, KH, KW).
        align_corners: see :class:`FusingConv2d`.
    """
    (n, d, high, wide), kind, parts, matrices = out.shape, (out.dtype, out.device), [], []
    for x, weight in pairs:
        (channels, height, width), (rows, columns) = x.shape[1:], weight.shape[2:]
        pixels = x.permute(0, 2, 3, 1).reshape(n * height * width, channels)
        weight = weight.permute(1, 2, 3, 0).reshape(channels, rows * columns * d)
        products = (pixels @ weight).view(n, height, width, rows, columns * d)
        products = products.permute(0, 3, 1, 2, 4).reshape(n, rows * height, width * columns * d)
        down = shares(height, high, rows, align_corners, *kind).reshape(high, rows * height)
        parts.append((down @ products).view(n * high, width * columns, d))
        right = shares(width, wide, columns, align_corners, *kind).transpose(1, 2)
        matrices.append(right.reshape(wide, width * columns))
    out = out.permute(0, 2, 3, 1).reshape(n * high, wide, d)
    right = torch.cat(matrices, 1).expand(n * high, -1, -1)
    out = torch.baddbmm(out, right, torch.cat(parts, 1))
    return out.view(n, high, wide, d).permute(0, 3, 1, 2)


def use_small_maps(model: nn.Module) -> int:
    """Have the bottlenecks of mmseg's ``UPerHead`` convolve maps before they are enlarged.

    Args:
        model: any; it is changed in place.

    Returns:
        How many heads there are.
    """
    heads = heads_of(model, 'mmseg.models.decode_heads.UPerHead', 'psp_forward', '_forward_feature')
    heads = [head for head in heads if _is_usual(head)]
    for head in heads:
        for bottleneck in (head.bottleneck, head.fpn_bottleneck):
            bottleneck.conv.__class__ = FusingConv2d
            bottleneck.conv.align_corners = head.align_corners
        override(head, psp_forward=_psp_forward, _forward_feature=_forward_feature)
    return len(heads)


def _is_usual(head: nn.Module) -> bool:
    from mmcv.cnn import ConvModule
    from mmseg.models.decode_heads.psp_head import PPM

    pools = getattr(head, 'psp_modules', None)
    if type(pools) is not PPM or pools.align_corners != head.align_corners:
        return False
    parts = [getattr(head, name, None) for name in ('bottleneck', 'fpn_bottleneck')]
    plain = all(type(p) is ConvModule and p.order[0] == 'conv' and is_plain(p.conv) for p in parts)
    return plain and all(p.efficient_conv_bn_eval_forward is None for p in parts)


def _psp_forward(self, inputs: list[Tensor]) -> Tensor:
    x = inputs[-1]
    return self.bottleneck((x, *(pooled(x) for pooled in self.psp_modules)))


def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
    inputs = self._transform_inputs(inputs)
    maps = [convolve(x) for convolve, x in zip(self.lateral_convs, inputs)]
    maps.append(self.psp_forward(inputs))
    for k in range(len(maps) - 1, 0, -1):
        size = maps[k - 1].shape[2:]
        above = F.interpolate(maps[k], size, mode='bilinear', align_corners=self.align_corners)
        maps[k - 1] = maps[k - 1] + above
    return self.fpn_bottleneck((*(convolve(x) for convolve, x in zip(self.fpn_convs, maps)), maps[-1]))
