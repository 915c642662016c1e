"""The check of a GPU, without one: its comparisons find what is wrong, its processes may crash or hang."""

import json
import time

import pytest
import torch
from conftest import command

from convnext_backbone import gpu
from convnext_backbone.gpu import operators, resume, steps
from convnext_backbone.gpu.page import page
from convnext_backbone.gpu.rows import Row, close, wrong
from convnext_backbone.ops import block as block_ops

STAND_IN = """
import json, os, sys, time
name, device, seconds, file = sys.argv[2:]
row = dict(what='a sum', right=name != 'graphs', found='1e-7 <b>', numbers=dict(a=1))
with open(file, 'a', buffering=1) as out:
    print(json.dumps(row), file=out)
if name == 'steps':
    print('Traceback\\nValueError: a number\\nlast words', file=sys.stderr, flush=True)
    os.abort()
if name == 'resume':
    time.sleep(1000)
"""


def test_a_difference_is_relative_to_the_largest_number_and_nan_is_wrong():
    exact = torch.tensor([0.0, -4.0], dtype=torch.double)
    assert close('x', torch.tensor([0.03, -4.0]), exact, 0.01).right
    assert not close('x', torch.tensor([0.05, -4.0]), exact, 0.01).right
    assert not close('x', torch.tensor([0.0, torch.nan]), exact, 0.01).right
    assert 'shape (1,) in place of (2,)' in close('x', torch.zeros(1), exact, 1.0).found


def test_operators_that_differ_between_devices_are_found(monkeypatch):
    """The devices are the same here; so nothing differs, until one side is changed."""
    torch.manual_seed(0)
    assert not wrong(operators.suppression('cpu'))
    calls = []

    def uneven(x, weight):  # another result at each second call, as of another device
        calls.append(1)
        return (x * weight).cumsum(-1) * (1 if len(calls) % 2 else 1.001)

    rows = list(operators._compare('uneven', uneven, [torch.randn(3, 5), torch.randn(5)], 'cpu'))
    assert [row.right for row in rows] == [False, False, False]
    import mmcv.ops

    nms, kept = mmcv.ops.nms, []

    def one_less(boxes, scores, threshold):
        kept.append(nms(boxes, scores, threshold))
        dets, index = kept[-1]
        return (dets, index) if len(kept) % 2 else (dets[:-1], index[:-1])

    monkeypatch.setattr(mmcv.ops, 'nms', one_less)
    assert len(wrong(operators.suppression('cpu'))) == 2


@pytest.mark.long
def test_a_step_that_differs_from_the_cpus_is_found(monkeypatch):
    """One block of many computes something else, on the second of both sides only."""
    monkeypatch.setattr(steps, 'MODELS', dict(classifier='convnext_v2_atto_in1k'))
    monkeypatch.setattr(steps, 'make_model', lambda name, real=steps.make_model: real(name, arch='v2_atto'))
    assert not wrong(steps.check('cpu'))
    plain, calls = block_ops.fused_block, []

    def uneven(block, x, triton):
        calls.append(1)
        return plain(block, x, triton) * (
            1.1 if len(calls) == 12 + 5 else 1
        )  # of 12 blocks, in the second pass

    monkeypatch.setattr(block_ops, 'fused_block', uneven)
    assert any('gradient of the backbone' in line for line in wrong(steps.check('cpu')))


def test_checkpoints_are_compared_number_by_number():
    a = dict(state=dict(w=torch.ones(2)), steps=[1, 2])
    assert resume.differences(a, dict(state=dict(w=torch.ones(2)), steps=[1, 2])) == []
    assert resume.differences(a, dict(state=dict(w=torch.ones(2).double()), steps=[1, 3])) == [
        '.state.w',
        '.steps.1',
    ]


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(gpu, 'SCRIPT', STAND_IN)


def test_a_part_that_crashes_or_hangs_is_told_and_the_others_go_on(stand_in, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, 'resume', gpu.Part('hangs', 6))
    said, begin = [], time.monotonic()
    found = gpu.run_parts(['speed', 'steps', 'resume', 'operators', 'graphs'], 60, 'cpu', said.append)
    assert time.monotonic() - begin < 40
    assert list(found) == ['resume', 'steps', 'graphs', 'operators', 'speed']
    assert found['steps'].failure == 'ended with status -6, ValueError: a number'
    assert found['resume'].failure == 'ended after 6 s, which were all it had'
    assert [name for name, outcome in found.items() if outcome.right] == ['operators', 'speed']
    assert found['steps'].rows == [Row('a sum', True, '1e-7 <b>', dict(a=1))]
    assert any('graphs: 0 right, 1 wrong' in line and 'wrong: a sum: 1e-7' in line for line in said)


def test_without_time_nothing_is_run(stand_in):
    found = gpu.run_parts(['operators'], 1, 'cpu', lambda line: None)
    assert found['operators'].failure == 'not run: the time was up'
    assert not found['operators'].right


def test_the_page_names_what_is_wrong_first_and_needs_nothing_else(stand_in):
    found = gpu.run_parts(['graphs', 'operators'], 60, 'cpu', lambda line: None)
    text = page('a GPU <i>, torch 2', found)
    assert '<title>1 things are wrong</title>' not in text
    assert '<h1>1 thing is wrong</h1>' in text
    assert '1e-7 &lt;b&gt;' in text
    assert '<b>' not in text
    assert 'a GPU &lt;i&gt;' in text
    assert 'http' not in text
    assert text.index('What is wrong') < text.index('<details')
    good = page('a GPU', {'operators': found['operators']})
    assert '<h1>Everything is right</h1>' in good


def test_without_a_gpu_the_command_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    result = command('tools/gpu_check.py', '--out', str(tmp_path / 'out'))
    assert result.returncode == 1
    assert 'gpu-check needs a GPU that torch sees' in result.stdout
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_training_is_resumed_bit_by_bit_on_a_cpu():
    outcome = gpu.run_child('resume', 'cpu', 400)
    assert outcome.right, (outcome.failure, wrong(outcome.rows))
    assert json.dumps(outcome.rows[-1].found)
