"""From a folder of labels to a config that trains: whatever the format, with every model."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_labels
import tifffile
import torch
from conftest import convnext
from mmdet.registry import TASK_UTILS
from PIL import Image
from test_labels import (
    NAMES,
    as_coco,
    as_labelme,
    as_masks,
    as_voc,
    as_yolo,
    make_image,
    make_truth,
    snapshot,
)

import convnext_backbone
from convnext_backbone.commands import new
from convnext_backbone.config import read_config
from convnext_backbone.errors import UserError
from convnext_backbone.labels import read_labels
from convnext_backbone.measure import try_training
from convnext_backbone.measure.anchors import coverage
from convnext_backbone.new import MODELS, Machine, model_for, pixels_of, recipe_for
from convnext_backbone.new.recipe import image_sides, milestones

SMALL = ('--arch', 'atto', '--weights', 'none', '--size', '64', '--batch', '2')
CPU = Machine(0, 0.0, 2)


def as_folders(root: Path, count: int = 6) -> Path:
    for number, name in enumerate(('ant', 'bee', 'fly')):
        for i in range(count):
            make_image(root / name / f'{i}.png', (40, 32), 100 * number + i)
    return root


def make(folder: Path, *options, out: Path | None = None) -> Path:
    """Run the command; the config lies beside the folder."""
    out = out or folder.with_name(f'{folder.name}_{len(list(folder.parent.iterdir()))}.py')
    return new.main([str(folder), '--out', str(out), *SMALL, *map(str, options)])


def losses(work_dir: Path) -> list[tuple]:
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    rows = map(json.loads, file.read_text().splitlines())
    return [tuple((k, row[k]) for k in sorted(row) if 'loss' in k) for row in rows if 'loss' in row]


def train(config: Path, steps: int = 2) -> list[tuple]:
    work_dir = config.with_suffix('.run')
    options = ('--stop-at', str(steps), '--seed', '0', '--device', 'cpu', '--work-dir', str(work_dir))
    convnext('train', str(config), *options, '--cfg-options', 'default_hooks.logger.interval=1')
    return losses(work_dir)


@pytest.mark.slow  # they give the same files (tests/test_labels.py)
def test_copies_of_one_set_train_the_same_number_for_number(tmp_path):
    """COCO and Pascal VOC, whose classes are in other orders."""
    found = []
    for write in (as_coco, as_voc):
        root = write(tmp_path / write.__name__)
        before = snapshot(root)
        config = make(root, '--model', 'faster_rcnn')
        found.append(train(config))
        assert snapshot(root) == before
    assert len(found[0]) == 2
    assert len(dict(found[0][0])) >= 5
    assert found[0] == found[1]


@pytest.mark.slow
def test_real_images_in_every_format_train_the_same(real_data, tmp_path, monkeypatch):
    """Some of coco_mini, outlines of whole pixels: COCO, YOLO, LabelMe and CVAT; boxes: Pascal VOC."""
    truth, source = {}, {}
    for part in ('train', 'val'):
        file = real_data / f'coco_mini/annotations/instances_{part}2017.json'
        content = json.loads(file.read_text())
        names = {c['id']: c['name'] for c in content['categories']}
        for image in content['images'][: 10 if part == 'train' else 3]:
            objects = []
            for own in content['annotations']:
                if own['image_id'] == image['id'] and not own['iscrowd']:
                    x, y, w, h = map(round, own['bbox'])
                    right, low = min(x + max(w, 2), image['width']), min(y + max(h, 2), image['height'])
                    objects.append((names[own['category_id']], [x, y, right, y, right, low, x, low]))
            truth[image['file_name']] = (part, (image['width'], image['height']), objects)
            source[image['file_name']] = real_data / f'coco_mini/{part}2017' / image['file_name']

    def put_real(root: Path, place: str, truth) -> None:
        for name, (part, *_) in truth.items():
            target = root / place.format(split=part) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source[name], target)

    monkeypatch.setattr(test_labels, 'put_images', put_real)
    used = {name for *_, objects in truth.values() for name, _ in objects}
    monkeypatch.setattr(test_labels, 'NAMES', tuple(sorted(used, reverse=True)))
    found = {}
    for write in (as_coco, as_yolo, as_labelme, test_labels.as_cvat):
        options = dict(digits=9) if write is as_yolo else {}
        root = write(tmp_path / write.__name__, truth, polygons=True, **options)
        found[write.__name__] = train(make(root, '--model', 'mask_rcnn'))
    assert len({str(rows) for rows in found.values()}) == 1, found
    boxes = [train(make(write(tmp_path / f'boxes_{write.__name__}', truth))) for write in (as_coco, as_voc)]
    assert boxes[0] == boxes[1]


@pytest.mark.slow
def test_a_segmenter_trains(tmp_path):
    """A classifier does in tests/test_report.py; one with a config of ours in tests/test_tools.py."""
    as_masks(tmp_path / 'streets')
    rows = train(make(tmp_path / 'streets'))
    assert [math.isfinite(v) for row in rows for _, v in row] == [True] * 6


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=() if n == 'rtmdet' else pytest.mark.slow) for n in MODELS]
)
@pytest.mark.parametrize('arch', ['atto', pytest.param('base', marks=pytest.mark.slow)])
def test_every_model_trains_a_step(name, arch, tmp_path):
    """On made-up data, with the classes of the set in every head."""
    for task in MODELS[name].bases:
        root = tmp_path / task
        if task == 'classes':
            as_folders(root)
        elif task == 'masks':
            as_masks(root)
        else:
            as_coco(root, polygons=task == 'segments')
        config = make(root, '--model', name, '--arch', arch)
        assert len(config.read_text().splitlines()) < 110
        assert not re.search(r'#\s*$', config.read_text(), re.MULTILINE)  # a change without its reason
        cfg = read_config(config)
        if task == 'classes':
            assert cfg.model.num_classes == 3
            continue
        trial = try_training(cfg)
        assert trial.finite
        assert not trial.without_gradient


@pytest.mark.parametrize(
    ('task', 'model'),
    [('boxes', 'faster_rcnn'), ('segments', 'mask_rcnn'), ('masks', 'upernet'), ('classes', 'classifier')],
)
def test_what_fits_the_labels_is_the_default(task, model):
    assert model_for(task) == model
    assert {n for n, m in MODELS.items() if task in m.bases} >= {model}


def labels_of(count: int, size=(640, 480), task: str = 'boxes'):
    from convnext_backbone.labels import Labels, Sample

    samples = tuple(Sample(Path(f'{i}.jpg'), *size) for i in range(count))
    return Labels(Path('x'), 'coco', task, ('a',), dict(train=samples, val=samples[:1]), True)


@pytest.mark.parametrize(
    ('count', 'machine', 'epochs', 'batch', 'rate'),
    [
        (100, CPU, 150, 2, 1e-4 * (2 / 16) ** 0.5),
        (1000, CPU, 100, 2, 1e-4 * (2 / 16) ** 0.5),
        (118287, Machine(8, 80.0, 64), 12, 8, 1e-4 * 2),
        (5000, Machine(1, 24.0, 16), 20, 4, 1e-4 / 2),
        (1, CPU, 150, 1, 1e-4 / 4),
    ],
)
def test_schedule_batch_and_rate_by_hand(count, machine, epochs, batch, rate):
    recipe = recipe_for(labels_of(count), 1e-4, 16, machine)
    assert (recipe.epochs, recipe.batch) == (epochs, batch)
    assert recipe.rate == pytest.approx(rate, rel=0.03)
    steps = epochs * (count // (batch * recipe.gpus))
    assert recipe.warm_up == max(1, min(500, steps // 10))


def test_the_size_of_images_by_hand():
    assert image_sides(labels_of(3), None)[:2] == (704, 928)  # 720 to a multiple of 32; 4 to 3
    assert image_sides(labels_of(3, (4000, 3000)), None)[:2] == (800, 1056)
    assert image_sides(labels_of(3, (100, 100)), None)[:2] == (320, 320)
    assert image_sides(labels_of(3, (480, 360), 'masks'), None)[:2] == (352, 480)
    assert image_sides(labels_of(3, (2048, 1024), 'masks'), None)[:2] == (512, 2048)
    assert image_sides(labels_of(3, (480, 360), 'masks'), 64)[:2] == (64, 85)  # the images, not crops alone
    assert image_sides(labels_of(3), 100)[:2] == (96, 128)
    assert milestones(36) == [27, 33]  # as published
    assert [milestones(n) for n in (1, 2, 3, 12)] == [[], [1], [2], [9, 11]]  # none at the end


@pytest.mark.parametrize('kind', ['four channels', '12 bits'])
def test_pixels_of_instruments_are_measured(kind, tmp_path):
    random = np.random.default_rng(0)
    root, images = as_coco(tmp_path / 'set', make_truth(4), file='{split}.json'), []
    for file in sorted(root.rglob('*.jpg')):
        width, height = Image.open(file).size
        if kind == 'four channels':
            image = random.integers(0, 200, (height, width, 4), np.uint8)
            tifffile.imwrite(file.with_suffix('.tif'), image, photometric='rgb', extrasamples=['unspecified'])
        else:
            image = random.integers(0, 4096, (height, width), np.uint16)
            Image.fromarray(image).save(file.with_suffix('.png'))
        file.unlink()
        if 'train' in file.parts:
            images.append(image.reshape(-1, 4 if kind == 'four channels' else 1))
    for file in root.glob('*.json'):
        file.write_text(file.read_text().replace('.jpg', '.tif' if kind == 'four channels' else '.png'))
    pixels = pixels_of(read_labels(root))
    values = np.concatenate(images).astype(float)
    if kind == 'four channels':
        order = [2, 1, 0, 3]  # as OpenCV loads them
        assert pixels.channels == 4
        assert pixels.mean == pytest.approx(values.mean(0)[order], abs=0.01)
        assert pixels.std == pytest.approx(values.std(0)[order], abs=0.01)
    else:
        assert pixels.load == dict(bits=12)
        assert pixels.mean == pytest.approx([values.mean() / 4095 * 255] * 3, abs=0.5)
        assert pixels.std == pytest.approx([values.std() / 4095 * 255] * 3, abs=0.5)
    cfg = read_config(make(root, '--model', 'faster_rcnn'))
    assert list(cfg.model.data_preprocessor.mean) == pixels.mean
    assert try_training(cfg).finite


def test_images_are_normalised_as_those_of_the_weights(tmp_path):
    """CLIP's, by OpenAI: 0.481, 0.458, 0.408 and 0.269, 0.261, 0.276 of RGB in 0 to 1."""
    options = ('--arch', 'base', '--weights', 'clip_convnext_base_laion2b')
    mean, std = [0.48145, 0.45783, 0.40821], [0.26863, 0.2613, 0.27578]
    detector = read_config(make(as_yolo(tmp_path / 'boxes'), *options)).model
    assert detector.backbone.init_cfg.checkpoint == 'clip_convnext_base_laion2b'
    assert [value / 255 for value in detector.data_preprocessor.mean] == pytest.approx(mean, abs=1e-5)
    assert [value / 255 for value in detector.data_preprocessor.std] == pytest.approx(std, abs=1e-5)
    cfg = read_config(make(as_folders(tmp_path / 'classes'), *options))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert [list(loader.dataset.transform[key]) for key in ('mean', 'std')] == [mean, std]
    assert 'data_preprocessor' not in cfg.model


def test_anchors_are_those_of_the_boxes(tmp_path, capsys):
    """Boxes that are long and flat: the coverage of the config's anchors is what was printed, and larger."""
    truth = {}
    for number in range(12):
        objects = []
        for name, (left, top, right, bottom) in dict(ant=(0, 20, 250, 45), Cat=(9, 80, 249, 104)).items():
            left, right = left + 3 * number, right + 3 * number
            objects.append((name, [left, top, right, top, right, bottom, left, bottom]))
        truth[f'{number:02}.jpg'] = ('val' if number < 2 else 'train', (320, 320), objects)
    root = as_yolo(tmp_path / 'flat', truth)
    out = tmp_path / 'flat.py'
    new.main([str(root), '--out', str(out), '--arch', 'atto', '--weights', 'none', '--size', '320'])
    said = next(line for line in capsys.readouterr().out.splitlines() if 'anchors' in line)
    cfg = read_config(out)
    sizes = np.array([(250, 25), (240, 24)] * 10, float)
    generator = cfg.model.rpn_head.anchor_generator
    built = TASK_UTILS.build(dict(generator, _scope_='mmdet'))
    assert built.num_base_priors == [3] * 5  # as many: heads keep their shapes
    before = coverage(read_config('faster_rcnn_convnext_t').model.rpn_head.anchor_generator, sizes)
    assert before < 0.5 < coverage(generator, sizes)
    assert f'{before:.0%}'.rstrip('%') in said


def test_a_config_and_its_lists_can_be_moved(tmp_path):
    root = as_labelme(tmp_path / 'set')
    config = make(root, out=tmp_path / 'a' / 'own.py') if (tmp_path / 'a').mkdir() is None else None
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    cfg = read_config(tmp_path / 'b' / config.name)
    assert Path(cfg.train_dataloader.dataset.ann_file) == tmp_path / 'b' / 'own_labels' / 'train.json'
    assert Path(cfg.train_dataloader.dataset.ann_file).is_file()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (
            ['--model', 'mask_rcnn'],
            '--model mask_rcnn learns from boxes with outlines; here are boxes without',
        ),
        (['--model', 'mask_rcn'], 'mask_rcn'),
        (['--arch', 'tinny'], "no ConvNeXt is called 'tinny'"),
        (['--weights', 'convnext_base_22k_224'], 'of another network than --arch atto'),
        (['--epochs', '0'], '--epochs must be at least 1, got 0'),
        (
            ['--batch', '1000'],
            'a step has 1000 images, and there are 11 to train on: give --batch 11 or less',
        ),
        (['--out', 'new.txt'], 'give a file that ends in .py'),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, said, tmp_path):
    root = as_yolo(tmp_path / 'set')
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        make(root, *options, out=None if '--out' in options else tmp_path / 'own.py')
    assert said in str(caught.value)
    assert '\n' not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_an_output_that_exists_is_left_alone(tmp_path):
    root, out = as_yolo(tmp_path / 'set'), tmp_path / 'own.py'
    out.write_text('x = 1\n')
    with pytest.raises(UserError, match='exists: remove it or choose another --out'):
        make(root, out=out)
    assert out.read_text() == 'x = 1\n'


def test_classes_with_quotes_and_spaces_are_read_back(tmp_path):
    root = as_coco(tmp_path / 'set')
    names = ['None', "it's \\ {{ _base_.model }} {{ fileDirname }}", 'ü  "y"']
    for file in root.rglob('*.json'):
        content = json.loads(file.read_text())
        for category in content['categories']:
            category['name'] = names[NAMES.index(category['name'])]
        file.write_text(json.dumps(content))
    cfg = read_config(make(root))
    assert sorted(cfg.train_dataloader.dataset.metainfo.classes) == sorted(names)
    assert torch.tensor(cfg.model.roi_head.bbox_head.num_classes) == 3


@pytest.mark.parametrize('epochs', [1, 2])
def test_short_schedules_pass_the_check(epochs, tmp_path, capsys):
    config = make(as_yolo(tmp_path / 'set'), '--epochs', epochs)
    assert 'param_scheduler' not in capsys.readouterr().out  # no warning
    schedule = read_config(config).param_scheduler
    assert [s.type for s in schedule] == ['LinearLR', 'MultiStepLR'][:epochs]


def test_nothing_is_written_among_the_labels(tmp_path, monkeypatch):
    """Not even where COCO files could be used as they lie: in the folder itself the default is there."""
    root = as_coco(tmp_path / 'set')
    before = snapshot(root)
    monkeypatch.chdir(root)
    for options in (['.'], [str(root), '--out', str(root / 'train' / 'own.py')]):
        with pytest.raises(UserError, match='where nothing is written: give --out FILE.py in another'):
            new.main([*options, *SMALL])
    assert snapshot(root) == before


def test_random_weights_have_a_recipe_of_their_own(tmp_path):
    """And those of a file keep that of the base."""
    root, file = as_folders(tmp_path / 'set'), tmp_path / 'own weights.pth'
    model = read_config(make(root)).model
    assert (model.backbone.layer_scale_init_value, model.head_init_scale, model.init_cfg) == (1.0, 1.0, None)
    assert model.backbone.init_cfg[0].mode == 'fan_in'
    torch.save(dict(model=convnext_backbone.ConvNeXt('atto').state_dict()), file)
    out = tmp_path / 'own.py'
    new.main([str(root), '--out', str(out), *SMALL, '--weights', str(file)])
    cfg = read_config(out)
    assert cfg.model.init_cfg.checkpoint == str(file)
    assert 'layer_scale_init_value' not in cfg.model.backbone
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4 * (2 / 64) ** 0.5, rel=0.03)
    detector = read_config(make(as_yolo(tmp_path / 'boxes'))).model.backbone
    assert detector.init_cfg is None  # not by fan-in: it pads, see new/text.py
    v2 = read_config(make(root, '--arch', 'v2_atto')).model.backbone
    assert not v2.get('layer_scale_init_value')


@pytest.mark.parametrize(
    'name',
    ["it's", 'a "b" ü', '{{ fileDirname }}', '{{ _base_.model }}', '{{ $HOME: }}', 'a\\b', '"""', 'v1.5 %s'],
)
def test_folders_may_have_any_name(name, tmp_path, capsys):
    """That of the labels and that of the config: mmengine replaces ``{{ ... }}`` in the text of a config."""
    root = as_yolo(tmp_path / 'data' / name, make_truth(4))
    for out in (tmp_path / 'own.py', tmp_path / name / 'own.py', root.parent / 'own.py'):
        out.parent.mkdir(exist_ok=True)
        make(root, out=out)  # SystemExit if the check finds errors
        dataset = read_config(out).train_dataloader.dataset
        assert dataset.data_prefix.img == str(root / 'images' / 'train')
        assert dataset.ann_file == str(out.with_name('own_labels') / 'train.json')
        assert 'next: convnext train' in capsys.readouterr().out


def test_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    root = as_yolo(tmp_path / 'my set')
    (tmp_path / 'link').symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for folder in ('my set/', 'link'):
        out = new.main([folder, *SMALL])
        assert out == Path(f'{Path(folder).name.replace(" ", "_")}.py')
        monkeypatch.chdir('/')
        place = Path(read_config(tmp_path / out).val_dataloader.dataset.data_prefix.img)
        assert place == tmp_path / Path(folder) / 'images' / 'val'
        monkeypatch.chdir(tmp_path)


def test_an_error_of_the_check_is_no_invitation_to_train(tmp_path, capsys):
    truth = {
        n: (part, size, objects * (part == 'train')) for n, (part, size, objects) in make_truth().items()
    }
    with pytest.raises(SystemExit):
        make(as_yolo(tmp_path / 'set', truth))
    said = capsys.readouterr().out
    assert 'there is nothing to evaluate' in said
    assert 'cannot train before the errors above are corrected' in said
    assert 'next:' not in said


def test_dino_has_no_more_queries_than_places(tmp_path):
    """Images of 320 and 0.6 of it: 24, 12, 6 and 3 places in a row of the maps."""
    root = as_yolo(tmp_path / 'set')
    model = read_config(make(root, '--model', 'dino', '--size', 320)).model
    assert model.num_queries == 24**2 + 12**2 + 6**2 + 3**2
    assert model.test_cfg.max_per_img == 300
    assert read_config(make(root, '--model', 'dino', '--size', 800)).model.num_queries == 900
    model = read_config(make(root, '--model', 'dino')).model  # 64 and 32
    assert (model.num_queries, model.test_cfg.max_per_img) == (4**2 + 2**2 + 1 + 1, 3 * 22)


@pytest.mark.parametrize('model', ['rtmdet', 'mask2former'])
def test_the_size_asked_for_reaches_every_step(model, tmp_path):
    """RTMDet's mosaics are of 640, Mask2Former's batches padded to 1024."""
    config = make(as_coco(tmp_path / 'set', polygons=True), '--model', model)
    cfg = read_config(config)
    parts = [cfg.model.data_preprocessor, cfg.train_dataloader, cfg.val_dataloader, cfg.get('custom_hooks')]
    assert not re.search('640|1280|1024', repr(parts))
    if model == 'rtmdet':
        assert repr(parts).count('64, 64') >= 9
        assert '640' in repr(
            read_config(make(tmp_path / 'set', '--model', model, '--size', 640)).train_dataloader
        )
    else:
        assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
        assert '[1.0] * 3 + [0.1]' in config.read_text()
