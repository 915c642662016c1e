"""Computes the gradients of a region proposal network where it has any.

Such a network is trained on a few hundred anchors of an image, drawn at random (Faster R-CNN,
arXiv:1506.01497, Sec. 3.1.3). The gradient of its maps is zero at all other positions, 99 of 100. What those
would add to the gradients of inputs and weights is zero, too, but takes its time on a CPU.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .change import heads_of

MOST = 1 / 8  # of the positions; with a gradient at more of them the usual way is as fast


class SampledConv2d(nn.Conv2d):
    """Convolves as ``nn.Conv2d``; on a CPU its backward pass computes where the gradient is not zero.

    The size stays: stride 1, an odd kernel, zeros of half its width around the map.
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, D, H, W)
        """Convolve, in the data type of autocast where that is on."""
        if x.device.type != 'cpu' or torch.compiler.is_compiling():
            return super().forward(x)
        tensors = [x, self.weight, self.bias]
        if torch.is_autocast_enabled('cpu'):
            kind = torch.get_autocast_dtype('cpu')
            tensors = [each if each is None else each.to(kind) for each in tensors]
        return _Convolution.apply(*tensors)


def is_plain(module: nn.Module) -> bool:
    """Return whether a :class:`SampledConv2d` can take the place of a module."""
    if type(module) is not nn.Conv2d or module.padding_mode != 'zeros':
        return False
    half = tuple(n // 2 for n in module.kernel_size)
    odd = all(n % 2 for n in module.kernel_size)
    ones = (*module.stride, *module.dilation, module.groups)
    return odd and module.padding == half and set(ones) == {1}


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=_half(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        places = (grad != 0).any(1)  # (N, H, W); a NaN is not zero
        with torch.autocast('cpu', enabled=False):
            if places.sum() > MOST * places.numel():
                sizes = [len(weight)], (1, 1), _half(weight), (1, 1), False, (0, 0), 1
                needed = list(ctx.needs_input_grad)
                return torch.ops.aten.convolution_backward(grad, x, weight, *sizes, needed)
            found = _gradients(grad, places, x, weight)
        return tuple(each if needed else None for each, needed in zip(found, ctx.needs_input_grad))


def _half(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _gradients(grad: Tensor, places: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias, by products in float32 or wider.

    Args:
        grad: of the output, (N, D, H, W).
        places: (N, H, W), where it is not zero.
        x, weight: input (N, C, H, W) and weight (D, C, KH, KW).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    (above, beside), (height, width) = _half(weight), places.shape[1:]
    image, row, column = places.nonzero(as_tuple=True)  # P positions
    out = grad[image, :, row, column].to(wide)  # (P, D)
    taps = list(itertools.product(range(weight.shape[2]), range(weight.shape[3])))

    # The pixels under the kernel at any of the positions, each once, on a map with zeros around it.
    number = torch.zeros(len(x), height + 2 * above, width + 2 * beside, dtype=torch.long)
    for down, right in taps:
        number[image, row + down, column + right] = 1
    of, y, z = number.nonzero(as_tuple=True)  # M pixels
    number[of, y, z] = torch.arange(len(of))
    y, z = y - above, z - beside
    inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
    where = of[inside], y[inside], z[inside]
    pixels = torch.zeros(len(of), x.shape[1], dtype=wide)
    pixels[inside] = x.permute(0, 2, 3, 1)[where].to(wide)

    of_pixels, of_weight = torch.zeros_like(pixels), torch.empty_like(weight)
    for down, right in taps:
        under = number[image, row + down, column + right]  # (P,), none twice
        of_weight[:, :, down, right] = out.t() @ pixels[under]
        of_pixels.index_add_(0, under, out @ weight[:, :, down, right].to(wide))
    of_x = torch.zeros(x.shape, dtype=x.dtype)
    of_x.permute(0, 2, 3, 1)[where] = of_pixels[inside].to(x.dtype)
    return of_x, of_weight, out.sum(0).to(weight.dtype)


def use_sampled_gradients(model: nn.Module) -> int:
    """Have the convolutions of mmdet's ``RPNHead`` compute gradients at sampled positions only, on a CPU.

    Parameters, their names and all results stay, but for the order of sums.

    Args:
        model: any; it is changed in place.

    Returns:
        How many convolutions there are.
    """
    heads = heads_of(model, 'mmdet.models.dense_heads.RPNHead')
    found = [part for each in heads for part in each.modules() if is_plain(part)]
    for convolution in found:
        convolution.__class__ = SampledConv2d
    return len(found)
