"""Tries kinds of calls of the operators by Triton: in a process of its own, which :mod:`.trial` starts.

A kernel may crash or hang, and a wrong access to a GPU's memory ends all use of it in its process.
"""

import contextlib
import faulthandler
import json
import sys
import time
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from . import depthwise
from .mlp import Weights, norm_mlp
from .norm import channel_norm
from .trial import ROWS, Kind, first_line, pytorch
from .triton_block import triton_block

NUMBERS = 2**23  # in the map of a large or huge call; so that its hidden layer fits, whatever its channels
LARGE_MAP, SMALL_MAP = (1, 101), (2, 37, 51)  # samples, height, width; odd, so that edges are tried
HUGE_MAP = 51, 53  # height, width of each of many samples
TURNS, CALLS = 5, 10  # timed: the best of so many turns, of so many calls each
CAPTURED = 3  # calls in a CUDA graph
EPS = 1e-6  # of the norms


def main() -> None:
    """Try the kinds of calls that standard input names, in a child process.

    Writes a line of JSON at the beginning and at the end of each into the file that the command line names.
    """
    request = json.load(sys.stdin)
    faulthandler.dump_traceback_later(request['seconds'] + 5, exit=True)  # should the parent be gone
    kinds = [
        Kind(operator, channels, getattr(torch, dtype), *rest, torch.device(device))
        for operator, channels, dtype, *rest, device in request['kinds']
    ]
    x = torch.zeros(8, device=kinds[0].device)  # what fails or takes long here is no kind's fault
    if kinds[0].compiled:
        torch.compile(torch.sin)(x)
    with open(sys.argv[-1], 'a', buffering=1) as stream:
        for kind in kinds:
            print(json.dumps(dict(name=kind.name)), file=stream)
            print(json.dumps(dict(name=kind.name, verdict=_try(kind))), file=stream)


def _try(kind: Kind) -> dict:
    try:
        return _compare(kind)
    except torch.OutOfMemoryError:
        return pytorch('too little memory to try Triton', failed=True, passing=True)
    except Exception as error:
        _wait(kind.device)  # raises if nothing more can be computed, and then this process ends
        return pytorch(f'Triton failed: {first_line(error)}', failed=True)


def _compare(kind: Kind) -> dict:
    """Compute by Triton, by PyTorch and in float64, and time the first two."""
    torch.manual_seed(0)
    ours, layers, cases = OPERATORS[kind.operator](kind)
    ways = [ours(True), ours(False) if kind.size == 'huge' and not kind.compiled else layers]
    if kind.compiled:
        torch.compiler.reset()  # there is a limit to the compiled forms of one function
        ways = [torch.compile(way) for way in ways]
    runs = []
    for tensors in cases:
        doubles = ([_double(t) for t in part] for part in tensors)
        exact = _runner(layers, kind._replace(autocast=False), *doubles)()
        tried, stock = (_runner(way, kind, *tensors)() for way in ways)
        for found, other, right in zip(tried, stock, exact, strict=True):
            if wrong := _wrong(found, other, right, max(torch.finfo(kind.dtype).eps, 2e-5)):
                return pytorch(wrong, failed=True)
        runs = runs or [_runner(way, kind, *tensors) for way in ways]
    times = [float('inf')] * 2
    calls = [lambda run=run: [run() for _ in range(CALLS)] for run in runs]
    if kind.size == 'huge' and kind.device.type == 'cuda':  # the GPU's time alone, if it can be had
        with contextlib.suppress(RuntimeError):
            calls = [_captured(run) for run in runs]
    for turn, (i, call) in product(range(TURNS + 1), enumerate(calls)):
        begin = time.perf_counter()
        call()
        _wait(kind.device)
        times[i] = min(times[i], time.perf_counter() - begin) if turn else times[i]  # the first warms up
    ratio = times[1] / times[0]
    return dict(triton=ratio >= 1, why=f'{ratio:.2g}x')


def _captured(run: Callable) -> Callable[[], None]:
    """Return what computes the same some times from a CUDA graph, without the time of launching kernels."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        for _ in range(CAPTURED):
            run()
    return graph.replay


def _wrong(found: Tensor, other: Tensor, exact: Tensor, rounding: float) -> str:
    """Return what is wrong with Triton's numbers, whose errors are to be like PyTorch's.

    The largest error finds a wrong place, the root of the sum of the squares small errors everywhere.
    """
    for what, size, times in (('at one place', torch.inf, 2), ('on the whole', 2, 1)):
        ours, others = (torch.linalg.vector_norm(t.double() - exact, size).item() for t in (found, other))
        scale = torch.linalg.vector_norm(exact, size).item()
        bound = (times + 1) * min(others, 8 * rounding * scale) + times * rounding * scale
        if not ours <= bound:  # so also of NaN
            return f'Triton is wrong {what} by {ours:.2g} of {scale:.2g}, PyTorch by {others:.2g}'
    return ''


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _runner(
    function: Callable, kind: Kind, tensors: list[Tensor | None], fixed: list[Tensor]
) -> Callable[[], list[Tensor]]:
    """Return what computes ``function`` of copies of the tensors, and in training their gradients.

    ``fixed`` are further arguments, without a gradient.
    """
    own = [None if t is None else t.clone().requires_grad_(kind.training) for t in tensors]
    wanted = [t for t in own if t is not None]
    generator = torch.Generator(kind.device).manual_seed(1)
    grad = torch.empty_like(own[0], dtype=torch.float32).normal_(generator=generator)  # in its layout

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(kind.training):
            with torch.autocast(kind.device.type, kind.dtype, enabled=kind.autocast):
                out = function(*own, *fixed)
            found = torch.autograd.grad(out, wanted, grad.to(out.dtype)) if kind.training else ()
        return [out.detach(), *found]

    return run


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _draw(kind: Kind, *shape: int, over: float = 1.0) -> Tensor:
    """Draw a tensor; of parameters, and of maps under autocast, in float32."""
    dtype = torch.float32 if kind.autocast else kind.dtype
    return (torch.randn(*shape, device=kind.device) / over).to(dtype)


def _draw_map(kind: Kind) -> Tensor:  # (N, H, W, C)
    if kind.size == 'small':
        return _draw(kind, *SMALL_MAP, kind.channels)
    if kind.size == 'huge':
        samples = -(-NUMBERS // (HUGE_MAP[0] * HUGE_MAP[1] * kind.channels))
        return _draw(kind, samples, *HUGE_MAP, kind.channels)
    rows = max(ROWS, NUMBERS // kind.channels)
    return _draw(kind, *LARGE_MAP, -(-rows // LARGE_MAP[1]), kind.channels)


# Each gives: the operator by Triton or not, the same by layers, and inputs (see _runner) of which the first
# are timed.


def _depthwise(kind: Kind) -> tuple[Callable, Callable, list[tuple]]:
    c = kind.channels

    def ours(triton):
        return lambda x, w, b: depthwise.depthwise_conv(x, w, b, 1, triton)

    def layers(x, w, b):
        return F.conv2d(x, w, b, padding=3, groups=c)

    return ours, layers, [([_draw_map(kind).permute(0, 3, 1, 2), *_draw_filters(kind)], [])]


def _draw_filters(kind: Kind) -> list[Tensor]:
    return [_draw(kind, kind.channels, 1, 7, 7, over=7), _draw(kind, kind.channels)]


def _block(kind: Kind) -> tuple[Callable, Callable, list[tuple]]:
    c = kind.channels

    def ours(triton):
        def run(x, conv, conv_b, norm_w, norm_b, w1, b1, w2, b2, gain, scale=None):
            norm = norm_w, norm_b, EPS
            if triton:
                return triton_block(x, (conv, conv_b), Weights(*norm, w1, b1, w2, b2, gain, scale))
            y = depthwise.depthwise_conv(x, conv, conv_b).permute(0, 2, 3, 1)
            y = norm_mlp(y, x.permute(0, 2, 3, 1), norm, (w1, b1), (w2, b2), gain, scale)
            return y.permute(0, 3, 1, 2)

        return run

    def layers(x, conv, conv_b, norm_w, norm_b, w1, b1, w2, b2, gain, scale=None):
        y = F.conv2d(x, conv, conv_b, padding=3, groups=c).permute(0, 2, 3, 1)
        y = F.linear(F.gelu(F.linear(F.layer_norm(y, (c,), norm_w, norm_b, EPS), w1, b1)), w2, b2)
        y = y if gain is None else y * gain
        return x + (y if scale is None else y * scale.view(-1, 1, 1, 1)).permute(0, 3, 1, 2)

    x, filters = _draw_map(kind).permute(0, 3, 1, 2), _draw_filters(kind)
    weights = [_draw(kind, 4 * c, c, over=c**0.5), _draw(kind, 4 * c)]
    weights += [_draw(kind, c, 4 * c, over=(4 * c) ** 0.5), _draw(kind, c)]
    inputs = [x, *filters, _draw(kind, c), _draw(kind, c), *weights, _draw(kind, c)]
    if kind.training:  # with stochastic depth
        return ours, layers, [(inputs, []), (inputs, [_draw(kind, len(x)).abs()])]
    return ours, layers, [(inputs, []), ([x, *filters, None, None, *weights, None], [])]  # folded


def _channel_norm(kind: Kind) -> tuple[Callable, Callable, list[tuple]]:
    c = kind.channels

    def ours(triton):
        return lambda x, weight, bias: channel_norm(x, weight, bias, EPS, triton)

    def layers(x, weight, bias):
        return F.layer_norm(x, (c,), weight, bias, EPS)

    return ours, layers, [([_draw_map(kind), _draw(kind, c), _draw(kind, c)], [])]


OPERATORS = dict(block=_block, depthwise=_depthwise, channel_norm=_channel_norm)
