"""Computes a whole ConvNeXt block in fewer passes over memory, and chooses the implementation."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import trial
from .depthwise import depthwise_conv
from .mlp import Weights, norm_mlp
from .triton_block import triton_block

FUSED = (True, False, 'triton')  # what a block can be asked for


def block_implementation(block: nn.Module, x: Tensor) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """Return the function of (block, x) that computes the block for ``x``; ``None``: its layers, as they are.

    Args:
        block: a :class:`convnext_backbone.backbones.block.Block`.
        x: (N, C, H, W).
    """
    if block.fused and has_plain_layers(block) and not trial.being_exported():
        triton = by_triton(block, x)
        if triton or _pays_without_triton(x):
            return functools.partial(fused_block, triton=triton)
    return folded_block if block.folded else None


def _pays_without_triton(x: Tensor) -> bool:
    """Return whether the fused operators are better than the ordinary layers where PyTorch computes them.

    On a CPU they are faster. Of huge maps on CUDA they keep half the memory at the same speed; of smaller
    ones they take longer to launch than to compute. On CUDA ``torch.compile`` gets the layers, to fuse them.
    """
    if torch.compiler.is_compiling() and x.device.type == trial.DEVICE:
        return False
    return x.device.type == 'cpu' or (x.device.type == 'cuda' and x.numel() >= trial.HUGE)


def by_triton(block: nn.Module, x: Tensor) -> bool:
    """Return whether the Triton kernels compute the block (V1), or its convolution (V2)."""
    if x.device.type != trial.DEVICE and block.fused is True:
        return False  # before anything that takes time on a CPU
    channels = block.norm.normalized_shape[0]  # a constant for torch.compile
    operator = 'block' if isinstance(block.grn, nn.Identity) else 'depthwise'
    return trial.chosen(operator, block.fused, x, channels, block.dwconv.dilation[0])


def has_plain_layers(block: nn.Module, without_hooks: bool = True) -> bool:
    """Return whether the layers are those that were built: no adapter and, if asked, no hook."""
    return all(
        type(layer) is kind
        and type(layer.weight) is nn.Parameter
        and layer.bias is not None
        and not (without_hooks and (layer._forward_hooks or layer._forward_pre_hooks))
        for layer, kind in (
            (block.dwconv, nn.Conv2d),
            (block.norm, nn.LayerNorm),
            (block.pwconv1, nn.Linear),
            (block.pwconv2, nn.Linear),
        )
    )


def fused_block(block: nn.Module, x: Tensor, triton: bool = False) -> Tensor:  # (N, C, H, W) -> same
    """Compute the block by the fused operators; on a CPU, samples whose branch is dropped are not.

    ``triton``: as :func:`by_triton` has it.
    """
    # Under autocast the sum is in float32: in bfloat16 it would lose a branch of small layer scale.
    x = x.to(block.pwconv2.weight.dtype)
    rate = block.drop_path.rate if block.training else 0.0
    if rate == 0.0:
        return _residual_sum(block, x, triton)
    if torch.compiler.is_compiling() or x.device.type == 'cuda':
        # Of sizes that do not depend on the draw, for which graphs and cuDNN's plans would be made anew. A
        # GPU takes longer to leave samples out, and to put the others back, than to compute them.
        return _residual_sum(block, x, triton, block.drop_path.scale(x))
    kept = (torch.rand(len(x), device='cpu') >= rate).nonzero().flatten()
    if not len(kept):
        return _Skip.apply(x, *block.parameters())
    if len(kept) == len(x):
        return _residual_sum(block, x, triton, 1 / (1 - rate))
    x = x.permute(0, 2, 3, 1)
    part = x.index_select(0, kept).permute(0, 3, 1, 2)
    part = _residual_sum(block, part, triton, 1 / (1 - rate)).permute(0, 2, 3, 1)
    return x.index_copy(0, kept, part).permute(0, 3, 1, 2)


def _residual_sum(block: nn.Module, x: Tensor, triton: bool, scale: float | Tensor | None = None) -> Tensor:
    """Return ``x + scale * branch(x)``; ``scale`` is one number, or (N, 1, 1, 1)."""
    conv, v1 = block.dwconv, isinstance(block.grn, nn.Identity)
    folded = block.folded
    if folded:
        norm, gain = (None, None, block.norm.eps), None
        first, second = folded[:2], folded[2:]
    else:
        norm, gain = (block.norm.weight, block.norm.bias, block.norm.eps), block.gamma
        first = block.pwconv1.weight, block.pwconv1.bias
        second = block.pwconv2.weight, block.pwconv2.bias
    if v1 and scale is not None and not isinstance(scale, Tensor):
        gain = x.new_full((x.shape[1],), scale) if gain is None else gain * scale
    of_samples = scale.flatten() if isinstance(scale, Tensor) else None
    if v1 and triton:
        return triton_block(x, (conv.weight, conv.bias), Weights(*norm, *first, *second, gain, of_samples))
    y = depthwise_conv(x, conv.weight, conv.bias, conv.dilation[0], triton).permute(0, 2, 3, 1)
    if not v1:
        y = (_folded_mlp(block, y) if folded else _mlp(block, y)).permute(0, 3, 1, 2)
        return x + (y if scale is None else y * scale)
    x = x.permute(0, 2, 3, 1)
    y = norm_mlp(y, x, norm, first, second, gain, of_samples, bool(folded))
    return y.permute(0, 3, 1, 2)


def _mlp(block: nn.Module, y: Tensor) -> Tensor:  # (N, H, W, C) -> same
    y = block.pwconv2(block.grn(F.gelu(block.pwconv1(block.norm(y)))))
    return y if block.gamma is None else block.gamma * y


def folded_block(block: nn.Module, x: Tensor) -> Tensor:  # (N, C, H, W) -> same
    """Compute the block by PyTorch's layers with folded weights, as an exported program has it."""
    y = _folded_mlp(block, block.dwconv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x + block.drop_path(y)


def _folded_mlp(block: nn.Module, y: Tensor) -> Tensor:  # (N, H, W, C) -> same
    w1, b1, w2, b2 = block.folded
    y = F.layer_norm(y, block.norm.normalized_shape, eps=block.norm.eps)
    y = F.gelu(F.linear(y, w1, b1))
    y = y if isinstance(block.grn, nn.Identity) else block.grn.without_shift(y)
    return F.linear(y, w2, b2)


class _Skip(torch.autograd.Function):
    """Passes ``x`` through; the parameters, which were not used, have gradients of zeros.

    DistributedDataParallel waits for the gradient of every parameter.
    """

    @staticmethod
    def forward(ctx, x, *parameters):
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[1:])
        return grad, *(torch.zeros_like(parameter) if wanted else None for parameter, wanted in needed)
