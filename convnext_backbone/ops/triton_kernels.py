"""Contains Triton kernels for CUDA: depthwise convolution, norm, and linear layers with what follows them.

The convolution slides down the rows of a map in NHWC with the weights of its channels in registers. Products
and sums are in float32, each result is rounded once. Without Triton, on other devices and for shapes that
:func:`supports` refuses the callers take PyTorch. With ``TRITON_INTERPRET=1`` the kernels run on a CPU, which
is how they are tested where there is no GPU.
"""

import logging
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
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = 32  # for which the convolution gives the statistics of the norm
# Found on an H100 over the maps of ConvNeXt-T, of 128 images of 224 pixels and one of 800 x 1280.
CONVOLUTION = (4, 32, 56, 2)  # columns, channels and most rows of a program, warps
WEIGHT_GRADIENT = (4, 32, 8, 2)  # columns, channels, programs for each processor, warps
NORM = (4096, 4)  # numbers, warps
NORM_GRADIENT = (2048, 8, 4)  # numbers, programs for each processor, warps
ELEMENTS = (16, 128, 8, 4)  # rows, columns, programs for each processor, warps
LINEAR = ((64, 128, 32, 4), (64, 128, 64, 4))  # rows, columns, depth, warps: with GELU, with the residual
WIDEST = 256  # channels of the residual up to which _linear is faster than cuBLAS and what follows it


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


def _jit(function):
    return function if triton is None else triton.jit(function)


# --- depthwise convolution, NHWC


@_jit
def _depthwise(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, square_ptr, height, width, rows, C: tl.constexpr, K: tl.constexpr,
    HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute, in one program, BW columns and BC channels of ``rows`` output rows of one image.

    Of each input row every tap is added to the K output rows that it belongs to, whose sums move down by one
    from row to row; the row after it is read meanwhile. If STATISTICS, for the norm behind it: the mean of
    the BC channels and the sum of their squared distances from it.
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
        taps = taps + (tl.load(w_ptr + k * C + channel).to(tl.float32),)
    start = tl.zeros([BW, BC], tl.float32)
    if HAS_BIAS:
        start += tl.load(b_ptr + channel).to(tl.float32)
    sums = ()
    for _ in tl.static_range(K):
        sums = sums + (start,)
    here = column * C + channel
    ahead = ()
    for kx in tl.static_range(K):
        shifted = column + (kx - R)
        there = (shifted >= 0) & (shifted < width) & (first >= R)
        line = x_ptr + image + (first - R) * width * C
        ahead = ahead + (tl.load(line + here + (kx - R) * C, mask=there, other=0.0),)
    for row in range(first - R, last + R):
        values = ahead
        ahead = ()
        for kx in tl.static_range(K):
            shifted = column + (kx - R)
            there = (shifted >= 0) & (shifted < width) & (row >= -1) & (row + 1 < height)
            line = x_ptr + image + (row + 1) * width * C
            ahead = ahead + (tl.load(line + here + (kx - R) * C, mask=there, other=0.0),)
        for kx in tl.static_range(K):
            value = values[kx].to(tl.float32)
            moved = ()
            for ky in tl.static_range(K):
                moved = moved + (sums[ky] + value * taps[ky * K + kx],)
            sums = moved
        out = row - R  # complete: sums[K - 1]
        wanted = (out >= first) & (out < last) & (column < width)
        target = y_ptr + image + out * width * C + here
        result = sums[K - 1].to(y_ptr.dtype.element_ty)
        tl.store(target, result, mask=wanted)
        if STATISTICS:
            result = result.to(tl.float32)
            mean = tl.sum(result, 1, keep_dims=True) / BC
            square = tl.sum((result - mean) * (result - mean), 1, keep_dims=True)
            where = image // BC + (out * width + column) * blocks + program % blocks
            tl.store(mean_ptr + where, mean, mask=wanted)
            tl.store(square_ptr + where, square, mask=wanted)
        moved = (start,)
        for ky in tl.static_range(K - 1):
            moved = moved + (sums[ky],)
        sums = moved


@_jit
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


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor | None = None
) -> Tensor:
    """Compute the convolution: (N, C, H, W) in channels_last memory -> same; ``weight`` (C, 1, K, K).

    Into ``statistics``, (2, N, H, W, C / 32) in float32: of each 32 channels of the result the mean, and the
    sum of the squared distances from it, for :func:`linear_gelu`.
    """
    n, c, height, width = x.shape
    kernel = weight.shape[-1]
    x = x.contiguous(memory_format=torch.channels_last)
    taps = weight.reshape(c, kernel * kernel).t().contiguous()
    out = torch.empty_like(x)
    columns, channels, rows, warps = CONVOLUTION
    across = n * triton.cdiv(width, columns) * (c // channels)
    rows = max(1, min(rows, height, height * across // (6 * _processors(x))))  # enough programs for all
    grid = (across, triton.cdiv(height, rows))
    mean, square = (taps, taps) if statistics is None else statistics.unbind()
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _depthwise[grid](
            x, taps, taps if bias is None else bias, out, mean, square, height, width, rows, c, kernel,
            bias is not None, statistics is not None, columns, channels, num_warps=warps,
        )  # fmt: skip
    return out


def depthwise_conv_weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Compute the weight gradient, (C, 1, K, K) in float32.

    The order of the sums is fixed, so that two runs give the same bits.
    """
    n, c, height, width = x.shape
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    columns, channels, each, warps = WEIGHT_GRADIENT
    strips = n * triton.cdiv(width, columns)
    groups = min(strips, max(1, _processors(x) * each // (c // channels)))
    partial = x.new_empty(groups, kernel * kernel, c, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _depthwise_weight_gradient[(groups * (c // channels),)](
            x, grad, partial, height, width, strips, c, kernel, columns, channels, num_warps=warps
        )
    return partial.sum(0).t().contiguous().view(c, 1, kernel, kernel)


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


# --- norm over the channels


@_jit
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


@_jit
def _norm_gradient(
    g_ptr, x_ptr, w_ptr, b_ptr, dx_ptr, y_ptr, sums_ptr, eps, m, C: tl.constexpr, AFFINE: tl.constexpr,
    SAVE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute, of every so many rows, the gradients of x and the sums that make those of weight and bias.

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
        tl.store(dx_ptr + where, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if AFFINE:
        where = sums_ptr + tl.program_id(0) * 2 * C + tl.arange(0, BC)
        tl.store(where, tl.sum(of_weight, 0), mask=tl.arange(0, BC) < C)
        tl.store(where + C, tl.sum(of_bias, 0), mask=tl.arange(0, BC) < C)


def _rows_and_columns(numbers: int, channels: int) -> tuple[int, int]:
    columns = triton.next_power_of_2(channels)
    return max(1, numbers // columns), columns


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Compute LayerNorm of each row, (M, C) -> same; ``weight`` and ``bias`` (C,), or both ``None``."""
    x = x.contiguous()
    out = torch.empty_like(x)
    numbers, warps = NORM
    tile = _rows_and_columns(numbers, x.shape[1])
    affine = (x, x) if weight is None else (weight, bias)
    with torch.cuda.device_of(x):
        _norm[(triton.cdiv(len(x), tile[0]),)](
            x, *affine, out, eps, *x.shape, weight is not None, *tile, num_warps=warps
        )
    return out


def norm_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the gradients of :func:`norm`: of ``x`` (M, C), and of weight and bias, (2, C) in float32.

    The latter ``None`` without them. The order of the sums is fixed. Into ``normed``, (M, C), if given, what
    :func:`norm` computes.
    """
    x, grad = x.contiguous(), grad.contiguous()
    dx, affine, save = torch.empty_like(x), weight is not None, normed is not None
    numbers, each, warps = NORM_GRADIENT
    tile = _rows_and_columns(numbers, x.shape[1])
    programs = min(triton.cdiv(len(x), tile[0]), each * _processors(x))
    sums = x.new_empty(programs if affine else 1, 2, x.shape[1], dtype=torch.float32)
    read = (weight, bias) if affine else (x, x)
    with torch.cuda.device_of(x):
        _norm_gradient[(programs,)](
            grad, x, *read, dx, normed if save else dx, sums, eps, *x.shape, affine, save, *tile,
            num_warps=warps,
        )  # fmt: skip
    return dx, sums.sum(0) if affine else None


# --- passes over rows


@_jit
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


@_jit
def _column_sums(
    x_ptr, h_ptr, out_ptr, y_ptr, sums_ptr, m, N: tl.constexpr, GELU: tl.constexpr, EXACT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sum BN columns of every so many rows; if GELU, of x times the derivative of GELU at h.

    Then what is summed goes to ``out``, GELU of h to ``y``.
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
        if GELU:
            h = tl.load(h_ptr + where, mask=mask, other=0.0).to(tl.float32)
            cdf = _normal_cdf(h, EXACT)
            x *= cdf + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
            tl.store(out_ptr + where, x.to(out_ptr.dtype.element_ty), mask=mask)
            tl.store(y_ptr + where, (h * cdf).to(y_ptr.dtype.element_ty), mask=mask)
        sums += x
    column = program % across * BN + tl.arange(0, BN)
    tl.store(sums_ptr + program // across * N + column, tl.sum(sums, 0), mask=column < N)


def _pass_over_rows(x: Tensor, hidden: Tensor | None, out: Tensor, activated: Tensor) -> Tensor:
    m, n = x.shape
    rows, columns, each, warps = ELEMENTS
    across = triton.cdiv(n, columns)
    groups = min(triton.cdiv(m, rows), max(1, _processors(x) * each // across))
    sums = x.new_empty(groups, n, dtype=torch.float32)
    gelu, exact = hidden is not None, x.dtype == torch.float32
    with torch.cuda.device_of(x):
        _column_sums[(groups * across,)](
            x, hidden if gelu else x, out, activated, sums, m, n, gelu, exact, rows, columns, num_warps=warps
        )
    return sums.sum(0)


def column_sums(x: Tensor) -> Tensor:
    """Sum the rows, (M, N) -> (N,), in float32 and in a fixed order."""
    x = x.contiguous()
    return _pass_over_rows(x, None, x, x)


def gelu_gradient(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply ``grad`` by the derivative of GELU at ``hidden``, in place, both (M, N).

    Returns:
        GELU of ``hidden``, (M, N), and the sum of the rows of ``grad``, (N,) in float32.
    """
    activated = torch.empty_like(hidden)
    return activated, _pass_over_rows(grad, hidden, grad, activated)


# --- linear layers


@_jit
def _linear(
    a_ptr, w_ptr, b_ptr, gain_ptr, scale_ptr, other_ptr, out_ptr, second_ptr, mean_ptr, square_ptr,
    norm_w_ptr, norm_b_ptr, eps, m, N: tl.constexpr, K: tl.constexpr, RESIDUAL: tl.constexpr,
    HAS_GAIN: tl.constexpr, HAS_SCALE: tl.constexpr, SAVE: tl.constexpr, NORM: tl.constexpr,
    AFFINE: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Compute ``a @ w.T + bias`` of BM rows and BN columns, and then GELU or, if RESIDUAL, the sum.

    GELU goes to ``out``, what it got to ``second`` if SAVE. The sum, times the gain of the column and the
    scale of the row, + ``other``, goes to ``out``.

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
            total *= tl.load(scale_ptr + first + row, mask=rows, other=0.0).to(tl.float32)
        other = tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + where, (total + other).to(kind), mask=mask)
    else:
        h = total.to(kind)
        if SAVE:
            tl.store(second_ptr + where, h, mask=mask)
        h = h.to(tl.float32)
        tl.store(out_ptr + where, (h * _normal_cdf(h, EXACT)).to(kind), mask=mask)


def _launch(
    a, w, out, bias, *, residual=None, gain=None, scale=None, second=None, norm=None,
) -> None:  # fmt: skip
    m, k = a.shape
    n = out.shape[1]
    *tile, warps = (16, 16, 16, 4) if INTERPRETED else LINEAR[residual is not None]
    grid = (triton.cdiv(m, tile[0]) * triton.cdiv(n, tile[1]),)
    mean, square, norm_weight, norm_bias, eps = norm or (None, None, None, None, 0.0)
    read = (gain, scale, residual), (second, mean, square, norm_weight, norm_bias)
    read = [[a if t is None else t for t in tensors] for tensors in read]  # an address for what is not read
    with torch.cuda.device_of(a):
        _linear[grid](
            a, w, bias, *read[0], out, *read[1], eps, m, n, k, residual is not None, gain is not None,
            scale is not None, second is not None, CHANNELS if norm else 0, norm_weight is not None,
            out.dtype == torch.float32, INTERPRETED, *tile, num_warps=warps,
        )  # fmt: skip


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor | None = None, norm: tuple | None = None
) -> Tensor:
    """Compute ``gelu(norm(x) @ weight.T + bias)``, (M, K) and (N, K) -> (M, N).

    The value before GELU goes into ``hidden`` if given.

    ``norm``: both statistics of :func:`depthwise_conv`, each (M, K / 32), weight and bias of the norm, which
    may be ``None``, and eps. Without it, no norm.
    """
    out = x.new_empty(len(x), len(weight))
    _launch(x.contiguous(), weight.contiguous(), out, bias, second=hidden, norm=norm)
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

    ``gain`` (N,) is of the columns, ``scale`` (M, 1) of the rows.
    """
    weight, residual = weight.contiguous(), residual.contiguous()
    _launch(x, weight, out, bias, gain=gain, scale=scale, residual=residual)
