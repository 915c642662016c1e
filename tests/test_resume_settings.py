"""Resuming with other settings: what differs is listed with what holds; a new learning rate on request."""

import math
import re
from pathlib import Path

import pytest
import torch
from conftest import log_of, tool
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from test_resume import arguments, write_config
from yapf.yapflib import yapf_api

from convnext_backbone.engine.resume_settings import _scale, differences, read_settings
from convnext_backbone.errors import UserError

RATIOS = (1.0, 0.7, 0.49)  # of layer-wise decay


def optimizer(lr: float) -> OptimWrapper:
    groups = [dict(params=[torch.nn.Parameter(torch.ones(1))], lr=lr * ratio) for ratio in RATIOS]
    return OptimWrapper(torch.optim.AdamW(groups, lr=lr))


def schedulers(wrapper, configs: list[dict]) -> list:
    return [PARAM_SCHEDULERS.build({'optimizer': wrapper, **each}) for each in configs]


def steps(wrapper, parts: list, count: int) -> list[list[float]]:
    """Learning rates used in so many steps: of each group, then the base rate."""
    used = []
    for _ in range(count):
        used.append([group['lr'] for group in wrapper.param_groups])
        for group in wrapper.optimizer.param_groups:
            group['params'][0].grad = torch.ones(1)
        wrapper.step()
        for part in parts:
            part.step()
    return used


def warm(step: int) -> float:
    return 0.1 + 0.9 * min(step, 4) / 4


def warm_then_cosine(step: int) -> float:
    """From 1 to 1/50 within 10 steps, by hand."""
    return warm(step) if step < 5 else 0.02 + 0.98 * (1 + math.cos(math.pi * (step - 5) / 10)) / 2


def warm_then_poly(step: int) -> float:
    return warm(step) if step < 5 else (1 - (step - 5) / 9) ** 0.9


WARMUP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)
SCHEDULES = {  # config, and its factor at a step by hand
    'constant': ([], lambda step: 1.0),
    'steps': (
        [WARMUP, dict(type='MultiStepLR', milestones=[8, 11], by_epoch=False)],
        lambda step: warm(step) * 0.1 ** ((step >= 8) + (step >= 11)),
    ),
    'cosine to a ratio': (
        [WARMUP, dict(type='CosineAnnealingLR', begin=5, end=15, eta_min_ratio=0.02, by_epoch=False)],
        warm_then_cosine,
    ),
    'poly': (
        [WARMUP, dict(type='PolyLR', power=0.9, eta_min=0.0, begin=5, end=15, by_epoch=False)],
        warm_then_poly,
    ),
}


@pytest.mark.parametrize('when', [2, 5, 9, 13])
@pytest.mark.parametrize('kind', SCHEDULES)
def test_a_new_rate_goes_on_as_the_schedule_by_hand(kind, when):
    """Stopped within the warm-up, at its end, and in what follows; every group keeps its ratio."""
    configs, factor = SCHEDULES[kind]
    wrapper = optimizer(1e-3)
    parts = schedulers(wrapper, configs)
    used = steps(wrapper, parts, when)
    saved = wrapper.state_dict(), [part.state_dict() for part in parts]
    again = optimizer(4e-4)
    parts = schedulers(again, configs)
    again.load_state_dict(saved[0])
    for part, state in zip(parts, saved[1]):
        part.load_state_dict(state)
    _scale(again, parts, 4e-4 / 1e-3)
    used += steps(again, parts, 14 - when)
    for step, rates in enumerate(used):
        base = 1e-3 if step < when else 4e-4
        expected = [base * ratio * factor(step) for ratio in (*RATIOS, 1.0)]
        assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15), step


@pytest.mark.parametrize(
    'config',
    [
        dict(type='CosineAnnealingLR', T_max=14, eta_min=1e-4, by_epoch=False),
        dict(type='PolyLR', eta_min=1e-4, end=14, by_epoch=False),
        dict(type='OneCycleLR', eta_max=[1e-3, 7e-4, 4.9e-4, 1e-3], total_steps=15, by_epoch=False),
        dict(type='CosineRestartLR', periods=[4, 10], restart_weights=[1, 0.5], eta_min=1e-4, by_epoch=False),
        dict(type='ExponentialLR', gamma=0.8, by_epoch=False),
        dict(type='StepLR', step_size=3, by_epoch=False),
    ],
)
def test_the_rest_of_any_schedule_is_that_of_the_old_one_in_proportion(config):
    """The lowest rate of a schedule is in proportion too."""
    runs = []
    for factor in (1.0, 0.25):
        wrapper = optimizer(1e-3)
        parts = schedulers(wrapper, [config])
        steps(wrapper, parts, 6)
        _scale(wrapper, parts, factor)
        runs.append(torch.tensor(steps(wrapper, parts, 8), dtype=torch.float64))
    torch.testing.assert_close(runs[1], runs[0] * 0.25, rtol=1e-9, atol=0)
    assert runs[0].std(0).min() > 0


def test_a_momentum_schedule_stays_as_it_is():
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1, momentum=0.9))
    parts = schedulers(wrapper, [dict(type='LinearMomentum', start_factor=0.5, end=8, by_epoch=False)])
    before = parts[0].state_dict()
    _scale(wrapper, parts, 0.5)
    assert parts[0].state_dict() == before
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.05
    assert wrapper.optimizer.param_groups[0]['momentum'] == 0.45


TEXT = dict(
    numbers=dict(a=1, b=-2.5, c=float('inf'), d=1e-9, e=True, f=None, g=-float('inf')),
    words='it\'s "quoted" \\ and\nlong',
    nested=[dict(type='A', scale=(1333, 800)), dict(type='B', parts=[[1, 2], (3,)]), []],
    odd={'a.b': dict(lr_mult=0.1), 'with space': 3, 'c': {'1': 2}},
    empty=dict(a=dict(), b=(), c=''),
    kind=torch.nn.Linear,
)


def test_the_text_of_mmengine_is_read_as_mmengine_reads_it():
    cfg = Config(dict(TEXT))
    found = read_settings(cfg.pretty_text)
    assert found.pop('kind') == 'torch.nn.modules.linear.Linear'
    expected = {key: value for key, value in TEXT.items() if key != 'kind'}
    assert differences(found, read_settings(repr_of(expected))) == []
    assert found['numbers'] == expected['numbers']
    assert found['words'] == expected['words']
    assert found['nested'][0]['scale'] == [1333, 800]
    assert found['odd']['a.b'] == {'lr_mult': 0.1}


def repr_of(settings: dict) -> str:
    return '\n'.join(f'{key} = {value!r}' for key, value in settings.items())


@pytest.mark.parametrize(
    'text',
    [
        'a = __import__("os").system("touch {ran}")',
        'a = [dict(b=open("{ran}", "w"))]',
        'a = (lambda: open("{ran}", "w"))()',
        "a = f\"{{open('{ran}', 'w')}}\"",
        'import os; os.system("touch {ran}")',
        'a = dict(**open("{ran}", "w"))',
        'class A:\n    x = open("{ran}", "w")',
        'a = [open("{ran}", "w") for _ in range(3)]',
        'a = ' + '[' * 5000,
        'a = \x00',
        '(((',
    ],
)
def test_code_in_a_checkpoints_config_is_not_run(text, tmp_path):
    ran = tmp_path / 'ran'
    read_settings(text.replace('{ran}', str(ran)).replace('{{', '{').replace('}}', '}'))
    assert not ran.exists()


def test_differences_are_named_by_their_place():
    before = dict(
        a=1, b=dict(c=[dict(type='X', p=1), dict(type='Y')]), gone=2, same=0.1 + 0.2, kind=dict(type='m.A')
    )
    now = dict(a=True, b=dict(c=[dict(type='X', p=2), dict(type='Y')]), new=3, same=0.3, kind=dict(type='A'))
    found = {name: (before, now) for name, before, now in differences(before, now)}
    assert set(found) == {'a', 'b.c.0.p', 'gone', 'new'}
    assert found['b.c.0.p'] == (1, 2)
    one, more = [dict(type='X')], [dict(type='X'), dict(type='Z')]
    assert differences(one, more, 'pipeline') == [('pipeline', ['X'], ['X', 'Z'])]


# Whole trainings


@pytest.fixture(scope='module')
def begun(shapes, tmp_path_factory) -> Path:
    """A training stopped after 4 steps of its warm-up."""
    folder = tmp_path_factory.mktemp('begun')
    tool('train').main(arguments(write_config(folder), shapes, folder / 'w', '--stop-at', 4))
    return folder


def go_on(begun: Path, shapes: Path, work_dir: Path, *options, changes=(), stop=6) -> str:
    """Resume from step 4 in a folder of its own; the log."""
    given = arguments(next(map(str, begun.glob('*.py'))), shapes, work_dir, '--stop-at', stop)
    # mmengine gives two trainings of one name within a second the same log
    changes = [*changes, f'experiment_name={work_dir.parent.name}_{work_dir.name}']
    given += ['--resume', str(begun / 'w/iter_4.pth'), *options, '--cfg-options', *changes]
    tool('train').main(given)
    return log_of(work_dir)


def rows(log: str) -> dict[str, str]:
    found = re.findall(r'^  ([a-z_.0-9]+): (.* holds .*)$', log, re.M)
    return dict(found)


def rates(log: str) -> dict[int, float]:
    found = re.findall(r'Iter\(train\) +\[ *(\d+)/\d+\] +base_lr: (\S+)', log)
    return {int(step): float(rate) for step, rate in found}


@pytest.mark.xdist_group('resume_settings')
def test_settings_that_differ_are_listed_with_what_holds_and_it_does(begun, shapes, tmp_path):
    base = tool_config(begun).optim_wrapper.optimizer.lr
    changes = [f'optim_wrapper.optimizer.lr={base / 2}', 'optim_wrapper.optimizer.weight_decay=0.5']
    changes += [
        'train_dataloader.batch_size=2',
        'param_scheduler.1.end=1500',
        'default_hooks.logger.interval=1',
    ]
    log = go_on(begun, shapes, tmp_path / 'a', changes=changes)
    assert rows(log) == {
        'optim_wrapper.optimizer.lr': f'{base} holds (checkpoint), not {base / 2} (config); '
        "--new-lr takes the config's",
        'optim_wrapper.optimizer.weight_decay': '0.05 holds (checkpoint), not 0.5 (config)',
        'param_scheduler.1.end': '1400 holds (checkpoint), not 1500 (config)',
        'train_dataloader.batch_size': '2 holds (config), not 4 (checkpoint)',
    }
    assert f'learning rate {base / 2:g}' not in log
    assert f'learning rate {base:g} (checkpoint), at this step' in log
    for step, rate in rates(log).items():
        assert rate == pytest.approx(base * expected_warmup(begun, step - 1), rel=1e-3)  # five digits
    content = torch.load(sorted((tmp_path / 'a').glob('iter_*.pth'))[-1], weights_only=False)
    assert all(group['weight_decay'] in (0.0, 0.05) for group in content['optimizer']['param_groups'])
    kept = read_settings(content['meta']['cfg'])  # what held is what the next checkpoint says
    assert kept['optim_wrapper']['optimizer']['lr'] == base
    assert kept['param_scheduler'][1]['end'] == 1400
    assert kept['train_dataloader']['batch_size'] == 2


def tool_config(begun: Path) -> Config:
    return Config.fromfile(next(begun.glob('*.py')))


def expected_warmup(begun: Path, step: int) -> float:
    """The factor of the linear warm-up by hand."""
    warmup = tool_config(begun).param_scheduler[0]
    assert warmup['type'] == 'LinearLR'
    start = warmup['start_factor']
    return start + (1 - start) * step / (warmup['end'] - 1)


@pytest.mark.xdist_group('resume_settings')
def test_a_new_learning_rate_takes_the_place_and_stays(begun, shapes, tmp_path):
    base = tool_config(begun).optim_wrapper.optimizer.lr
    change = f'optim_wrapper.optimizer.lr={base * 3}'
    log = go_on(begun, shapes, tmp_path / 'a', '--new-lr', changes=[change])
    assert list(rows(log)) == ['optim_wrapper.optimizer.lr']
    assert 'holds (config), not' in log
    assert f'learning rate {base * 3:g} (config, --new-lr) in place of {base:g} (checkpoint)' in log
    found = rates(log)
    assert set(found) == {5, 6}
    for step, rate in found.items():
        assert rate == pytest.approx(3 * base * expected_warmup(begun, step - 1), rel=1e-3)
    file = tmp_path / 'a/iter_6.pth'
    later = go_on(begun, shapes, tmp_path / 'b', '--resume', str(file), changes=[change], stop=8)
    assert 'the settings are those of the checkpoint' in later
    assert rates(later)[8] == pytest.approx(3 * base * expected_warmup(begun, 7), rel=1e-3)


@pytest.mark.xdist_group('resume_settings')
def test_the_config_is_formatted_once_and_again_where_a_resume_changes_it(
    begun, shapes, tmp_path, monkeypatch
):
    """yapf takes a second for a detector's config; mmengine asks for the text at every checkpoint."""
    texts, original = [], yapf_api.FormatCode

    def counted(text: str, **options):
        texts.append(text)
        return original(text, **options)

    monkeypatch.setattr(yapf_api, 'FormatCode', counted)
    changes = ['default_hooks.checkpoint.interval=1']
    go_on(begun, shapes, tmp_path / 'a', changes=changes, stop=8)
    assert len(list((tmp_path / 'a').glob('*.pth'))) == 3
    assert len(texts) == 1
    go_on(begun, shapes, tmp_path / 'b', changes=[*changes, 'optim_wrapper.optimizer.lr=0.5'], stop=8)
    assert len(texts) == 3
    assert ['lr=0.5' in text for text in texts] == [False, True, False]
    kept = torch.load(tmp_path / 'b/iter_8.pth', weights_only=False)['meta']['cfg']
    assert read_settings(kept)['optim_wrapper']['optimizer']['lr'] != 0.5


@pytest.mark.xdist_group('resume_settings')
def test_nothing_is_listed_where_nothing_differs(begun, shapes, tmp_path):
    log = go_on(begun, shapes, tmp_path / 'a', changes=['default_hooks.logger.interval=2'])
    assert rows(log) == {}
    assert 'the settings are those of the checkpoint' in log


@pytest.mark.xdist_group('resume_settings')
@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            [
                'optim_wrapper.optimizer._delete_=True',
                'optim_wrapper.optimizer.type=SGD',
                'optim_wrapper.optimizer.lr=0.1',
                'optim_wrapper.optimizer.weight_decay=0.05',
            ],
            'the checkpoint has the state of AdamW, the config asks for SGD',
        ),
        (
            ['param_scheduler.1.type=PolyLR'],
            'in the checkpoint are LinearLR, CosineAnnealingLR, those of the config LinearLR, PolyLR',
        ),
        (['optim_wrapper.constructor=DefaultOptimWrapperConstructor'], None),
        (['model.backbone.frozen_stages=1'], 'model.backbone.frozen_stages differ from it'),
    ],
)
def test_a_state_that_cannot_be_taken_up_ends_in_one_line(changes, words, begun, shapes, tmp_path):
    with pytest.raises(UserError) as error:
        go_on(begun, shapes, tmp_path / 'a', changes=changes)
    assert '\n' not in str(error.value)
    assert words is None or words in str(error.value)


TWO_OPTIMIZERS = """
custom_imports = dict(imports=['two_optimizers'])
model = dict(type='TwoOptimizers')
param_scheduler = dict(
    _delete_=True,
    body=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)],
    head=[dict(type='MultiStepLR', milestones=[5], by_epoch=False)],
)
optim_wrapper = dict(
    _delete_=True,
    constructor='TwoOptimizersConstructor',
    body=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
    head=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
)
"""
TWO_OPTIMIZERS_CODE = """
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

from convnext_backbone.classification import Classifier


@MODELS.register_module()
class TwoOptimizers(Classifier):
    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        loss, log = self.parse_losses(self(**data, mode='loss'))
        optim_wrapper.zero_grad()
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return log


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimizersConstructor:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.given = optim_wrapper_cfg

    def __call__(self, model):
        parts = dict(body=model.backbone, head=model.head)
        wrappers = {
            name: OptimWrapper(
                OPTIMIZERS.build(dict(self.given[name]['optimizer'], params=list(part.parameters())))
            )
            for name, part in parts.items()
            if self.given[name]
        }
        return OptimWrapperDict(**wrappers)
"""


@pytest.mark.slow
@pytest.mark.xdist_group('resume_settings')
def test_of_several_optimizers_each_takes_its_new_rate(shapes, tmp_path, monkeypatch):
    """Full rates and factors of the schedules by hand: the rate at a step is their product."""
    (tmp_path / 'two_optimizers.py').write_text(TWO_OPTIMIZERS_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / 'begun'
    folder.mkdir()
    tool('train').main(arguments(write_config(folder, TWO_OPTIMIZERS), shapes, folder / 'w', '--stop-at', 4))

    def used(name: str, log: str) -> dict[int, float]:
        found = re.findall(rf'Iter\(train\) +\[ *(\d+)/\d+\].* {name}\.lr: (\S+)', log)
        return {int(step): float(rate) for step, rate in found}

    changes = ['optim_wrapper.body.optimizer.lr=0.002', 'optim_wrapper.head.optimizer.lr=0.05']
    changes += ['optim_wrapper.head.optimizer.momentum=0.5']
    for option, body, head in (((), 1e-3, 0.1), (('--new-lr',), 2e-3, 0.05)):
        log = go_on(folder, shapes, tmp_path / f'on{len(option)}', *option, changes=changes, stop=8)
        assert used('body', log) == pytest.approx(
            {step: body * (0.1 + 0.9 * (step - 1) / 9) for step in range(5, 9)}, rel=1e-3
        )
        assert used('head', log) == pytest.approx(
            {step: head * 0.1 ** (step > 5) for step in range(5, 9)}, rel=1e-3
        )
        listed = rows(log)
        assert ('holds (config), not' if option else 'takes the config') in listed[
            'optim_wrapper.body.optimizer.lr'
        ]
        assert listed['optim_wrapper.head.optimizer.momentum'] == ('0.9 holds (checkpoint), not 0.5 (config)')
        content = torch.load(
            sorted((tmp_path / f'on{len(option)}').glob('iter_*.pth'))[-1], weights_only=False
        )
        kept = read_settings(content['meta']['cfg'])['optim_wrapper']
        assert [kept[name]['optimizer']['lr'] for name in ('body', 'head')] == [body, head]
        assert kept['head']['optimizer']['momentum'] == 0.9
    for change, words in (
        ('optim_wrapper.head=None', 'has the state of body, head, the config asks for body'),
        (
            'param_scheduler.head.0.type=MultiStepMomentum',
            'schedules of head in the checkpoint are MultiStepLR',
        ),
    ):
        with pytest.raises(UserError, match=words):
            go_on(folder, shapes, tmp_path / 'refused', '--new-lr', changes=[change])


@pytest.mark.xdist_group('resume_settings')
def test_a_new_rate_without_a_resume_is_refused(shapes, tmp_path):
    with pytest.raises(UserError, match='--new-lr is for --resume'):
        tool('train').main(arguments(write_config(tmp_path), shapes, tmp_path / 'w', '--new-lr'))
