"""Contains Triton kernels for CUDA: depthwise convolution, norm, and linear layers with what follows them.

The convolution slides down the rows of a map in NHWC with the weights of its channels in registers. Products
and sums are in float32, each result is rounded once. Without Triton, on other devices and for shapes that
:func:`supports` refuses the callers take PyTorch. With ``TRITON_INTERPRET=1`` the kernels run on a CPU, which
is how they are tested where there is no GPU.
"""

import functools
import logging
import operator
import os
from functools import cache
from types import SimpleNamespace

import torch
from mmengine.logging import print_log
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it: the kernels below are never called
    triton, tl = None, SimpleNamespace(constexpr=None)

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
# Whether a compiled kernel is called as we know these versions to call it; others look at the arguments anew.
DIRECT = triton is not None and not INTERPRETED and triton.__version__.startswith(('3.6.', '3.7.', '3.8.'))
ALIGNMENT = 16  # bytes; a tensor that does not begin at a multiple takes another compiled kernel
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = 32  # for which the convolution gives the statistics of the norm
# Found on an H100 over the maps of ConvNeXt-T, of 128 images of 224 pixels and one of 800 x 1280.
CONVOLUTION = (4, 32, 56, 2, 2)  # columns, channels and most rows of a program, rows read ahead, warps
WEIGHT_GRADIENT = (4, 32, 8, 2)  # columns, channels, programs for each processor, warps
NORM = (4096, 4)  # numbers, warps
NORM_GRADIENT = (1024, 8, 2)  # numbers, programs for each processor, warps
ELEMENTS = (16, 128, 8, 4)  # rows, columns, programs for each processor, warps
GELU_GRADIENT = (16, 128, 4, 8)  # the same
TOTALS = (512, 8)  # rows, columns
GAIN = (256, 512)  # rows of sums, columns of the weight
LINEAR = ((64, 128, 32, 4), (128, 128, 64, 8))  # rows, columns, depth, warps: with GELU, with the residual
WIDEST = 128  # channels of the residual up to which _linear is faster than cuBLAS and what follows it


def supports(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> bool:
    """Return whether the kernels compute with ``x``.

    On CUDA from compute capability 8.0 on; 16 bit, since float32 stays with cuDNN and cuBLAS (TF32), but for
    the interpreter; channels in 32s.

    Args:
        x: a map or rows, whatever their shape.
        channels: of ``x``.
        dtype: the data type that ``x`` will have.
    """
    dtype = dtype or x.dtype
    return takes(channels, dtype) and _supports(x, dtype)


def takes(channels: int, dtype: torch.dtype) -> bool:
    """Return whether there are kernels for so many channels of a data type, whatever the device."""
    low = INTERPRETED or dtype != torch.float32
    return low and dtype in DTYPES and channels % CHANNELS == 0


def norm_supports(x: Tensor) -> bool:
    """Return whether :func:`norm` and its gradient compute with ``x``: on CUDA, of any number of channels."""
    return _supports(x, x.dtype)


def _supports(x: Tensor, dtype: torch.dtype) -> bool:
    if triton is None or dtype not in DTYPES:
        return False
    return INTERPRETED or (x.is_cuda and _device_supports(x.device.index))


@torch.compiler.assume_constant_result  # of a plain function: torch.compile looks through a cached one
def _device_supports(device: int) -> bool:
    return _capable(device)


@cache
def _capable(device: int) -> bool:
    if not torch.cuda.is_available():  # a tensor that only stands for one on CUDA
        return False
    major, minor = torch.cuda.get_device_capability(device)
    found = major >= 8
    said = 'may be used' if found else 'are not used: 8.0 is needed'
    print_log(f'Triton kernels {said}, compute capability {major}.{minor}', 'current', logging.INFO)
    return found


def _jit(*numbers: str):
    """Return the decorator of a kernel, which is compiled once whatever ``numbers`` are."""
    if triton is None:
        return lambda function: function
    return triton.jit(do_not_specialize=list(numbers))


_compiled = {}  # kernel, device, warps, constants and data types -> what Triton compiled


def _launch(kernel, grid: tuple[int, int], tensors: tuple, numbers: tuple, constants: tuple, warps: int):
    """Launch a kernel with tensors, numbers and constants, in the order of its arguments.

    Triton looks at every argument anew at each call, which takes longer than many of our kernels; what it
    compiled is called as it calls it, with addresses. It runs on the current device, so that is set.
    """
    device = tensors[0].get_device()
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(kernel, grid, tensors, numbers, constants, warps)
        return
    addresses = [t.data_ptr() for t in tensors]
    key = kernel.__name__, device, warps, constants, tuple([t.dtype for t in tensors])
    found = _compiled.get(key)
    aligned = functools.reduce(operator.or_, addresses) % ALIGNMENT == 0
    if found is None or not aligned:
        found = kernel[grid](*tensors, *numbers, *constants, num_warps=warps)
        if DIRECT and device >= 0 and aligned:
            _compiled[key] = found
        return
    stream = triton.runtime.driver.active.get_current_stream(device)
    found.run(
        *grid, 1, stream, found.function, found.packed_metadata, None, None, None, *addresses, *numbers,
        *constants,
    )  # fmt: skip


# --- depthwise convolution, NHWC


@_jit('height', 'width', 'rows')
def _depthwise(
    x_ptr, w_ptr, b_ptr, other_ptr, y_ptr, mean_ptr, square_ptr, height, width, rows, C: tl.constexpr,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, TURNED: tl.constexpr, ADD: tl.constexpr,
    STATISTICS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Compute, in one program, BW columns and BC channels of ``rows`` output rows of one image.

    Of each input row every tap is added to the K output rows that it belongs to, whose sums move down by one
    from row to row; AHEAD rows after it are read meanwhile. TURNED: the filters are turned round. ADD: the
    other map is added. If STATISTICS, for the norm behind it: the mean of the BC channels and the sum of
    their squared distances from it.
    """
    R: tl.constexpr = K // 2
    blocks: tl.constexpr = C // BC
    program = tl.program_id(0)
    channel = program % blocks * BC + tl.arange(0, BC)[None, :]
    strip = program // blocks
    strips = tl.cdiv(width, BW)
    column = strip % strips * BW + tl.arange(0, BW)[:, None]
    image = (strip // strips).to(tl.int64) * height * width * C
    first = tl.program_id(1) * rows
    last = tl.minimum(first + rows, height)
    taps = ()
    for k in tl.static_range(K * K):
        tap = w_ptr + (K * K - 1 - k if TURNED else k) * C
        taps = taps + (tl.load(tap + channel).to(tl.float32),)
    start = tl.zeros([BW, BC], tl.float32)
    if HAS_BIAS:
        start += tl.load(b_ptr + channel).to(tl.float32)
    sums = ()
    for _ in tl.static_range(K):
        sums = sums + (start,)
    here = column * C + channel
    begin = tl.maximum(first - R, 0)  # rows beyond the image add nothing
    end = tl.minimum(last + R, height)
    ahead = ()
    for k in tl.static_range(AHEAD * K):
        shifted = column + (k % K - R)
        there = (shifted >= 0) & (shifted < width) & (begin + k // K < height)
        line = x_ptr + image + (begin + k // K) * width * C
        ahead = ahead + (tl.load(line + here + (k % K - R) * C, mask=there, other=0.0),)
    for row in range(begin, end):
        values = ahead
        ahead = ()
        for k in tl.static_range((AHEAD - 1) * K):
            ahead = ahead + (values[k + K],)
        for kx in tl.static_range(K):
            shifted = column + (kx - R)
            there = (shifted >= 0) & (shifted < width) & (row + AHEAD < height)
            line = x_ptr + image + (row + AHEAD) * width * C
            ahead = ahead + (tl.load(line + here + (kx - R) * C, mask=there, other=0.0),)
        wanted = (row - R >= first) & (row - R < last) & (column < width)
        where = image + (row - R) * width * C + here
        other = start
        if ADD:
            other = tl.load(other_ptr + where, mask=wanted, other=0.0).to(tl.float32)
        for kx in tl.static_range(K):
            value = values[kx].to(tl.float32)
            moved = ()
            for ky in tl.static_range(K):
                moved = moved + (sums[ky] + value * taps[ky * K + kx],)
            sums = moved
        group = image // BC + ((row - R) * width + column) * blocks + program % blocks
        _store(sums[K - 1], other, y_ptr, mean_ptr, square_ptr, where, group, wanted, ADD, STATISTICS, BC)
        moved = (start,)
        for ky in tl.static_range(K - 1):
            moved = moved + (sums[ky],)
        sums = moved
    for row in range(end, last + R):  # complete without further rows
        wanted = (row - R >= first) & (row - R < last) & (column < width)
        where = image + (row - R) * width * C + here
        other = start
        if ADD:
            other = tl.load(other_ptr + where, mask=wanted, other=0.0).to(tl.float32)
        group = image // BC + ((row - R) * width + column) * blocks + program % blocks
        _store(sums[K - 1], other, y_ptr, mean_ptr, square_ptr, where, group, wanted, ADD, STATISTICS, BC)
        moved = (start,)
        for ky in tl.static_range(K - 1):
            moved = moved + (sums[ky],)
        sums = moved


@_jit()
def _store(
    result, other, y_ptr, mean_ptr, square_ptr, where, group, wanted, ADD: tl.constexpr,
    STATISTICS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Store a row of the convolution, after the sum, and its statistics, of each BC channels at ``group``."""
    if ADD:
        result += other
    result = result.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + where, result, mask=wanted)
    if STATISTICS:
        result = result.to(tl.float32)
        mean = tl.sum(result, 1, keep_dims=True) / BC
        square = tl.sum((result - mean) * (result - mean), 1, keep_dims=True)
        tl.store(mean_ptr + group, mean, mask=wanted)
        tl.store(square_ptr + group, square, mask=wanted)


@_jit('height', 'width', 'strips')
def _depthwise_weight_gradient(
    x_ptr, g_ptr, out_ptr, height, width, strips, C: tl.constexpr, K: tl.constexpr,
    BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute, in one program, the K x K sums of BC channels.

    They go over every ``G``-th strip of BW columns of all images.
    """
    R: tl.constexpr = K // 2
    blocks: tl.constexpr = C // BC
    program = tl.program_id(0)
    block = program % blocks
    group = program // blocks
    groups = tl.num_programs(0) // blocks
    channel = block * BC + tl.arange(0, BC)[None, :]
    across = tl.cdiv(width, BW)
    sums = ()
    for _ in tl.static_range(K * K):
        sums = sums + (tl.zeros([BW, BC], tl.float32),)
    for strip in range(group, strips, groups):
        image = (strip // across).to(tl.int64) * height * width * C
        column = strip % across * BW + tl.arange(0, BW)[:, None]
        here = column * C + channel
        wide = column < width
        # gradient rows row - R ... row + R, of which each step loads the last
        ring = (tl.zeros([BW, BC], tl.float32),)
        for k in tl.static_range(K - 1):
            near = wide & (k < R + height) & (k >= R)  # rows 0 ... R - 1 for the first step
            value = tl.load(g_ptr + image + (k - R) * width * C + here, mask=near, other=0.0)
            ring = ring + (value.to(tl.float32),)
        for row in range(height):
            moved = ()
            for k in tl.static_range(K - 1):
                moved = moved + (ring[k + 1],)
            below = wide & (row + R < height)
            value = tl.load(g_ptr + image + (row + R) * width * C + here, mask=below, other=0.0)
            ring = moved + (value.to(tl.float32),)
            line = x_ptr + image + row * width * C
            values = ()
            for kx in tl.static_range(K):
                shifted = column + (kx - R)
                there = (shifted >= 0) & (shifted < width)
                value = tl.load(line + here + (kx - R) * C, mask=there, other=0.0)
                values = values + (value.to(tl.float32),)
            added = ()
            for k in tl.static_range(K * K):  # input row ``row`` meets the output row ``row - ky + R``
                added = added + (sums[k] + values[k % K] * ring[K - 1 - k // K],)
            sums = added
    for k in tl.static_range(K * K):
        where = (group * K * K + k) * C + block * BC + tl.arange(0, BC)
        tl.store(out_ptr + where, tl.sum(sums[k], 0))


def taps_of(weight: Tensor) -> Tensor:
    """Return the filters (C, 1, K, K) in the order in which the kernels read them, (K * K, C)."""
    return weight.reshape(len(weight), -1).t().contiguous()


def depthwise_conv(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    statistics: Tensor | None = None,
    turned: bool = False,
    other: Tensor | None = None,
) -> Tensor:
    """Compute the convolution: (N, H, W, C), contiguous, -> same; ``taps`` of :func:`taps_of`.

    Into ``statistics``, (2, N, H, W, C / 32) in float32: of each 32 channels of the result the mean, and the
    sum of the squared distances from it, for :func:`linear_gelu`.

    Args:
        turned: the filters are turned round, as for the gradient of the input.
        other: (N, H, W, C), contiguous; is added, the result has its data type.
    """
    n, height, width, c = x.shape
    out = torch.empty_like(x if other is None else other)
    columns, channels, rows, ahead, warps = CONVOLUTION
    across = n * _ceil(width, columns) * (c // channels)
    rows = max(1, min(rows, height, height * across // (6 * _processors(x))))  # enough programs for all
    mean, square = (taps, taps) if statistics is None else statistics.unbind()
    _launch(
        _depthwise,
        (across, _ceil(height, rows)),
        (x, taps, taps if bias is None else bias, x if other is None else other, out, mean, square),
        (height, width, rows),
        (c, round(len(taps) ** 0.5), bias is not None, turned, other is not None, statistics is not None)
        + (columns, channels, ahead),
        warps,
    )
    return out


def depthwise_conv_weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Compute the weight gradient, (C, 1, K, K) in float32, of maps (N, H, W, C), contiguous.

    The order of the sums is fixed, so that two runs give the same bits.
    """
    n, height, width, c = x.shape
    *tile, each, warps = WEIGHT_GRADIENT
    columns, channels = tile
    strips = n * _ceil(width, columns)
    groups = min(strips, max(1, _processors(x) * each // (c // channels)))
    partial = x.new_empty(groups, kernel * kernel, c, dtype=torch.float32)
    grid, numbers = (groups * (c // channels), 1), (height, width, strips)
    _launch(_depthwise_weight_gradient, grid, (x, grad, partial), numbers, (c, kernel, *tile), warps)
    return partial.sum(0).t().contiguous().view(c, 1, kernel, kernel)


def _processors(x: Tensor) -> int:
    return _processors_of(x.get_device()) if x.is_cuda else 1


@cache
def _processors_of(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


# --- norm over the channels


@_jit('m')
def _norm(
    x_ptr, w_ptr, b_ptr, y_ptr, eps, m, C: tl.constexpr, AFFINE: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Normalise BM rows of C numbers, as LayerNorm does."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    channel = tl.arange(0, BC)[None, :]
    where = row.to(tl.int64) * C + channel
    mask = (row < m) & (channel < C)
    x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1, keep_dims=True) / C
    x = tl.where(mask, x - mean, 0.0)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, 1, keep_dims=True) / C + eps))
    if AFFINE:
        y *= tl.load(w_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
        y += tl.load(b_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    tl.store(y_ptr + where, y.to(y_ptr.dtype.element_ty), mask=mask)


@_jit('m')
def _norm_gradient(
    g_ptr, x_ptr, w_ptr, b_ptr, dx_ptr, y_ptr, sums_ptr, eps, m, C: tl.constexpr, AFFINE: tl.constexpr,
    SAVE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute, of every so many rows, the gradients of x, their sum, and those of weight and bias.

    If SAVE, also what :func:`_norm` computes.
    """
    channel = tl.arange(0, BC)[None, :]
    weight = tl.full([1, BC], 1.0, tl.float32)
    bias = tl.zeros([1, BC], tl.float32)
    if AFFINE:
        weight = tl.load(w_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
        bias = tl.load(b_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    of_weight = tl.zeros([BM, BC], tl.float32)
    of_bias = tl.zeros([BM, BC], tl.float32)
    of_x = tl.zeros([BM, BC], tl.float32)
    for first in range(tl.program_id(0) * BM, m, tl.num_programs(0) * BM):
        row = first + tl.arange(0, BM)[:, None]
        where = row.to(tl.int64) * C + channel
        mask = (row < m) & (channel < C)
        x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + where, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x, 1, keep_dims=True) / C
        x = tl.where(mask, x - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1, keep_dims=True) / C + eps)
        x *= rstd
        if SAVE:
            tl.store(y_ptr + where, (x * weight + bias).to(y_ptr.dtype.element_ty), mask=mask)
        if AFFINE:
            of_weight += g * x
            of_bias += g
        g *= weight
        along = tl.sum(g * x, 1, keep_dims=True) / C
        dx = (g - tl.sum(g, 1, keep_dims=True) / C - x * along) * rstd
        dx = dx.to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + where, dx, mask=mask)
        of_x += tl.where(mask, dx.to(tl.float32), 0.0)
    where = sums_ptr + tl.program_id(0) * 3 * C + tl.arange(0, BC)
    tl.store(where, tl.sum(of_x, 0), mask=tl.arange(0, BC) < C)
    if AFFINE:
        tl.store(where + C, tl.sum(of_weight, 0), mask=tl.arange(0, BC) < C)
        tl.store(where + 2 * C, tl.sum(of_bias, 0), mask=tl.arange(0, BC) < C)


def _rows_and_columns(numbers: int, channels: int) -> tuple[int, int]:
    columns = 1 << (channels - 1).bit_length()
    return max(1, numbers // columns), columns


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Compute LayerNorm of each row, (M, C), contiguous; ``weight`` and ``bias`` (C,), or both ``None``."""
    out = torch.empty_like(x)
    numbers, warps = NORM
    tile = _rows_and_columns(numbers, x.shape[1])
    affine = (x, x) if weight is None else (weight, bias)
    grid, numbers = (_ceil(len(x), tile[0]), 1), (eps, len(x))
    _launch(_norm, grid, (x, *affine, out), numbers, (x.shape[1], weight is not None, *tile), warps)
    return out


def norm_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of :func:`norm`: of ``x`` (M, C), and sums over rows for :func:`totals`.

    These are (programs, 3, C) in float32: of the gradient of ``x``, and those that make the gradients of
    weight and bias. The order of the sums is fixed. Into ``normed``, (M, C), if given, what :func:`norm`
    computes.
    """
    dx, affine, save = torch.empty_like(x), weight is not None, normed is not None
    numbers, each, warps = NORM_GRADIENT
    tile = _rows_and_columns(numbers, x.shape[1])
    programs = min(_ceil(len(x), tile[0]), each * _processors(x))
    sums = x.new_empty(programs, 3, x.shape[1], dtype=torch.float32)
    read = (weight, bias) if affine else (x, x)
    tensors = grad, x, *read, dx, normed if save else dx, sums
    _launch(_norm_gradient, (programs, 1), tensors, (eps, len(x)), (x.shape[1], affine, save, *tile), warps)
    return dx, sums


# --- passes over rows


@_jit()
def _normal_cdf(x, EXACT: tl.constexpr):
    """Compute the normal CDF by erf or, unless EXACT, by a sigmoid of an odd polynomial.

    The latter is within 1.2e-5 of x times it, at a third of the cost. The polynomial's coefficients are
    divided by the natural logarithm of 2.
    """
    if EXACT:
        result = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        s = tl.minimum(x * x, 36.0)
        poly = -2.30165892 + s * (-0.105982701 + s * (7.36061116e-4 + s * 2.48361895e-5))
        result = 1.0 / (1.0 + tl.exp2(x * poly))
    return result


@_jit('m', 'each')
def _column_sums(
    x_ptr, h_ptr, scale_ptr, out_ptr, y_ptr, sums_ptr, m, each, N: tl.constexpr, GELU: tl.constexpr,
    WRITE: tl.constexpr, HAS_SCALE: tl.constexpr, EXACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sum BN columns of every so many rows, times the scale of their sample of ``each`` rows.

    If GELU, of x times the derivative of GELU at h; GELU of h, times the scale, goes to ``y``. If WRITE, what
    is summed goes to ``out``.
    """
    across: tl.constexpr = (N + BN - 1) // BN
    program = tl.program_id(0)
    column = program % across * BN + tl.arange(0, BN)[None, :]
    groups = tl.num_programs(0) // across
    sums = tl.zeros([BM, BN], tl.float32)
    for first in range(program // across * BM, m, groups * BM):
        row = first + tl.arange(0, BM)[:, None]
        where = row.to(tl.int64) * N + column
        mask = (row < m) & (column < N)
        x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
        if HAS_SCALE:
            scale = tl.load(scale_ptr + row // each, mask=row < m, other=0.0).to(tl.float32)
            x *= scale
        if GELU:
            h = tl.load(h_ptr + where, mask=mask, other=0.0).to(tl.float32)
            cdf = _normal_cdf(h, EXACT)
            x *= cdf + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
            activated = h * cdf
            if HAS_SCALE:
                activated *= scale
            tl.store(y_ptr + where, activated.to(y_ptr.dtype.element_ty), mask=mask)
        if WRITE:
            tl.store(out_ptr + where, x.to(out_ptr.dtype.element_ty), mask=mask)
        sums += x
    column = program % across * BN + tl.arange(0, BN)
    tl.store(sums_ptr + program // across * N + column, tl.sum(sums, 0), mask=column < N)


@_jit('groups', 'more')
def _totals(
    x_ptr, y_ptr, first_ptr, second_ptr, third_ptr, last_ptr, groups, more, N: tl.constexpr,
    STRIDE: tl.constexpr, COUNT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sum BN columns of one of COUNT parts of x, (groups, STRIDE, N), or of those of y, (more, parts, N).

    The first go to an address each, those of y, one after the other, to the last one.
    """
    part = tl.program_id(1)
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    if part >= COUNT:
        parts = tl.num_programs(1) - COUNT
        start, rows, stride = y_ptr + (part - COUNT) * N, more, parts * N
    else:
        start, rows, stride = x_ptr + part * N, groups, STRIDE * N
    sums = tl.zeros([BM, BN], tl.float32)
    for group in range(0, rows, BM):
        row = group + tl.arange(0, BM)[:, None]
        mask = (row < rows) & (column < N)[None, :]
        sums += tl.load(start + row * stride + column[None, :], mask=mask, other=0.0)
    total = tl.sum(sums, 0)
    if part >= COUNT:
        where = last_ptr + (part - COUNT) * N + column
        tl.store(where, total.to(last_ptr.dtype.element_ty), mask=column < N)
    elif part == 0:
        tl.store(first_ptr + column, total.to(first_ptr.dtype.element_ty), mask=column < N)
    elif part == 1:
        tl.store(second_ptr + column, total.to(second_ptr.dtype.element_ty), mask=column < N)
    else:
        tl.store(third_ptr + column, total.to(third_ptr.dtype.element_ty), mask=column < N)


@_jit('groups')
def _gain_gradient(
    outer_ptr, w_ptr, b_ptr, gain_ptr, x_ptr, dw_ptr, db_ptr, dgain_ptr, groups, C: tl.constexpr,
    D: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute one row of the gradients of a linear layer and of the gain of what it gives.

    ``outer`` (C, D) is the weight's gradient without the gain, x (groups, C) sums to the bias's.
    """
    row = tl.program_id(0)
    gain = tl.load(gain_ptr + row).to(tl.float32)
    sums = tl.zeros([BG], tl.float32)
    for group in range(0, groups, BG):
        where = group + tl.arange(0, BG)
        sums += tl.load(x_ptr + where * C + row, mask=where < groups, other=0.0)
    bias = tl.sum(sums, 0)
    dots = tl.zeros([BD], tl.float32)
    for column in range(0, D, BD):
        where = column + tl.arange(0, BD)
        outer = tl.load(outer_ptr + row * D + where, mask=where < D, other=0.0).to(tl.float32)
        dots += outer * tl.load(w_ptr + row * D + where, mask=where < D, other=0.0).to(tl.float32)
        tl.store(dw_ptr + row * D + where, (outer * gain).to(dw_ptr.dtype.element_ty), mask=where < D)
    dgain = tl.sum(dots, 0) + bias * tl.load(b_ptr + row).to(tl.float32)
    tl.store(dgain_ptr + row, dgain.to(dgain_ptr.dtype.element_ty))
    tl.store(db_ptr + row, (bias * gain).to(db_ptr.dtype.element_ty))


@_jit('m', 'each')
def _branch_sum(
    x_ptr, other_ptr, gain_ptr, scale_ptr, out_ptr, m, each, N: tl.constexpr, HAS_GAIN: tl.constexpr,
    HAS_SCALE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute, of BM rows and BN columns, x times gain of the column and scale of the sample, + other."""
    across: tl.constexpr = (N + BN - 1) // BN
    program = tl.program_id(0)
    column = program % across * BN + tl.arange(0, BN)[None, :]
    row = program // across * BM + tl.arange(0, BM)[:, None]
    where = row.to(tl.int64) * N + column
    mask = (row < m) & (column < N)
    x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32)
    if HAS_GAIN:
        x *= tl.load(gain_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    if HAS_SCALE:
        x *= tl.load(scale_ptr + row // each, mask=row < m, other=0.0).to(tl.float32)
    x += tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, x.to(out_ptr.dtype.element_ty), mask=mask)


def _pass_over_rows(
    x: Tensor, hidden: Tensor | None, scale: Tensor | None, out: Tensor | None, activated: Tensor | None
) -> Tensor:
    m, n = x.shape
    rows, columns, each, warps = ELEMENTS if hidden is None else GELU_GRADIENT
    across = _ceil(n, columns)
    groups = min(_ceil(m, rows), max(1, _processors(x) * each // across))
    sums = x.new_empty(groups, n, dtype=torch.float32)
    read = [x if t is None else t for t in (hidden, scale, out, activated)]
    options = hidden is not None, out is not None, scale is not None, x.dtype == torch.float32
    numbers = m, 1 if scale is None else m // scale.numel()
    constants = n, *options, rows, columns
    _launch(_column_sums, (groups * across, 1), (x, *read, sums), numbers, constants, warps)
    return sums


def column_sums(x: Tensor, scale: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Sum every so many rows of (M, N), times the scale of their sample, in float32 and in a fixed order.

    Args:
        scale: (samples,), of as many rows each.
        out: (M, N), for what is summed, in its data type.

    Returns:
        (groups, N) for :func:`totals`.
    """
    return _pass_over_rows(x, None, scale, out, None)


def gelu_gradient(grad: Tensor, hidden: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Multiply ``grad`` by the derivative of GELU at ``hidden`` and by the scale, in place, both (M, N).

    Returns:
        GELU of ``hidden`` times the scale, (M, N), and sums of rows of ``grad``, as :func:`column_sums` has.
    """
    activated = torch.empty_like(hidden)
    return activated, _pass_over_rows(grad, hidden, scale, grad, activated)


def totals(sums: Tensor, *outs: Tensor, more: tuple[Tensor, Tensor] | None = None) -> None:
    """Sum (groups, parts, N), or (groups, N), over the groups: the first part, or three, into (N,) each.

    ``more``: sums of other groups, whose columns are a multiple of N, and where their totals go.
    """
    groups, n = len(sums), sums.shape[-1]
    last, out = more or (sums, outs[0])
    tensors = sums, last, *(outs if len(outs) == 3 else outs * 3), out
    grid = _ceil(n, TOTALS[1]), len(outs) + (last.shape[1] // n if more else 0)
    constants = n, sums.numel() // (groups * n), len(outs), *TOTALS
    _launch(_totals, grid, tensors, (groups, len(last)), constants, 4)


def gain_gradient(
    outer: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, sums: Tensor, outs: tuple[Tensor, ...]
) -> None:
    """Compute the gradients of weight, bias and gain of ``gain * linear(x)`` into ``outs``.

    Args:
        outer: (C, D), the weight's gradient without the gain.
        weight: (C, D).
        bias: (C,).
        gain: (C,).
        sums: (groups, C), of the gradient of the result, see :func:`column_sums`.
        outs: of the shapes of weight, bias and gain.
    """
    c, d = outer.shape
    _launch(_gain_gradient, (c, 1), (outer, weight, bias, gain, sums, *outs), (len(sums),), (c, d, *GAIN), 4)


def branch_sum(x: Tensor, gain: Tensor | None, scale: Tensor | None, residual: Tensor, out: Tensor) -> None:
    """Compute ``residual + scale * gain * x`` into ``out``, (M, N) each, which may be one of both.

    ``gain`` is (N,), ``scale`` (samples,) of as many rows each.
    """
    m, n = x.shape
    rows, columns, _, warps = ELEMENTS
    read = [x if t is None else t for t in (gain, scale)]
    grid = (_ceil(m, rows) * _ceil(n, columns), 1)
    numbers = m, 1 if scale is None else m // scale.numel()
    constants = n, gain is not None, scale is not None, rows, columns
    _launch(_branch_sum, grid, (x, residual, *read, out), numbers, constants, warps)


# --- linear layers


@_jit('m', 'each')
def _linear(
    a_ptr, w_ptr, b_ptr, gain_ptr, scale_ptr, other_ptr, out_ptr, second_ptr, mean_ptr, square_ptr,
    norm_w_ptr, norm_b_ptr, eps, m, each, N: tl.constexpr, K: tl.constexpr, RESIDUAL: tl.constexpr,
    HAS_GAIN: tl.constexpr, HAS_SCALE: tl.constexpr, SAVE: tl.constexpr, NORM: tl.constexpr,
    AFFINE: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Compute ``a @ w.T + bias`` of BM rows and BN columns, and then GELU or, if RESIDUAL, the sum.

    GELU goes to ``out``, what it got to ``second`` if SAVE. The sum, times the gain of the column and the
    scale of the sample of ``each`` rows, + ``other``, goes to ``out``.

    If NORM, the rows of ``a`` are normalised on their way in, by the statistics of each NORM numbers.
    """
    across: tl.constexpr = (N + BN - 1) // BN
    program = tl.program_id(0)
    first = program // across * BM
    row = tl.arange(0, BM)[:, None]  # from ``first`` on, so that only one number needs 64 bits
    column = program % across * BN + tl.arange(0, BN)
    rows = row < m - first
    columns = (column < N)[None, :]
    k = tl.arange(0, BK)
    a_ptr += first.to(tl.int64) * K
    if NORM:
        groups: tl.constexpr = K // NORM
        group = tl.arange(0, 4)[None, :]  # a few at a time: all of a wide layer would not fit the registers
        where = first.to(tl.int64) * groups + row * groups + group
        mean = tl.zeros([BM, 1], tl.float32)
        for g0 in range(0, groups, 4):
            there = rows & (g0 + group < groups)
            mean += tl.sum(tl.load(mean_ptr + where + g0, mask=there, other=0.0), 1, keep_dims=True)
        mean /= groups
        variance = tl.zeros([BM, 1], tl.float32)
        for g0 in range(0, groups, 4):
            there = rows & (g0 + group < groups)
            apart = tl.load(mean_ptr + where + g0, mask=there, other=0.0) - mean
            square = tl.load(square_ptr + where + g0, mask=there, other=0.0)
            square = tl.where(there, square + NORM * apart * apart, 0.0)
            variance += tl.sum(square, 1, keep_dims=True) / K
        rstd = 1.0 / tl.sqrt(variance + eps)
    total = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, K, BK):
        deep = k0 + k
        a = tl.load(a_ptr + row * K + deep[None, :], mask=rows & (deep < K)[None, :], other=0.0)
        w = w_ptr + column[None, :] * K + deep[:, None]
        w = tl.load(w, mask=columns & (deep < K)[:, None], other=0.0)
        if NORM:
            a = (a.to(tl.float32) - mean) * rstd
            if AFFINE:
                a *= tl.load(norm_w_ptr + deep, mask=deep < K, other=0.0).to(tl.float32)[None, :]
                a += tl.load(norm_b_ptr + deep, mask=deep < K, other=0.0).to(tl.float32)[None, :]
            a = a.to(a_ptr.dtype.element_ty)
        if WIDEN:  # the interpreter multiplies the bits of bfloat16
            a, w = a.to(tl.float32), w.to(tl.float32)
        total = tl.dot(a, w, total, input_precision='ieee')  # float32 would be TF32
    start = first.to(tl.int64) * N
    out_ptr += start
    other_ptr += start
    second_ptr += start
    where = row * N + column[None, :]
    mask = rows & columns
    kind = out_ptr.dtype.element_ty
    total += tl.load(b_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        if HAS_GAIN:
            total *= tl.load(gain_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if HAS_SCALE:
            total *= tl.load(scale_ptr + (first + row) // each, mask=rows, other=0.0).to(tl.float32)
        other = tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + where, (total + other).to(kind), mask=mask)
    else:
        h = total.to(kind)
        if SAVE:
            tl.store(second_ptr + where, h, mask=mask)
        h = h.to(tl.float32)
        tl.store(out_ptr + where, (h * _normal_cdf(h, EXACT)).to(kind), mask=mask)


def _launch_linear(a, w, out, bias, *, residual=None, gain=None, scale=None, second=None, norm=None) -> None:
    m, k = a.shape
    n = out.shape[1]
    *tile, warps = (16, 16, 16, 4) if INTERPRETED else LINEAR[residual is not None]
    grid = (_ceil(m, tile[0]) * _ceil(n, tile[1]), 1)
    mean, square, norm_weight, norm_bias, eps = norm or (None, None, None, None, 0.0)
    read = (gain, scale, residual, out, second, mean, square, norm_weight, norm_bias)
    read = [a if t is None else t for t in read]  # an address for what is not read
    options = [t is not None for t in (residual, gain, scale, second)]
    options += [CHANNELS if norm else 0, norm_weight is not None, out.dtype == torch.float32, INTERPRETED]
    numbers = eps, m, 1 if scale is None else m // scale.numel()
    _launch(_linear, grid, (a, w, bias, *read), numbers, (n, k, *options, *tile), warps)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor | None = None, norm: tuple | None = None
) -> Tensor:
    """Compute ``gelu(norm(x) @ weight.T + bias)``, (M, K) and (N, K) -> (M, N).

    The value before GELU goes into ``hidden`` if given.

    ``norm``: both statistics of :func:`depthwise_conv`, each (M, K / 32), weight and bias of the norm, which
    may be ``None``, and eps. Without it, no norm.
    """
    out = x.new_empty(len(x), len(weight))
    _launch_linear(x, weight, out, bias, second=hidden, norm=norm)
    return out


def linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor | None,
    scale: Tensor | None,
    residual: Tensor,
    out: Tensor,
) -> None:
    """Compute ``residual + scale * gain * (x @ weight.T + bias)`` into ``out``, which may be ``residual``.

    ``gain`` (N,) is of the columns, ``scale`` (samples,) of as many rows each.
    """
    _launch_linear(x, weight, out, bias, gain=gain, scale=scale, residual=residual)
