"""Computes deformable and masked convolution, attention, CARAFE, PSAMask, focal losses, batch norm.

Like mmcv's, the functions fill the tensors they are given. Half precision is computed in float32.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # least argument of a logarithm, as in mmcv


def _wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# Deformable convolution (arXiv:1703.06211) and its second version with a mask (arXiv:1811.11168)


def _deform_conv_arguments(output, input, weight, offset, mask, bias, geometry):
    """Return the tensors in one data type, absent mask or bias replaced, and the sizes torchvision needs."""
    kind = _wide(input).dtype
    with_mask = mask is not None
    if with_mask:
        offset, mask = (_begin(each, output.shape[2:]) for each in (offset, mask))
    mask = input.new_zeros((len(input), 1)) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [each.to(kind) for each in (input, weight, offset, mask, bias)], (*geometry, with_mask)


def _begin(values: Tensor, size: torch.Size) -> Tensor:
    """Return offsets or masks of another map as mmcv's kernel reads them: the beginning of their memory.

    DyHead (arXiv:2106.08322) computes them from the map of a level and convolves the next, smaller one.
    """
    number = values.shape[1] * size.numel()
    if values.shape[2:] == size or values[0].numel() < number:
        return values
    return values.flatten(1)[:, :number].reshape(len(values), -1, *size)


def _deform_conv(output, input, weight, offset, mask, bias, geometry) -> None:
    tensors, sizes = _deform_conv_arguments(output, input, weight, offset, mask, bias, geometry)
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *sizes))


def _deform_conv_gradients(grad_output, input, weight, offset, mask, bias, geometry) -> list[Tensor]:
    """Compute the gradients of input, weight, offset, mask and bias."""
    tensors, sizes = _deform_conv_arguments(grad_output, input, weight, offset, mask, bias, geometry)
    grad = grad_output.to(tensors[0].dtype)
    found = list(torch.ops.torchvision._deform_conv2d_backward(grad, *tensors, *sizes))
    for index, whole in ((2, offset), (3, mask)):
        if whole is not None and found[index].shape != whole.shape:
            full = found[index].new_zeros(whole.shape)
            full.view(len(full), -1)[:, : found[index][0].numel()] = found[index].flatten(1)
            found[index] = full
    return found


def deform_conv_forward(
    input, weight, offset, output, columns, ones, *, kW, kH, dW, dH, padW, padH, dilationW, dilationH,
    group, deformable_group, im2col_step,
) -> None:  # fmt: skip
    """Fill ``output`` with the deformable convolution of ``input``.

    Args:
        input, weight: (N, C, H, W) and (D, C / group, kH, kW).
        offset: (N, 2 * deformable_group * kH * kW, OH, OW), (y, x) for each tap.
        columns, ones: scratch of mmcv; ``columns`` carries the weight's gradient between the two calls of
            the backward pass.
        dW, dH, padW, padH, dilationW, dilationH: stride, padding and dilation along both axes.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    _deform_conv(output, input, weight, offset, None, None, geometry)


def deform_conv_backward_input(
    input, offset, grad_output, grad_input, grad_offset, weight, columns, *, kW, kH, dW, dH, padW, padH,
    dilationW, dilationH, group, deformable_group, im2col_step,
) -> None:  # fmt: skip
    """Fill the gradients of input and offset; see :func:`deform_conv_forward`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    to_input, to_weight, to_offset, *_ = _deform_conv_gradients(
        grad_output, input, weight, offset, None, None, geometry
    )
    grad_input.copy_(to_input)
    grad_offset.copy_(to_offset)
    columns.resize_(to_weight.shape).copy_(to_weight)


def deform_conv_backward_parameters(
    input, offset, grad_output, grad_weight, columns, ones, *, kW, kH, dW, dH, padW, padH, dilationW,
    dilationH, group, deformable_group, scale, im2col_step,
) -> None:  # fmt: skip
    """Add ``scale`` times the gradient to ``grad_weight``; see :func:`deform_conv_forward`."""
    if columns.shape == grad_weight.shape:
        to_weight = columns
    else:
        geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        _, to_weight, *_ = _deform_conv_gradients(
            grad_output, input, torch.zeros_like(grad_weight), offset, None, None, geometry
        )
    grad_weight += scale * to_weight.to(grad_weight.dtype)


def modulated_deform_conv_forward(
    input, weight, bias, ones, offset, mask, output, columns, *, kernel_h, kernel_w, stride_h, stride_w,
    pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, with_bias,
) -> None:  # fmt: skip
    """Fill ``output`` with the deformable convolution whose taps are scaled by ``mask``.

    Args:
        mask: (N, deformable_group * kernel_h * kernel_w, OH, OW).
        bias: (D,), unused unless ``with_bias``.
        input, weight, offset: see :func:`deform_conv_forward`.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    _deform_conv(output, input, weight, offset, mask, bias if with_bias else None, geometry)


def modulated_deform_conv_backward(
    input, weight, bias, ones, offset, mask, columns, grad_input, grad_weight, grad_bias, grad_offset,
    grad_mask, grad_output, *, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    group, deformable_group, with_bias,
) -> None:  # fmt: skip
    """Fill the five gradients; see :func:`modulated_deform_conv_forward`."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    found = _deform_conv_gradients(
        grad_output, input, weight, offset, mask, bias if with_bias else None, geometry
    )
    targets = [grad_input, grad_weight, grad_offset, grad_mask, grad_bias]
    for target, gradient in zip(targets if with_bias else targets[:4], found):
        target.copy_(gradient)


# Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, Sec. 4.1)


def _attention(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    images, _, heads, channels = value.shape
    levels = value.split([height * width for height, width in shapes], 1)
    total = 0
    for level, (height, width) in enumerate(shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(images * heads, channels, height, width)
        points = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples = F.grid_sample(maps, points, align_corners=False)  # (N * heads, channels, queries, points)
        total = total + (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.unflatten(0, (images, heads)).flatten(1, 2).transpose(1, 2)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the weighted sums of samples from several maps, (N, queries, heads * channels).

    Args:
        value: (N, pixels of all maps, heads, channels).
        value_spatial_shapes: (maps, 2), heights and widths.
        sampling_locations: (N, queries, heads, maps, points, 2) as (x, y) in shares of the map.
        attention_weights: (N, queries, heads, maps, points).
    """
    wide = (_wide(each) for each in (value, sampling_locations, attention_weights))
    value_wide, locations, weights = wide
    found = _attention(value_wide, value_spatial_shapes.tolist(), locations, weights)
    return found.to(value.dtype).contiguous()


def ms_deform_attn_backward(
    value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, grad_output,
    grad_value, grad_sampling_loc, grad_attn_weight, im2col_step,
) -> None:  # fmt: skip
    """Fill the three gradients; see :func:`ms_deform_attn_forward`."""
    given = (value, sampling_locations, attention_weights)
    with torch.enable_grad():
        inputs = [_wide(each).detach().requires_grad_() for each in given]
        output = _attention(inputs[0], value_spatial_shapes.tolist(), *inputs[1:])
        found = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found):
        target.copy_(gradient)


# CARAFE (arXiv:1905.02188): every output pixel has a kernel of its own


def _taps(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Iterator[tuple]:
    """Yield for each tap the window it reads in the padded map, and its weights.

    The weights are (N, G, 1, H, scale, W, scale).
    """
    images, _, height, width = features.shape
    weights = masks.reshape(images, groups, 1, kernel * kernel, height, scale, width, scale)
    for tap in range(kernel * kernel):
        row, column = divmod(tap, kernel)
        window = (..., slice(row, row + height), slice(column, column + width))
        yield window, weights[:, :, :, tap]


def _padded(features: Tensor, kernel: int, groups: int) -> Tensor:
    """Group and pad the features: (N, C, H, W) -> (N, G, C / G, H + kernel - 1, W + kernel - 1)."""
    return F.pad(_wide(features), [(kernel - 1) // 2] * 4).unflatten(1, (groups, -1))


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Fill ``output`` with the features upsampled by one kernel for each output pixel.

    Args:
        features: (N, C, H, W).
        masks: (N, group_size * kernel_size^2, H * scale_factor, W * scale_factor).
        output: (N, C, H * scale_factor, W * scale_factor).
        group_size: groups of channels that share their kernels.
    """
    padded = _padded(features, kernel_size, group_size)
    total = 0
    for window, weights in _taps(features, _wide(masks), kernel_size, group_size, scale_factor):
        total = total + padded[window][:, :, :, :, None, :, None] * weights
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill the gradients of features and masks; see :func:`carafe_naive_forward`."""
    images, channels, height, width = features.shape
    padded = _padded(features, kernel_size, group_size)
    grad = _wide(top_grad).reshape(
        images, group_size, channels // group_size, height, scale_factor, width, scale_factor
    )
    to_padded, to_weights = torch.zeros_like(padded), []
    for window, weights in _taps(features, _wide(masks), kernel_size, group_size, scale_factor):
        to_padded[window] += (grad * weights).sum((4, 6))
        to_weights.append((grad * padded[window][:, :, :, :, None, :, None]).sum(2))
    edge = (kernel_size - 1) // 2
    inner = to_padded[..., edge : edge + height, edge : edge + width]
    bottom_grad.copy_(inner.reshape(features.shape))
    mask_grad.copy_(torch.stack(to_weights, 2).reshape(masks.shape))


def carafe_forward(
    features, masks, rfeatures, routput, rmasks, output, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Fill ``output`` as :func:`carafe_naive_forward` does, and ``rfeatures`` for the backward pass."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad, rfeatures, masks, rtop_grad, rbottom_grad_hs, rbottom_grad, rmask_grad, bottom_grad, mask_grad,
    kernel_size: int, group_size: int, scale_factor: int,
) -> None:  # fmt: skip
    """Fill the gradients of features and masks; see :func:`carafe_naive_forward`."""
    carafe_naive_backward(
        top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
    )


# Masked convolution: only at some places of the output


def masked_im2col_forward(im, mask_h_idx, mask_w_idx, col, kernel_h, kernel_w, pad_h, pad_w) -> None:
    """Fill ``col`` (C * kernel_h * kernel_w, places) with what the kernel meets at each place.

    Args:
        im: (1, C, H, W).
        mask_h_idx, mask_w_idx: (places,), row and column of each in the output.
    """
    padded = F.pad(im[0], (pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h))  # places may lie at the edge
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(col, mask_h_idx, mask_w_idx, im, height, width, channels) -> None:
    """Put ``col`` (channels, places) at its places of ``im`` (1, channels, height, width)."""
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)


# Point-wise spatial attention (PSANet, ECCV 2018)


def _psa_taps(h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask, device):
    """Return the mask's channel for each pair of pixels, and whether it reaches so far.

    Both are (target pixels, H, W).
    """
    index, inside = [], []
    for length, size, half in ((h_feature, h_mask, half_h_mask), (w_feature, w_mask, half_w_mask)):
        place = torch.arange(length, device=device)
        tap = place[:, None] - place + half  # (target, source)
        inside.append((tap >= 0) & (tap < size))
        index.append(tap.clamp(0, size - 1))
    channel = index[0][:, None, :, None] * w_mask + index[1][None, :, None, :]
    valid = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    return channel.flatten(0, 1), valid.flatten(0, 1)


def psamask_forward(
    input, output, psa_type, num_, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
) -> None:
    """Fill ``output`` (N, H * W, H, W) with the attention between all pixels.

    Args:
        input: (N, h_mask * w_mask, H, W), the attention of each pixel to those around it.
        psa_type: 0 collects (first the target pixel, then the source), 1 distributes.
    """
    channel, valid = _psa_taps(h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask, input.device)
    collected = input.gather(1, channel.expand(num_, -1, -1, -1)) * valid
    if psa_type == 1:
        collected = collected.flatten(2).transpose(1, 2)
    output.copy_(collected.reshape(output.shape))


def psamask_backward(
    grad_output, grad_input, psa_type, num_, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
) -> None:
    """Fill ``grad_input`` (N, h_mask * w_mask, H, W); see :func:`psamask_forward`."""
    channel, valid = _psa_taps(
        h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask, grad_output.device
    )
    grad = grad_output.flatten(2)
    grad = (grad.transpose(1, 2) if psa_type == 1 else grad).reshape(num_, *channel.shape)
    grad_input.zero_().scatter_add_(1, channel.expand(num_, -1, -1, -1), grad * valid)


# Focal losses (arXiv:1708.02002)


def _class_weights(weight: Tensor, target: Tensor, like: Tensor) -> Tensor | float:
    """Return the weight of each target; one for those that are no class, as the background."""
    if not weight.numel():
        return 1.0
    weight = F.pad(weight.to(like.dtype), (0, 1), value=1.0)
    return weight[torch.where(target >= 0, target, -1)]


def sigmoid_focal_loss_forward(input, target, weight, output, gamma: float, alpha: float) -> None:
    """Fill ``output`` (N, C) with the focal loss of each class as a question of its own.

    Args:
        input: (N, C) logits.
        target: (N,), 0 to C - 1, or C for none of them.
        weight: (C,), a factor by target, one for what is no class; empty for none.
        gamma, alpha: exponent, and share of the positive side.
    """
    logits = _wide(input)
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    p = logits.sigmoid()
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log(),
        -(1 - alpha) * p**gamma * (1 - p).clamp(min=TINY).log(),
    )
    factor = _class_weights(weight, target, loss)
    output.copy_(loss * (factor[:, None] if weight.numel() else factor))


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma: float, alpha: float) -> None:
    """Fill ``grad_input`` (N, C) with the derivative by the logits; see the forward pass."""
    logits = _wide(input)
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    p = logits.sigmoid()
    gradient = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * p.clamp(min=TINY).log()),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * (1 - p).clamp(min=TINY).log() - p),
    )
    factor = _class_weights(weight, target, gradient)
    grad_input.copy_(gradient * (factor[:, None] if weight.numel() else factor))


def softmax_focal_loss_forward(input, target, weight, output, gamma: float, alpha: float) -> None:
    """Fill ``output`` (N,) with the focal loss of the target's probability.

    Args:
        input: (N, C) probabilities.
        target: (N,), 0 to C - 1, or negative for a row without loss.
        weight, gamma, alpha: see :func:`sigmoid_focal_loss_forward`.
    """
    chosen = target.clamp(min=0)
    p = _wide(input).gather(1, chosen[:, None])[:, 0]
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log() * (target >= 0)
    output.copy_(loss * _class_weights(weight, chosen, loss))


def softmax_focal_loss_backward(input, target, weight, buff, grad_input, gamma: float, alpha: float) -> None:
    """Fill ``grad_input`` (N, C) with the derivative by the logits; ``buff`` (N,) is scratch."""
    chosen, probabilities = target.clamp(min=0), _wide(input)
    p = probabilities.gather(1, chosen[:, None])[:, 0]
    by_log = alpha * (1 - p) ** gamma * (gamma * p * p.clamp(min=TINY).log() / (1 - p).clamp(min=TINY) - 1)
    by_log = by_log * (target >= 0) * _class_weights(weight, chosen, p)
    buff.copy_(by_log)
    one_hot = F.one_hot(chosen, probabilities.shape[1])
    grad_input.copy_(by_log[:, None] * (one_hot - probabilities))


# Batch norm over several processes; mmcv's Python adds up between these steps. Maps are (N, C, pixels).


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fill ``mean`` (C,) with the mean of each channel."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fill ``var`` (C,) with the mean squared distance from ``mean``."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input, mean, var, weight, bias, running_mean, running_var, norm, std, output, eps, momentum, group_size
) -> None:
    """Fill ``norm``, ``std`` and ``output``, and move the running statistics on."""
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    affine = weight is not None and weight.numel()
    output.copy_(norm * weight[:, None] + bias[:, None] if affine else norm)
    if running_mean is None:
        return
    numbers = input.shape[0] * input.shape[2] * group_size
    unbiased = numbers / (numbers - 1) if numbers > 1 else 1  # 0 numbers: a process without images
    running_mean.mul_(1 - momentum).add_(mean * momentum)
    running_var.mul_(1 - momentum).add_(var * momentum * unbiased)


def sync_bn_backward_param(grad_output, norm, grad_weight, grad_bias) -> None:
    """Fill the gradients of weight and bias, (C,)."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(grad_output, weight, grad_weight, grad_bias, norm, std, grad_input) -> None:
    """Fill the gradient of the input, from the sums over all processes."""
    numbers = grad_output.shape[0] * grad_output.shape[2]
    mean = (norm * grad_weight[:, None] + grad_bias[:, None]) / numbers
    grad_input.copy_((grad_output.float() - mean) * (weight / std)[:, None])
