"""Classification: data from folders, tar files and shards, metrics, training on one and two processes."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, log_of, tool, train_in_processes
from mmengine.config import Config
from PIL import Image

from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.checkpoint import load_checkpoint
from convnext_backbone.classification import Accuracy, Classifier, ImageDataset, ImageStream, collate_images
from convnext_backbone.classification.data import image_transform
from convnext_backbone.config import set_batch
from convnext_backbone.engine.launch import start_processes
from convnext_backbone.errors import SKIPPED, UnreadableImage, UserError
from convnext_backbone.shapes import CLASSES


def accuracy(logits, labels, topk=(1, 2)) -> dict:
    metric = Accuracy(topk=topk)
    metric.process({}, [dict(logits=torch.tensor(x), label=y) for x, y in zip(logits, labels)])
    return metric.compute_metrics(metric.results)


def test_accuracy_by_hand():
    logits = [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]
    assert accuracy(logits, [0, 2, 1, 1]) == {'top1': 50.0, 'top2': 75.0}
    assert accuracy(logits, [0, 2, 1, 1], topk=(1, 5)) == {'top1': 50.0}  # there are three classes


@pytest.mark.parametrize(('value', 'top1'), [(float('nan'), 0.0), (0.0, 25.0)])
def test_a_classifier_that_says_nothing_is_not_right(value, top1):
    """NaN everywhere is never right, constant logits once in as many classes."""
    assert accuracy([[value] * 4] * 4, [0, 1, 2, 3])['top1'] == top1


def test_images_and_classes_come_from_folders(shapes):
    data = ImageDataset(
        str(shapes / 'classification'), 'val', dict(input_size=32, is_training=False, crop_pct=1.0)
    )
    assert len(data) == 10
    assert data.metainfo['classes'] == CLASSES
    assert data[9]['inputs'].shape == (3, 32, 32)
    assert [data[i]['labels'] for i in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_an_image_that_is_none_is_named_not_replaced(shapes, tmp_path):
    shutil.copytree(shapes / 'classification', tmp_path / 'c')
    victim = sorted((tmp_path / 'c/val/cross').iterdir())[0]
    victim.write_text('no image')
    data = ImageDataset(str(tmp_path / 'c'), 'val', dict(input_size=32))
    with pytest.raises(UnreadableImage, match=victim.name):
        data[2]
    with pytest.raises(UserError, match='no images'):
        ImageDataset(str(tmp_path / 'empty'), 'val', dict(input_size=32))


def test_head_init_scale_scales_the_head_and_nothing_else():
    models = []
    for scale in (1.0, 0.001):
        torch.manual_seed(0)
        backbone = dict(type='convnext_backbone.ConvNeXt', depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
        models.append(Classifier(backbone, 5, head_init_scale=scale).state_dict())
    torch.testing.assert_close(models[0]['head.weight'] * 0.001, models[1]['head.weight'])
    assert all(torch.equal(models[0][k], models[1][k]) for k in models[0] if k != 'head.weight')


def test_accuracy_of_each_class_and_the_confusion_are_written(tmp_path):
    """Labels a a b c; predicted a b b b."""
    metric = Accuracy(topk=(1,), out_dir=str(tmp_path))
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'd'))
    for label, predicted in ((0, 0), (0, 1), (1, 1), (2, 1)):
        metric.process({}, [dict(logits=torch.eye(4)[predicted], label=label)])
    assert metric.compute_metrics(metric.results) == {'top1': 50.0}
    assert json.loads((tmp_path / 'per_class.json').read_text()) == {
        'a': dict(top1=50.0, images=2),
        'b': dict(top1=100.0, images=1),
        'c': dict(top1=0.0, images=1),
        'd': dict(top1=None, images=0),
    }
    picture = cv2.imread(str(tmp_path / 'confusion.png'))
    assert min(picture.shape[:2]) > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def batch_config(**wrapper) -> Config:
    optimizer = dict(type='AdamW', lr=4e-3)
    return Config(
        dict(
            launcher='pytorch',
            train_dataloader=dict(batch_size=128),
            optim_wrapper=dict(optimizer=optimizer, **wrapper),
            auto_scale_lr=dict(enable=False, base_batch_size=4096),
            custom_hooks=[dict(type='EMAHook')],
        )
    )


@pytest.mark.parametrize(('processes', 'counts'), [(1, 32), (8, 4), (32, 1)])
def test_steps_are_accumulated_to_the_batch_of_the_recipe(monkeypatch, processes, counts):
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    cfg = batch_config(accumulative_counts='auto')
    (note,) = set_batch(cfg)
    assert cfg.optim_wrapper.accumulative_counts == cfg.custom_hooks[0].interval == counts
    assert note.startswith('effective batch: 4096 images per update')
    assert note.endswith('learning rate 0.004')


def test_another_batch_than_the_recipes_is_a_warning_with_the_right_numbers(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '6')
    cfg = batch_config()
    note, warning = set_batch(cfg)
    assert note.startswith('effective batch: 768 images per update (6 x 128)')
    assert warning.startswith('warning: the recipe has 4096 images per update, this run 768')
    assert warning.endswith('the learning rate would be 0.00075 (--auto-scale-lr)')  # 4e-3 * 768 / 4096
    monkeypatch.setenv('WORLD_SIZE', '8')
    _, warning = set_batch(batch_config())
    assert 'train_dataloader.batch_size=128 optim_wrapper.accumulative_counts=4' in warning
    cfg = batch_config()
    _, note = set_batch(cfg, scale_lr=True)
    assert 'scaled to 0.001' in note
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3)
    cfg.auto_scale_lr = None
    with pytest.raises(UserError, match='has no auto_scale_lr.base_batch_size'):
        set_batch(cfg, scale_lr=True)


def test_one_process_in_a_slurm_shell_is_one_process(monkeypatch):
    monkeypatch.setenv('SLURM_NTASKS', '8')
    cfg = batch_config(accumulative_counts='auto')
    cfg.launcher = 'none'
    assert '(1 x 128 x 32 accumulated)' in set_batch(cfg)[0]
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match='2 processes were started, but --launcher is none'):
        start_processes(cfg, 'none', 'cpu')


def small_classifier(classes: int = 5, **kwargs) -> Classifier:
    torch.manual_seed(0)
    backbone = dict(type='convnext_backbone.ConvNeXt', depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    return Classifier(dict(backbone, layer_scale_init_value=1.0), classes, **kwargs).double()


def test_mixup_targets_by_hand(monkeypatch):
    """Smoothing 0.1 over five classes: 0.92 and 0.02, of both images in shares 0.3 and 0.7."""
    monkeypatch.setattr(np.random, 'beta', lambda a, b: 0.3)
    model = small_classifier(label_smoothing=0.1, mixup=dict(mixup_alpha=0.8))
    x, labels = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 4])
    targets = torch.full((2, 5), 0.02, dtype=torch.float64)
    targets[0, 1], targets[0, 4] = 0.3 * 0.92 + 0.7 * 0.02, 0.7 * 0.92 + 0.3 * 0.02
    targets[1, 4], targets[1, 1] = targets[0, 1].item(), targets[0, 4].item()
    logits = model(0.3 * x + 0.7 * x.flip(0))
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model(x.clone(), labels, mode='loss')['loss'], expected, rtol=1e-6, atol=0)
    model.mixup = None  # smoothing alone
    targets = torch.full((2, 5), 0.02, dtype=torch.float64)
    targets[0, 1] = targets[1, 4] = 0.92
    expected = -(targets * model(x).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model(x, labels, mode='loss')['loss'], expected)


def test_a_head_of_22k_classes_trains_and_is_scored():
    model = small_classifier(21841).float()
    loss = model(torch.randn(2, 3, 32, 32), torch.tensor([0, 21840]), mode='loss')['loss']
    loss.backward()
    assert loss.item() == pytest.approx(np.log(21841), rel=0.05)
    assert model.head.weight.grad.isfinite().all()
    assert accuracy(model(torch.randn(2, 3, 32, 32)).tolist(), [0, 21840], topk=(1, 5)).keys() == {
        'top1',
        'top5',
    }


FOLDERS = """
_base_ = '{root}/configs/_base_/default_runtime.py'
model = dict(
    type='convnext_backbone.Classifier',
    backbone=dict(type='convnext_backbone.ConvNeXt', depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)),
    num_classes=5,
)
images = dict(type='convnext_backbone.ImageDataset', data_root='{data}', split='train',
              transform=dict(input_size=32, is_training=False, crop_pct=1.0))
common = dict(num_workers=0, collate_fn=dict(type='convnext_backbone.collate_images'),
              sampler=dict(type='DefaultSampler', shuffle=False))
train_dataloader = dict(batch_size={batch}, dataset=images, **common)
val_dataloader = dict(batch_size=4, dataset=dict(images, split='val'), **common)
test_dataloader = val_dataloader
val_evaluator = dict(type='convnext_backbone.Accuracy')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), accumulative_counts=2)
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
default_scope = 'mmengine'
visualizer = dict(type='Visualizer',
                  vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
"""


def write_config(folder: Path, data: Path, batch: int = 8, more: str = '') -> str:
    file = folder / f'folders_{batch}.py'
    file.write_text(FOLDERS.format(root=ROOT, data=data, batch=batch) + more)
    return str(file)


def train(config: str, work_dir: Path, *options: str) -> Path:
    tool('train').main([config, '--work-dir', str(work_dir), '--device', 'cpu', '--seed', '0', *options])
    return work_dir / 'epoch_2.pth'


def written_top1(work_dir: Path) -> list[float]:
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [row['top1'] for row in map(json.loads, file.read_text().splitlines()) if 'top1' in row]


@pytest.fixture(scope='module')
def one_process(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('one')
    data = shutil.copytree(shapes / 'classification', folder / 'data')
    sorted((data / 'val/cross').iterdir())[0].unlink()  # nine images: the last batch is padded
    return train(write_config(folder, data), folder / 'w')


@pytest.mark.xdist_group('classifier')
def test_two_processes_train_and_score_as_one_with_twice_the_batch(one_process, tmp_path):
    """Same images in the same order; nine validation images, none counted twice."""
    folder = one_process.parent.parent
    config = write_config(folder, folder / 'data', batch=4)
    options = ['--work-dir', str(tmp_path), '--device', 'cpu', '--seed', '0']
    result = train_in_processes([config, *options], tmp_path / 'log')
    assert result.returncode == 0, result.stdout[-3000:]
    one, two = (torch.load(file, weights_only=False) for file in (one_process, tmp_path / 'epoch_2.pth'))
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in one[key].items():
            torch.testing.assert_close(two[key][name], value, rtol=1e-4, atol=1e-5)
    scores = written_top1(one_process.parent)
    assert scores == written_top1(tmp_path)
    assert len(scores) == 2
    ninths = [score * 9 / 100 for score in scores]
    assert ninths == pytest.approx([round(n) for n in ninths])


@pytest.mark.xdist_group('classifier')
def test_losses_can_be_read_in_json_and_tensorboard(one_process):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = one_process.parent.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload().Scalars('top1')
    assert [event.value for event in events] == pytest.approx(written_top1(one_process.parent))


@pytest.mark.xdist_group('classifier')
def test_hand_over_takes_the_final_weights_or_the_average_as_told(one_process):
    content = torch.load(one_process, weights_only=False)
    average, final = content['state_dict'], content['ema_state_dict']  # mmengine swaps them
    for weights, expected, prefix in (('final', final, 'module.'), ('ema', average, '')):
        model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
        report = load_checkpoint(model, one_process, weights=weights)
        assert f'{weights} weights' in report.file
        name = 'stages.0.0.pwconv1.weight'
        assert torch.equal(model.state_dict()[name], expected[f'{prefix}backbone.{name}'])
    assert not torch.equal(average['head.weight'], final['module.head.weight'])
    del content['ema_state_dict']
    torch.save(content, one_process.parent / 'plain.pth')
    with pytest.raises(UserError, match='holds no moving average'):
        load_checkpoint(model, one_process.parent / 'plain.pth', weights='ema')
    with pytest.raises(UserError, match="got 'best'"):
        load_checkpoint(model, one_process, weights='best')


@pytest.mark.xdist_group('classifier')
def test_the_average_is_taken_at_every_update_and_is_what_is_tested(one_process, monkeypatch):
    """momentum 0.1, two steps per update: w0, then 0.9 of the average and 0.1 of the new weights."""
    folder, seen = one_process.parent.parent, []
    config = write_config(folder, folder / 'data')
    from mmengine.hooks import EMAHook

    original = EMAHook.after_train_iter

    def after_train_iter(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        seen.append(self.src_model.head.weight.detach().clone())

    monkeypatch.setattr(EMAHook, 'after_train_iter', after_train_iter)
    file = train(config, folder / 'again')
    average = seen[0]
    for step in range(2, len(seen), 2):  # the weights after the updates
        average = 0.9 * average + 0.1 * seen[step]
    content = torch.load(file, weights_only=False)
    assert len(seen) == 10  # 40 images, batches of 8, twice
    torch.testing.assert_close(content['state_dict']['head.weight'], average)
    assert torch.equal(content['ema_state_dict']['module.head.weight'], seen[-1])
    tested = tool('test').main([config, str(file), '--work-dir', str(folder / 't'), '--device', 'cpu'])
    assert f'{tested["top1"]:.4f}' in log_of(folder / 'again').splitlines()[-1]
    assert json.loads((folder / 't/per_class.json').read_text())['cross']['images'] == 1


def with_checkpoints(folder: Path, data: Path, batch: int) -> str:
    """Shuffled, and a checkpoint every second step."""
    more = 'default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=-1))\n'
    return write_config(folder, data, batch, more + "train_dataloader['sampler']['shuffle'] = True\n")


@pytest.mark.xdist_group('classifier')
def test_a_training_goes_on_in_the_middle_of_an_epoch(shapes, tmp_path, monkeypatch):
    """Five steps an epoch, stopped after six: the rest sees the images that were left, and ends the same."""
    seen, original = [], Classifier.forward

    def forward(self, inputs, labels=None, mode='tensor'):
        if mode == 'loss':
            seen.append(inputs.sum((1, 2, 3)).tolist())
        return original(self, inputs, labels, mode)

    monkeypatch.setattr(Classifier, 'forward', forward)
    config = with_checkpoints(tmp_path, shapes / 'classification', 8)
    train(config, tmp_path / 'whole')
    whole, stop = seen[:], tmp_path / 'whole/iter_6.pth'
    assert len(whole) == 10
    assert whole[:5] != whole[5:]
    seen.clear()
    again = shutil.copy(config, tmp_path / 'again.py')  # another name, for another log
    train(str(again), tmp_path / 'rest', '--resume', str(stop))
    assert seen == whole[6:]
    log = log_of(tmp_path / 'rest')
    assert 'epoch 2 goes on at batch 2 of 5' in log
    assert 'Epoch(train) [2][5/5]' in log
    a, b = (torch.load(tmp_path / name / 'iter_10.pth', weights_only=False) for name in ('whole', 'rest'))
    for key in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, b[key][name]) for name, value in a[key].items()), key
    config = with_checkpoints(tmp_path, shapes / 'classification', 4)
    with pytest.raises(UserError, match='had 5 steps per epoch, this one has 10'):
        train(config, tmp_path / 'smaller', '--resume', str(stop))


@pytest.mark.xdist_group('classifier')
def test_a_checkpoint_with_other_classes_is_refused(one_process, tmp_path):
    folder = one_process.parent.parent
    data = shutil.copytree(folder / 'data', tmp_path / 'data')
    for split in ('train', 'val'):
        (data / split / 'cross').rename(data / split / 'crucifix')
    with pytest.raises(UserError, match='was trained for 5 classes'):
        arguments = [write_config(tmp_path, data), str(one_process), '--work-dir', str(tmp_path / 'w')]
        tool('test').main([*arguments, '--device', 'cpu'])
    with pytest.raises(
        UserError, match=r'does not fit Classifier[\s\S]*head.weight: file \(5, 16\), model \(7, 16\)'
    ):
        options = [
            '--cfg-options',
            'model.num_classes=7',
            '--device',
            'cpu',
            '--work-dir',
            str(tmp_path / 'w'),
        ]
        tool('test').main([write_config(tmp_path, folder / 'data'), str(one_process), *options])


@pytest.mark.xdist_group('classifier')
def test_a_released_classifier_is_tested_as_it_is(one_process, tmp_path):
    """``{'model': ...}`` with the names of the official files, through a config with a moving average."""
    folder = one_process.parent.parent
    state = torch.load(one_process, weights_only=False)['state_dict']
    torch.save(
        dict(model={k.removeprefix('backbone.'): v for k, v in state.items()}), tmp_path / 'official.pth'
    )
    config, options = write_config(folder, folder / 'data'), ['--work-dir', str(tmp_path), '--device', 'cpu']
    ours, theirs = (
        tool('test').main([config, str(f), *options]) for f in (one_process, tmp_path / 'official.pth')
    )
    assert ours['top1'] == theirs['top1']


def test_what_a_classifier_cannot_take_is_told():
    with pytest.raises(UserError, match="got type 'mmdet.ResNet'"):
        Classifier(dict(type='mmdet.ResNet'), 5)
    with pytest.raises(UserError, match='got type None'):
        Classifier(dict(), 5)
    with pytest.raises(UserError, match='mixup needs an even batch, got 3 images'):
        model = small_classifier(mixup=dict(mixup_alpha=0.8))
        model(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2]), mode='loss')


def test_an_image_that_cannot_be_opened_is_named_or_skipped_and_other_files_are_none(shapes, tmp_path):
    data = shutil.copytree(shapes / 'classification', tmp_path / 'data')
    victim = sorted((data / 'val/circle').iterdir())[0]
    victim.unlink()
    victim.symlink_to('nowhere.png')
    transform = dict(input_size=32, is_training=False)
    with pytest.raises(UnreadableImage, match=victim.name):
        ImageDataset(str(data), 'val', transform)[0]
    assert ImageDataset(str(data), 'val', transform, skip_corrupt=True)[0]['inputs'].shape == (3, 32, 32)
    (data / 'val/aardvark').mkdir()
    (data / 'val/aardvark/notes.txt').write_text('no image')
    with pytest.raises(UserError, match='aardvark is a class without images'):
        ImageDataset(str(data), 'val', transform)


@pytest.mark.parametrize(
    ('spoil', 'more', 'words'),
    [
        pytest.param(
            lambda data: (data / 'train/aardvark').mkdir(),
            '',
            'train/aardvark is a class without images',
            id='empty class',
        ),
        pytest.param(
            lambda data: shutil.copytree(data / 'val/cross', data / 'val/zebra'),
            '',
            '5 classes, the validation data 6; not in both: zebra',
            id='class in val only',
        ),
        pytest.param(
            lambda data: None,
            'model.update(num_classes=4)\n',
            'model.num_classes is 4, but the training data has 5 classes',
            id='other number',
        ),
    ],
)
def test_bad_data_is_told_in_words(shapes, tmp_path, spoil, more, words):
    data = shutil.copytree(shapes / 'classification', tmp_path / 'data')
    spoil(data)
    with pytest.raises(UserError) as error:
        train(write_config(tmp_path, data, more=more), tmp_path / 'w')
    assert words in str(error.value)


def test_a_truncated_image_is_named_or_skipped_when_told_so(shapes, tmp_path):
    data = shutil.copytree(shapes / 'classification', tmp_path / 'data')
    victim = sorted((data / 'train/cross').iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(UserError, match=re.escape(victim.name)):
        train(write_config(tmp_path, data), tmp_path / 'w')
    config = write_config(tmp_path, data, batch=4)  # another name, for another log
    train(config, tmp_path / 'skipping', '--skip-corrupt')
    log = log_of(tmp_path / 'skipping')
    assert f'skipped unreadable image {victim}' in log
    assert 'times an unreadable image was skipped' in log


def test_data_that_fills_no_batch_is_told(shapes, tmp_path):
    more = 'train_dataloader.update(drop_last=True)\n'
    with pytest.raises(UserError, match='has 40 images, fewer than a batch'):
        train(write_config(tmp_path, shapes / 'classification', batch=64, more=more), tmp_path / 'w')


def test_a_class_index_sets_the_order_and_must_know_every_folder(shapes, tmp_path):
    data = shutil.copytree(shapes / 'classification', tmp_path / 'data')
    index = {name: [number, name.upper()] for number, name in enumerate(reversed(CLASSES))}
    (data / 'index.json').write_text(json.dumps(index))
    images = ImageDataset(str(data), 'val', dict(input_size=32), class_index='index.json')
    assert images.metainfo['classes'] == tuple(reversed(CLASSES))
    assert sorted({images[i]['labels'] for i in range(len(images))}) == [0, 1, 2, 3, 4]
    assert images[0]['labels'] == 4  # the first folder is the last class
    for content, words in (
        (dict.fromkeys(CLASSES, 0), 'are not 0 to 4'),
        ({'cross': 0}, 'circle is a class that the class index does not have'),
        ([1], 'is no class index'),
    ):
        (data / 'index.json').write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            ImageDataset(str(data), 'val', dict(input_size=32), class_index='index.json')


def test_images_come_from_a_tar_file_in_the_same_order(shapes, tmp_path):
    with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
        tar.add(shapes / 'classification/val', arcname='.')
    transform = dict(input_size=32, is_training=False, crop_pct=1.0)
    packed = ImageDataset(str(tmp_path), 'val', transform)
    plain = ImageDataset(str(shapes / 'classification'), 'val', transform)
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken/val.tar').write_bytes(b'no tar at all' * 100)
    with pytest.raises(UserError, match="no images for split 'val' at .*/broken"):
        ImageDataset(str(tmp_path / 'broken'), 'val', transform)
    shutil.copytree(shapes / 'classification/val', tmp_path / 'both/val')
    shutil.copy(tmp_path / 'val.tar', tmp_path / 'both')
    sorted((tmp_path / 'both/val/cross').iterdir())[0].unlink()
    assert len(ImageDataset(str(tmp_path / 'both'), 'val', transform)) == 9  # the folder counts
    with pytest.raises(UserError, match='circle is a class that the class index does not have'):
        ImageDataset(str(tmp_path), 'val', transform, class_index={'cross': 0})
    assert packed.metainfo == plain.metainfo
    assert len(packed) == len(plain) == 10
    for a, b in zip((packed[i] for i in range(10)), (plain[i] for i in range(10))):
        assert a['labels'] == b['labels']
        assert torch.equal(a['inputs'], b['inputs'])


def test_random_augmentation_of_every_kind_and_strength_runs():
    """rand-m9 posterises to no bit at all now and then, which Pillow 13 refuses."""
    transform = image_transform(input_size=32, is_training=True, auto_augment='rand-m9-mstd0.5-inc1')
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    (augment,) = [step for step in transform.transforms if hasattr(step, 'ops')]
    for op in augment.ops:
        op.prob = 1.0
        for magnitude in (0, 5, 10):
            op.magnitude, op.magnitude_std = magnitude, 0
            assert op(image).size == image.size, op
    (posterize,) = [op for op in augment.ops if 'osterize' in op.name]
    posterize.magnitude = 10
    assert not np.asarray(posterize(image)).any()  # as Pillow did before: black


def test_batches_are_channels_last():
    samples = [dict(inputs=torch.randn(3, 8, 8), labels=i) for i in range(4)]
    batch = collate_images(samples)
    assert batch['inputs'].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch['inputs'][2], samples[2]['inputs'])
    assert batch['labels'].tolist() == [0, 1, 2, 3]


@pytest.fixture(scope='module')
def shards(shapes, tmp_path_factory) -> Path:
    """40 images in 8 shards; the label of image i is i, so that each can be told."""
    folder = tmp_path_factory.mktemp('shards')
    files = sorted((shapes / 'classification/train').glob('*/*'))
    for shard in range(8):
        with tarfile.open(folder / f'train-{shard:02d}.tar', 'w') as tar:
            for number in range(shard * 5, shard * 5 + 5):
                for suffix, data in (('png', files[number].read_bytes()), ('cls', str(number).encode())):
                    entry = tarfile.TarInfo(f'{number:04d}.{suffix}')
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return folder


def stream_loader(shards: Path, training: bool, workers: int, **options):
    pytest.importorskip('webdataset')
    dataset = dict(
        type='convnext_backbone.ImageStream',
        data_root=str(shards),
        split='train-{00..07}.tar|40',
        transform=dict(input_size=32, is_training=training, crop_pct=1.0),
    )
    loader = dict(
        batch_size=5,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=None,
        dataset=dataset,
        collate_fn=dict(type='convnext_backbone.collate_images'),
    )
    loader.update(options)
    from convnext_backbone.engine import Runner

    return Runner.build_dataloader(loader)


@pytest.mark.parametrize('workers', [0, 2])
def test_shards_give_every_image_once_in_another_order_each_epoch(shards, workers):
    loader = stream_loader(shards, True, workers)
    assert isinstance(loader.dataset, ImageStream)
    assert len(loader.dataset) == 40
    epochs = []
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        epochs.append([label for batch in loader for label in batch['labels'].tolist()])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1]
    tested = stream_loader(shards, False, workers)
    assert sorted(label for batch in tested for label in batch['labels'].tolist()) == list(range(40))


def test_an_epoch_of_shards_has_as_many_steps_as_it_says(shards):
    """Two workers with 20 images each, batches of 3: each reads 21 for 7 whole batches."""
    loader = stream_loader(shards, True, 2, batch_size=3, drop_last=True)
    assert len(loader) == 14
    assert [len(batch['labels']) for batch in loader] == [3] * 14


def test_an_image_in_a_shard_that_is_none_is_named(shards, tmp_path):
    pytest.importorskip('webdataset')
    shutil.copytree(shards, tmp_path / 's')
    content = (tmp_path / 's/train-03.tar').read_bytes()
    start = content.index(b'PNG')  # of the first image in it, number 15
    (tmp_path / 's/train-03.tar').write_bytes(content[:start] + b'JUNK' * 10 + content[start + 40 :])
    options = dict(split='train-{00..07}.tar|40', transform=dict(input_size=32, crop_pct=1.0))
    with pytest.raises(UnreadableImage, match=r'train-03.tar: 0015 cannot be read .*--skip-corrupt'):
        list(ImageStream(str(tmp_path / 's'), **options))
    before = SKIPPED.count
    left = [item['labels'] for item in ImageStream(str(tmp_path / 's'), skip_corrupt=True, **options)]
    assert left == [n for n in range(40) if n != 15]
    assert SKIPPED.count == before + 1


def test_shards_are_evaluated_by_one_process_only(shards, monkeypatch):
    monkeypatch.setattr('convnext_backbone.classification.data.get_world_size', lambda: 2)
    with pytest.raises(UserError, match='evaluated by one process'):
        stream_loader(shards, False, 0)
    with pytest.raises(UserError, match='no images for split'):
        ImageStream(str(shards), 'nothing', dict(input_size=32, is_training=True))


def test_a_slow_data_loader_is_told_once_with_both_speeds(shapes, tmp_path, monkeypatch):
    """Each image takes 20 ms: at most 50 per second; the model could take more."""
    import time

    original = ImageDataset.__getitem__

    def slow(self, index):
        time.sleep(0.02)
        return original(self, index)

    monkeypatch.setattr(ImageDataset, '__getitem__', slow)
    more = 'default_hooks = dict(data=dict(skip=2, steps=7))\n'
    train(write_config(tmp_path, shapes / 'classification', more=more), tmp_path / 'w')
    (line,) = [line for line in log_of(tmp_path / 'w').splitlines() if 'the data loader gives' in line]
    given, possible = map(float, re.findall(r'\d+\.\d', line))
    assert given < 50
    assert given < possible
    assert 'raise train_dataloader.num_workers, now 0' in line
