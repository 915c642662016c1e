"""The benchmark: fair contestants and true limits. No time is asserted."""

import importlib.util
import json

import pytest
import torch
from conftest import tool

from convnext_backbone.contest import backbones as contest
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


@pytest.mark.long
def test_it_runs_all_contestants_and_writes_its_results(tmp_path, capsys):
    results = benchmark.main([*QUICK, '--precisions', 'float32', '--out', str(tmp_path)])
    assert [r['mode'] for r in results] == ['inference', 'training']
    peers = [peer for peer in contest.PEERS if importlib.util.find_spec(peer)]
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


def test_a_peer_that_computes_something_else_is_left_out(monkeypatch, capsys):
    def wrong(*arguments):
        model = contest.torchvision(*arguments)
        with torch.no_grad():
            model.features[0][0].bias[0] += 0.5
        return model

    monkeypatch.setattr(contest, 'PEERS', dict(timm=contest.timm, torchvision=wrong))
    found = contest.admitted(cell(task='1x64x64'), contest.random_weights('tiny'), list(contest.PEERS))
    assert list(found) == ['ours', 'timm']
    assert 'torchvision computes something else' in capsys.readouterr().out
    monkeypatch.setattr(contest, 'PEERS', dict(torchvision=wrong))
    with pytest.raises(UserError, match='no peer to compare with'):
        contest.admitted(cell(task='1x64x64'), contest.random_weights('tiny'), list(contest.PEERS))


def test_limits_are_those_of_the_paper_and_of_a_hand_calculation():
    """ConvNeXt-T: 4.456 G multiply-adds at 224 x 224; 27.8 M parameters without classifier."""
    assert contest.flops(cell()) == pytest.approx(2 * 4.456e9, rel=1e-3)
    step = cell(mode='training', batch=4, compiled=True)
    assert contest.flops(step) == pytest.approx(24 * 4.456e9, rel=1e-3)
    eager = cell(mode='training', batch=4)  # stochastic depth from 0 to 0.1: 5 % of the work is left out
    assert contest.flops(eager) == pytest.approx(0.95 * 24 * 4.456e9, rel=1e-3)
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
    with pytest.raises(UserError, match="expected classify or IMAGESxHEIGHTxWIDTH, got 'large'"):
        benchmark.main([*QUICK, '--tasks', 'large'])
