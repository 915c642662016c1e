"""The tools as a user types them, on a few drawn images; and what they say when something is wrong."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmseg
import numpy as np
import pytest
import torch
from conftest import Bomb, begin, command, convnext, last_line, log_of, tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.datasets import CityscapesDataset

from convnext_backbone.checkpoint import CheckpointMismatch, UnreadableCheckpoint
from convnext_backbone.config import drop_pretrained, read_config, use_plain_batch_norm
from convnext_backbone.engine import Runner
from convnext_backbone.errors import SKIPPED, UserError, message
from convnext_backbone.inference import Predictor, _metainfo

DETECTOR = 'configs/demo/mask_rcnn_shapes.py'
SEGMENTER = 'configs/demo/upernet_shapes.py'
CLASSIFIER = 'configs/demo/classifier_shapes.py'
# class_weight beside ignored pixels is an IndexError in mmseg 1.2.2; the maintained builds have it right
UNWEIGHTED = [
    f'model.{head}.loss_decode.class_weight=None'
    for head in ('decode_head', 'auxiliary_head')
    if mmseg.__version__.startswith('1.2')
]


def short(config: str, steps: int) -> list[str]:
    """Options that end a training after so many steps of two images, with one checkpoint."""
    return [
        *('--device', 'cpu', '--seed', '0', '--cfg-options', f'train_cfg.max_iters={steps}'),
        f'train_cfg.val_interval={steps}',
        f'default_hooks.checkpoint.interval={steps}',
        'default_hooks.logger.interval=1',
        *('train_dataloader.batch_size=2', 'train_dataloader.num_workers=0'),
        'train_dataloader.persistent_workers=False',
        *('val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False'),
        *(UNWEIGHTED if config == SEGMENTER else ()),
    ]


def metrics(log: str) -> dict[str, float]:
    """The last validation results in a log of a segmenter."""
    row = [line for line in log.splitlines() if 'Iter(val)' in line and 'mIoU:' in line][-1]
    return {key: float(value) for key, value in re.findall(r'(aAcc|mIoU|mAcc): ([\d.]+)', row)}


@pytest.fixture(scope='session')
def pretrained(shapes, tmp_path_factory) -> Path:
    """A classifier's checkpoint, written by our own training."""
    work_dir = tmp_path_factory.mktemp('classifier')
    data = ['--data-root', f'{shapes}/classification', '--work-dir', str(work_dir)]
    tool('train').main([CLASSIFIER, *data, *short(CLASSIFIER, 3)])
    return work_dir / 'iter_3.pth'


@pytest.fixture(scope='session')
def detector(shapes, pretrained, tmp_path_factory) -> Path:
    """A detector trained for three steps from the classifier's weights."""
    work_dir = tmp_path_factory.mktemp('detector')
    data = ['--data-root', str(shapes), '--work-dir', str(work_dir), '--pretrained', str(pretrained)]
    tool('train').main([DETECTOR, *data, *short(DETECTOR, 3)])
    return work_dir


@pytest.mark.matrix
@pytest.mark.xdist_group('detector')
def test_the_detector_takes_over_every_backbone_tensor_of_the_classifier(detector, pretrained):
    log = log_of(detector)
    assert f'{pretrained} (sha256' in log
    assert 'missing     0   unexpected 0   wrong shape 0' in log
    assert 'coco/bbox_mAP_50' in log
    assert 'coco/segm_mAP_50' in log
    assert 'stand-ins: gradients of 3 convolutions of RPNHead at sampled positions' in log
    assert 'stand-ins: targets of 1 mask heads of masks that are there once' in log


@pytest.mark.matrix
@pytest.mark.xdist_group('detector')
def test_training_resumes_from_its_own_checkpoint_and_goes_on_counting(detector, shapes, tmp_path):
    work_dir = tmp_path / 'w'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(detector / 'iter_3.pth'))
    data = ['--data-root', str(shapes), '--work-dir', str(work_dir)]
    tool('train').main([DETECTOR, *data, '--resume', *short(DETECTOR, 5)])
    log = log_of(work_dir)
    assert 'resumed weights' in log
    assert 'resumed epoch: 0, iter: 3' in log
    assert 'Iter(train) [4/5]' in log
    assert 'Iter(train) [3/5]' not in log
    files = (detector / 'iter_3.pth', work_dir / 'iter_5.pth')
    before, after = (torch.load(file, weights_only=False) for file in files)
    steps = [next(iter(c['optimizer']['state'].values()))['step'].item() for c in (before, after)]
    assert steps == [3, 5]  # AdamW went on, too


@pytest.mark.matrix
@pytest.mark.xdist_group('detector')
def test_a_detector_is_evaluated_with_coco_metrics(detector, shapes):
    options = ['--data-root', str(shapes), '--work-dir', str(detector / 'test'), '--device', 'cpu']
    found = tool('test').main([DETECTOR, str(detector / 'iter_3.pth'), *options])
    assert {key for _, task, key, _ in tool('demo').ROWS if task == 'detector'} <= set(found)
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP'} <= set(found)


@pytest.mark.matrix
@pytest.mark.xdist_group('detector')
def test_infer_writes_a_picture_and_json_for_each_image_and_names_what_is_none(detector, shapes, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    source = sorted((shapes / 'images/val').iterdir())[0]
    (images / 'good.png').write_bytes(source.read_bytes())
    (images / 'bad.jpg').write_text('no image')
    arguments = [DETECTOR, str(detector / 'iter_3.pth'), str(images), '--out', str(tmp_path / 'out')]
    with pytest.raises(UserError, match='1 of 2 images could not be predicted'):
        tool('infer').main([*arguments, '--score', '0', '--device', 'cpu'])
    result = json.loads((tmp_path / 'out/good.png.json').read_text())
    assert result['objects']
    assert set(result['objects'][0]) == {'label', 'score', 'bbox', 'mask'}
    picture = cv2.imread(str(tmp_path / 'out/good.png.png'))
    assert picture.shape == cv2.imread(str(source)).shape
    assert (picture != cv2.imread(str(source))).any()
    assert not (tmp_path / 'out/bad.jpg.json').exists()


def untrained(config: str, folder: Path, **meta) -> str:
    """A checkpoint of the config's model with the weights it starts with."""
    cfg = read_config(config)
    use_plain_batch_norm(cfg)
    drop_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), **meta), folder / 'c.pth')
    return str(folder / 'c.pth')


def labels_of_objects(found: dict) -> set[str]:
    return {each['label'] for each in found['objects']}


def labels_of_pixels(found: dict) -> set[str]:
    return set(found['share_of_pixels'])


@pytest.mark.parametrize(
    ('config', 'background', 'labels_in', 'words'),
    [
        (
            DETECTOR,
            [],
            labels_of_objects,
            r'has 80 names, but model.roi_head.bbox_head.num_classes is 5',
        ),
        (SEGMENTER, ['background'], labels_of_pixels, 'neither'),
    ],
    ids=['detector', 'segmenter'],
)
def test_class_names_come_from_the_config_or_from_where_older_versions_kept_them(
    config, background, labels_in, words, shapes, tmp_path
):
    """Weights alone name no classes; mmdet 2.x and mmseg 0.x named them in capitals."""
    categories = json.loads((shapes / 'annotations/instances_val.json').read_text())['categories']
    names = [*background, *(category['name'] for category in categories)]
    old = [name.upper() for name in names]
    image = sorted((shapes / 'images/val').iterdir())[0]
    own = f"_base_ = '{Path.cwd()}/{config}'\ntest_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True"
    (tmp_path / 'own.py').write_text(f'{own}, classes={names})))\n')
    (tmp_path / 'none.py').write_text(f'{own})))\n')
    given = {
        config: ({}, names),
        f'{tmp_path}/own.py': ({}, names),  # without colours
        f'{tmp_path}/none.py': (dict(meta=dict(CLASSES=tuple(old))), old),
    }
    for file, (meta, expected) in given.items():
        predictor = Predictor(file, untrained(config, tmp_path, **meta), 'cpu')
        assert list(predictor.meta['classes']) == expected
        sample = predictor.predict(image)
        labels = labels_in(predictor.to_json(sample, 0))
        assert labels
        assert labels <= set(expected)
        assert predictor.draw(image, sample, 0).shape == cv2.imread(str(image)).shape
    with pytest.raises(UserError, match=words) as error:
        Predictor(f'{tmp_path}/none.py', untrained(config, tmp_path), 'cpu')
    assert 'metainfo=dict(classes=...)' in message(error.value)


@pytest.mark.parametrize('kind', ['CityscapesDataset', 'mmseg.CityscapesDataset', CityscapesDataset])
def test_names_and_colours_of_a_known_dataset_are_its_published_ones(kind):
    """Cityscapes: road is (128, 64, 128), car (0, 0, 142)."""
    init_default_scope('mmseg')
    for classes, expected in (
        (None, ('road', 19, [128, 64, 128])),
        (('car', 'road'), ('car', 2, [0, 0, 142])),
    ):
        metainfo = dict(classes=classes) if classes else {}
        dataset = dict(type='RepeatDataset', dataset=dict(type=kind, metainfo=metainfo))
        meta = _metainfo(Config(dict(test_dataloader=dict(dataset=dataset))))
        assert (meta['classes'][0], len(meta['classes']), meta['palette'][0]) == expected
        assert len(meta['palette']) == expected[1]


def test_classes_of_an_older_checkpoint_are_compared_before_a_test():
    runner = SimpleNamespace(_test_classes=['cat'])
    for meta in (dict(CLASSES=('dog',)), dict(CLASSES='dog'), dict(dataset_meta=dict(CLASSES=('dog',)))):
        with pytest.raises(UserError, match=r'trained for 1 classes \(dog'):
            Runner._compare_classes(runner, 'c.pth', dict(meta=meta))


@pytest.mark.long
@pytest.mark.matrix
@pytest.mark.xdist_group('segmenter')
def test_segmenter_trains_evaluates_resumes_and_predicts(shapes, pretrained, tmp_path):
    data = ['--data-root', str(shapes), '--work-dir', str(tmp_path / 'w')]
    tool('train').main([SEGMENTER, *data, '--pretrained', str(pretrained), *short(SEGMENTER, 2)])
    log = log_of(tmp_path / 'w')
    assert 'mIoU' in log
    assert 'SyncBN became BN' in log
    assert log.count('SyncBN became BN') == 1
    validated = metrics(log)
    checkpoint = str(tmp_path / 'w/iter_2.pth')
    options = ['--data-root', str(shapes), '--work-dir', str(tmp_path / 'test'), '--device', 'cpu']
    tested = tool('test').main([SEGMENTER, checkpoint, *options])
    assert validated['aAcc'] > 1  # percent: not the zero that anything could equal
    assert tested == pytest.approx({f'single_scale/{k}': v for k, v in validated.items()}, abs=1e-3)
    assert 'testing: single scale, whole image' in log_of(tmp_path / 'test')
    assert {key for _, task, key, _ in tool('demo').ROWS if task == 'segmenter'} <= set(tested)
    options[3] = str(tmp_path / 'tta')
    views = tool('test').main([SEGMENTER, checkpoint, '--tta', *options])
    assert set(views) == {f'multi_scale_flip/{key}' for key in validated}
    assert list(views.values()) != list(tested.values())
    assert views['multi_scale_flip/aAcc'] > 1
    assert 'testing: multi scale flip, whole image' in log_of(tmp_path / 'tta')
    tool('train').main([SEGMENTER, *data, '--resume', *short(SEGMENTER, 3)])
    assert 'resumed epoch: 0, iter: 2' in log_of(tmp_path / 'w')
    image = sorted((shapes / 'images/val').iterdir())[0]
    arguments = [SEGMENTER, str(tmp_path / 'w/iter_3.pth'), str(image), '--out', str(tmp_path / 'out')]
    tool('infer').main([*arguments, '--device', 'cpu'])
    shares = json.loads((tmp_path / f'out/{image.name}.json').read_text())['share_of_pixels']
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.xdist_group('detector')
def test_a_published_checkpoint_is_small_says_what_it_is_and_tests_the_same(detector, shapes, tmp_path):
    checkpoint = detector / 'iter_3.pth'
    out = tool('publish').main([DETECTOR, str(checkpoint), '--out', str(tmp_path / 'p')])
    assert re.fullmatch(r'mask_rcnn_shapes-[0-9a-f]{8}\.pth', out.name)
    assert hashlib.sha256(out.read_bytes()).hexdigest()[:8] == out.stem.split('-')[1]
    assert out.stat().st_size < 0.5 * checkpoint.stat().st_size  # no optimizer
    content = torch.load(out, weights_only=True)
    assert set(content) == {'state_dict', 'meta'}
    assert content['meta']['mean'] == [123.675, 116.28, 103.53]
    assert content['meta']['arch'] == 'custom'
    assert "type='MaskRCNN'" in content['meta']['cfg']
    assert list(content['meta']['dataset_meta']['classes']) == [
        'circle',
        'cross',
        'square',
        'star',
        'triangle',
    ]
    options = ['--data-root', str(shapes), '--work-dir', str(tmp_path), '--device', 'cpu']
    found = [tool('test').main([DETECTOR, str(file), *options]) for file in (checkpoint, out)]
    assert found[0] == found[1]
    with pytest.raises(UserError, match='does not fit'):
        tool('publish').main([SEGMENTER, str(checkpoint), '--out', str(tmp_path / 'p')])
    assert [file.name for file in (tmp_path / 'p').iterdir()] == [out.name]


@pytest.mark.xdist_group('detector')
def test_augmentation_that_the_config_does_not_have_is_refused(detector, shapes, tmp_path):
    options = ['--data-root', str(shapes), '--work-dir', str(tmp_path), '--device', 'cpu', '--tta']
    with pytest.raises(UserError, match='has no tta_model and tta_pipeline'):
        tool('test').main([DETECTOR, str(detector / 'iter_3.pth'), *options])


def test_flops_tool_prints_the_size_beside_the_numbers_and_writes_json(tmp_path, capsys):
    config = 'configs/detection/mask_rcnn_convnext_t.py'
    tool('flops').main([config, '--json', str(tmp_path / 'f.json')])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split()[:6] == [config, '800', 'x', '1280', '48.10', '261.904']
    (found,) = json.loads((tmp_path / 'f.json').read_text())
    assert found['input'] == [800, 1280]
    assert sum(found['by_part'].values()) == found['multiply_adds']
    tool('flops').main([config, '--shape', '1600', '2560'])
    doubled = capsys.readouterr().out.splitlines()[-1].split()
    assert doubled[1:4] == ['1600', 'x', '2560']
    assert float(doubled[-9]) == pytest.approx(4 * found['by_part']['backbone'] / 1e9, rel=1e-4)
    for arguments, words in (
        ([], 'give config files, or --paper'),
        ([config, '--paper'], 'give config files, or --paper'),
        ([config, '--shape', '0', '5'], 'two positive integers, got 0 5'),
        (['configs/classification/convnext_t_in1k.py', '--shape', '3', '3'], 'an image of 3 x 3'),
        (['configs/_base_/models/small_backbone.py'], 'has no model'),
    ):
        with pytest.raises(UserError, match=words):
            tool('flops').main(arguments)


def test_flops_beside_print_marks_what_disagrees_and_fails_without_a_note(monkeypatch, capsys):
    """All rows are compared in test_configs.py; here four of them."""
    flops, found = tool('flops'), []
    roadmap = 'classification/roadmap/resnet50_1'
    names = [f'{roadmap}4_fewer_norms', f'{roadmap}5_layer_norm', 'classification/isotropic_s_in1k']
    rows = list(flops.compare(names))
    monkeypatch.setattr(flops, 'compare', lambda: rows)
    flops.main(['--paper'])
    out = capsys.readouterr().out
    found = {line.split()[0]: line.split()[4:] for line in out.splitlines() if ' x 224 ' in line}
    assert found[names[0]] == ['25.83', '-', '4.146', '4.15', '0.9989']
    assert found[names[1]] == ['25.84', '-', '4.146', '4.46', '0.9295', '[1]']
    assert '\n[1] printed 4.46' in out
    assert found[names[2]] == ['22.31', '22', '4.286', '4.3', '0.9968']
    assert '2 of 3 rows agree' in out
    rows[0].printed['gflops'] = '4.20'
    with pytest.raises(UserError, match='1 rows disagree with print without a note'):
        flops.main(['--paper'])


def test_flops_of_what_cannot_be_counted_or_built_is_one_line(tmp_path):
    base = f"_base_ = '{Path.cwd()}/configs/detection/mask_rcnn_convnext_t.py'\n"
    for text, words in (
        ("model = dict(backbone=dict(type='Foo'))", 'Foo'),
        ('model = dict(neck=dict(in_channels=[1, 2, 3]))', 'does not hold'),
        ('model = dict(neck=None)', 'cannot be counted'),
        ("model = dict(roi_head=dict(mask_head=dict(type='Foo')))", 'Foo'),
    ):
        (tmp_path / 'c.py').write_text(base + text + '\n')
        with pytest.raises(UserError, match=words):
            tool('flops').main([str(tmp_path / 'c.py')])
    (tmp_path / 'c.py').write_text(base + 'model = dict(backbone=dict(in_channels=4))\n')
    tool('flops').main([str(tmp_path / 'c.py')])
    with pytest.raises(UserError, match='there is no such folder'):
        tool('flops').main([str(tmp_path / 'c.py'), '--json', str(tmp_path / 'no/x.json')])


@pytest.mark.xdist_group('distributed')
def test_dist_train_runs_on_two_cpu_processes_and_rank_0_alone_writes(shapes, tmp_path):
    bin_folder = Path(sys.executable).parent
    result = subprocess.run(
        ['tools/dist_train.sh', SEGMENTER, '2', '--data-root', str(shapes), '--work-dir', str(tmp_path)]
        + ['--pretrained', 'none', *short(SEGMENTER, 2)],
        env={**os.environ, 'MASTER_PORT': '29611', 'PATH': f'{bin_folder}:{os.environ["PATH"]}'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:]
    assert len(list(tmp_path.glob('*/*.log'))) == 1
    assert 'mIoU' in log_of(tmp_path)


# What goes wrong, and what is said


def refused(name: str, *arguments) -> str:
    """The one-line error of a tool."""
    with pytest.raises(UserError) as error:
        tool(name).main([str(a) for a in arguments])
    return message(error.value)


@pytest.mark.xdist_group('distributed')
def test_an_error_is_one_line_with_status_1_and_a_traceback_only_with_debug(tmp_path):
    result = command('tools/train.py', 'configs/nowhere.py')
    assert result.returncode == 1
    assert last_line(result).startswith('error: no config file at configs/nowhere.py')
    assert 'Traceback' not in result.stdout
    debugged = begin(convnext, 'train', 'configs/nowhere.py', '--debug', log=tmp_path / 'log')
    debugged.join()
    assert debugged.exitcode == 1
    assert 'Traceback' in (tmp_path / 'log').read_text()


def test_missing_data_root(tmp_path):
    text = refused('train', 'configs/detection/cascade_convnext_t.py', '--work-dir', tmp_path)
    assert text.startswith('train_dataloader: no data at data/coco/')
    assert '--data-root' in text
    assert '\n' not in text
    text = refused('train', SEGMENTER, '--data-root', tmp_path, '--work-dir', tmp_path / 'w')
    assert f'{tmp_path}/images/train does not exist' in text


def test_unreachable_weights(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv('CONVNEXT_WEIGHTS', str(tmp_path))
    url = 'http://127.0.0.1:1/convnext_tiny_1k_224.pth'
    options = ['--data-root', shapes, '--work-dir', tmp_path / 'w', '--pretrained', url]
    text = refused('train', SEGMENTER, *options, *short(SEGMENTER, 1))
    assert f'cannot download {url}' in text
    assert str(tmp_path) in text


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('model.backbone.arch=tny', "got 'tny'; did you mean 'tiny'?"),
        ('model.backbone.drop_path=0.1', "does not take drop_path; did you mean 'drop_path_rate'?"),
        ('model.bakbone.arch=tiny', "did you mean 'backbone'?"),
        ('optim_wrapper.optimizer.learning_rate=1', "unexpected keyword argument 'learning_rate'"),
        ('optim_wrapper.paramwise_cfg.num_layers=12', 'the config has no optim_wrapper.paramwise_cfg'),
        ('model.decode_head.num_classes=7', 'model.decode_head.num_classes is 7'),
        ('model.decode_head.type=UPerHed', "'UPerHed' is not known; did you mean 'UPerHead'?"),
    ],
)
def test_wrong_config_values(shapes, tmp_path, option, words):
    options = ['--data-root', shapes, '--work-dir', tmp_path, '--pretrained', 'none']
    text = refused('train', SEGMENTER, *options, *short(SEGMENTER, 1), option)
    lines = text.split('\nerror: ')  # one for each error
    assert [words in line for line in lines].count(True) == 1
    assert '\n' not in ''.join(lines)


@pytest.mark.xdist_group('distributed')
def test_a_gpu_count_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('this machine has GPUs')
    environment = {'LOCAL_WORLD_SIZE': '8', 'WORLD_SIZE': '8', 'RANK': '0', 'LOCAL_RANK': '0'}
    rank, log = ('train', SEGMENTER, '--launcher', 'pytorch'), tmp_path / 'log'
    process = begin(convnext, *rank, log=log, **environment)
    process.join()
    assert process.exitcode == 1
    assert '8 GPUs asked for, this machine has 0' in log.read_text().strip().splitlines()[-1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for number, words in (('eight', "got 'eight'"), ('8', '8 GPUs asked for, this machine has 0')):
        result = subprocess.run(
            ['tools/dist_train.sh', SEGMENTER, number],
            capture_output=True,
            text=True,
            env={**os.environ, 'PATH': path},
        )
        assert result.returncode == 1
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_work_dir_that_is_not_writable(tmp_path, shapes):
    (tmp_path / 'file').write_text('')
    text = refused('train', SEGMENTER, '--data-root', shapes, '--work-dir', tmp_path / 'file' / 'w')
    assert text.startswith(f'cannot write into {tmp_path}/file/w')
    assert '--work-dir' in text


def truncate(good: Path, file: Path, ran: Path) -> None:
    content = good.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def add_code(good: Path, file: Path, ran: Path) -> None:
    """Write a copy that runs something when it is read the ordinary way."""
    content = torch.load(good, weights_only=False)
    torch.save({**content, 'meta': {**content['meta'], 'bomb': Bomb(ran)}}, file)


DATA_AND_FOLDER = '--data-root {shapes} --work-dir {folder}/w'
EVERY_COMMAND = {  # that reads a checkpoint: its name and arguments
    'test': f'test {DETECTOR} {{file}} {DATA_AND_FOLDER}',
    'robustness': f'robustness {DETECTOR} {{file}} {DATA_AND_FOLDER} --corrupt',
    'convert': 'convert {file} --to timm --out {folder}/o.pth',
    'publish': f'publish {DETECTOR} {{file}} --out {{folder}}/o',
    'export': f'export {DETECTOR} {{file}} --format onnx --part backbone --out {{folder}}/o.onnx',
    'infer': f'infer {DETECTOR} {{file}} {{shapes}}/images/val --out {{folder}}/o',
    'resume': f'train {DETECTOR} {DATA_AND_FOLDER} --resume {{file}} {{short}}',
    'pretrained': f'train {DETECTOR} {DATA_AND_FOLDER} --pretrained {{file}} {{short}}',
    'load_from': f'train {DETECTOR} {DATA_AND_FOLDER} {{short}} load_from={{file}}',
}


@pytest.mark.matrix
@pytest.mark.xdist_group('detector')
@pytest.mark.parametrize('line', EVERY_COMMAND.values(), ids=EVERY_COMMAND)
@pytest.mark.parametrize('damage', [truncate, add_code])
def test_a_damaged_or_malicious_checkpoint_is_refused_everywhere(detector, shapes, tmp_path, line, damage):
    file, ran = tmp_path / 'c.pth', tmp_path / 'ran'
    good = (detector / 'iter_3.pth').read_bytes()
    damage(detector / 'iter_3.pth', file, ran)
    options = ' '.join(short(DETECTOR, 1))
    name, *arguments = line.format(file=file, shapes=shapes, folder=tmp_path, short=options).split(' ')
    with pytest.raises(UnreadableCheckpoint, match='c.pth'):
        tool(name).main(arguments)
    assert not ran.exists()
    assert (detector / 'iter_3.pth').read_bytes() == good


@pytest.mark.matrix
@pytest.mark.xdist_group('detector')
def test_resume_executes_no_config_text_from_the_checkpoint(detector, shapes, tmp_path):
    """mmengine would run ``meta['config']`` as Python."""
    content = torch.load(detector / 'iter_3.pth', weights_only=False)
    content['meta']['config'] = f'import pathlib; pathlib.Path({str(tmp_path / "ran")!r}).touch()'
    torch.save(content, tmp_path / 'c.pth')
    options = ['--data-root', shapes, '--work-dir', tmp_path / 'w', '--resume', tmp_path / 'c.pth']
    tool('train').main([str(a) for a in (DETECTOR, *options, *short(DETECTOR, 4))])
    assert not (tmp_path / 'ran').exists()


@pytest.mark.xdist_group('detector')
def test_weights_alone_are_no_checkpoint_to_resume_from(pretrained, detector, shapes, tmp_path):
    weights = {'state_dict': torch.load(detector / 'iter_3.pth', weights_only=False)['state_dict']}
    torch.save(weights, tmp_path / 'c.pth')
    options = ['--data-root', shapes, '--work-dir', tmp_path / 'w', '--resume', tmp_path / 'c.pth']
    assert 'has no meta, optimizer, message_hub' in refused('train', DETECTOR, *options, *short(DETECTOR, 4))


@pytest.mark.xdist_group('detector')
def test_a_checkpoint_of_another_model_is_not_tested(pretrained, detector, shapes, tmp_path):
    options = ['--data-root', str(shapes), '--work-dir', str(tmp_path)]
    with pytest.raises(UserError):
        tool('test').main([SEGMENTER, str(detector / 'iter_3.pth'), *options])
    content = torch.load(detector / 'iter_3.pth', weights_only=False)
    del content['state_dict']['roi_head.bbox_head.fc_cls.bias']
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(CheckpointMismatch, match='roi_head.bbox_head.fc_cls.bias'):
        tool('test').main([DETECTOR, str(tmp_path / 'c.pth'), *options])


def text(content: bytes) -> bytes:
    return b'no image'


def jpeg(content: bytes) -> bytes:
    """Most of a JPEG, under the name that the annotations have; the content decides."""
    _, encoded = cv2.imencode('.jpg', cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
    return encoded.tobytes()[:-200]


def empty(content: bytes) -> bytes:
    return b''


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def broken_copy(shapes: Path, folder: Path, damage) -> Path:
    """The dataset with one training image that is none."""
    shutil.copytree(shapes, folder)
    victim = sorted((folder / 'images/train').iterdir())[3]
    victim.write_bytes(damage(victim.read_bytes()))
    return victim


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('damage', 'workers'),
    [
        (text, 0),
        (jpeg, 1),
        pytest.param(empty, 0, marks=pytest.mark.slow),
        pytest.param(half, 0, marks=pytest.mark.slow),
    ],
)
def test_an_image_that_is_none_stops_training_and_is_named(shapes, tmp_path, damage, workers):
    victim = broken_copy(shapes, tmp_path / 'd', damage)
    options = ['--data-root', tmp_path / 'd', '--work-dir', tmp_path / 'w', '--pretrained', 'none']
    extra = [f'train_dataloader.num_workers={workers}', 'train_dataloader.batch_size=8']
    said = refused('train', SEGMENTER, *options, *short(SEGMENTER, 2), *extra)
    assert str(victim) in said
    assert 'cannot be read as an image' in said
    assert '--skip-corrupt' in said
    assert '\n' not in said


@pytest.mark.parametrize('workers', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_image_that_is_none_is_skipped_and_counted_when_told_so(shapes, tmp_path, workers):
    victim = broken_copy(shapes, tmp_path / 'd', text)
    before = SKIPPED.count
    options = ['--data-root', tmp_path / 'd', '--work-dir', tmp_path / 'w', '--pretrained', 'none']
    extra = [f'train_dataloader.num_workers={workers}', 'train_dataloader.batch_size=8']
    arguments = [SEGMENTER, *options, '--skip-corrupt', *short(SEGMENTER, 2), *extra]
    tool('train').main([str(a) for a in arguments])
    log = log_of(tmp_path / 'w')
    count = SKIPPED.count - before
    assert count >= 2
    assert f'skipped unreadable image {victim}' in log
    assert f'{SKIPPED.count} times an unreadable image was skipped' in log


def test_infer_says_what_is_missing(tmp_path):
    assert 'no image and no folder' in refused('infer', DETECTOR, 'c.pth', tmp_path / 'x', '--out', tmp_path)
    assert 'no images' in refused('infer', DETECTOR, 'c.pth', tmp_path, '--out', tmp_path)


LOADER = """
import time
from torch.utils.data import DataLoader
from convnext_backbone.cli import run
loader = DataLoader(list(range(8)), num_workers=2, persistent_workers=True)
run(lambda: print(len(list(loader))))
time.sleep(1)  # in which the end of a worker is heard of
"""


INTERRUPTED = """
import atexit, time
from concurrent.futures import ThreadPoolExecutor
from convnext_backbone.cli import run
def work():
    ThreadPoolExecutor().submit(time.sleep, 60)
    raise KeyboardInterrupt
atexit.register(print, 'told')
run(work)
"""


def test_an_interrupt_ends_a_command_at_once_with_what_was_to_be_done_at_its_end():
    """130 is what a shell has after Ctrl-C: 128 and the number of SIGINT."""
    options = dict(capture_output=True, text=True, timeout=30)
    done = subprocess.run([sys.executable, '-c', INTERRUPTED], **options)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, 'told\n', '')


def test_the_end_of_data_loaders_is_no_error():
    """torch takes the end of a worker for one, wherever the program is then."""
    done = subprocess.run([sys.executable, '-c', LOADER], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '8\n', '')
