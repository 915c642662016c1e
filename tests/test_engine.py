"""Checks on configs, and what the tools do to a config."""

import contextlib
import json
from pathlib import Path
from unittest.mock import Mock

import mmcv
import mmdet
import mmengine
import pytest
import torch
from conftest import ROOT, log_of, tool
from mmdet.datasets import CocoPanopticDataset
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm

from convnext_backbone import checks
from convnext_backbone.checkpoint import Pretrained
from convnext_backbone.classification import Classifier
from convnext_backbone.config import (
    PRETRAINED,
    apply_options,
    check_classes,
    check_keys,
    choose_device,
    choose_precision,
    choose_views,
    divide_model,
    drop_pretrained,
    for_testing,
    read_config,
    set_batch,
    set_data_root,
    set_pretrained,
    skip_corrupt_images,
    start_from,
    use_plain_batch_norm,
    use_stand_ins,
)
from convnext_backbone.engine import Runner
from convnext_backbone.errors import UserError
from convnext_backbone.findings import Findings
from convnext_backbone.inference import trained_model
from convnext_backbone.registry import type_name


def write(folder, **files) -> str:
    """Config files by name; returns the path of ``main``."""
    for name, text in files.items():
        (folder / f'{name}.py').write_text(text)
    return str(folder / 'main.py')


BASE = "pipeline = [dict(type='A')]\nmodel = dict(type='M')\ntrain_dataloader = dict(pipeline=pipeline)\n"


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("_base_ = './base.py'\noptim_wraper = dict(type='X')\n", "did you mean 'optim_wrapper'?"),
        ("_base_ = './base.py'\nnumber = 3\n", "sets 'number', and nothing reads it"),
        ("_base_ = './base.py'\npipeline = [dict(type='B')]\n", 'what a base file made of it stays'),
        ("_base_ = './base.py'\nresum = True\n", "did you mean 'resume'?"),
        ("_base_ = './base.py'\ntest_dataloder = _base_.train_dataloader\n", "'test_dataloader'?"),
        ("_base_ = './base.py'\nfp16 = True\nfind_unused_parameters = True\n", "sets 'fp16'"),
        (
            "_base_ = './base.py'\nmodel = dict(test_cfg=dict(score_thr=0.1, score_thrr=0.2))\n",
            "nothing reads model.test_cfg.score_thrr; did you mean 'score_thr'?",
        ),
        (
            "_base_ = './base.py'\ndefault_hooks = dict(c=dict(type='CheckpointHook', max_keep_ckpt=3))\n",
            "CheckpointHook does not know max_keep_ckpt; did you mean 'max_keep_ckpts'?",
        ),
    ],
)
def test_a_key_that_nothing_reads_is_an_error(tmp_path, text, words):
    cfg = Config.fromfile(write(tmp_path, base=BASE, main=text))
    with pytest.raises(UserError) as error:
        check_keys(cfg)
    assert words in str(error.value)
    assert 'main.py' in str(error.value)


def test_variables_that_are_set_two_at_a_time_are_known(tmp_path):
    """Of a base, which used them; and one of them set in vain."""
    base = BASE.replace("dict(type='M')", "dict(type='M', things=a, stuff=b)").replace(
        'pipe', 'a, b = 80, 0\npipe', 1
    )
    check_keys(
        Config.fromfile(write(tmp_path, base=base, main="_base_ = './base.py'\nmodel = dict(things=3)\n"))
    )
    cfg = Config.fromfile(write(tmp_path, base=base, main="_base_ = './base.py'\na, c = 5, 6\n"))
    with pytest.raises(UserError, match="sets 'a'|sets 'c'"):
        check_keys(cfg)


def test_variables_that_are_used_are_no_error_and_a_dumped_config_neither(tmp_path):
    text = (
        "_base_ = './base.py'\nwidth = 3\npipeline = [dict(type='B', width=width)]\n"
        'train_dataloader = dict(pipeline=pipeline)\nrandomness = dict(seed=_base_.model)\n'
    )
    cfg = Config.fromfile(write(tmp_path, base=BASE, main=text))
    cfg.dump(str(tmp_path / 'dumped.py'))
    check_keys(cfg)
    assert 'pipeline' not in cfg
    assert cfg.train_dataloader.pipeline[0].type == 'B'
    check_keys(Config.fromfile(str(tmp_path / 'dumped.py')))


@pytest.mark.parametrize(
    ('base', 'environment', 'place', 'experiment'),
    [
        ('{{$PARTS:.}}/base.py', {}, '.', 'none'),
        ('{{$PARTS:.}}/base.py', {'PARTS': 'parts'}, 'parts', 'parts'),
        ('{{ fileDirname }}/base.py', {}, '.', 'none'),
        ('{{ fileDirname }}/base.py', {'PARTS': 'parts'}, '.', 'parts'),
        ('{{fileBasenameNoExtension}}_base{{ fileExtname }}', {}, '.', 'none'),
        ('{{fileBasenameNoExtension}}_base{{ fileExtname }}', {'PARTS': 'parts'}, '.', 'parts'),
    ],
)
def test_keys_are_checked_in_the_files_that_mmengine_reads(
    tmp_path, monkeypatch, base, environment, place, experiment
):
    """A variable of the environment or one that mmengine knows by itself stands in the path of the base."""
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    for name in ('base.py', 'main_base.py'):
        (folder / name).write_text(BASE)
    monkeypatch.chdir(tmp_path)  # named as on a command line
    write(tmp_path, main=f"_base_ = ['{base}']\nname = '{{{{$PARTS:none}}}}'\nexperiment_name = name\n")
    cfg = Config.fromfile('main.py')
    check_keys(cfg)
    assert 'pipeline' not in cfg
    assert cfg.experiment_name == experiment
    for name in ('base.py', 'main_base.py'):
        (folder / name).write_text(BASE + 'resum = True\n')
    with pytest.raises(UserError, match=r"base.py sets 'resum', and nothing reads it; did you mean 'resume'"):
        check_keys(Config.fromfile('main.py'))


def test_keys_of_the_configs_of_mmdet_and_mmseg_are_read():
    """All but those with a left-over of an older version, of which there are a few."""
    from pathlib import Path

    import mmdet
    import mmseg

    checked = 0
    for package in (mmdet, mmseg):
        folder = Path(package.__file__).parent / '.mim' / 'configs'
        for name in ('mask_rcnn', 'cascade_rcnn', 'swin', 'upernet', 'deeplabv3', 'pspnet', 'convnext'):
            for file in sorted((folder / name).glob('*.py'))[:4]:
                try:
                    cfg = Config.fromfile(file)
                except ImportError:  # wants mmpretrain
                    continue
                if 'levir' not in file.name:  # sets a norm_cfg that nothing uses
                    check_keys(cfg)
                    checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ({'model.backbon.arch': 'x'}, "the config has no model.backbon; did you mean 'backbone'?"),
        ({'model.test_cfg.score_thrr': 0.1}, "did you mean 'score_thr'?"),
        ({'pipe.7.type': 'X'}, 'pipe is a list of 1'),
        ({'max_epochs': 3}, 'has no max_epochs'),
        ({'pipe': 3}, 'a variable of the config file'),
    ],
)
def test_options_must_name_something_that_exists(option, words):
    cfg = Config(
        dict(model=dict(backbone=dict(type='B'), test_cfg=dict(score_thr=0.5)), pipe=[dict(type='A')])
    )
    with pytest.raises(UserError) as error:
        apply_options(cfg, option)
    assert words in str(error.value)


def test_options_may_add_arguments_to_a_type_and_top_level_keys_of_the_runner():
    cfg = Config(dict(model=dict(backbone=dict(type='B'))))
    apply_options(cfg, {'model.backbone.with_cp': True, 'randomness': dict(seed=1)})
    assert cfg.model.backbone.with_cp is True
    assert cfg.randomness.seed == 1


def coco_config(tmp_path, content, **dataset) -> Config:
    (tmp_path / 'a.json').write_text(content if isinstance(content, str) else json.dumps(content))
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json', **dataset)
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dataset))
    return Config(dict(default_scope='mmdet', train_dataloader=loader))


def coco(names, category_id=1) -> dict:
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    annotation = dict(id=1, image_id=1, category_id=category_id, bbox=[0, 0, 40, 40])
    images = [dict(id=1, file_name='a.png', width=64, height=64)]
    return dict(images=images, categories=categories, annotations=[annotation])


def check_data(cfg: Config) -> None:
    findings = Findings()
    checks.check_data(cfg, ('train_dataloader',), findings, 'none')
    findings.raise_errors()


@pytest.mark.parametrize(
    ('content', 'dataset', 'words'),
    [
        (coco(['a', 'b'], 7), dict(metainfo=dict(classes=('a', 'b'))), 'category_id 7'),
        (coco(['a', 'b']), dict(metainfo=dict(classes=('a', 'bb'))), "no category 'bb'"),
        (coco(['a', 'b']), dict(), "no category 'person'"),
        ('{"images": [', dict(), 'is no COCO annotation file'),
        ({'images': []}, dict(), 'lists no images'),
    ],
)
def test_annotations_with_other_categories_are_an_error(tmp_path, content, dataset, words):
    with pytest.raises(UserError) as error:
        check_data(coco_config(tmp_path, content, **dataset))
    assert words in str(error.value)
    assert 'a.json' in str(error.value)


def test_unknown_category_of_a_full_coco_file_is_an_error_but_a_named_subset_is_a_note(tmp_path):
    from mmdet.datasets import CocoDataset

    names = [*CocoDataset.METAINFO['classes'], 'unicorn']
    with pytest.raises(UserError, match='does not name: unicorn'):
        check_data(coco_config(tmp_path, coco(names, 81)))
    content = coco(['a', 'b'])
    content['annotations'].append(dict(content['annotations'][0], id=2, category_id=2))
    findings = Findings()
    subset = coco_config(tmp_path, content, metainfo=dict(classes=('a',)))
    checks.check_data(subset, ('train_dataloader',), findings, 'none')
    assert (
        f'{tmp_path}/a.json: left out, since metainfo.classes does not name them: b (1 annotations)'
        in findings.lines()
    )


def test_wrong_number_of_classes_in_one_head_is_named():
    cfg = Config(dict(model=dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)]))))
    with pytest.raises(UserError, match=r'model.roi_head.bbox_head.1.num_classes is 80, .* has 3 classes'):
        check_classes(cfg, ('a', 'b', 'c'))


def test_heads_that_predict_something_else_may_count_otherwise():
    heads = dict(semantic_head=dict(num_classes=183), bbox_head=dict(num_classes=3))
    check_classes(Config(dict(model=dict(roi_head=heads))), 'abc')


PANOPTIC = dict(num_things_classes=2, num_stuff_classes=1)


@pytest.mark.parametrize(
    ('heads', 'classes', 'text'),
    [
        (2, 'abc', ''),
        (3, 'abc', ''),
        (4, 'abc', 'model.roi_head.bbox_head.num_classes is 4, but the training data has 3 classes'),
        (2, 'ab', r'model.panoptic_fusion_head.num_things_classes \+ num_stuff_classes is 3'),
    ],
)
def test_things_and_stuff_of_a_panoptic_model_are_counted_together(heads, classes, text):
    model = dict(roi_head=dict(bbox_head=dict(num_classes=heads)), panoptic_fusion_head=PANOPTIC)
    with pytest.raises(UserError, match=text) if text else contextlib.nullcontext():
        check_classes(Config(dict(model=model)), classes)


def test_the_panoptic_config_of_mmdet_has_the_classes_of_its_data():
    file = Path(mmdet.__file__).parent / '.mim/configs/panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
    cfg = Config.fromfile(file)
    check_classes(cfg, CocoPanopticDataset.METAINFO['classes'])


def start_options(tmp_path, **cfg):
    backbone = dict(type='B', init_cfg=dict(type=PRETRAINED, checkpoint='a'))
    return Config(dict(model=dict(backbone=backbone), work_dir=str(tmp_path), **cfg))


def test_the_first_start_of_a_job_with_resume_keeps_what_the_config_starts_from(tmp_path):
    cfg = start_options(tmp_path, load_from='coco.pth')
    assert 'nothing to resume' in start_from(cfg, 'auto', None)[0]
    assert (cfg.resume, cfg.load_from) == (False, 'coco.pth')
    (tmp_path / 'iter_1.pth').touch()
    assert start_from(cfg, 'auto', None) == []
    assert (cfg.resume, cfg.load_from) == (True, None)
    assert cfg.model.backbone.init_cfg is None


def test_resume_in_the_config_loses_no_pretrained_weights_on_the_first_start(tmp_path):
    cfg = start_options(tmp_path, resume=True)
    assert 'nothing to resume' in start_from(cfg, None, None)[0]
    assert cfg.resume is False
    assert cfg.model.backbone.init_cfg.checkpoint == 'a'


def test_parts_that_load_from_leaves_fresh_keep_their_pretrained_weights(tmp_path):
    cfg = start_options(tmp_path, load_from=dict(checkpoint='coco.pth', fresh=['backbone.*']))
    start_from(cfg, None, None)
    assert cfg.model.backbone.init_cfg.checkpoint == 'a'
    with pytest.raises(UserError, match='would be overwritten by load_from'):
        start_from(start_options(tmp_path, load_from='b.pth'), None, 'c.pth')


def test_data_root_moves_datasets_and_evaluators_together():
    cfg = read_config(f'{ROOT}/configs/detection/mask_rcnn_convnext_t.py')
    set_data_root(cfg, '/data/mine')
    assert cfg.train_dataloader.dataset.data_root == '/data/mine/'
    assert cfg.test_evaluator.ann_file == '/data/mine/annotations/instances_val2017.json'


def test_sync_batch_norm_becomes_batch_norm_everywhere_and_once_in_the_notes():
    cfg = read_config(f'{ROOT}/configs/detection/cascade_convnext_t.py')
    assert use_plain_batch_norm(cfg) == ['SyncBN became BN in 3 places: a single process or a CPU']
    assert 'SyncBN' not in cfg.pretty_text
    assert use_plain_batch_norm(cfg) == []


@pytest.mark.parametrize(
    'kind', ['EMAHook', 'mmengine.EMAHook', 'mmdet.EMAHook', 'mmengine.hooks.EMAHook', EMAHook]
)
@pytest.mark.parametrize(
    ('write', 'read'),
    [
        (lambda *hooks: dict(custom_hooks=list(hooks)), lambda cfg: cfg.custom_hooks),
        (
            lambda *hooks: dict(default_hooks=dict(zip('ab', hooks))),
            lambda cfg: list(cfg.default_hooks.values()),
        ),
    ],
    ids=['custom_hooks', 'default_hooks'],
)
def test_a_moving_average_is_known_however_its_type_is_written(kind, write, read):
    hook, other = dict(type=kind), dict(type='mine.EMAHooks')
    hooks = write(hook, other)
    wrapper = dict(type='OptimWrapper', accumulative_counts=4)
    cfg = Config(dict(optim_wrapper=wrapper, train_dataloader=dict(batch_size=2), model=dict(), **hooks))
    set_batch(cfg)
    given = read(cfg)
    assert given[0].interval == 4
    assert 'interval' not in given[1]
    with pytest.raises(UserError, match='keeps a moving average'):
        divide_model(Config(hooks), 'pytorch')
    for_testing(cfg, 'c.pth')
    assert [*cfg.custom_hooks, *(cfg.get('default_hooks') or {}).values()] == [other]


def test_types_are_known_however_they_are_written(tmp_path):
    """With a scope, with a module, as the class itself; those of others with the same name are left alone."""
    from mmdet.datasets import CocoDataset
    from mmseg.evaluation import IoUMetric

    for kind in (
        'SyncBN',
        'MMSyncBN',
        'mmdet.SyncBN',
        torch.nn.SyncBatchNorm,
        SyncBatchNorm,
    ):
        cfg = Config(dict(model=dict(norm_cfg=dict(type=kind))))
        assert len(use_plain_batch_norm(cfg)) == 1
        assert cfg.model.norm_cfg.type == 'BN'
    for kind in (
        'AmpOptimWrapper',
        'mmengine.AmpOptimWrapper',
        'mmengine.optim.AmpOptimWrapper',
        AmpOptimWrapper,
    ):
        cfg = Config(dict(optim_wrapper=dict(type=kind, loss_scale='dynamic')))
        assert choose_precision(cfg, False, 'cpu')
        assert cfg.optim_wrapper == dict(type='OptimWrapper')
    for kind in ('CocoDataset', 'mmdet.CocoDataset', 'mmdet.datasets.CocoDataset', CocoDataset):
        cfg = coco_config(tmp_path, coco(['a']))
        cfg.train_dataloader.dataset.dataset.type = kind
        with pytest.raises(UserError, match="no category 'person'"):
            check_data(cfg)
    for kind in ('IoUMetric', 'mmseg.IoUMetric', 'mmseg.evaluation.metrics.IoUMetric', IoUMetric):
        cfg = Config(dict(model=dict(), test_evaluator=[dict(type=kind)]))
        assert choose_views(cfg, False)
        assert cfg.test_evaluator[0].prefix == 'single_scale'
    loaders = (
        'LoadImageFromFile',
        'mmcv.LoadImageFromFile',
        'mmdet.LoadImageFromFile',
        mmcv.LoadImageFromFile,
    )
    for kind in (*loaders, 'mine.LoadImageFromFile', Mine.LoadImageFromFile):
        cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type=kind)]))))
        skip_corrupt_images(cfg)
        use_stand_ins(cfg)
        expected = (
            dict(type='convnext_backbone.LoadImage', skip_corrupt=True)
            if kind in loaders
            else dict(type=kind)
        )
        assert cfg.train_dataloader.dataset.pipeline[0] == expected
    for resize, flip, views in (
        ('mmdet.Resize', 'mmdet.RandomFlip', 'mmdet.TestTimeAug'),
        (mmcv.Resize, mmcv.RandomFlip, mmcv.TestTimeAug),
    ):
        steps = [[dict(type=resize, scale=1), dict(type=resize, scale=2)], [dict(type=flip, prob=1.0)]]
        tta = dict(tta_model=dict(type='T'), tta_pipeline=[dict(type=views, transforms=steps)])
        notes = choose_views(Config(dict(model=dict(), test_dataloader={}, **tta)), True)
        assert notes == ['testing: multi scale flip, whole image']
    for kind in (mmengine.model.PretrainedInit, 'mmengine.Pretrained', 'Pretrained', Pretrained):
        cfg = Config(dict(model=dict(backbone=dict(type='B', init_cfg=dict(type=kind, checkpoint='a')))))
        set_pretrained(cfg, 'none')
        assert cfg.model.backbone.init_cfg is None
    assert [type_name(nothing) for nothing in ({}, None, dict(type=None), dict(type='A'))] == [
        '',
        '',
        '',
        'A',
    ]


class Mine:
    class LoadImageFromFile:
        pass


NEW_STYLE = """
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from torch.optim import AdamW

from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.classification import Accuracy, Classifier, ImageDataset, collate_images

sizes = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
model = dict(type=Classifier, backbone=dict(type=ConvNeXt, **sizes), num_classes=5)
images = dict(type=ImageDataset, data_root='')
loader = dict(batch_size=4, num_workers=0, collate_fn=dict(type=collate_images))
train_dataloader = dict(
    **loader,
    sampler=dict(type=InfiniteSampler),
    dataset=dict(**images, split='train', transform=dict(input_size=64, is_training=True)),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(**images, split='val', transform=dict(input_size=64, is_training=False)),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type=Accuracy)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=4, val_interval=4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=AdamW, lr=1e-3), accumulative_counts=2)
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=2), logger=dict(type=LoggerHook, interval=1)
)
custom_hooks = [dict(type=EMAHook)]
log_processor = dict(by_epoch=False)
default_scope = None
"""


def test_a_config_of_the_new_style_is_trained_resumed_and_tested_as_any_other(shapes, tmp_path):
    """Its types are classes: checkpoints, loop and average are nevertheless those that a resume needs."""
    config = tmp_path / 'new.py'
    config.write_text(NEW_STYLE.replace("data_root=''", f'data_root={str(shapes / "classification")!r}'))
    line = [str(config), '--work-dir', str(tmp_path / 'w'), '--device', 'cpu']
    tool('train').main([*line, '--seed', '0', '--stop-at', '3'])
    kept = torch.load(tmp_path / 'w/iter_3.pth', weights_only=False)
    assert (tmp_path / 'w/iter_3.pth.json').is_file()
    assert kept['random']
    assert kept['gradients']
    assert 'mixed precision is off' in log_of(tmp_path / 'w')
    assert 'interval=2,' in kept['meta']['cfg']
    tool('train').main([*line, '--seed', '0', '--resume'])
    found = tool('test').main([str(config), str(tmp_path / 'w/iter_4.pth'), *line[1:]])
    assert f'top1: {found["top1"]:.4f}' in log_of(tmp_path / 'w')
    model, *_ = trained_model(read_config(str(config)), str(tmp_path / 'w/iter_4.pth'))
    assert isinstance(model, Classifier)
    config.write_text(config.read_text().replace('optim_wrapper', 'optim_wraper'))
    with pytest.raises(UserError, match="did you mean 'optim_wrapper'"):
        read_config(str(config))


@pytest.mark.parametrize('amp', [True, False])
def test_mixed_precision_is_off_on_a_cpu_and_said_so(amp):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')))
    notes = choose_precision(cfg, amp, 'cpu')
    assert len(notes) == 1
    assert 'off' in notes[0]
    assert cfg.optim_wrapper == dict(type='OptimWrapper')


@pytest.mark.parametrize(('bf16', 'dtype'), [(True, 'bfloat16'), (False, 'float16')])
def test_mixed_precision_takes_bf16_where_the_gpu_has_it(monkeypatch, bf16, dtype):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: bf16)
    cfg = Config(dict(model=dict(), optim_wrapper=dict(type='OptimWrapper')))
    notes = choose_precision(cfg, True, 'cuda')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.dtype == dtype
    assert dtype in notes[0]
    plain = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    assert choose_precision(plain, False, 'cuda') == []


def test_pretrained_replaces_only_pretrained_initialisation(tmp_path):
    kaiming = dict(type='Kaiming', layer='Conv2d')
    ours = dict(type=PRETRAINED, checkpoint='a', skip=['x.*'])

    def config(init):
        return Config(dict(model=dict(backbone=dict(type='B', init_cfg=init))))

    file = tmp_path / 'w.pth'
    file.touch()
    cfg = config([kaiming, ours])
    set_pretrained(cfg, str(file))
    assert cfg.model.backbone.init_cfg == [
        kaiming,
        {**ours, 'checkpoint': str(file), 'weights': 'final'},
    ]
    set_pretrained(cfg, 'none')
    assert cfg.model.backbone.init_cfg == [kaiming]
    set_pretrained(cfg := config(ours), 'None')
    assert cfg.model.backbone.init_cfg is None
    with pytest.raises(UserError, match='no file of weights at nowhere.pth'):
        set_pretrained(cfg, 'nowhere.pth')
    cfg = config([kaiming, ours])
    drop_pretrained(cfg)
    assert 'checkpoint' not in str(cfg.model)


def test_pretrained_of_a_fine_tuned_classifier_replaces_the_whole_networks(tmp_path):
    (tmp_path / 'w.pth').touch()
    cfg = read_config(f'{ROOT}/configs/classification/convnext_b_in22k_in1k.py')
    set_pretrained(cfg, None, 'ema')
    assert cfg.model.init_cfg.weights == 'ema'
    scratch = read_config(f'{ROOT}/configs/classification/convnext_t_in1k.py')
    with pytest.raises(UserError, match='the config loads no pretrained weights'):
        set_pretrained(scratch, None, 'ema')
    set_pretrained(cfg, str(tmp_path / 'w.pth'), 'ema')
    given = dict(checkpoint=str(tmp_path / 'w.pth'), weights='ema', skip=['head.*'], fresh=['head.*'])
    assert cfg.model.init_cfg == [dict(type=PRETRAINED, **given)]
    assert 'init_cfg' not in cfg.model.backbone
    set_pretrained(cfg, 'none')
    assert cfg.model.init_cfg is None
    set_pretrained(cfg, 'convnext_base_22k_224')
    with pytest.raises(UserError, match="did you mean the released 'convnext_base_22k_224'"):
        set_pretrained(cfg, 'convnext_base_22k')


def test_an_augmented_test_needs_one_list_of_views():
    cfg = read_config(f'{ROOT}/configs/segmentation/upernet_convnext_t.py')
    cfg.tta_pipeline = cfg.tta_pipeline[:1]
    with pytest.raises(UserError, match='tta_pipeline has 0 steps of type TestTimeAug'):
        choose_views(cfg, True)
    cfg.test_evaluator = None
    assert choose_views(cfg, False) == []


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')
    with pytest.raises(UserError, match='8 GPUs asked for, this machine has 2'):
        choose_device(None)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    monkeypatch.setattr(torch.cuda, 'set_device', lambda number: None)
    assert choose_device(None) == 'cuda'


def test_config_nodes_keep_their_type():
    """mmengine looks entries up as attributes: a plain dict in the middle breaks that far away."""
    cfg = read_config(f'{ROOT}/configs/detection/mask_rcnn_convnext_t.py')
    set_data_root(cfg, '/data/mine')
    assert isinstance(cfg.train_dataloader.dataset, ConfigDict)


def test_heads_stay_as_they_are_where_mmengine_traces_them(monkeypatch):
    given, runner, model = [], Runner.__new__(Runner), torch.nn.Linear(2, 2)
    monkeypatch.setattr('convnext_backbone.engine.runner.save_work', lambda *a: given.append(a) or ['done'])
    runner.logger = Mock()
    for cfg, lines in (({}, 1), (dict(efficient_conv_bn_eval=['decode_head']), 0)):
        runner.cfg = Config(cfg)
        runner.logger.reset_mock()
        assert runner.build_model(model) is model
        assert runner.logger.info.call_count == lines
    assert given == [(model, 'cpu')]
