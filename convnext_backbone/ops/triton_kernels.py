"""Contains Triton kernels for CUDA: depthwise convolution, and linear layers with what follows them.

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
CHANNELS = 32  # of a program of the convolution: two for each thread
COLUMNS = 8  # of a map, in a program of the convolution
ROWS = 14  # of a map that a program goes down


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
    low = dtype in DTYPES and (INTERPRETED or dtype != torch.float32)
    if triton is None or not low or channels % CHANNELS:
        return False
    return INTERPRETED or (x.is_cuda and _device_supports(x.device.index))


@cache
def _device_supports(device: int) -> bool:
    major, minor = torch.cuda.get_device_capability(device)
    found = major >= 8
    print_log(
        f"fused='triton': kernels {'on' if found else 'off'}, compute capability {major}.{minor}",
        'current',
        logging.INFO,
    )
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
    from row to row. If STATISTICS, for the norm behind it: the mean of the BC channels and the sum of their
    squared distances from it.
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
    for row in range(first - R, last + R):
        inside = (row >= 0) & (row < height)
        line = x_ptr + image + row * width * C
        for kx in tl.static_range(K):
            shifted = column + (kx - R)
            there = (shifted >= 0) & (shifted < width) & inside
            value = tl.load(line + here + (kx - R) * C, mask=there, other=0.0).to(tl.float32)
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
    grid = (n * triton.cdiv(width, COLUMNS) * (c // CHANNELS), triton.cdiv(height, ROWS))
    mean, square = (taps, taps) if statistics is None else statistics.unbind()
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _depthwise[grid](
            x, taps, taps if bias is None else bias, out, mean, square, height, width, ROWS, c, kernel,
            bias is not None, statistics is not None, COLUMNS, CHANNELS,
        )  # fmt: skip
    return out


def depthwise_conv_weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Compute the weight gradient, (C, 1, K, K) in float32.

    The order of the sums is fixed, so that two runs give the same bits.
    """
    n, c, height, width = x.shape
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    strips = n * triton.cdiv(width, COLUMNS)
    groups = min(strips, max(1, _processors(x) * 4 // (c // CHANNELS)))
    partial = x.new_empty(groups, kernel * kernel, c, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _depthwise_weight_gradient[(groups * (c // CHANNELS),)](
            x, grad, partial, height, width, strips, c, kernel, COLUMNS, CHANNELS
        )
    return partial.sum(0).t().reshape(c, 1, kernel, kernel)


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


# --- linear layers


@_jit
def _normal_cdf(x, EXACT: tl.constexpr):
    """Compute the normal CDF by erf or, unless EXACT, by a sigmoid of an odd polynomial.

    The latter is within 1.2e-5 of x times it, at a third of the cost.
    """
    if EXACT:
        result = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        s = tl.minimum(x * x, 36.0)
        poly = 1.59538024 + s * (0.0734616306 + s * (-5.10199089e-4 + s * -1.7215255e-5))
        result = 1.0 / (1.0 + tl.exp(-x * poly))
    return result


@_jit
def _linear(
    a_ptr, w_ptr, b_ptr, gain_ptr, scale_ptr, other_ptr, out_ptr, second_ptr, mean_ptr, square_ptr,
    norm_w_ptr, norm_b_ptr, eps, m, N: tl.constexpr, K: tl.constexpr, END: tl.constexpr,
    TRANSPOSED: tl.constexpr, HAS_GAIN: tl.constexpr, HAS_SCALE: tl.constexpr, SAVE: tl.constexpr,
    NORM: tl.constexpr, AFFINE: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute ``a @ w`` (K x N, or N x K if TRANSPOSED) of BM rows and BN columns, and then by END:

    0: + bias, GELU to ``out``, what GELU got to ``second`` if SAVE;
    1: times the derivative of GELU at ``other`` to ``out``, GELU of ``other`` to ``second``;
    2: + bias, times the gain of the column and the scale of the row, + ``other`` to ``out``.

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
        if TRANSPOSED:
            w = w_ptr + column[None, :] * K + deep[:, None]
        else:
            w = w_ptr + deep[:, None] * N + column[None, :]
        w = tl.load(w, mask=columns & (deep < K)[:, None], other=0.0)
        if NORM:
            a = (a.to(tl.float32) - mean) * rstd
            if AFFINE:
                a *= tl.load(norm_w_ptr + deep, mask=deep < K, other=0.0).to(tl.float32)[None, :]
                a += tl.load(norm_b_ptr + deep, mask=deep < K, other=0.0).to(tl.float32)[None, :]
            a = a.to(a_ptr.dtype.element_ty)
        if WIDEN:  # the interpreter multiplies the bits of bfloat16
            a, w = a.to(tl.float32), w.to(tl.float32)
        total = tl.dot(a, w, total)
    start = first.to(tl.int64) * N
    out_ptr += start
    other_ptr += start
    second_ptr += start
    where = row * N + column[None, :]
    mask = rows & columns
    kind = out_ptr.dtype.element_ty
    if END != 1:
        total += tl.load(b_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    if END == 0:
        h = total.to(kind)
        if SAVE:
            tl.store(second_ptr + where, h, mask=mask)
        h = h.to(tl.float32)
        tl.store(out_ptr + where, (h * _normal_cdf(h, EXACT)).to(kind), mask=mask)
    if END == 1:
        h = tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32)
        cdf = _normal_cdf(h, EXACT)
        slope = cdf + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
        tl.store(out_ptr + where, (total * slope).to(kind), mask=mask)
        tl.store(second_ptr + where, (h * cdf).to(kind), mask=mask)
    if END == 2:
        if HAS_GAIN:
            total *= tl.load(gain_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if HAS_SCALE:
            total *= tl.load(scale_ptr + first + row, mask=rows, other=0.0).to(tl.float32)
        other = tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + where, (total + other).to(kind), mask=mask)


def _launch(
    end, a, w, out, *, bias=None, gain=None, scale=None, other=None, second=None, transposed=True, norm=None
) -> None:
    m, k = a.shape
    n = out.shape[1]
    # As wide as the registers carry without spilling (checked by compiling for sm_90).
    tile = (16, 16, 16) if INTERPRETED else (128, 128 if end == 0 else 64, 32)
    grid = (triton.cdiv(m, tile[0]) * triton.cdiv(n, tile[1]),)
    mean, square, norm_weight, norm_bias, eps = norm or (None, None, None, None, 0.0)
    read = (bias, gain, scale, other), (second, mean, square, norm_weight, norm_bias)
    read = [[a if t is None else t for t in tensors] for tensors in read]  # an address for what is not read
    with torch.cuda.device_of(a):
        _linear[grid](
            a, w, *read[0], out, *read[1], eps, m, n, k, end, transposed, gain is not None, scale is not None,
            second is not None, CHANNELS if norm else 0, norm_weight is not None,
            out.dtype == torch.float32, INTERPRETED, *tile,
            **({} if INTERPRETED else dict(num_warps=8)),
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
    _launch(0, x.contiguous(), weight.contiguous(), out, bias=bias, second=hidden, norm=norm)
    return out


def linear_gelu_backward(grad: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``(grad @ weight) * gelu'(hidden)`` and ``gelu(hidden)``.

    (M, C), (C, N), (M, N) -> (M, N) twice.
    """
    out, activated = torch.empty_like(hidden), torch.empty_like(hidden)
    _launch(1, grad.contiguous(), weight.contiguous(), out, other=hidden, second=activated, transposed=False)
    return out, activated


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
    other = residual.contiguous()
    _launch(2, x, weight.contiguous(), out, bias=bias, gain=gain, scale=scale, other=other)
