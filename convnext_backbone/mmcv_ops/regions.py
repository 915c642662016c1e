"""Computes fixed-size features of regions: RoIAlign, RoIPool and deformable RoI pooling.

Regions are (K, 5): index of the image, x1, y1, x2, y2 in pixels of the image. Everything is computed in
float32 at least: coordinates in half precision would be off by pixels. Maps may lie in any memory format.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .layers import _wide

CHUNK = 1 << 24  # numbers that are gathered at once
REGIONS = 256  # whose weights of rows and columns are computed at once


# Points between pixels


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the four pixels around each point: row, column, weight.

    A point up to one pixel outside takes the pixel at the border, one further outside has no weight.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    for dy, wy in ((0, 1 - down), (1, down)):
        for dx, wx in ((0, 1 - right), (1, right)):
            row = (top + dy).clamp(max=height - 1).long()
            column = (left + dx).clamp(max=width - 1).long()
            yield row, column, wy * wx * inside


def _sample(maps: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample ``maps`` (N, C, H, W) bilinearly at (K, S) points of images (K,) -> (K, S, C)."""
    nhwc = maps.permute(0, 2, 3, 1)
    parts = (
        nhwc[image[:, None], row, column] * weight[..., None]
        for row, column, weight in _corners(y, x, *maps.shape[2:])
    )
    return sum(parts)


def _groups(sizes: Tensor, numbers: int) -> Iterator[tuple[Tensor, int, int]]:
    """Yield indices of the regions with the same (rows, columns), at most :data:`CHUNK` numbers at once.

    Args:
        sizes: (K, 2) whole numbers.
        numbers: that one region gathers for each row and column.
    """
    kinds, which = sizes.long().unique(dim=0, return_inverse=True)
    for kind, (rows, columns) in enumerate(kinds.tolist()):
        least = max(1, CHUNK // max(1, rows * columns * numbers))
        for indices in (which == kind).nonzero().flatten().split(least):
            yield indices, rows, columns


def _coordinate(start, size, count: int, number, sample, points):
    """Return where a sample of bin ``number`` lies, along one axis of a region that has ``count`` bins."""
    step = size / count
    return start + number * step + (sample + 0.5) * step / points


def _bins(
    start: Tensor, size: Tensor, bins: tuple[int, int], rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Return the coordinates of ``rows`` x ``columns`` points in each bin of each region.

    Args:
        start, size: (K, 2) as (y, x); ``start`` may be (K, PH, PW, 2), each bin with a start of its own.

    Returns:
        y, x: (K, PH, PW, rows, columns).
    """
    if start.ndim == 2:
        start = start[:, None, None]
    grids = []
    for axis, (count, points) in enumerate(zip(bins, (rows, columns))):
        shapes = ((count, 1, 1, 1), (points, 1)) if axis == 0 else ((count, 1, 1), (points,))
        number, sample = (
            torch.arange(n, device=start.device, dtype=start.dtype).view(shape)
            for n, shape in zip((count, points), shapes)
        )
        own_start, own_size = start[..., axis, None, None], size[:, axis, None, None, None, None]
        grids.append(_coordinate(own_start, own_size, count, number, sample, points))
    y, x = torch.broadcast_tensors(*grids)
    return y, x


def _frame(rois: Tensor, scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Return (y, x) of the regions' starts, and their heights and widths, in pixels of the map."""
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    start, size = corners[:, [1, 0]], corners[:, [3, 2]] - corners[:, [1, 0]]
    return start, size if aligned else size.clamp(min=1)


def _points_per_bin(size: Tensor, bins: tuple[int, int], ratio: int) -> Tensor:
    if ratio > 0:
        return torch.full_like(size, ratio)
    return (size / size.new_tensor(bins)).ceil().clamp(min=0)


# RoIAlign


def _in_order(rois: Tensor, sampling_ratio: int, aligned: bool) -> Tensor:
    """Return regions that torchvision accepts.

    A region turned inside out has no samples, but is an error for torchvision on a CPU.
    """
    if sampling_ratio > 0 or not aligned:
        return rois
    return torch.cat([rois[:, :3], torch.maximum(rois[:, 1:3], rois[:, 3:])], 1)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` (K, C, PH, PW) with the mean or maximum of bilinear samples (Mask R-CNN, Sec. 3).

    Args:
        input: maps (N, C, H, W).
        argmax_y, argmax_x: like ``output``, filled with the row and column of the largest sample in its bin,
            -1 if there is none; unused for the mean. Small whole numbers: half precision has them exactly,
            which it has not coordinates.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples of a bin along each axis; 0: as many as the bin has pixels.
        pool_mode: 0 maximum, 1 mean.
        aligned: pixels have their centre at half coordinates.
    """
    kind = torch.promote_types(input.dtype, torch.float32)
    rois, bins = _wide(rois).to(kind), (aligned_height, aligned_width)
    if pool_mode == 1 and _by_windows(input, rois, bins, spatial_scale, aligned):
        options = (bins, spatial_scale, sampling_ratio, aligned)
        output.copy_(_windows_mean(input, rois, *options).permute(0, 3, 1, 2))
        return
    maps = input.to(kind)
    if pool_mode == 1:
        rois = _in_order(rois, sampling_ratio, aligned)
        output.copy_(
            torch.ops.torchvision.roi_align(maps, rois, spatial_scale, *bins, sampling_ratio, aligned)
        )
        return
    start, size = _frame(rois, spatial_scale, aligned)
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    channels, height, width = maps.shape[1:]
    points = _points_per_bin(size, bins, sampling_ratio)
    for index, rows, columns in _groups(points, channels * bins[0] * bins[1]):
        if rows * columns == 0:
            continue
        y, x = _bins(start[index], size[index], bins, rows, columns)
        values = _sample(maps, rois[index, 0].long(), y.flatten(1), x.flatten(1))
        values = values.unflatten(1, (*bins, rows * columns)).permute(0, 4, 1, 2, 3)
        largest, place = values.max(-1)  # (k, C, PH, PW)
        output[index] = largest.to(output.dtype)
        argmax_y[index] = (place // columns).to(argmax_y.dtype)
        argmax_x[index] = (place % columns).to(argmax_x.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``grad_input`` (N, C, H, W); see :func:`roi_align_forward`.

    With ``torch.use_deterministic_algorithms`` on CUDA the sums have an order.
    """
    grad = _wide(grad_output)
    rois, bins = rois.to(grad.dtype), (aligned_height, aligned_width)
    if pool_mode == 0:
        start, size = _frame(rois, spatial_scale, aligned)
        points = _points_per_bin(size, bins, sampling_ratio).clamp(min=1)
        places = []
        for axis, (count, sample) in enumerate(zip(bins, (argmax_y, argmax_x))):
            number = torch.arange(count, device=grad.device, dtype=grad.dtype)
            number = number[:, None] if axis == 0 else number
            own_start, own_size, own_points = (t[:, axis, None, None, None] for t in (start, size, points))
            places.append(_coordinate(own_start, own_size, count, number, sample.to(grad.dtype), own_points))
        grad = grad * (argmax_y >= 0)
        image = rois[:, 0].long()[:, None, None, None]
        channel = torch.arange(grad_input.shape[1], device=grad.device)[:, None, None]
        total = torch.zeros_like(grad_input, dtype=grad.dtype)
        for row, column, weight in _corners(*places, *grad_input.shape[2:]):
            total.index_put_((image, channel, row, column), grad * weight, accumulate=True)
    elif grad.is_cuda and torch.are_deterministic_algorithms_enabled():
        total = _ordered_gradient(grad, rois, grad_input.shape, bins, spatial_scale, sampling_ratio, aligned)
    elif _by_windows(grad_input, rois, bins, spatial_scale, aligned):
        options = (bins, spatial_scale, sampling_ratio, aligned)
        total = _windows_gradient(grad, rois, grad_input.shape, *options).permute(0, 3, 1, 2)
    else:
        rois = _in_order(rois, sampling_ratio, aligned)
        total = torch.ops.torchvision._roi_align_backward(
            grad, rois, spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned
        )
    grad_input.copy_(total)


def _ordered_gradient(grad, rois, shape, bins, spatial_scale, sampling_ratio, aligned) -> Tensor:
    """Compute the gradient of the mean by sums in a fixed order, which ``index_put_`` has on request."""
    images, channels, height, width = shape
    start, size = _frame(rois, spatial_scale, aligned)
    total = grad.new_zeros(images, height, width, channels)
    points = _points_per_bin(size, bins, sampling_ratio)
    for index, rows, columns in _groups(points, channels * bins[0] * bins[1]):
        if rows * columns == 0:
            continue
        y, x = _bins(start[index], size[index], bins, rows, columns)  # (k, PH, PW, rows, columns)
        share = grad[index].permute(0, 2, 3, 1)[:, :, :, None, None] / (rows * columns)
        image = rois[index, 0].long()[:, None, None, None, None]
        for row, column, weight in _corners(y, x, height, width):
            total.index_put_((image, row, column), share * weight[..., None], accumulate=True)
    return total.permute(0, 3, 1, 2)


# The mean over a grid of points is a product of two matrices with the pixels around a region: one mixes rows,
# one columns. On a CPU that is several times as fast as torchvision's loop over points.


def _by_windows(maps: Tensor, rois: Tensor, bins: tuple[int, int], scale: float, aligned: bool) -> bool:
    """Return whether to go by windows: on a CPU, if bins of four pixels each have more than the maps.

    The maps are copied then, which fewer regions are not worth. Maps of one channel are masks: what a
    threshold at one half makes of them is to stay, whatever the order of sums.
    """
    few = 4 * len(rois) * bins[0] * bins[1] <= maps[:, 0].numel()
    if maps.device.type != 'cpu' or maps.shape[1] == 1 or few:
        return False
    size = _frame(rois, scale, aligned)[1]
    return bool((size <= 2 * size.new_tensor(maps.shape[2:])).all())  # none without end


def _axis_weights(start: Tensor, size: Tensor, points: Tensor, bins: int, length: int) -> Tensor:
    """Return the weight of each pixel along an axis in each bin of each region, (K, bins, length).

    Args:
        start, size, points: (K,), of each region along the axis; ``points`` of each bin.
        length: of the map along the axis.
    """
    most = max(1, int(points.max()))
    number = torch.arange(bins, dtype=start.dtype)[:, None]
    sample = torch.arange(most, dtype=start.dtype)
    start, size, points = (each[:, None, None] for each in (start, size, points))
    place = _coordinate(start, size, bins, number, sample, points.clamp(min=1))  # (K, bins, most)
    weight = ((sample < points) & (place >= -1) & (place <= length)) / points.clamp(min=1)
    place = place.clamp(0, length - 1).nan_to_num()
    low = place.floor()
    found = start.new_zeros(len(start), bins, length)
    found.scatter_add_(2, low.long(), weight * (1 - (place - low)))
    found.scatter_add_(2, (low.long() + 1).clamp(max=length - 1), weight * (place - low))
    return found


def _windows(rois, size, bins, spatial_scale, sampling_ratio, aligned):
    """Yield of each region that has points: its number, image, first and last row and column, and weights.

    Args:
        size: height and width of the maps.

    Yields:
        number, image, rows and columns as slices, their weights: (PH, rows) and (PW, columns).
    """
    for numbers in torch.arange(len(rois)).split(REGIONS):
        start, extent = _frame(rois[numbers], spatial_scale, aligned)
        points = _points_per_bin(extent, bins, sampling_ratio)
        weights, spans = [], []
        for axis in range(2):
            columns = (start[:, axis], extent[:, axis], points[:, axis])
            weights.append(_axis_weights(*columns, bins[axis], size[axis]))
            used = (weights[-1] != 0).any(1).byte()
            ends = size[axis] - used.flip(1).argmax(1)
            spans.append(torch.stack([used.argmax(1), ends * used.amax(1)], 1).tolist())
        images = rois[numbers, 0].long().tolist()
        for k, (image, (y0, y1), (x0, x1)) in enumerate(zip(images, *spans)):
            if y1 and x1:
                rows, columns = weights[0][k, :, y0:y1], weights[1][k, :, x0:x1]
                yield int(numbers[k]), image, slice(y0, y1), slice(x0, x1), rows, columns


@torch.autocast('cpu', enabled=False)
def _windows_mean(maps, rois, bins, *options) -> Tensor:
    """Return the mean over the points of each bin, (K, PH, PW, C)."""
    nhwc = maps.permute(0, 2, 3, 1).to(rois.dtype).contiguous()
    found = nhwc.new_zeros(len(rois), *bins, nhwc.shape[3])
    for k, image, y, x, rows, columns in _windows(rois, nhwc.shape[1:3], bins, *options):
        window = nhwc[image, y, x]
        mixed = (rows @ window.flatten(1)).view(bins[0], *window.shape[1:])  # (PH, columns, C)
        torch.matmul(columns, mixed, out=found[k])
    return found


@torch.autocast('cpu', enabled=False)
def _windows_gradient(grad, rois, shape, bins, *options) -> Tensor:
    """Return the gradient of the maps, (N, H, W, C), from that of the mean, (K, C, PH, PW)."""
    images, channels, height, width = shape
    total = grad.new_zeros(images, height, width, channels)
    of_bins = grad.permute(0, 2, 3, 1).contiguous()
    for k, image, y, x, rows, columns in _windows(rois, (height, width), bins, *options):
        mixed = (rows.t() @ of_bins[k].flatten(1)).view(-1, bins[1], channels)  # (rows, PW, C)
        total[image, y, x] += columns.t() @ mixed
    return total


# RoIPool


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``output`` (K, C, PH, PW) with the largest pixel of each bin (Fast R-CNN, Sec. 2.1).

    As in mmcv, the last pixel belongs to a region, and corners are not rounded before the bins are.

    Args:
        input, rois, spatial_scale: see :func:`roi_align_forward`.
        argmax: like ``output``, int32, filled with row * W + column of the maximum; -1 for an empty bin.
    """
    maps, rois, bins = _wide(input), _wide(rois), (pooled_height, pooled_width)
    channels, height, width = maps.shape[1:]
    start = rois[:, [2, 1]] * spatial_scale
    size = (rois[:, [4, 3]] + 1) * spatial_scale - start
    output.zero_()
    argmax.fill_(-1)
    spans = []  # of both axes: first pixel, end and number of pixels of each bin
    for axis, (count, length) in enumerate(zip(bins, (height, width))):
        number = torch.arange(count, device=rois.device)
        step = size[:, axis, None] / count
        low = (number * step + start[:, axis, None]).floor().clamp(0, length).long()
        high = ((number + 1) * step + start[:, axis, None]).ceil().clamp(0, length).long()
        spans.append((low, high))
    most = torch.stack([(high - low).amax(1).clamp(min=0) for low, high in spans], 1)
    most[(size <= 0).any(1)] = 0
    nhwc = maps.permute(0, 2, 3, 1)
    for index, rows, columns in _groups(most, channels * bins[0] * bins[1]):
        if rows * columns == 0:
            continue
        places, inside = [], []
        for (low, high), count, length in zip(spans, (rows, columns), (height, width)):
            place = low[index, :, None] + torch.arange(count, device=rois.device)
            inside.append(place < high[index, :, None])
            places.append(place.clamp(max=length - 1))
        y, x = places[0][:, :, None, :, None], places[1][:, None, :, None, :]  # (k, PH, PW, rows, columns)
        valid = (inside[0][:, :, None, :, None] & inside[1][:, None, :, None, :]).flatten(3)
        values = nhwc[rois[index, 0].long()[:, None, None, None, None], y, x]
        values = values.flatten(3, 4).masked_fill(~valid[..., None], -torch.inf)
        largest, best = values.max(3)  # (k, PH, PW, C)
        flat = (y * width + x).flatten(3)[..., None].expand(-1, -1, -1, -1, channels)
        flat = flat.gather(3, best[:, :, :, None])[:, :, :, 0]
        full = valid.any(-1)[..., None]
        output[index] = torch.where(full, largest, 0).permute(0, 3, 1, 2).to(output.dtype)
        argmax[index] = torch.where(full, flat, -1).permute(0, 3, 1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``grad_input`` (N, C, H, W); see :func:`roi_pool_forward`."""
    images, channels, height, width = grad_input.shape
    grad = _wide(grad_output)
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * (height * width) + argmax.long().clamp(min=0)
    total = grad.new_zeros(images * channels * height * width)
    total.index_put_((index.flatten(),), (grad * (argmax >= 0)).flatten(), accumulate=True)
    grad_input.copy_(total.view(grad_input.shape))


# Deformable RoI pooling


def _deform_roi_pool(maps, rois, offset, bins, spatial_scale, sampling_ratio, gamma):
    """Yield (indices of regions, their output); differentiable in ``maps`` and ``offset``."""
    start, size = _frame(rois, spatial_scale, aligned=True)
    points = _points_per_bin(size, bins, sampling_ratio)
    for index, rows, columns in _groups(points, maps.shape[1] * bins[0] * bins[1]):
        if rows * columns == 0:
            continue
        origin = start[index][:, None, None]
        if offset.numel():  # (k, 2, PH, PW), x first, in shares of the region's size
            shift = offset[index].flip(1).permute(0, 2, 3, 1)
            origin = origin + gamma * size[index][:, None, None] * shift
        y, x = _bins(origin, size[index], bins, rows, columns)
        values = _sample(maps, rois[index, 0].long(), y.flatten(1), x.flatten(1))
        yield index, values.unflatten(1, (*bins, rows * columns)).mean(3).permute(0, 3, 1, 2)


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill ``output`` (K, C, PH, PW) with means over shifted bins (Deformable ConvNets, arXiv:1703.06211).

    Args:
        input, rois, spatial_scale, sampling_ratio: see :func:`roi_align_forward`.
        offset: (K, 2, PH, PW), shifts along x and y in shares of the region's size; empty for none.
        gamma: factor on the shifts.
    """
    maps, bins = _wide(input), (pooled_height, pooled_width)
    rois, offset = rois.to(maps.dtype), offset.to(maps.dtype)
    output.zero_()
    for index, values in _deform_roi_pool(maps, rois, offset, bins, spatial_scale, sampling_ratio, gamma):
        output[index] = values.to(output.dtype)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill ``grad_input`` and ``grad_offset``; see :func:`deform_roi_pool_forward`."""
    bins = (pooled_height, pooled_width)
    with torch.enable_grad():
        maps = _wide(input).detach().requires_grad_()
        shift = offset.detach().to(maps.dtype).requires_grad_()
        rois, grad = rois.to(maps.dtype), grad_output.to(maps.dtype)
        wanted = [maps, shift] if shift.numel() else [maps]
        totals = [torch.zeros_like(each) for each in wanted]
        for index, values in _deform_roi_pool(maps, rois, shift, bins, spatial_scale, sampling_ratio, gamma):
            for total, part in zip(totals, torch.autograd.grad(values, wanted, grad[index])):
                total += part
    for target, total in zip((grad_input, grad_offset), totals):
        target.copy_(total)
