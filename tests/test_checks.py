"""Data as users have it: what is named before a training, and labels, pixels and metrics that are right."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from convnext_backbone.checks import check_config
from convnext_backbone.commands import check as check_command
from convnext_backbone.config import read_config, use_stand_ins
from convnext_backbone.datasets import improve
from convnext_backbone.datasets.images import header
from convnext_backbone.datasets.masks import read_mask
from convnext_backbone.engine.runner import Runner
from convnext_backbone.errors import UnreadableImage, UserError
from convnext_backbone.findings import Findings
from convnext_backbone.transforms import LoadImage

OBJECTS = {  # image: (class, box) of each object
    'a.png': [('cat', (4, 4, 24, 20)), ('dog', (34, 30, 22, 26))],
    'b.png': [('dog', (6, 30, 28, 24))],
    'c.png': [('cat', (20, 10, 30, 30)), ('cat', (2, 44, 10, 12))],
}


def coco(categories=('cat', 'dog'), first_id: int = 1) -> dict:
    ids = {name: number for number, name in enumerate(categories, first_id)}
    annotations = []
    for image, objects in enumerate(OBJECTS.values(), 1):
        for name, (x, y, w, h) in objects:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=ids[name],
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
    images = [dict(id=i, file_name=name, width=64, height=64) for i, name in enumerate(OBJECTS, 1)]
    return dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=number, name=name) for name, number in ids.items()],
    )


def set_classes(cfg, *classes: str) -> None:
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    for head in [*cfg.model.get('roi_head', {}).values(), cfg.model.get('decode_head')]:
        if isinstance(head, dict) and 'num_classes' in head:
            head.num_classes = len(classes)
    if 'auxiliary_head' in cfg.model:
        cfg.model.auxiliary_head.num_classes = len(classes)
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.loss_decode.class_weight = None


@pytest.fixture
def drawn(tmp_path):
    """The demo's detector on three drawn images, and a function that writes its annotation files."""
    (tmp_path / 'images').mkdir()
    for name in OBJECTS:
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / 'images' / name)
    cfg = read_config('configs/demo/mask_rcnn_shapes.py')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(data_root=str(tmp_path), data_prefix=dict(img='images'))
        dataset.update(ann_file='train.json' if split == 'train' else 'val.json')
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    set_classes(cfg, 'cat', 'dog')
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(tmp_path / 'val.json')

    def write(train=None, val=None):
        (tmp_path / 'train.json').write_text(json.dumps(train or coco()))
        (tmp_path / 'val.json').write_text(json.dumps(val or coco()))

    write()
    return cfg, write


@pytest.fixture
def detector(drawn):
    return drawn[0]


@pytest.fixture
def write(drawn):
    return drawn[1]


@pytest.fixture
def segmenter(tmp_path):
    """The demo's segmenter on three drawn images with masks of background, cat and dog."""
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:30], mask[40:60, 20:50] = 1, 2
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    for name in ('a', 'b', 'c'):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / f'images/{name}.jpg')
        Image.fromarray(mask).save(tmp_path / f'masks/{name}.png')
    cfg = read_config('configs/demo/upernet_shapes.py')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(data_root=str(tmp_path), data_prefix=dict(img_path='images', seg_map_path='masks'))
        dataset.update(
            img_suffix='.jpg', seg_map_suffix='.png', type='BaseSegDataset', reduce_zero_label=False
        )
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    set_classes(cfg, 'background', 'cat', 'dog')
    return cfg


def found(cfg, level='error', splits=('train_dataloader',)) -> dict[str, str]:
    return {f.kind: str(f) for f in check_config(cfg, splits, 'all') if f.level == level}


# -- detection -------------------------------------------------------------------------------


def test_right_data_has_no_errors_and_one_line_for_each_dataset(detector):
    findings = check_config(detector, ['train_dataloader', 'val_dataloader', 'test_dataloader'], 'all')
    assert {finding.level for finding in findings} == {'note'}
    used = [finding for finding in findings if finding.kind == 'used']
    assert len(used) == 2  # the test data is the validation data
    assert '3 of 3 images, 5 of 5 objects are used' in used[0].text


def change_all(data: dict, **entries) -> dict:
    for record in data['annotations']:
        record.update(copy.deepcopy(entries))
    return data


def without_objects(data: dict, *images: int) -> dict:
    data['annotations'] = [a for a in data['annotations'] if a['image_id'] not in images]
    return data


FILES = {  # what is done to the training's file: level and kind of the finding, what its text has
    'crowd': (lambda d: change_all(d, iscrowd=1), 'error', 'nothing_left', '5 crowd'),
    'no masks': (lambda d: change_all(d, segmentation=[]), 'error', 'no_masks', '5 no mask'),
    'no objects': (lambda d: without_objects(d, 1, 2, 3), 'error', 'nothing_left', '3 have no object'),
    'negatives': (
        lambda d: without_objects(d, 1),
        'note',
        'used',
        '2 of 3 images (1 have no object (filter_cfg=dict(filter_empty_gt=False) keeps them)), 3 of 3 '
        'objects',
    ),
    'tiny objects': (
        lambda d: d['annotations'][0].update(bbox=[4, 4, 0.5, 0.5], segmentation=[]),
        'warning',
        'used',
        '1 smaller than a pixel',
    ),
    'one without mask': (
        lambda d: d['annotations'][0].pop('segmentation'),
        'warning',
        'used',
        '4 of 5 objects are used; left out: 1 no mask',
    ),
    'small images': (
        lambda d: [i.update(width=30, height=20) for i in d['images']],
        'error',
        'nothing_left',
        '3 are below filter_cfg.min_size=32 pixels',
    ),
    'class without objects': (
        lambda d: change_all(d, category_id=1),
        'warning',
        'class_absent',
        '1 of 2 classes have no object and cannot be learned: dog',
    ),
    'image missing': (
        lambda d: d['images'][1].update(file_name='gone.png'),
        'error',
        'image_missing',
        '1 of 3 images do not exist',
    ),
    'other case': (
        lambda d: d['images'][1].update(file_name='B.PNG'),
        'error',
        'image_missing',
        'there is b.png',
    ),
    'other size': (
        lambda d: d['images'][1].update(width=640, height=480),
        'error',
        'image_size',
        '640 x 480 in the annotations, 64 x 64 as loaded',
    ),
    'unlisted file': (lambda d: d['images'].pop(), 'note', 'unlisted_file', '1 images'),
    'no category': (
        lambda d: d['categories'].pop(),
        'error',
        'data',
        'category_id 2, which its "categories" do not list',
    ),
}


@pytest.mark.parametrize('name', FILES)
def test_what_is_wrong_with_a_file_is_named(detector, write, name):
    change, level, kind, text = FILES[name]
    data = coco()
    change(data)
    if name == 'unlisted file':
        without_objects(data, 3)
    write(train=data)
    lines = found(detector, level)
    assert kind in lines
    assert text in lines[kind]


@pytest.mark.parametrize(
    'classes, text',
    [
        ('cat', "('cat',)"),
        (('cat', 'cat'), 'more than once'),
        (('cat', 3), 'is no text'),
        ((), 'expected a tuple of names'),
        (('cat', 'dogs'), "did you mean 'dog'"),
    ],
    ids=str,
)
def test_classes_that_are_none_are_an_error(detector, classes, text):
    detector.train_dataloader.dataset.metainfo = dict(classes=classes)
    assert any(text in line for line in found(detector).values())


def test_the_metric_must_read_the_file_of_the_dataset(detector, tmp_path):
    data = coco()
    (tmp_path / 'other.json').write_text(json.dumps(data, indent=1))
    detector.val_evaluator = dict(detector.val_evaluator, ann_file=str(tmp_path / 'other.json'))
    splits = ('val_dataloader',)
    assert 'both must be the same file' in found(detector, splits=splits)['evaluator']
    (tmp_path / 'other.json').write_text(json.dumps(data))  # a copy is as good
    assert found(detector, splits=splits) == {}


def test_files_with_backslashes_and_without_sizes_are_read(detector, write, tmp_path):
    data = coco()
    (tmp_path / 'images' / 'sub').mkdir()
    (tmp_path / 'images' / 'a.png').rename(tmp_path / 'images' / 'sub' / 'a.png')
    data['images'][0]['file_name'] = 'sub\\a.png'
    for image in data['images']:
        del image['width'], image['height']
    write(train=data)
    assert found(detector) == {}
    dataset = Runner.build_dataloader(detector.train_dataloader).dataset
    infos = [dataset.get_data_info(i) for i in range(3)]
    assert infos[0]['img_path'].endswith('sub/a.png')
    assert {(info['width'], info['height']) for info in infos} == {(64, 64)}


def test_a_list_of_test_images_can_be_predicted_only(detector, write):
    data = coco()
    del data['annotations']
    write(val=data)
    splits = ('test_dataloader',)
    assert 'no "annotations"' in found(detector, splits=splits)['no_annotations']
    detector.test_evaluator = dict(detector.test_evaluator, format_only=True, outfile_prefix='x')
    assert found(detector, splits=splits) == {}
    dataset = Runner.build_dataloader(detector.test_dataloader).dataset
    assert [dataset.get_data_info(i)['instances'] for i in range(3)] == [[], [], []]


def turn(folder, name: str, orientation: int) -> None:
    """Write an image of 64 x 40 stored pixels, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (64, 40)).save(folder / 'images' / name, exif=exif)


@pytest.mark.parametrize('orientation, annotated, kind', [
    (6, (64, 40), 'orientation'),
    (6, (40, 64), None),
    (1, (64, 40), None),
    (3, (64, 40), None),
    (8, (64, 64), 'image_size'),
])  # fmt: skip
def test_orientation_and_size_of_photos(detector, write, tmp_path, orientation, annotated, kind):
    data = coco()
    turn(tmp_path, 'b.png', orientation)
    data['images'][1].update(width=annotated[0], height=annotated[1])
    data = without_objects(data, 2)
    write(train=data)
    assert set(found(detector)) == ({kind} if kind else set())
    image = LoadImage().transform(dict(img_path=str(tmp_path / 'images/b.png')))['img']
    assert header(tmp_path / 'images/b.png').upright == image.shape[1::-1]


ORDERS = [('cat', 'dog'), ('dog', 'cat')]


@pytest.mark.parametrize('train', ORDERS)
@pytest.mark.parametrize('val', ORDERS)
@pytest.mark.parametrize('classes', ORDERS)
@pytest.mark.parametrize('first_id', [0, 7])
def test_labels_and_metric_follow_the_names(detector, write, train, val, classes, first_id):
    write(train=coco(train, first_id), val=coco(val, 3))
    set_classes(detector, *classes)
    cfg = copy.deepcopy(detector)
    use_stand_ins(cfg)
    dataset = Runner.build_dataloader(cfg.train_dataloader).dataset
    for number, objects in enumerate(OBJECTS.values()):
        labels = [instance['bbox_label'] for instance in dataset.get_data_info(number)['instances']]
        assert labels == [classes.index(name) for name, _ in objects]
    metric = improve(__import__('mmdet.evaluation').evaluation.CocoMetric)(
        ann_file=cfg.val_evaluator.ann_file, metric='bbox', classwise=True
    )
    metric.dataset_meta = dict(classes=classes)
    for number, objects in enumerate(OBJECTS.values(), 1):
        objects = [o for o in objects if o[0] == 'cat']  # cats are found, dogs are not
        boxes = [[x, y, x + w, y + h] for _, (x, y, w, h) in objects]
        found_objects = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.ones(len(boxes)),
            labels=torch.tensor([classes.index(name) for name, _ in objects], dtype=torch.long),
        )
        metric.process({}, [dict(img_id=number, ori_shape=(64, 64), pred_instances=found_objects)])
    results = metric.evaluate(3)
    assert results['coco/cat_precision'] == pytest.approx(1)
    assert results['coco/dog_precision'] == pytest.approx(0)
    assert results['coco/bbox_mAP'] == pytest.approx(0.5)


def test_a_class_that_inherits_gets_labels_by_name_too_and_survives_pickling(detector):
    import pickle

    from mmdet.datasets import CocoDataset

    class Own(CocoDataset):
        METAINFO = dict(classes=('dog', 'cat'))

    mixed = improve(Own)
    assert issubclass(mixed, Own)
    assert improve(mixed) is mixed
    root = detector.train_dataloader.dataset.data_root
    dataset = mixed(ann_file=f'{root}/train.json', data_prefix=dict(img=f'{root}/images'), pipeline=[])
    assert [i['bbox_label'] for i in dataset.get_data_info(0)['instances']] == [1, 0]
    plain = improve(CocoDataset)(
        ann_file=f'{root}/train.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('dog', 'cat')),
        pipeline=[],
    )
    again = pickle.loads(pickle.dumps(plain))
    assert type(again) is type(plain)
    assert again.get_data_info(0) == plain.get_data_info(0)


# -- pixels ----------------------------------------------------------------------------------


def ramp() -> np.ndarray:
    gray = np.repeat(np.linspace(0, 255, 64)[None], 48, 0).astype(np.uint8)
    return np.stack([gray, gray[:, ::-1], np.full_like(gray, 90)], -1)


PIXELS = {
    'rgb.png': lambda f, p: Image.fromarray(p).save(f),
    'gray.png': lambda f, p: Image.fromarray(p[..., 0]).save(f),
    'one_bit.png': lambda f, p: Image.fromarray(p[..., 0] > 127).save(f),
    'palette.png': lambda f, p: Image.fromarray(p).quantize(32).save(f),
    'rgba.png': lambda f, p: Image.fromarray(np.dstack([p, p[..., 0]])).save(f),
    'gray_alpha.png': lambda f, p: Image.fromarray(p[..., :1].repeat(2, 2)[..., [0, 1]], 'LA').save(f),
    'cmyk.tif': lambda f, p: Image.fromarray(p).convert('CMYK').save(f),
    'cmyk.jpg': lambda f, p: Image.fromarray(p).convert('CMYK').save(f, quality=100),
    'image.bmp': lambda f, p: Image.fromarray(p).save(f),
    'sixteen.png': lambda f, p: cv2.imwrite(str(f), p[..., 0].astype(np.uint16) * 257),
    'sixteen_colour.png': lambda f, p: cv2.imwrite(str(f), p[..., ::-1].astype(np.uint16) * 257),
    'sixteen.tif': lambda f, p: cv2.imwrite(str(f), p[..., 0].astype(np.uint16) * 257),
}


@pytest.mark.parametrize('name', PIXELS)
def test_each_kind_of_pixels_is_read_as_pillow_reads_it(tmp_path, name):
    PIXELS[name](tmp_path / name, ramp())
    read = LoadImage().transform(dict(img_path=str(tmp_path / name)))['img'][..., ::-1].astype(int)
    pixels = ramp() if 'colour' in name else None  # which Pillow does not read in full
    if name.startswith('sixteen') and pixels is None:
        pixels = ramp()[..., :1].repeat(3, 2)
    if pixels is None:
        pixels = np.array(Image.open(tmp_path / name).convert('RGB'))
    assert read.shape == pixels.shape
    assert abs(read - pixels.astype(int)).max() <= (1 if 'cmyk' in name else 0)


@pytest.mark.parametrize('bits', [10, 12, 14])
def test_fewer_bits_in_sixteen_are_asked_for_and_then_used(tmp_path, bits):
    file = tmp_path / 'a.png'
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16)[None].repeat(48, 0)
    cv2.imwrite(str(file), values)
    with pytest.raises(UnreadableImage, match=f'set bits={bits} '):
        LoadImage().transform(dict(img_path=str(file)))
    image = LoadImage(bits=bits).transform(dict(img_path=str(file)))['img']
    assert abs(image[0, :, 0] - np.linspace(0, 255, 64)).max() <= 1
    with pytest.raises(UnreadableImage, match='set more bits'):
        LoadImage(bits=9).transform(dict(img_path=str(file)))
    as_it_is = LoadImage(bits=16).transform(dict(img_path=str(file)))['img']
    assert as_it_is.max() == round((2**bits - 1) / 65535 * 255)


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.int32])
def test_other_numbers_than_pixels_are_refused_in_one_line(tmp_path, dtype):
    file = tmp_path / 'a.tif'
    cv2.imwrite(str(file), (ramp()[..., 0] / 255).astype(dtype))
    with pytest.raises(UnreadableImage, match='color_type') as error:
        LoadImage().transform(dict(img_path=str(file)))
    assert '\n' not in str(error.value)
    if dtype != np.int32:
        image = LoadImage(color_type='unchanged').transform(dict(img_path=str(file)))['img']
        assert image.dtype == dtype


# -- segmentation ----------------------------------------------------------------------------


def test_right_masks_have_no_errors(segmenter):
    findings = check_config(segmenter, ['train_dataloader', 'val_dataloader'], 'all')
    assert {finding.level for finding in findings} == {'note'}
    assert '3 of 3 masks were read' in next(f.text for f in findings if f.kind == 'used')


def labels() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:30], mask[40:60, 20:50] = 1, 2
    return mask


def save(file, array, **options) -> None:
    Image.fromarray(array).save(file, **options)


MASKS = {  # how each mask is written: kind of the error, what it says
    '0 and 255': (lambda f: save(f, labels().clip(0, 1) * 255), 'mask_0_255', '1 in place of 255'),
    'beyond': (lambda f: save(f, labels() * 3), 'label_beyond', '3 classes are 0 to 2'),
    'scaled': (lambda f: save(f, labels() * 100), 'label_beyond', 'multiples of 100'),
    'from 1': (lambda f: save(f, labels() + 1), 'label_beyond', 'reduce_zero_label=True'),
    'sixteen bits': (lambda f: save(f, labels().astype(np.uint16) * 256), 'label_beyond', '256, 512'),
    'colour': (
        lambda f: save(f, np.dstack([labels() * 100, labels() * 50, labels()])),
        'mask_unreadable',
        'is a colour picture (RGB)',
    ),
    'jpeg': (lambda f: save(f, labels() * 100, format='JPEG'), 'mask_unreadable', 'is a JPEG'),
    'half size': (lambda f: save(f, labels()[::2, ::2].copy()), 'mask_size', '32 x 32'),
    'truncated': (lambda f: f.write_bytes(f.read_bytes()[:60]), 'mask_unreadable', 'cut off or damaged'),
    'text': (lambda f: f.write_text('x'), 'mask_unreadable', 'is no image'),
    'missing': (lambda f: f.unlink(), 'mask_missing', '3 of 3 masks do not exist'),
}


@pytest.mark.parametrize('name', MASKS)
def test_masks_are_looked_into_before_the_first_step(segmenter, tmp_path, name):
    write, kind, text = MASKS[name]
    for file in sorted((tmp_path / 'masks').iterdir()):
        write(file)
    lines = found(segmenter)
    assert kind in lines
    assert text in lines[kind]


RIGHT = {
    'gray': lambda f, m: save(f, m),
    'palette': lambda f, m: _palette(m).save(f),
    'four bits': lambda f, m: _palette(m).save(f, bits=4),
    'gray of two bits': lambda f, m: cv2.imwrite(str(f), m, [cv2.IMWRITE_PNG_BILEVEL, 0]),
    'sixteen bits': lambda f, m: save(f, m.astype(np.uint16)),
    'gray as colour': lambda f, m: save(f, np.dstack([m, m, m])),
    'with alpha': lambda f, m: Image.merge('LA', [Image.fromarray(m), Image.new('L', (64, 64), 255)]).save(f),
    'tiff': lambda f, m: save(f, m, format='TIFF'),
}


def _palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask, 'P')
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 200, 0])
    return image


@pytest.mark.parametrize('name', RIGHT)
def test_masks_of_every_depth_are_read_as_they_were_drawn(tmp_path, name):
    file = tmp_path / 'a.png'
    RIGHT[name](file, labels())
    assert (read_mask(file) == labels()).all()


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_gray_masks_of_few_bits_are_not_scaled(tmp_path, bits):
    """Pillow multiplies the values of such a PNG; this one is put together by hand (PNG specification)."""
    import struct
    import zlib

    values = np.arange(16).reshape(2, 8) % 2**bits
    rows = b''.join(b'\0' + np.packbits(_bits(row, bits)).tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    head = struct.pack('>IIBBBBB', 8, 2, bits, 0, 0, 0, 0)
    file = tmp_path / 'a.png'
    file.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', head)
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )
    assert (read_mask(file) == values).all()


def _bits(row: np.ndarray, bits: int) -> np.ndarray:
    return np.array([[value >> (bits - 1 - i) & 1 for i in range(bits)] for value in row]).ravel()


def test_a_mask_of_182_megapixels_is_read(tmp_path):
    Image.new('L', (13500, 13500)).save(tmp_path / 'a.png')
    assert read_mask(tmp_path / 'a.png').shape == (13500, 13500)
    assert Image.MAX_IMAGE_PIXELS  # as it was


def test_images_of_another_suffix_are_named(segmenter, tmp_path):
    (tmp_path / 'images/a.jpg').rename(tmp_path / 'images/a.JPG')
    assert '1 *.JPG' in found(segmenter, 'warning')['suffix']
    for name in ('b', 'c'):
        (tmp_path / f'images/{name}.jpg').rename(tmp_path / f'images/{name}.JPG')
    assert 'it has 3 *.JPG: set img_suffix' in found(segmenter)['empty']


def test_empty_lines_of_a_list_are_left_out(segmenter, tmp_path):
    (tmp_path / 'list.txt').write_bytes(b'a\r\nb\r\n\r\n  \n')
    segmenter.train_dataloader.dataset.ann_file = 'list.txt'
    assert found(segmenter) == {}
    assert len(Runner.build_dataloader(segmenter.train_dataloader).dataset) == 2


def test_reduce_zero_label_that_eats_a_class_is_an_error(segmenter):
    for split in ('train', 'val'):
        segmenter[f'{split}_dataloader'].dataset.reduce_zero_label = True
    assert "the first class is 'background'" in found(segmenter)['reduce_zero_label']
    set_classes(segmenter, 'cat', 'dog')
    assert found(segmenter) == {}  # 0 is ignored, 1 and 2 are cat and dog


def test_a_background_that_the_classes_do_not_name_is_an_error(segmenter):
    set_classes(segmenter, 'cat', 'dog')
    assert 'is 0 a background that the classes do not name?' in found(segmenter)['label_beyond']


def test_a_class_without_pixels_is_named(segmenter, tmp_path):
    for file in (tmp_path / 'masks').iterdir():
        save(file, labels().clip(0, 1))
    assert '1 of 3 classes have no pixel in the masks: dog' in found(segmenter, 'warning')['class_absent']


def test_loading_stops_at_a_mask_that_does_not_fit(segmenter, tmp_path):
    """Where the sample of the check did not look."""
    cfg = copy.deepcopy(segmenter)
    use_stand_ins(cfg)
    init_default_scope('mmseg')
    dataset = Runner.build_dataloader(cfg.train_dataloader).dataset
    step = next(step for step in dataset.pipeline.transforms if hasattr(step, 'set_classes'))
    load = dataset.pipeline.transforms[0]

    def run():
        return step.transform(load.transform(dataset.get_data_info(0)))['gt_seg_map']

    assert (run() == labels()).all()
    save(tmp_path / 'masks/a.png', labels() * 3)
    with pytest.raises(UserError, match='has the label 3, with 3 classes the largest is 2'):
        run()
    save(tmp_path / 'masks/a.png', labels()[:32])
    with pytest.raises(UserError, match='64 x 32 pixels, its image .* 64 x 64'):
        run()
    save(tmp_path / 'masks/a.png', np.full((64, 64), 256, np.uint16))  # would be 0 in 8 bits
    with pytest.raises(UserError, match='has the label 256'):
        run()
    (tmp_path / 'masks/a.png').unlink()
    with pytest.raises(UserError, match='does not exist'):
        run()
    step.skip_corrupt = True
    assert step.transform(load.transform(dataset.get_data_info(0))) is None


def iou_metric(classes=('background', 'cat', 'dog')):
    from mmseg.evaluation import IoUMetric

    metric = improve(IoUMetric)(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=classes)
    return metric


def sample(truth: np.ndarray, prediction: np.ndarray) -> dict:
    given = {'gt_sem_seg': truth, 'pred_sem_seg': prediction}
    return {key: dict(data=torch.tensor(value[None].astype(np.int64))) for key, value in given.items()}


def test_labels_beyond_the_classes_do_not_raise_the_accuracy():
    truth = labels()
    metric = iou_metric()
    metric.process({}, [sample(truth, labels())])
    assert metric.compute_metrics(metric.results)['mIoU'] == 100
    truth[0, 0] = 9
    with pytest.raises(UserError, match='has the label 9, with 3 classes the largest is 2'):
        iou_metric().process({}, [sample(truth, labels())])
    truth[0, 0] = 255
    iou_metric().process({}, [sample(truth, labels())])


@pytest.mark.parametrize('predicted, effect', [(1, 'not in the mean'), (2, 'in the mean with IoU 0')])
def test_classes_that_are_not_in_the_truth_are_named(predicted, effect, monkeypatch):
    lines = []
    monkeypatch.setattr('convnext_backbone.datasets.masks.print_log', lambda text, *_: lines.append(text))
    metric = iou_metric()
    metric.process({}, [sample(labels().clip(0, 1), np.full((64, 64), predicted))])
    metric.compute_metrics(metric.results)
    assert [f'are {effect}' in line for line in lines] == [True]
    assert 'dog' in lines[0]


# -- findings --------------------------------------------------------------------------------


def test_findings_are_ordered_by_level_then_by_number():
    findings = Findings()
    for level, count in (('note', 99), ('warning', 5), ('error', 1), ('warning', 7), ('error', 2)):
        findings.add(level, 'kind', '', 'text', count=count)
    ordered = [(finding.level, finding.count) for finding in findings.ordered()]
    assert ordered == [('error', 2), ('error', 1), ('warning', 7), ('warning', 5), ('note', 99)]


# -- the command -----------------------------------------------------------------------------


def test_the_command_prints_every_finding_and_fails_on_errors(detector, write, tmp_path, capsys):
    data = change_all(coco(), iscrowd=1)
    data['images'][0]['file_name'] = 'gone.png'
    write(train=data)
    detector.dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as ended:
        check_command.main([str(tmp_path / 'config.py')])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    levels = [line.split(':')[0] for line in lines[:-1]]
    assert levels == sorted(levels, key=['error', 'warning', 'note'].index)
    assert lines[-1].endswith('2 errors, 0 warnings')
    with pytest.raises(SystemExit):
        check_command.main([str(tmp_path / 'config.py'), '--json'])
    printed = json.loads(capsys.readouterr().out)
    assert printed['errors'] == 2
    kinds = {f['kind'] for f in printed['findings'] if f['level'] == 'error'}
    assert kinds == {'nothing_left', 'image_missing'}


def test_the_command_succeeds_on_right_data(detector, tmp_path, capsys):
    detector.dump(tmp_path / 'config.py')
    check_command.main([str(tmp_path / 'config.py')])
    assert capsys.readouterr().out.splitlines()[-1].endswith('0 errors, 0 warnings')


def test_a_config_that_cannot_be_read_is_a_finding(capsys):
    with pytest.raises(SystemExit):
        check_command.main(['configs/demo/mask_rcnn_shape.py', '--json'])
    assert json.loads(capsys.readouterr().out)['findings'][0]['kind'] == 'config'


def test_the_registered_classes_stay_as_they_are(detector):
    init_default_scope('mmdet')
    Runner.build_dataloader(detector.train_dataloader)
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        assert improve(registry.get('CocoDataset')) is not registry.get('CocoDataset')
