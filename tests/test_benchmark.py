"""The benchmark: fair contestants and true limits. No time is asserted."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import tool
from torch import nn

from convnext_backbone.contest import backbones as contest
from convnext_backbone.contest import cell as cells
from convnext_backbone.contest import networks, parts, steps, timing
from convnext_backbone.errors import UserError

benchmark = tool('benchmark')
QUICK = ['--tasks', '1x64x32', '--rounds', '2', '--seconds', '0', '--device', 'cpu']


def cell(**changes):
    values = dict(
        size='tiny',
        task='classify',
        mode='inference',
        precision='float32',
        compiled=False,
        batch=1,
        device='cpu',
    )
    return contest.Cell(**{**values, **changes})


@pytest.mark.slow
def test_it_runs_all_contestants_and_writes_its_results(tmp_path, capsys):
    peers = [peer for peer in ('torchvision',) if importlib.util.find_spec(peer)]
    options = ['--precisions', 'float32', '--peers', *peers, '--out', str(tmp_path)]
    results = benchmark.main([*QUICK, *options])
    assert [r['mode'] for r in results] == ['inference', 'training']
    names = ['ours', *(f'{peer} {order}' for peer in peers for order in ('NCHW', 'NHWC'))]
    for result in results:
        assert list(result['milliseconds']) == names
        assert result['best_peer'] == min(names[1:], key=result['milliseconds'].get)
        assert all(ms > 0 for ms in result['milliseconds'].values())
    kept = results[1]['kept_mib']
    assert 0 < kept['ours'] < 0.7 * min(kept[name] for name in names[1:])
    assert json.loads((tmp_path / 'benchmark.json').read_text())['results'] == results
    table = (tmp_path / 'benchmark.md').read_text()
    assert all(r['cell'] in table for r in results)
    assert table.count('\n|') == 2 + len(results)
    assert (tmp_path / 'benchmark.png').stat().st_size > 5000
    assert 'computes the same' in capsys.readouterr().out


def test_what_the_times_of_a_cell_say():
    """By hand: medians 20 and 30 ms; ratios of the rounds 3, 1 and 1.5; 4 images in 20 ms."""
    times = dict(ours=[0.01, 0.03, 0.02], slow=[0.06, 0.06, 0.05], peer=[0.03, 0.03, 0.03])
    runs = [SimpleNamespace(name=name, kept=kept, peak=None) for name, kept in zip(times, (1, 2, 3))]
    found = timing.standing(cell(batch=4), runs, times)
    assert found['milliseconds'] == dict(ours=20, slow=60, peer=30)
    assert (found['ours'], found['best_peer'], found['batch']) == ('ours', 'peer', 4)
    assert found['ratio'] == pytest.approx(1.5) and found['ratio_range'] == pytest.approx([1, 3])
    assert found['images_per_second'] == pytest.approx(200)
    assert found['kept_mib'] == dict(ours=1, slow=2, peer=3) and found['peak_mib']['slow'] is None


def test_a_peer_that_computes_something_else_is_left_out(monkeypatch, capsys):
    def wrong(*arguments):
        model = networks.torchvision(*arguments)
        with torch.no_grad():
            model.features[0][0].bias[0] += 0.5
        return model

    monkeypatch.setattr(contest, 'PEERS', dict(timm=networks.timm, torchvision=wrong))
    found = contest.admitted(cell(task='1x64x64'), networks.random_weights('tiny'), list(contest.PEERS))
    assert list(found) == ['ours', 'timm']
    assert 'torchvision computes something else' in capsys.readouterr().out
    monkeypatch.setattr(contest, 'PEERS', dict(torchvision=wrong))
    with pytest.raises(UserError, match='no peer to compare with'):
        contest.admitted(cell(task='1x64x64'), networks.random_weights('tiny'), list(contest.PEERS))


def test_limits_are_those_of_the_paper_and_of_a_hand_calculation():
    """ConvNeXt-T: 4.456 G multiply-adds at 224 x 224; 27.8 M parameters without classifier."""
    assert contest.flops(cell()) == pytest.approx(2 * 4.456e9, rel=1e-3)
    step = cell(mode='training', batch=4, compiled=True)
    assert contest.flops(step) == pytest.approx(24 * 4.456e9, rel=1e-3)
    eager = cell(mode='training', batch=4)  # stochastic depth from 0 to 0.1: 5 % of the work is left out
    assert contest.flops(eager) == pytest.approx(0.95 * 24 * 4.456e9, rel=1e-3)
    on_a_gpu = cell(mode='training', batch=4, device='cuda')  # where dropped samples are computed
    assert contest.flops(on_a_gpu) == pytest.approx(24 * 4.456e9, rel=1e-3)
    maps = 3 * 96 * 56**2 + 3 * 192 * 28**2 + 9 * 384 * 14**2 + 3 * 768 * 7**2
    parameters = sum(p.numel() for p in contest.backbone_parameters('tiny'))
    assert parameters == pytest.approx(27.82e6, rel=1e-3)
    assert contest.least_bytes(cell()) == 4 * (2 * maps + parameters)
    low = cell(precision='bfloat16', batch=3)
    assert contest.least_bytes(low) == 2 * (2 * 3 * maps + parameters)
    step = cell(mode='training', precision='autocast', compiled=True)
    assert contest.least_bytes(step) == 2 * 5 * maps + parameters * (2 * 2 + 8 * 4)


def test_graphs_of_a_gpu_are_refused_on_a_cpu_and_named_in_the_table():
    with pytest.raises(UserError, match='--ways captured needs a GPU: cpu has no CUDA graphs'):
        benchmark.main([*QUICK, '--ways', 'eager', 'compiled-captured'])
    args = benchmark.parse_args(
        ['--ways', *benchmark.WAYS, '--precisions', 'bfloat16', '--modes', 'training']
    )
    names = [str(found).split('bfloat16 ')[1] for found in benchmark.cells_of(args, 'cuda')]
    assert names == ['eager', 'compiled', 'eager captured', 'compiled captured']


def test_a_task_that_is_no_size_is_refused():
    with pytest.raises(
        UserError, match="expected classify, mask_rcnn, upernet or IMAGESxHEIGHTxWIDTH, got 'large'"
    ):
        benchmark.main([*QUICK, '--tasks', 'large'])


# Whole steps of detectors and segmenters

OF_TRAINING = {
    *('pre-processing', 'backbone', 'neck', 'RPN', 'proposals', 'RoI operators', 'heads'),
    *('targets and losses', 'optimizer', 'rest'),
}


@pytest.fixture
def small(monkeypatch):
    for task in steps.CONFIGS:
        monkeypatch.setitem(cells.IMAGES, task, (96, 128))
    monkeypatch.setattr(steps, 'CHECKED', (96, 128))


def whole(task, mode='training'):
    return cell(task=task, mode=mode, batch=2)


@pytest.mark.slow
def test_whole_steps_are_timed_and_their_parts_shown(small, tmp_path, capsys):
    line = ['--tasks', 'mask_rcnn', '--precisions', 'autocast', '--peers', 'torchvision', '--rounds', '1']
    results = benchmark.main([*line, '--device', 'cpu', '--out', str(tmp_path)])
    names = ['ours', 'torchvision', steps.OTHER]
    assert [r['mode'] for r in results] == ['inference', 'training']
    for result in results:
        assert list(result['milliseconds']) == names
        found = result['parts']
        assert list(found) == ['ours', result['best_peer']]
        for each in found.values():
            expected = OF_TRAINING
            if result['mode'] == 'inference':
                expected = expected - {'optimizer', 'targets and losses'} | {'results'}
            assert set(each) == expected
            backward = {name for name, (_, ms) in each.items() if ms}
            learned = {'backbone', 'neck', 'RPN', 'RoI operators', 'heads'}
            assert backward >= learned if result['mode'] == 'training' else not backward
    kept = results[1]['kept_mib']
    assert 0 < kept['ours'] < kept['torchvision']  # most of it is the heads' at this size
    text = (tmp_path / 'benchmark.md').read_text()
    assert all(text.count(r['cell']) == 2 for r in results)  # in the table, and above its parts
    assert '| RoI operators |' in text
    assert 'torchvision has the same losses' in capsys.readouterr().out


def test_models_with_other_maps_losses_or_errors_are_left_out(small, monkeypatch, capsys):
    def wrong(*arguments):
        model = networks.timm(*arguments)
        with torch.no_grad():
            model.stem_0.bias[0] += 0.5
        return model

    def broken(*arguments):
        raise RuntimeError('it does not fit')

    peers = dict(timm=wrong, torchvision=networks.torchvision, transformers=broken)
    monkeypatch.setattr(steps, 'PEERS', peers)
    found = steps.entrants(whole('upernet'), networks.random_weights('tiny'), list(peers))
    assert [entrant.name for entrant in found] == ['ours', 'torchvision']
    lines = capsys.readouterr().out
    assert 'timm is left out: ValueError: its maps differ by ' in lines
    assert 'transformers is left out: RuntimeError: it does not fit' in lines

    found[1].losses = lambda batch: {'loss': torch.tensor(1.0)}
    with pytest.raises(ValueError, match='loss is 1, ours 1.01'):
        steps.same_losses(found[1], None, {'loss': torch.tensor(1.01)})


class Fails:
    name = 'fails'
    optimizer = torch.optim.SGD([torch.zeros(1)])

    def prepare(self, cell):
        raise torch.OutOfMemoryError('no memory')


class Ready(Fails):
    kept = peak = None

    def __init__(self, name):
        self.name = name

    def prepare(self, cell): ...

    def measure_memory(self): ...

    def __call__(self): ...

    def parts(self):
        return {}


def test_one_that_fails_is_left_out_of_its_cell(capsys):
    step = whole('mask_rcnn')
    result = steps.contest(step, [Ready('ours'), Fails(), Ready('timm')], 1, 0)
    assert list(result['milliseconds']) == ['ours', 'timm']
    assert f'{step}: fails is left out: OutOfMemoryError: no memory' in capsys.readouterr().out
    assert steps.contest(step, [Ready('ours'), Fails()], 1, 0) is None
    assert 'nothing to compare' in capsys.readouterr().out


def test_time_is_counted_for_the_part_that_spends_it(monkeypatch):
    """A clock that goes on by what each layer says it takes: 2 s forward and 3 s backward, and so on."""
    now = [0.0]
    monkeypatch.setattr(parts.time, 'perf_counter', lambda: now[0])

    class Spend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, forward, backward):
            ctx.backward_time = backward
            now[0] += forward
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            now[0] += ctx.backward_time
            return grad, None, None

    class Layer(nn.Module):
        def __init__(self, forward, backward):
            super().__init__()
            self.times = forward, backward

        def forward(self, x):
            return Spend.apply(x, *self.times)

    model = nn.Module()
    model.backbone, model.neck, model.rpn_head = Layer(2, 3), Layer(5, 7), nn.Module()
    model.rpn_head.forward = None  # has none that is a class's: stays
    inner = Layer(11, 13)
    model.decode_head = Layer(0, 0)
    model.decode_head.loss_by_feat = None
    model.weight = nn.Parameter(torch.ones(3))

    def step(watch):
        maps = model.backbone(model.weight)
        now[0] += 17
        with_rest = Spend.apply(model.neck(maps), 19, 23)
        watch.run_backward((inner(with_rest) + maps).sum())
        watch.during('optimizer', lambda: now.__setitem__(0, now[0] + 29))

    found = parts.parts_of(model, 'cpu', step)
    assert found == {
        'backbone': [2000, 3000],
        'neck': [5000, 7000],
        'optimizer': [29000, 0],
        'rest': [17000 + 19000 + 11000, 23000 + 13000],
    }
    assert 'forward' not in vars(model.backbone)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--precisions', 'bfloat16'], 'in float32 and autocast'),
        (['--sizes', 'base'], 'is timed with --sizes tiny, got base'),
        (['--ways', 'compiled'], 'is timed with --ways eager'),
    ],
)
def test_whole_models_that_are_not_timed_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        benchmark.main(['--tasks', 'upernet', '--device', 'cpu', *options])
