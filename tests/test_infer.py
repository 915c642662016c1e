"""What `convnext infer` writes, in each format, and how it goes on when something is wrong with one image."""

import contextlib
import errno
import json
import os
import re
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import tool
from mmcv.transforms import LoadAnnotations
from mmdet.datasets import transforms as mmdet_steps
from mmdet.structures import DetDataSample
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.datasets import transforms as mmseg_steps
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_backbone.classification.data import image_transform
from convnext_backbone.config import drop_pretrained, read_config, use_plain_batch_norm, without_annotations
from convnext_backbone.errors import UnreadableImage, UserError, message
from convnext_backbone.inference import Predictor, _shown
from convnext_backbone.inputs import image_files, named_files
from convnext_backbone.predictions import AnnotationFile, Image, LabelMaps, film_of, write_whole
from convnext_backbone.transforms import LoadMask

DETECTOR = 'configs/demo/mask_rcnn_shapes.py'
SEGMENTER = 'configs/demo/upernet_shapes.py'
CLASSES = ['circle', 'cross', 'square', 'star', 'triangle']
infer = tool('infer')


def checkpoint(config: str, file: Path, classes) -> str:
    """A checkpoint with the weights that a training starts with."""
    torch.manual_seed(0)
    cfg = read_config(config)
    use_plain_batch_norm(cfg)
    drop_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), file)
    return str(file)


def run(*arguments) -> None:
    infer.main([str(argument) for argument in (*arguments, '--device', 'cpu')])


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        run(*arguments)
    text = message(error.value)
    assert '\n' not in text
    return text


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith('error: ')]


# What is written


def evaluated(truth: Path, results: list[dict], task: str) -> dict[str, float]:
    """pycocotools' own figures, as `convnext test` names them; masks have the area of the mask."""
    coco = COCO(str(truth))
    if task == 'segm':
        results = [{key: value for key, value in each.items() if key != 'bbox'} for each in results]
    evaluation = COCOeval(coco, coco.loadRes(results), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    return {f'coco/{task}_{name}': value for name, value in zip(names, evaluation.stats[:6])}


@pytest.mark.matrix
def test_coco_results_are_evaluated_by_pycocotools_as_convnext_test_does(shapes, tmp_path):
    weights = checkpoint(DETECTOR, tmp_path / 'c.pth', CLASSES)
    images, out = shapes / 'images/val', tmp_path / 'out'
    run(DETECTOR, weights, images, '--out', out, '--format', 'coco')
    coco = COCO(str(out / 'images.json'))  # images and categories, numbered from 1
    names = sorted(file.name for file in images.iterdir())
    assert [(i, image['file_name']) for i, image in coco.imgs.items()] == [*enumerate(names, 1)]
    assert {i: category['name'] for i, category in coco.cats.items()} == dict(enumerate(CLASSES, 1))
    assert all((image['width'], image['height']) == (64, 64) for image in coco.imgs.values())
    found = json.loads((out / 'predictions.json').read_text())
    assert len(coco.loadRes(found).anns) == len(found) > 20
    assert min(each['score'] for each in found) < 0.3  # all of them, since all are evaluated

    # a truth by hand: the best third of the objects, half of them shifted, with ids of its own
    categories = [dict(id=10 * i + 7, name=name) for i, name in enumerate(CLASSES)]
    number_of = {category['name']: category['id'] for category in categories}
    truth = dict(categories=categories, images=[], annotations=[])
    for image in reversed(coco.dataset['images']):
        file_name = f'val/{image["file_name"]}'
        truth['images'].append(dict(id=100 - 3 * image['id'], file_name=file_name, width=64, height=64))
    best = sorted(found, key=lambda each: -each['score'])[: len(found) // 3]
    for i, each in enumerate(best):
        x, y, w, h = each['bbox']
        box = [x + 0.1 * w * (i % 2), y, w, h]
        corners = [box[0], y, box[0] + w, y, box[0] + w, y + h, box[0], y + h]
        truth['annotations'].append(
            dict(
                id=i + 1,
                image_id=100 - 3 * each['image_id'],
                category_id=number_of[CLASSES[each['category_id'] - 1]],
                bbox=box,
                area=w * h,
                segmentation=[corners],
                iscrowd=0,
            )
        )
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    numbered = ['--format', 'coco', '--ann-file', tmp_path / 'truth.json']
    run(DETECTOR, weights, images, '--out', tmp_path / 'second', *numbered)
    assert [file.name for file in (tmp_path / 'second').iterdir()] == ['predictions.json']
    results = json.loads((tmp_path / 'second/predictions.json').read_text())
    figures = {}
    for task in ('bbox', 'segm'):
        figures.update(evaluated(tmp_path / 'truth.json', results, task))
    assert figures['coco/bbox_mAP'] > 0.2
    assert figures['coco/segm_mAP'] > 0.2
    options = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    options += [f'test_dataloader.dataset.ann_file={tmp_path}/truth.json']
    options += ['test_dataloader.dataset.data_prefix.img=images/', 'test_evaluator.format_only=False']
    options += [f'test_evaluator.ann_file={tmp_path}/truth.json']
    work = ['--data-root', str(shapes), '--work-dir', str(tmp_path / 'w'), '--device', 'cpu']
    tested = tool('test').main([DETECTOR, weights, *work, '--cfg-options', *options])
    assert figures == pytest.approx({key: tested[key] for key in figures}, abs=1e-3)


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp('segmenter') / 'c.pth'
    return checkpoint(SEGMENTER, file, ['background', *CLASSES])


@pytest.mark.matrix
def test_label_maps_are_the_argmax_and_bad_images_do_not_end_the_run(segmenter, shapes, tmp_path, capsys):
    """In a folder with a sub-folder and a photo that was taken with the camera turned."""
    folder, out = tmp_path / 'images', tmp_path / 'out'
    (folder / 'sub').mkdir(parents=True)
    good = sorted((shapes / 'images/val').iterdir())[0].read_bytes()
    (folder / 'a.png').write_bytes(good)
    (folder / 'sub/z ü.png').write_bytes(good)
    image = PIL.Image.fromarray(cv2.imread(str(folder / 'a.png'))[:40, :, ::-1])
    exif = PIL.Image.Exif()
    exif[0x112] = 6  # a quarter turn
    image.save(folder / 'turned.jpg', exif=exif)
    assert PIL.Image.open(folder / 'turned.jpg').size == (64, 40)
    PIL.Image.new('RGB', (1, 1)).save(folder / 'one.png')
    (folder / 'cut.png').write_bytes(good[: len(good) // 2])
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.jpg').write_text('no image')
    with pytest.raises(UserError, match=r'4 of 7 images could not be predicted'):
        run(SEGMENTER, segmenter, folder, '--out', out, '--format', 'json', 'labels', '--recursive')
    said = lines(capsys.readouterr().err)
    bad = ['cut.png', 'empty.jpg', 'one.png', 'text.jpg']
    assert [re.match(r'error: \S*/(\w+\.\w+) ', line)[1] for line in said] == bad
    assert 'could not be predicted: an image of ' in said[2]
    assert 'is too small for' in said[2]

    names = ['a.png', 'sub/z ü.png', 'turned.jpg']
    expected = [f'{name}.{suffix}' for name in names for suffix in ('json', 'png')]
    expected += [f'labels/{name}.png' for name in names] + ['labels/classes.json']
    written = [file.relative_to(out).as_posix() for file in out.rglob('*') if file.is_file()]
    assert sorted(written) == sorted(expected)
    facts = json.loads((out / 'labels/classes.json').read_text())
    assert facts['classes'] == ['background', *CLASSES]
    assert 'counted from 0' in facts['rule']
    predictor = Predictor(SEGMENTER, segmenter, 'cpu')
    for name in names:
        map_file = PIL.Image.open(out / f'labels/{name}.png')
        assert map_file.mode == 'P'
        assert map_file.getpalette()[:18] == np.ravel(predictor.meta['palette']).tolist()
        logits = predictor.predict(folder / name, logits=True).seg_logits.data
        assert len(logits.argmax(0).unique()) > 1
        assert np.array_equal(map_file, logits.argmax(0))
        result = json.loads((out / f'{name}.json').read_text())
        height, width = logits.shape[1:]
        assert (result['width'], result['height']) == (width, height)
        shares = {c: (logits.argmax(0) == i).double().mean().item() for i, c in enumerate(facts['classes'])}
        assert result['share_of_pixels'] == pytest.approx({c: v for c, v in shares.items() if v}, abs=1e-6)
        assert cv2.imread(str(out / f'{name}.png')).shape == (height, width, 3)
    assert (width, height) == (40, 64)  # of the photo, upright


def test_pixels_are_predicted_as_their_file(segmenter, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    predictor = Predictor(SEGMENTER, segmenter, 'cpu')
    by_file, by_pixels = (predictor.predict(image, logits=True) for image in (tmp_path / 'a.png', pixels))
    assert torch.equal(by_file.seg_logits.data, by_pixels.seg_logits.data)
    assert np.array_equal(predictor.draw(tmp_path / 'a.png', by_file), predictor.draw(pixels, by_pixels))


def test_batches_of_images_of_one_size_give_what_one_image_gives(segmenter, tmp_path, capsys):
    """Images of two sizes, taken by turns, and one that is none."""
    rng, folder = np.random.default_rng(0), tmp_path / 'images'
    folder.mkdir()
    for k in range(7):
        size = (48, 80) if k % 2 else (64, 64)
        cv2.imwrite(str(folder / f'{k}.png'), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (folder / '3.png').write_bytes(b'none')
    formats = ['--format', 'labels', 'csv']
    for batch in (1, 3):
        with pytest.raises(UserError, match='1 of 7 images'):
            run(SEGMENTER, segmenter, folder, '--out', tmp_path / f'{batch}', '--batch', batch, *formats)
        assert '6 of 7 images predicted' in capsys.readouterr().out
    for k in (0, 1, 2, 4, 5, 6):
        one, many = (np.asarray(PIL.Image.open(tmp_path / f'{n}/labels/{k}.png.png')) for n in (1, 3))
        assert (one != many).mean() < 0.001  # sums in another order
    one, many = ((tmp_path / f'{n}/predictions.csv').read_text().splitlines() for n in (1, 3))
    assert one[0] == 'image,label,share'
    assert [line.rpartition(',')[0] for line in sorted(one)] == [
        line.rpartition(',')[0] for line in sorted(many)
    ]
    shares = {}
    for line in one[1:]:
        shares[line.split(',')[0]] = shares.get(line.split(',')[0], 0) + float(line.split(',')[2])
    assert shares == pytest.approx({f'{k}.png': 1 for k in (0, 1, 2, 4, 5, 6)}, abs=1e-5)


def test_a_classifier_names_the_five_best_classes(shapes, tmp_path):
    """As torch's softmax of the logits of the whole folder says, whatever the batch."""
    config, weights = 'configs/demo/classifier_shapes.py', tmp_path / 'c.pth'
    torch.manual_seed(0)
    cfg = read_config(config)
    init_default_scope('mmengine')
    model = MODELS.build(cfg.model).eval()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), weights)
    images = next((shapes / 'classification/val').iterdir())
    run(config, weights, images, '--out', tmp_path / 'out', '--format', 'json', 'csv', '--batch', 3)
    lines = (tmp_path / 'out/predictions.csv').read_text().splitlines()
    names = sorted(file.name for file in images.iterdir())
    assert lines[0] == 'image,label,score'
    assert len(lines) == 1 + 5 * len(names)
    transform = image_transform(**cfg.val_dataloader.dataset.transform)
    logits = model(torch.stack([transform(PIL.Image.open(images / name).convert('RGB')) for name in names]))
    for name, row in zip(names, logits.softmax(1)):
        found = json.loads((tmp_path / f'out/{name}.json').read_text())['classes']
        assert {each['label']: each['score'] for each in found} == pytest.approx(
            dict(zip(CLASSES, row.tolist())), abs=1e-3
        )
        assert [f'{name},{each["label"]},{each["score"]}' in lines for each in found] == [True] * 5
    assert 'a classifier: choose json or csv' in refused(
        config, weights, images, '--out', 'x', '--format', 'coco'
    )
    assert 'is a classifier: leave it out' in refused(config, weights, images, '--out', 'x', '--tile', 99)


def film(file: Path, frames: int, rate: float = 10.0, width: int = 80) -> list[np.ndarray]:
    """A video of gray frames, one lighter than the other."""
    stream = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*'mp4v'), rate, (width, 64))
    images = [np.full((64, width, 3), 40 + 30 * k, np.uint8) for k in range(frames)]
    for image in images:
        stream.write(image)
    stream.release()
    return images


def test_a_video_becomes_a_video_and_a_list_of_its_frames(segmenter, tmp_path, capsys):
    film(tmp_path / 'a.mp4', 5)
    film(tmp_path / 'b.avi', 2, rate=4.0, width=96)  # the last frame of a.mp4 does not wait behind these
    (tmp_path / 'c.mov').write_bytes(b'none')
    given = [tmp_path / name for name in ('a.mp4', 'b.avi', 'c.mov')]
    with pytest.raises(UserError, match='1 of 8 images could not be predicted'):
        run(
            SEGMENTER,
            segmenter,
            *given,
            '--out',
            tmp_path / 'out',
            '--format',
            'json',
            'labels',
            '--batch',
            2,
        )
    assert 'c.mov cannot be read as a video: convert it' in lines(capsys.readouterr().err)[0]
    assert sorted(f.name for f in (tmp_path / 'out').iterdir()) == [
        'a.mp4',
        'a.mp4.json',
        'b.avi.json',
        'b.avi.mp4',
        'labels',
    ]
    for name, file, frames, rate in (('a.mp4', 'a.mp4', 5, 10), ('b.avi', 'b.avi.mp4', 2, 4)):
        entries = json.loads((tmp_path / f'out/{name}.json').read_text())
        assert [entry['frame'] for entry in entries] == [f'{name}/{k + 1:06d}' for k in range(frames)]
        assert [entry['time'] for entry in entries] == [k / rate for k in range(frames)]
        stream = cv2.VideoCapture(str(tmp_path / f'out/{file}'))
        assert stream.get(cv2.CAP_PROP_FPS) == rate
        assert stream.get(cv2.CAP_PROP_FRAME_COUNT) == frames
        read = cv2.VideoCapture(str(tmp_path / name)).read()[1]
        expected = Predictor(SEGMENTER, segmenter, 'cpu').predict(read)
        found = PIL.Image.open(tmp_path / f'out/labels/{name}/000001.png')
        assert (np.asarray(found) != expected.pred_sem_seg.data[0].numpy()).mean() < 0.001


def test_a_video_that_is_cut_off_is_a_warning(stub, tmp_path, capsys):
    stream = cv2.VideoWriter(str(tmp_path / 'a.avi'), cv2.VideoWriter_fourcc(*'mp4v'), 10.0, (80, 64))
    for frame in np.random.default_rng(0).integers(0, 256, (7, 64, 80, 3), dtype=np.uint8):
        stream.write(frame)
    stream.release()
    whole = (tmp_path / 'a.avi').read_bytes()
    (tmp_path / 'cut.avi').write_bytes(whole[: len(whole) // 2])
    for name in ('a.avi', 'cut.avi'):
        run('c.py', 'c.pth', tmp_path / name, '--out', tmp_path / 'out', '--format', 'coco')
        said = re.search(r'warning: (\d+) of the 7 frames that \S*/cut.avi says', capsys.readouterr().err)
        assert said is None if name == 'a.avi' else 0 < int(said[1]) < 6


def test_a_video_that_ends_by_an_error_leaves_no_file(stub, tmp_path):
    film(tmp_path / 'a.mp4', 3)
    Stub.errors['a.mp4'] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run('c.py', 'c.pth', tmp_path / 'a.mp4', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists() or left(tmp_path) == []


def test_images_are_named_by_folders_files_and_patterns(tmp_path):
    for name in ('a/x.png', 'a/deep/y.JPG', 'b/x.png', 'b/z.txt', 'b/clip.MP4'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')

    def names(*paths, **options) -> list[str]:
        return [*named_files([str(tmp_path / path) for path in paths], **options)]

    assert names('a') == ['x.png']
    assert names('a', recursive=True) == ['deep/y.JPG', 'x.png']
    assert names('a', 'b/x.png') == ['a/x.png', 'b/x.png']
    assert names('**/*') == ['a/deep/y.JPG', 'a/x.png', 'b/clip.MP4', 'b/x.png']
    assert names('a/*.png') == ['x.png']
    assert names('*/*.png', out=tmp_path / 'b') == ['a/x.png']
    assert names('a/deep/../../b/x.png', 'b', 'a') == ['b/x.png', 'a/x.png']  # below all of them, not above
    assert names('*/*.png', out=tmp_path / 'a/../b') == ['a/x.png']
    assert names('a/deep', 'b', out=tmp_path / 'a') == ['a/deep/y.JPG', 'b/x.png']  # named, though in it
    with pytest.raises(UserError, match=r'no image and no video matches .*\*.gif'):
        names('*/*.gif')
    (tmp_path / 'b/x.png').unlink()
    with pytest.raises(UserError, match=r"videos are named one by one, or as '.*b/\*.MP4'"):
        names('b')


def label_map(classes: int, labels, tmp_path, **meta):
    writer = LabelMaps(dict(classes=[f'c{i}' for i in range(classes)], **meta), tmp_path)
    with contextlib.ExitStack() as stack:
        writer.start(stack)
    sample = SimpleNamespace(pred_sem_seg=PixelData(data=torch.tensor([labels])))
    writer.write(writer.encode(Image(Path('x'), 'x.png', 1), sample))
    facts = json.loads((tmp_path / 'labels/classes.json').read_text())
    return cv2.imread(str(tmp_path / 'labels/x.png.png'), cv2.IMREAD_UNCHANGED), facts


def test_more_than_256_classes_take_16_bits(tmp_path):
    """256 classes have the numbers 0 to 255."""
    for classes, dtype in ((256, np.uint8), (257, np.uint16)):
        labels = [[0, 1], [classes - 1, 2]]
        found, facts = label_map(classes, labels, tmp_path, palette=None, reduce_zero_label=True)
        assert (found.dtype, found.tolist()) == (dtype, labels)
        assert 'one more (reduce_zero_label)' in facts['rule']


def test_one_output_channel_gives_whole_class_numbers(tmp_path):
    found, facts = label_map(2, [[0.0, 1.0]], tmp_path, palette=[(0, 0, 0), (9, 8, 7)])
    assert found.tolist() == [[[0, 0, 0], [7, 8, 9]]]  # OpenCV looks the palette up
    assert facts['palette'] == [[0, 0, 0], [9, 8, 7]]


@pytest.mark.parametrize(
    ('image', 'expected'),
    [
        (np.array([[[1, 2, 3, 99]]], np.uint8), [3, 2, 1]),
        (np.array([[7]], np.uint8), [7, 7, 7]),
        (np.array([[0, 65535]], np.uint16), [0, 0, 0]),
        (np.array([[[10.0, 20.0, 300.0], [0.0, 0.0, 0.0]]], np.float32), [255, 17, 8]),
    ],
)
def test_an_image_of_any_kind_is_drawn_into(image, expected):
    assert _shown(image)[0, 0].tolist() == expected


def test_of_an_image_alone_no_annotations_are_loaded(tmp_path):
    """What mmdet and mmseg derive from mmcv's step is left out, by name or as class; images are loaded."""
    kinds = [each for steps in (mmdet_steps, mmseg_steps) for each in vars(steps).values()]
    loads = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, LoadAnnotations)]
    assert {'LoadAnnotations', 'LoadPanopticAnnotations'} <= {kind.__name__ for kind in loads}
    given = [dict(type=kind) for kind in [*loads, LoadMask]] + [dict(type=kind.__name__) for kind in loads]
    assert without_annotations([*given, dict(type='LoadImageFromFile')]) == [dict(type='LoadImageFromFile')]
    PIL.Image.new('RGB', (70, 50)).save(tmp_path / 'a.png')
    init_default_scope('mmdet')
    pipeline = read_config('mask2former_panoptic_convnext_t').test_dataloader.dataset.pipeline
    steps = Compose(without_annotations(pipeline))
    # 1333 x 800, ratio kept
    assert steps(dict(img_path=str(tmp_path / 'a.png'), img_id=0))['inputs'].shape == (3, 800, 1120)


# What goes wrong; nothing is predicted for it


class Stub:
    """A predictor that finds one object in each image, or raises what ``errors`` has for its name."""

    meta = dict(classes=['cat', 'dog'])
    device = 'cpu'
    task = 'detection'
    errors = {}

    def __init__(self, config, checkpoint, device, prefix):
        self.seen = Stub.seen = []

    def load(self, file):
        return dict(img=file)

    def prepare(self, loaded):
        return loaded if isinstance(loaded, dict) else dict(img=loaded)

    def predict_prepared(self, images):
        return [self.predict(image['img']) for image in images]

    def predict(self, image):
        image = Path('a.mp4') if isinstance(image, np.ndarray) else image
        self.seen.append(image.name)
        if error := self.errors.get(image.name):
            raise error if isinstance(error, BaseException) else error()
        found = InstanceData(
            bboxes=torch.tensor([[1.0, 2, 5, 4]]), scores=torch.ones(1), labels=torch.ones(1).long()
        )
        return DetDataSample(pred_instances=found, metainfo=dict(ori_shape=(10, 20)))

    def to_json(self, sample, min_score):
        return dict(objects=[])

    def draw(self, image, sample, min_score):
        return np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A folder of five images and a model that fails as it is told to."""
    monkeypatch.setattr(infer, 'make_predictor', Stub)
    monkeypatch.setattr(Stub, 'errors', {})
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in 'abcde':
        PIL.Image.new('RGB', (7, 5)).save(folder / f'{name}.png')
    return ['c.py', 'c.pth', folder, '--out', tmp_path / 'out']


def left(tmp_path) -> list[str]:
    return sorted(file.name for file in (tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (
            RuntimeError('two\n  lines'),
            '(7 x 5 pixels) could not be predicted: RuntimeError: two lines; scale',
        ),
        (ValueError(), 'predicted: ValueError; scale it, or leave it out'),
        (cv2.error('Insufficient'), 'predicted: error: Insufficient; scale it'),
        (torch.OutOfMemoryError('CUDA out of memory. ' + 'x' * 900), 'OutOfMemoryError: CUDA out of memory'),
        (MemoryError('Unable to allocate 9 GiB'), 'the memory is too small for it'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), 'the memory is too small for it'),
        (UnreadableImage('IMAGE is no image'), 'could not be predicted: IMAGE is no image'),
        (AssertionError('no'), 'AssertionError: no'),
        (
            lambda: 'name\udcff'.encode(),
            "can't encode character '\\udcff' in position 4: surrogates not allowed; rename it",
        ),
        (PermissionError(13, 'Permission denied'), 'Permission denied'),
    ],
)
def test_an_image_on_which_the_network_fails_is_named_and_the_others_are_predicted(
    stub, tmp_path, capsys, error, words
):
    Stub.errors['b.png'] = error
    assert refused(*stub, '--format', 'coco', 'json') == '1 of 5 images could not be predicted, see above'
    streams = capsys.readouterr()
    (line,) = lines(streams.err)
    assert words in line
    assert len(line) < 600
    assert 'b.png' in line or isinstance(error, UnreadableImage)
    assert '4 of 5 images predicted' in streams.out
    assert 'Traceback' not in streams.err
    assert {'a.png.json', 'e.png.png', 'predictions.json'} <= {*left(tmp_path)}
    assert 'b.png.json' not in left(tmp_path)
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [each['image_id'] for each in found] == [1, 3, 4, 5]
    assert found[0] == dict(image_id=1, category_id=2, bbox=[1, 2, 4, 2], score=1)
    listed = json.loads((tmp_path / 'out/images.json').read_text())['images']
    assert listed[1] == dict(id=3, file_name='c.png', width=20, height=10)


@pytest.fixture
def ctrl_c():
    """SIGINT interrupts, as in a terminal; a shell has what it runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_a_signal_ends_it_and_leaves_no_part_of_a_file(stub, tmp_path, name, ctrl_c):
    Stub.errors['c.png'] = lambda: os.kill(os.getpid(), signal.Signals[name])
    with pytest.raises(KeyboardInterrupt):
        run(*stub, '--format', 'json', 'coco')
    assert Stub.seen == ['a.png', 'b.png', 'c.png']
    assert {*left(tmp_path)} <= {'a.png.json', 'a.png.png', 'b.png.json', 'b.png.png'}


@pytest.mark.parametrize('work', ['load', 'draw'])
def test_what_a_thread_computes_at_a_signal_is_not_waited_for(stub, tmp_path, monkeypatch, work, ctrl_c):
    through = threading.Event()

    def compute(*_):
        if work == 'load':  # what is predicted waits for it
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return np.zeros((4, 4, 3), np.uint8) if through.wait(20) else None

    monkeypatch.setattr(Stub, work, compute)
    Stub.errors['b.png'] = KeyboardInterrupt()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(*stub)
    assert time.monotonic() - began < 10
    through.set()
    assert left(tmp_path) == []


def test_a_gpu_that_computes_nothing_more_ends_it(stub):
    Stub.errors['b.png'] = RuntimeError('CUDA error: device-side assert triggered')
    assert 'CUDA computes nothing more' in refused(*stub)
    assert Stub.seen == ['a.png', 'b.png']


def test_a_result_that_cannot_be_written_ends_it_at_once(stub, tmp_path):
    (tmp_path / 'out/b.png.json').mkdir(parents=True)
    text = refused(*stub)
    assert text.startswith(f'{tmp_path}/out/b.png.json cannot be written (Is a directory)')
    assert '--out' in text
    assert Stub.seen[:2] == ['a.png', 'b.png']
    assert len(Stub.seen) < 5  # what was begun ahead
    assert left(tmp_path) == ['a.png.json', 'a.png.png', 'b.png.json']


@contextlib.contextmanager
def files_of_at_most(size: int):
    """As on a full disk, writing more bytes to a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path):
    """A limit on the size of files: the first bytes are written, then there is an OSError."""
    write_whole(tmp_path / 'f', b'older')
    with (tmp_path / 'f').open('rb') as reader:
        write_whole(tmp_path / 'f', b'old')
        assert reader.read() == b'older'  # replaced as a whole, not written over
    with (
        files_of_at_most(4096),
        pytest.raises(UserError, match=r'/f cannot be written \(File too large\)') as error,
    ):
        write_whole(tmp_path / 'f', bytes(100_000))
    assert error.value.__cause__.errno == errno.EFBIG
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('f', b'old')]


def test_a_full_disk_leaves_no_video_that_players_cannot_read(tmp_path):
    """OpenCV writes what there is room for, and names no error."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    with (
        pytest.raises(UserError, match=r'/f.mp4 cannot be written as a whole: make room'),
        files_of_at_most(4096),
        film_of(tmp_path / 'f.mp4', (64, 64), 10.0) as add,
    ):
        [add(frame) for frame in frames]
    assert [*tmp_path.iterdir()] == []
    with film_of(tmp_path / 'f.mp4', (64, 64), 10.0) as add:
        [add(frame) for frame in frames]
    assert [file.name for file in tmp_path.iterdir()] == ['f.mp4']


def test_an_allocation_beyond_the_memory_fails_in_place_of_the_process(stub, monkeypatch, capsys):
    """The limit is taken back after each image."""
    monkeypatch.setattr(infer, 'available_memory', lambda: 2**28)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    Stub.errors['a.png'] = lambda: ValueError(torch.empty(2**26, dtype=torch.uint8).nbytes)
    Stub.errors['b.png'] = lambda: torch.empty(2**30, dtype=torch.uint8)
    assert refused(*stub).startswith('2 of 5 images')
    fits, does_not = lines(capsys.readouterr().err)
    assert 'ValueError: 67108864' in fits
    assert "can't allocate memory" in does_not
    assert 'the memory is too small for it' in does_not
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.empty(2**30, dtype=torch.uint8)


def test_the_memory_that_is_left_is_at_most_what_the_machine_says():
    machine = int(re.search(r'MemTotal:\s*(\d+)', Path('/proc/meminfo').read_text())[1]) * 1024
    assert 0 < infer.available_memory() < machine


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--format', 'labels'], 'labels needs a segmenter, c.py is a detector: choose json or csv or coco'),
        (['--format', 'json', 'labels'], 'labels needs a segmenter'),
        (['--ann-file', 'a.json'], '--ann-file numbers COCO results: give --format coco'),
        (['--score', '30'], 'from 0 to 1, got 30'),
        (['--batch', '0'], '--batch is a number of images, at least 1, got 0'),
        (['--tile', '12'], '--tile is the side of a tile in pixels, at least 64, got 12'),
        (['--format', 'coco', '--ann-file', 'no.json'], '--ann-file no.json cannot be read: No such file'),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_predicted(stub, tmp_path, options, words):
    Stub.seen = []
    assert words in refused(*stub, *options)
    assert Stub.seen == []


def test_coco_results_of_a_segmenter_are_refused(stub, monkeypatch):
    monkeypatch.setattr(Stub, 'task', 'segmentation')
    assert 'coco needs a detector, c.py is a segmenter: choose json or csv or labels' in refused(
        *stub, '--format', 'coco'
    )


def annotations(tmp_path, images, categories=('dog', 'cat')) -> AnnotationFile:
    content = dict(
        images=[dict(id=i, file_name=name) for i, name in images],
        categories=[dict(id=i, name=name) for i, name in enumerate(categories, 4)],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    return AnnotationFile(tmp_path / 'a.json')


def test_numbers_of_images_come_from_the_end_of_their_paths(tmp_path):
    given = [(3, 'a.png'), (9, 'sub/a.png'), (5, 'sub\\b.png'), (6, './c.png')]
    files = {name: Path('/data', name) for name in ('a.png', 'sub/a.png', 'sub/b.png', 'c.png')}
    found = annotations(tmp_path, given).numbers_of(files)
    assert found == {'a.png': 3, 'sub/a.png': 9, 'sub/b.png': 5, 'c.png': 6}
    for images, names, words in (
        ([(3, 'a.png')], ['a.png', 'b.png'], '1 of 2 images are not in --ann-file'),
        ([(3, 'x/a.png')], ['y/a.png'], 'such as x/a.png'),
        ([(3, 'a.png'), (4, 'a.png')], ['a.png'], '2 times: ids [3, 4]'),
        ([(3, 'a.png')], ['x/a.png', 'y/a.png'], '/data/x/a.png and /data/y/a.png are both a.png'),
    ):
        with pytest.raises(UserError) as error:
            annotations(tmp_path, images).numbers_of({name: Path('/data', name) for name in names})
        assert words in message(error.value)


def test_numbers_of_categories_come_from_their_names(tmp_path):
    assert annotations(tmp_path, []).categories_of(['cat', 'dog']) == [5, 4]
    for categories, words in (
        (
            ['dog', 'cats'],
            "no category 'cat', a class of the model; it lists dog, cats; did you mean 'cats'?",
        ),
        (['dog', 'cat', 'cat'], "2 categories are called 'cat' (ids 5, 6)"),
    ):
        with pytest.raises(UserError) as error:
            annotations(tmp_path, [], categories).categories_of(['cat', 'dog'])
        assert words in message(error.value)
    for text, words in (
        ('[]', 'is no COCO annotation file: it holds a list'),
        ('{}', "is no COCO annotation file: 'categories' is absent"),
        ('x', 'is no COCO annotation file: no valid JSON'),
        ('{"images": [{"id": 1}], "categories": []}', r"images\[0\] .* has no 'file_name'"),
        ('{"images": [{"id": [1], "file_name": "a"}], "categories": []}', r'id of images\[0\] is a list'),
        ('{"images": [{"id": 1, "file_name": 2}], "categories": []}', 'file_name of .* is a number'),
        ('{"images": [], "categories": [{"id": {}, "name": "a"}]}', r'id of categories\[0\] is an object'),
    ):
        (tmp_path / 'a.json').write_text(text)
        with pytest.raises(UserError, match=f'^--ann-file .*a.json.*{words}'):
            AnnotationFile(tmp_path / 'a.json')


@pytest.mark.parametrize(
    ('given', 'out', 'result', 'taken'),
    [
        (['a.mp4'], '.', 'a.mp4', 'an input itself'),
        (['b.png', 'b.png.png'], '.', 'b.png.png', 'an input itself'),
        (['b.png'], 'link', 'b.png.png', None),
        (['b.png', 'b.png.png'], 'link', 'b.png.png', 'an input itself'),
        (['a.mov', 'a.mov.mp4'], 'out', 'a.mov.mp4', 'a result of a.mov'),
    ],
)
def test_no_result_replaces_an_input_or_another_result(
    stub, tmp_path, monkeypatch, given, out, result, taken
):
    monkeypatch.chdir(tmp_path)
    film(Path('a.mp4'), 2)
    for name in ('a.mov', 'a.mov.mp4'):
        Path(name).write_bytes(Path('a.mp4').read_bytes())
    for name in ('b.png', 'b.png.png'):
        PIL.Image.new('RGB', (7, 5)).save(name)
    Path('link').symlink_to('.')
    before = {name: Path(name).read_bytes() for name in given}
    arguments = ['c.py', 'c.pth', *given, '--out', out]
    if taken:
        said = refused(*arguments)
        assert f'{result} would be a result of ' in said
        assert f', and is {taken}: choose another --out' in said
        assert Stub.seen == []
    else:
        run(*arguments)
    assert {name: Path(name).read_bytes() for name in given} == before


def test_images_of_another_size_than_the_annotations_say_are_a_warning(stub, tmp_path, capsys):
    images = [dict(id=i, file_name=f'{name}.png', width=20, height=10) for i, name in enumerate('abcde')]
    images[1].update(width=10, height=20)
    content = dict(images=images, categories=[dict(id=i, name=name) for i, name in enumerate(['cat', 'dog'])])
    (tmp_path / 'a.json').write_text(json.dumps(content))
    run(*stub, '--format', 'coco', '--ann-file', tmp_path / 'a.json')
    assert '1 of 5 images have another size' in capsys.readouterr().err
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [each['image_id'] for each in found] == [0, 1, 2, 3, 4]
    assert {each['category_id'] for each in found} == {1}


def test_results_below_the_images_are_not_taken_for_images(stub, tmp_path):
    (tmp_path / 'images/sub.png').mkdir()  # a folder, whatever its name
    PIL.Image.new('RGB', (7, 5)).save(tmp_path / 'images/sub.png/f.PNG')
    stub[-1] = tmp_path / 'images/out'
    for _ in range(2):
        run(*stub, '--recursive')
        assert Stub.seen == ['a.png', 'b.png', 'c.png', 'd.png', 'e.png', 'f.PNG']
    assert (tmp_path / 'images/out/sub.png/f.PNG.json').is_file()
    assert len(image_files(tmp_path / 'images')) == 5
