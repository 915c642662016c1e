"""How it is found out whether the Triton kernels are used: faults injected, without a GPU.

Of the two sides one is real each time: our process with a child that really crashes or hangs, and the child's
comparison with kernels that really are wrong or slow.
"""

import gc
import json
import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt
from convnext_backbone.backbones.block import Block
from convnext_backbone.backbones.layers import LayerNorm2d
from convnext_backbone.ops import block as block_ops
from convnext_backbone.ops import trial, trial_child, triton_kernels

CPU = torch.device('cpu')
FAST, SLOW = dict(triton=True, why='1.8x'), dict(triton=False, why='0.7x')
STAND_IN = """
import json, os, subprocess, sys, time

request = json.load(sys.stdin)
acts = json.loads(sys.argv[1])
with open(sys.argv[2], 'a') as runs:
    runs.write(json.dumps(request['kinds']) + '\\n')
if acts == 'does not begin':
    sys.exit('no GPU is left')
with open(sys.argv[-1], 'a', buffering=1) as out:
    for operator, channels, dtype, autocast, training, size, compiled, device in request['kinds']:
        name = f'{operator} {channels} channels {dtype}'
        name += ' autocast' * autocast + (' training ' if training else ' inference ') + size
        name += ' compiled' * compiled
        print(json.dumps(dict(name=name)), file=out)
        act = acts.get(str(channels), acts.get('all'))
        if act == 'crash':
            print('an illegal address was met', file=sys.stderr, flush=True)
            os.abort()
        if act == 'hang':
            runs = subprocess.Popen(['sleep', '1000'])
            open(sys.argv[2] + '.pid', 'w').write(str(runs.pid))
            runs.wait()
        if act == 'take time':
            time.sleep(0.7)
            act = dict(triton=True, why='1.8x')
        print(json.dumps(dict(name=name, verdict=act)), file=out)
"""


class Machine:
    """A machine whose GPU is the CPU, and whose child processes act as a test wants."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch, self.runs = folder, monkeypatch, folder / 'runs'
        self.versions = dict(gpu='a GPU', torch='2.x')
        monkeypatch.setattr(trial, 'DEVICE', 'cpu')
        monkeypatch.setattr(trial, 'FOLDER', str(folder / 'cache'))
        monkeypatch.setattr(trial, '_machine', lambda device: dict(self.versions))
        monkeypatch.setattr(trial, 'LONGEST_KIND', 1.0)
        monkeypatch.setattr(trial, 'SHORTEST', 0.2)
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
        monkeypatch.setattr(triton_kernels, 'INTERPRETED', True)  # so that they support a CPU
        monkeypatch.delenv(trial.SWITCH, raising=False)
        self.said = []
        monkeypatch.setattr(trial, 'print_log', lambda line, _, level: self.said.append((line, level)))
        monkeypatch.setattr(trial, '_layers', type(trial._layers)())
        self.restart()

    def restart(self) -> None:
        """Forget what a process knows."""
        self.patch.setattr(trial, '_known', {})
        self.patch.setattr(trial, '_not_kept', {})
        self.patch.setattr(trial, '_seconds_left', 60.0)
        self.said.clear()

    def act(self, how) -> None:
        script = self.folder / 'stand_in.py'
        script.write_text(STAND_IN)
        line = [trial.sys.executable, '-S', '-E', str(script), json.dumps(how), str(self.runs)]
        self.patch.setattr(trial, 'COMMAND', line)

    def asked(self) -> list[list]:
        """What kinds of calls each child was asked to try."""
        return [json.loads(line) for line in self.runs.read_text().splitlines()] if self.runs.exists() else []

    def file(self):
        (file,) = (self.folder / 'cache').glob('trial-*.json')
        return file

    def kept(self) -> dict:
        return json.loads(self.file().read_text())['verdicts']

    def lines(self, level: int) -> list[str]:
        return [line for line, of in self.said if of == level]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def ask(channels: int = 96, fused=True, operator: str = 'depthwise', rows: int = 30, **options) -> bool:
    x = torch.zeros(1, channels, rows, 1)
    return trial.chosen(operator, fused, x, channels, **options)


# --- our process, with a child that stands in


def test_a_faster_kernel_is_used_and_a_slower_one_is_not_and_the_log_says_so(machine):
    machine.act({'96': FAST, '192': SLOW})
    with torch.no_grad():
        assert ask(96) is True
    assert ask(192) is False
    said = machine.lines(logging.INFO)
    assert 'depthwise 96 channels float32 inference small: Triton, 1.8x' in said
    assert 'depthwise 192 channels float32 training small: PyTorch, 0.7x' in said
    assert machine.lines(logging.WARNING) == []


def test_what_was_found_is_kept_for_other_processes(machine):
    machine.act({'96': FAST, '192': SLOW})
    first = [ask(96), ask(192), ask(96)]
    assert len(machine.asked()) == 2
    machine.restart()
    assert [ask(96), ask(192), ask(96)] == first
    assert len(machine.asked()) == 2
    assert json.loads(machine.file().read_text())['machine'] == dict(gpu='a GPU', torch='2.x')


def test_other_versions_or_another_gpu_are_tried_anew(machine):
    machine.act({'all': FAST})
    assert ask()
    for change in (dict(torch='3.x'), dict(gpu='another GPU')):
        machine.restart()
        machine.versions |= change
        machine.act({'all': SLOW})
        assert not ask()
    assert len(machine.asked()) == 3
    machine.restart()
    machine.versions = dict(gpu='a GPU', torch='2.x')  # what was kept of it is there
    assert ask()
    assert len(machine.asked()) == 3


def test_kinds_that_differ_have_verdicts_of_their_own(machine):
    machine.act({'all': SLOW})
    ask()
    with torch.no_grad():
        ask()
    ask(rows=10000)  # the border
    ask(rows=9999)  # as the first
    ask(rows=2**22 // 96)  # as the second
    ask(rows=2**22 // 96 + 1)  # its border
    ask(operator='block')
    ask(operator='channel_norm')
    with torch.autocast('cpu', torch.bfloat16):
        ask()
    kinds = [k for run in machine.asked() for k in run]
    alike = ['depthwise', 96, 'float32', False, True, 'small', False, 'cpu']
    others = (
        {},
        {4: False},
        {5: 'large'},
        {5: 'huge'},
        {0: 'block'},
        {0: 'channel_norm'},
    )
    others += ({2: 'bfloat16', 3: True},)
    assert kinds == [[other.get(i, value) for i, value in enumerate(alike)] for other in others]


def test_a_crash_gives_pytorch_and_the_other_kinds_are_tried(machine):
    machine.act({'192': 'crash', 'all': FAST})
    layers = [LayerNorm2d(dim) for dim in (96, 192, 384)]
    assert ask(96, operator='channel_norm') is True
    assert ask(192, operator='channel_norm') is False
    assert ask(384, operator='channel_norm') is True
    assert len(machine.asked()[0]) == 18  # three layers, three sizes, training and inference
    assert len(layers) == 3
    (said,) = machine.lines(logging.WARNING)
    expected = 'channel_norm 192 channels float32 training small: PyTorch, Triton crashed: exit status -6, '
    assert said == expected + 'an illegal address was met'
    runs = len(machine.asked())
    machine.restart()
    assert ask(192, operator='channel_norm') is False  # kept, so that no other process crashes
    assert len(machine.asked()) == runs
    assert len(machine.lines(logging.WARNING)) == 1


def test_a_hang_gives_pytorch_and_is_ended_with_what_it_started(machine):
    machine.act({'192': 'hang', 'all': FAST})
    begin = time.monotonic()
    assert ask(192) is False
    assert ask(96) is True
    assert 1 <= time.monotonic() - begin < 8
    (said,) = machine.lines(logging.WARNING)
    assert 'depthwise 192 channels float32 training small: PyTorch, Triton hung: no answer in 1.0 s' in said
    assert machine.kept()['depthwise 192 channels float32 training small']['triton'] is False
    started = int((machine.folder / 'runs.pid').read_text())
    time.sleep(0.1)
    of_process = Path(f'/proc/{started}/stat')
    assert not of_process.exists() or ') Z ' in of_process.read_text()  # gone, or nobody has asked yet


def test_a_process_waits_no_longer_than_it_may_and_nothing_is_kept_of_it(machine):
    machine.act({'all': 'hang'})
    machine.patch.setattr(trial, 'LONGEST_KIND', 30.0)
    machine.patch.setattr(trial, '_seconds_left', 0.5)
    begin = time.monotonic()
    assert [ask(96), ask(96), ask(192)] == [False] * 3
    assert time.monotonic() - begin < 3
    assert len(machine.asked()) == 1
    assert sum('trying the Triton kernels' in line for line, _ in machine.said) == 1
    assert machine.kept() == {}
    assert 'could not be tried: the time was over' in machine.lines(logging.WARNING)[0]
    machine.restart()
    machine.act({'all': FAST})
    assert ask(96) is True


def test_after_a_crash_no_child_begins_for_which_no_time_is_left(machine):
    machine.act({'96': 'take time', '192': 'crash', '384': FAST})
    machine.patch.setattr(trial, 'SHORTEST', 53.5)  # of 54
    kinds = [kind(torch.float32)._replace(channels=c) for c in (96, 192, 384)]
    found = trial._try_in_children(kinds, 54.0)
    assert [verdict['triton'] for verdict in found.values()] == [True, False, False]
    assert [verdict.get('passing', False) for verdict in found.values()] == [False, False, True]
    assert len(machine.asked()) == 1


@pytest.mark.parametrize('passing', [True, False])
def test_what_only_this_process_met_is_not_kept(machine, passing):
    """No memory, or no child that begins: another process may be luckier."""
    machine.act({'all': SLOW | dict(passing=True, why='too little memory')} if passing else 'does not begin')
    assert [ask(), ask()] == [False] * 2
    assert len(machine.asked()) == 1
    reason = 'too little memory' if passing else 'could not be tried: exit status 1, no GPU is left'
    assert reason in machine.said[-1][0]
    machine.restart()
    machine.act({'all': FAST})
    assert ask() is True


WHOLE = dict(machine=dict(gpu='a GPU', torch='2.x'), verdicts={})


@pytest.mark.parametrize(
    'damage',
    [
        b'',
        b'{"machine": {"gpu": "a G',
        b'[]',
        b'\xff\xfe\x00',
        b'{"machine": {}}',
        json.dumps(WHOLE | dict(machine=dict(gpu='another GPU'))).encode(),
        json.dumps(WHOLE | dict(verdicts={'depthwise': {'triton': 'yes', 'why': ''}})).encode(),
        json.dumps(WHOLE | dict(verdicts={'depthwise': None})).encode(),
    ],
)
def test_a_damaged_file_is_tried_anew(machine, damage):
    machine.act({'all': FAST})
    assert ask()
    whole = machine.kept()
    machine.file().write_bytes(damage)
    machine.restart()
    assert ask() is True
    assert len(machine.asked()) == 2
    (said,) = machine.lines(logging.WARNING)
    assert re.fullmatch(r'.*trial-\w+\.json cannot be read, the Triton kernels are tried anew: .+', said)
    assert machine.kept() == whole


def test_a_folder_that_cannot_be_written_gives_pytorch(machine):
    machine.act({'all': FAST})
    (machine.folder / 'cache').write_text('a file, no folder')
    assert ask() is False
    assert machine.asked() == []
    assert 'PyTorch, Triton could not be tried: ' in machine.lines(logging.WARNING)[0]


def test_switched_off_nothing_is_tried_and_what_is_asked_for_is_used(machine):
    machine.act({'all': FAST})
    machine.patch.setenv('CONVNEXT_TRIAL', '0')
    assert ask() is False
    assert ask(fused='triton') is True
    assert ask(fused=False) is False
    assert machine.asked() == []
    assert machine.said == []


def test_two_processes_share_one_trial(machine):
    machine.act({'all': 'take time'})
    fork = torch.multiprocessing.get_context('fork')
    results = fork.Queue()

    def process():
        results.put((ask(), [line for line, _ in machine.said]))

    both = [fork.Process(target=process) for _ in range(2)]
    for one in both:
        one.start()
    found = [results.get(timeout=20) for _ in both]
    for one in both:
        one.join()
    assert [verdict for verdict, _ in found] == [True, True]
    assert len(machine.asked()) == 1
    assert sum('trying the Triton kernels' in line for _, said in found for line in said) == 1


def test_a_process_that_waits_for_another_goes_on_by_pytorch(machine):
    machine.act({'all': FAST})
    path = trial._file(machine.versions)
    path.parent.mkdir()
    machine.patch.setattr(trial, '_seconds_left', 0.3)
    with trial.FileLock(f'{path}.lock'):
        assert ask() is False
    assert 'another process is still trying' in machine.lines(logging.WARNING)[0]
    assert machine.asked() == []


def test_one_child_tries_all_that_a_model_will_ask_for(machine):
    """The first call of a training asks for what the network's layers call, in a validation as well."""
    machine.act({'all': SLOW})
    model = ConvNeXt('atto', dims=(40, 64, 320, 96), depths=(1, 1, 1, 1), output_stride=16)
    other = IsotropicConvNeXt(dim=192, depth=1, fused=False)
    assert other is not None
    v2 = Block(64, grn=True, layer_scale=None)
    assert v2 is not None
    gone = ConvNeXt('atto', dims=(128,) * 4)
    del gone
    gc.collect()
    x = torch.randn(1, 3, 32, 32)
    model(x)
    model.eval()
    with torch.no_grad():
        model(x)
    (asked,) = machine.asked()
    kinds = {(k[0], k[1]) for k in asked}
    blocks = {('block', c) for c in (64, 320)}  # not of 40; the last stage is dilated
    norms = {('channel_norm', c) for c in (40, 64, 320, 96)}
    assert kinds == blocks | norms | {('depthwise', 64)}
    assert len(asked) == 6 * len(kinds)  # three sizes, training and inference
    assert asked[0][:2] == ['channel_norm', 40]  # what is called first
    assert asked == sorted(asked, key=lambda k: k[5] != 'small')  # the sizes that are asked for first
    small = [k[4] for k in asked if k[5] == 'small']
    assert small == sorted(small, reverse=True)  # training before inference


def test_inference_does_not_try_gradients(machine):
    machine.act({'all': SLOW})
    model = Block(32)
    with torch.no_grad():
        model(torch.randn(1, 32, 4, 4))
    (asked,) = machine.asked()
    assert {k[4] for k in asked} == {False}


def test_while_a_graph_is_captured_nothing_is_tried(machine):
    machine.act({'all': FAST})
    machine.patch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert ask() is False
    assert machine.asked() == []
    machine.patch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    assert ask() is True
    machine.patch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert ask() is True  # what is known holds


@pytest.mark.parametrize('how', ['export', 'trace'])
def test_an_exported_program_has_pytorchs_operators_and_nothing_is_tried(machine, how):
    machine.act({'all': FAST})
    x = torch.randn(1, 8, 4, 4)
    for layer in (LayerNorm2d(8), LayerNorm2d(8, fused='triton'), Block(32)):
        x = torch.randn(1, 32 if isinstance(layer, Block) else 8, 4, 4)
        if how == 'export':
            text = torch.export.export(layer, (x,)).graph_module.code
        else:
            text = str(torch.jit.trace(layer, x, check_trace=False).inlined_graph)
        assert 'layer_norm' in text
        assert not re.search(r'ops\.convnext|convnext_backbone::', text)
    assert machine.asked() == []


def test_for_torch_compile_a_verdict_is_a_constant(machine):
    """One graph for each layer and size, without a break, and in it what the verdict says."""
    machine.act({'96': FAST, '192': SLOW})
    machine.patch.setattr(triton_kernels, 'norm', lambda x, *_: torch.full_like(x, 5.0))
    graphs = []

    def look(graph, _):
        graphs.append('convnext_backbone.channel_norm' in graph.code)
        return graph.forward

    layers = [LayerNorm2d(96), LayerNorm2d(192)]
    fast, slow = (torch.compile(layer, backend=look, fullgraph=True) for layer in layers)
    with torch.no_grad():
        for n in (2, 3, 4, 5):
            assert fast(torch.zeros(n, 96, 5, 5)).unique().item() == 5
            assert slow(torch.zeros(n, 192, 5, 5)).unique().item() == 0
        assert fast(torch.zeros(200, 96, 10, 10)).unique().item() == 5
    assert sorted(graphs) == [False, False, True, True, True]  # the second of any number of samples
    kinds = [kind for run in machine.asked() for kind in run]
    assert {k[6] for k in kinds} == {True}


def test_without_a_gpu_no_question_is_asked(monkeypatch):
    def never(*_):
        raise AssertionError('a trial on a CPU')

    monkeypatch.setattr(trial, '_verdict', never)
    monkeypatch.setattr(trial, 'being_exported', never)
    assert not ask()
    assert not ask(fused=False)


@pytest.mark.parametrize(
    ('x', 'dilation', 'operator'),
    [
        (torch.zeros(1, 96, 3, 3, dtype=torch.float64), 1, 'depthwise'),
        (torch.zeros(1, 40, 3, 3), 1, 'depthwise'),
        (torch.zeros(1, 40, 3, 3), 1, 'block'),
        (torch.zeros(1, 96, 3, 3), 2, 'depthwise'),
        (torch.zeros(0, 96, 3, 3), 1, 'channel_norm'),
        (nn.Parameter(torch.zeros(1, 96, 3, 3)), 1, 'depthwise'),
    ],
)
def test_what_no_kernel_supports_is_not_tried(machine, x, dilation, operator):
    machine.act({'all': FAST})
    assert trial.chosen(operator, True, x, x.shape[1], dilation) is False
    assert machine.asked() == []


@pytest.mark.parametrize('verdict', [True, False])
@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_a_block_is_tritons_as_a_whole_or_v2_its_convolution(verdict, grn, machine, monkeypatch):
    asked, given = [], []

    def chosen(operator, *_):
        asked.append(operator)
        return verdict

    def conv(x, weight, bias, dilation, triton):
        given.append(('convolution', triton))
        return F.conv2d(x, weight, bias, padding=3, groups=x.shape[1])

    def whole(x, conv, weights):
        given.append('whole')
        return x

    monkeypatch.setattr(trial, '_verdict', chosen)
    monkeypatch.setattr(block_ops, 'depthwise_conv', conv)
    monkeypatch.setattr(block_ops, 'triton_block', whole)
    Block(32, grn=grn, layer_scale=None if grn else 1.0)(torch.randn(1, 32, 4, 4))
    assert asked == ['depthwise' if grn else 'block']
    assert given == (['whole'] if verdict and not grn else [('convolution', verdict)])


@pytest.mark.parametrize(
    ('grn', 'verdict', 'found'),
    [
        (False, True, {'convnext_backbone.block'}),
        (True, True, {'depthwise_conv', 'linear'}),
        (False, False, {'conv2d', 'linear'}),
        (True, False, {'conv2d', 'linear'}),
    ],
)
def test_a_compiler_gets_the_layers_that_are_not_tritons(machine, monkeypatch, grn, verdict, found):
    graphs = []

    def convolution(x, taps, bias):
        filters = taps.t().reshape(-1, 1, 7, 7)
        return F.conv2d(x.permute(0, 3, 1, 2), filters, bias, padding=3, groups=32).permute(0, 2, 3, 1)

    def whole(x, residual, conv, conv_b, norm, norm_b, eps, w1, b1, w2, b2, gain, scale, keep):
        y = F.conv2d(x.permute(0, 3, 1, 2), conv, conv_b, padding=3, groups=32).permute(0, 2, 3, 1)
        y = F.linear(F.gelu(F.linear(F.layer_norm(y, (32,), norm, norm_b, eps), w1, b1)), w2, b2)
        return residual + gain * y, []

    def look(graph, _):
        graphs.append(graph.code)
        return graph.forward

    monkeypatch.setattr(trial, '_verdict', lambda *_: verdict)
    monkeypatch.setattr(triton_kernels, 'depthwise_conv', convolution)
    with torch.library._scoped_library('convnext_backbone', 'IMPL') as library:
        library.impl('block', whole, 'CPU', allow_override=True)
        block = Block(32, grn=grn, layer_scale=None if grn else 0.5).eval()
        x = torch.randn(2, 32, 5, 6).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            compiled = torch.compile(block, backend=look, fullgraph=True)(x)
            block.fused = False
            assert torch.allclose(compiled, block(x), atol=1e-5)
    (graph,) = graphs
    assert set(re.findall(r'depthwise_conv|convnext_backbone\.block|conv2d|linear', graph)) == found


def test_the_driver_the_versions_and_our_sources_are_in_what_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'GPU {device}')
    found = trial._machine(CPU)
    assert set(found) == {'gpu', 'driver', 'torch', 'cuda', 'triton', 'sources'}
    assert (found['gpu'], found['torch']) == ('GPU cpu', torch.__version__)
    before = trial._sources.__wrapped__()
    assert before == found['sources']
    monkeypatch.setattr(trial.Path, 'read_bytes', lambda file: b'changed')
    assert trial._sources.__wrapped__() != before


# --- the child's comparison, in this process


@pytest.fixture
def kernels(monkeypatch):
    """Kernels that compute by PyTorch, and a clock that stands still but for what they take."""
    clock = SimpleNamespace(now=0.0, seconds=0.0)

    def perf_counter():
        clock.now += 1
        return clock.now

    def right(x, weight, bias, eps):
        clock.now += clock.seconds
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def gradient(grad, x, weight, bias, eps):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            found = F.layer_norm(leaves[0], weight.shape, *leaves[1:], eps)
            found = torch.autograd.grad(found, leaves, grad)
        return found[0], torch.stack([found[0].reshape(-1, 32).sum(0), *found[1:]])[None]

    def totals(sums, *outs):
        for out, total in zip(outs, sums.sum(0)):
            out.copy_(total)

    monkeypatch.setattr(trial_child, 'time', SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(trial_child, 'SMALL_MAP', (2, 5, 7))
    monkeypatch.setattr(triton_kernels, '_supports', lambda x, dtype: True)
    monkeypatch.setattr(triton_kernels, 'norm', right)
    monkeypatch.setattr(triton_kernels, 'norm_gradient', gradient)
    monkeypatch.setattr(triton_kernels, 'totals', totals)
    return clock


def kind(dtype=torch.bfloat16, training=True, operator='channel_norm') -> trial.Kind:
    return trial.Kind(operator, 32, dtype, False, training, 'small', False, CPU)


DTYPES = pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)


@DTYPES
@pytest.mark.parametrize(('seconds', 'faster', 'why'), [(-0.05, True, '2x'), (0.1, False, '0.5x')])
def test_the_faster_one_wins(kernels, seconds, faster, why, dtype):
    """Ten calls and one tick of the clock: 0.5 or 2, against 1."""
    kernels.seconds = seconds
    assert trial_child._try(kind(dtype)) == dict(triton=faster, why=why)


@DTYPES
@pytest.mark.parametrize('fault', ['a place', 'a little everywhere', 'not a number', 'of weights', 'of x'])
def test_wrong_numbers_are_found(kernels, monkeypatch, fault, dtype):
    norm, gradient = triton_kernels.norm, triton_kernels.norm_gradient

    def wrong(x, weight, bias, eps):
        found = norm(x, weight, bias, eps)
        if fault == 'a place':
            found[-1, -1] += 0.1 * found.abs().max()
        elif fault == 'a little everywhere':
            found *= 1 + 1.8 * max(torch.finfo(dtype).eps, 2e-5)
        elif fault == 'not a number':
            found[0, 0] = torch.nan
        return found

    def wrong_gradient(*arguments):
        dx, sums = gradient(*arguments)
        if fault == 'of weights':
            sums[:, 2] = 0
        elif fault == 'of x':
            dx[:, :4] = 0
        return dx, sums

    monkeypatch.setattr(triton_kernels, 'norm', wrong)
    monkeypatch.setattr(triton_kernels, 'norm_gradient', wrong_gradient)
    kernels.seconds = -0.05
    found = trial_child._try(kind(dtype))
    assert found['triton'] is False
    assert found['failed'] is True
    assert re.match(r'Triton is wrong (at one place|on the whole) by (nan|[\d.e-]+) of ', found['why'])
    if fault.startswith('of'):  # which inference does not use
        assert trial_child._try(kind(dtype, training=False))['triton'] is True


def test_if_pytorch_is_as_wrong_there_is_no_verdict_for_triton():
    exact, wrong = torch.ones(4, 4, dtype=torch.float64), torch.full((4, 4), 2.0)
    assert trial_child._wrong(wrong, wrong, exact, 2**-7).startswith(
        'Triton is wrong at one place by 1 of 1,'
    )
    assert trial_child._wrong(exact.float(), exact.float(), exact, 2**-7) == ''


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (
            RuntimeError('out of registers\nmore'),
            dict(triton=False, why='Triton failed: out of registers', failed=True),
        ),
        (
            torch.OutOfMemoryError('CUDA out of memory'),
            dict(triton=False, why='too little memory to try Triton', failed=True, passing=True),
        ),
    ],
)
def test_an_exception_is_quoted(kernels, monkeypatch, error, expected):
    def fail(*_):
        raise error

    monkeypatch.setattr(triton_kernels, 'norm', fail)
    assert trial_child._try(kind()) == expected


def test_when_the_device_is_lost_the_child_ends_at_the_kind_that_lost_it(kernels, monkeypatch):
    def lost(*_):
        raise RuntimeError('an illegal memory access')

    monkeypatch.setattr(triton_kernels, 'norm', lost)
    monkeypatch.setattr(trial_child, '_wait', lost)
    with pytest.raises(RuntimeError, match='illegal'):
        trial_child._try(kind())


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('operator', ['block', 'depthwise', 'channel_norm'])
def test_pytorch_itself_is_right_in_every_comparison(kernels, monkeypatch, operator, training, autocast):
    """The layers that the references consist of are the operators: PyTorch in the place of Triton."""
    for kernel in ('supports', 'norm_supports'):
        monkeypatch.setattr(triton_kernels, kernel, lambda *_: False)
    monkeypatch.setattr(trial_child, 'triton_block', by_pytorch)
    asked = kind(torch.bfloat16, training, operator)._replace(autocast=autocast)
    assert trial_child._try(asked) == dict(triton=True, why='1x')


def by_pytorch(x, filters, weights):
    """The same as ``triton_block``."""
    low = torch.bfloat16
    (conv, conv_b), (norm, norm_b, eps, *rest, gain, scale) = filters, weights
    y = F.conv2d(x.to(low), conv.to(low), conv_b.to(low), padding=3, groups=x.shape[1])
    w1, b1, w2, b2 = (t.to(low) for t in rest)
    y = F.linear(F.layer_norm(y.permute(0, 2, 3, 1), (x.shape[1],), norm, norm_b, eps).to(low), w1, b1)
    y = F.linear(F.gelu(y), w2, b2)
    y = y if gain is None else y * gain
    return x + (y if scale is None else y * scale.view(-1, 1, 1, 1)).permute(0, 3, 1, 2)


def test_a_child_tries_a_kernel_in_the_interpreter(tmp_path, monkeypatch):
    """All of it, but for the GPU: a real child, a real kernel; which is right, and slow."""
    pytest.importorskip('triton')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setattr(trial, 'LONGEST_KIND', 100.0)
    asked = kind(torch.float32, training=False)._replace(channels=2)
    found = trial._try_in_children([asked], 100.0)
    assert list(found) == ['channel_norm 2 channels float32 inference small']
    (verdict,) = found.values()
    assert verdict['triton'] is False
    assert re.fullmatch(r'0\.\d+x', verdict['why'])
