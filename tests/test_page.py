"""The page about a config and its data: numbers against files, pictures against pixels, a browser's view."""

import base64
import html
import json
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from PIL import Image

from convnext_backbone.commands import check
from convnext_backbone.config import read_config, set_data_root
from convnext_backbone.datasets.near import groups_of, twins
from convnext_backbone.findings import Findings
from convnext_backbone.measure.anchors import better_scales, coverage, generators, overlaps
from convnext_backbone.page import samples, write_page
from convnext_backbone.page.statistics import boxes_as_seen, build, count
from convnext_backbone.shapes import CLASSES, make_shapes

HOSTILE = ('<script>alert(1)</script>', 'a & b', '"quoted"', "it's", 'żółw')
RPN = dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32])
RETINA = dict(
    type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=[8, 16]
)
FILTER = dict(type='FilterAnnotations', by_mask=True, min_gt_bbox_wh=(1, 1))


# -- anchors ---------------------------------------------------------------------------------


def brute_force(generator: dict, sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The best overlap of each box around each centre (2, n, places) with all anchors of a map of 320."""
    built = TASK_UTILS.build(dict(generator))
    maps = [(320 // y, 320 // x) for x, y in built.strides]
    anchors = torch.cat(built.grid_priors(maps, device='cpu')).double()
    half = torch.tensor(sizes / 2)[:, None]
    middle = torch.tensor(centres).permute(1, 2, 0)
    boxes = torch.cat([middle - half, middle + half], -1).reshape(-1, 4)
    return bbox_overlaps(boxes, anchors).max(1)[0].reshape(centres.shape[1:]).numpy()


@pytest.mark.parametrize('generator', [
    RPN, RETINA, {**RPN, 'center_offset': 0.5}, {**RPN, 'strides': [(8, 16), (16, 16), (32, 64)]},
    dict(type='YOLOAnchorGenerator', base_sizes=[[(60, 90), (30, 20)], [(10, 13), (16, 30)]],
         strides=[32, 8]),
], ids=lambda g: g['type'] + str(len(g)))  # fmt: skip
def test_overlaps_are_those_of_all_anchors_of_a_map(generator):
    sizes = np.exp(np.random.default_rng(5).normal(3.3, 0.5, (40, 2)))
    chosen, found = overlaps(generator, sizes, places=4, seed=3)
    centres = np.random.default_rng(3).random((2, 40, 4)) * 4096 % 64 + 128  # in the middle of the map
    expected = brute_force(generator, sizes, centres)
    assert chosen.tolist() == list(range(40))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 0.05 < (expected >= 0.5).mean() < 0.95
    rng = np.random.default_rng(11)  # other places, more of them
    expected = brute_force(generator, sizes, rng.random((2, 40, 12)) * 64 + 128)
    assert coverage(generator, sizes) == pytest.approx((expected >= 0.5).mean(), abs=0.06)
    assert coverage(generator, sizes, iou=0.7) == pytest.approx((expected >= 0.7).mean(), abs=0.06)


@pytest.mark.parametrize('generator', [RPN, RETINA, {**RPN, 'scales': [2, 8], 'strides': [16]}])
def test_better_scales_meet_more_boxes_and_keep_the_shapes_of_weights(generator):
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(0, 0.3, (100, 2))) * (12, 40)
    better = better_scales(generator, sizes)
    changed = {key for key in better if better[key] != generator.get(key)}
    assert changed <= {'scales', 'octave_base_scale', 'ratios'}
    json.dumps(better)  # plain numbers
    one, other = (TASK_UTILS.build(dict(g)) for g in (generator, better))
    assert one.num_base_priors == other.num_base_priors
    centres = rng.random((2, 100, 12)) * 64 + 128
    before, after = ((brute_force(g, sizes, centres) >= 0.5).mean() for g in (generator, better))
    assert after > before + 0.15
    assert after == pytest.approx(coverage(better, sizes), abs=0.04)


def test_nothing_is_proposed_where_nothing_is_gained():
    anchors = np.array([[32 * r**-0.5, 32 * r**0.5] for r in (0.5, 1, 2)] * 10)
    assert better_scales(RPN, anchors * 4 / 4) is None
    assert better_scales(RPN, anchors[:5] * 9) is None
    yolo = dict(type='YOLOAnchorGenerator', base_sizes=[[(10, 13)]], strides=[8])
    assert better_scales(yolo, anchors * 9) is None
    assert np.isnan(coverage(RPN, np.zeros((0, 2))))


def test_every_generator_of_a_model_is_found_once():
    cfg = read_config('configs/demo/mask_rcnn_shapes.py')
    assert list(generators(cfg)) == ['model.rpn_head.anchor_generator']
    assert generators(cfg)['model.rpn_head.anchor_generator']['scales'] == [4]


# -- images in both splits -------------------------------------------------------------------


def test_twins_are_images_saved_anew_and_no_others(tmp_path):
    root = make_shapes(tmp_path / 'shapes', images=(30, 12), crops=(0, 0), size=96)
    train, val = (sorted((root / 'images' / split).iterdir()) for split in ('train', 'val'))
    for number, (quality, scale) in {3: (60, 1), 5: (90, 1), 7: (95, 2)}.items():
        with Image.open(train[number + 10]) as image:
            size = [round(side * scale) for side in image.size]
            image.resize(size).save(val[number], 'JPEG', quality=quality)
    val[0].write_bytes(b'no image')
    assert twins(val, train, '') == ([(3, 13), (5, 15), (7, 17)], 1)
    groups = groups_of([*val, *train])
    assert [groups[len(val) + i] for i in (13, 15, 17)] == [3, 5, 7]
    assert len(set(groups.tolist())) == 42 - 3


# -- statistics and samples ------------------------------------------------------------------


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Drawn shapes whose classes have names that are HTML, and one image in both splits."""
    root = make_shapes(tmp_path_factory.mktemp('page') / 'shapes', images=(10, 4), crops=(20, 10), size=96)
    names = dict(zip(CLASSES, HOSTILE))
    for split in ('train', 'val'):
        file = root / f'annotations/instances_{split}.json'
        data = json.loads(file.read_text())
        for category in data['categories']:
            category['name'] = names[category['name']]
        file.write_text(json.dumps(data))
        for name, other in zip(CLASSES, ('a&b', "it's", 'c"d', 'e<i>f', 'gł')):
            (root / 'classification' / split / name).rename(root / 'classification' / split / other)
    shutil.copy(root / 'images/train/000002.png', root / 'images/val/000003.png')
    mask = cv2.imread(str(root / 'semantic/train/000001.png'), 0)
    mask[:8] = 255
    cv2.imwrite(str(root / 'semantic/train/000001.png'), mask)
    return root


KINDS = {
    'detector': ('mask_rcnn_shapes', ''),
    'segmenter': ('upernet_shapes', ''),
    'classifier': ('classifier_shapes', 'classification'),
}


def config_of(kind: str, root):
    name, folder = KINDS[kind]
    cfg = read_config(f'configs/demo/{name}.py')
    set_data_root(cfg, str(root / folder))
    for split in ('train', 'val', 'test') if kind == 'detector' else ():
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=HOSTILE)
    return cfg


def annotations(root, split: str = 'train') -> dict:
    return json.loads((root / f'annotations/instances_{split}.json').read_text())


def test_objects_are_counted_as_the_file_has_them(drawn):
    found = count(build(config_of('detector', drawn), 'train_dataloader'), 'sample')
    objects = annotations(drawn)['annotations']
    counts = np.bincount([a['category_id'] - 1 for a in objects], minlength=5)
    areas = np.bincount([a['category_id'] - 1 for a in objects], [a['area'] for a in objects], 5)
    assert (found.images, found.classes, found.what) == (10, HOSTILE, 'objects')
    assert found.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(found.share, areas / (10 * 96 * 96))
    assert sorted(map(tuple, found.boxes)) == sorted(tuple(a['bbox'][2:]) for a in objects)
    per_image = np.bincount([a['image_id'] - 1 for a in objects], minlength=10)
    assert found.per_image.tolist() == per_image.tolist()
    assert found.sizes.tolist() == [[96, 96]] * 10


def test_pixels_are_counted_as_the_masks_have_them(drawn):
    found = count(build(config_of('segmenter', drawn), 'train_dataloader'), 'all')
    masks = np.stack([cv2.imread(str(f), 0) for f in (drawn / 'semantic/train').iterdir()])
    assert found.counts.tolist() == [(masks == label).sum() for label in range(6)]
    np.testing.assert_allclose(found.share, [(masks == label).mean() for label in range(6)])
    assert found.ignored == (masks == 255).mean() > 0
    assert count(build(config_of('segmenter', drawn), 'train_dataloader'), 'none').what == ''


def test_images_in_a_tar_file_are_counted_and_not_compared(drawn, tmp_path):
    for split in ('train', 'val'):
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            tar.add(drawn / 'classification' / split, '.')
    cfg = config_of('classifier', drawn)
    set_data_root(cfg, str(tmp_path))
    found = count(build(cfg, 'train_dataloader'), 'all')
    assert found.counts.tolist() == [4] * 5
    assert (found.files, found.images) == ([], 20)
    write_page(tmp_path / 'p.html', 'c.py', cfg, Findings())
    text = (tmp_path / 'p.html').read_text()
    assert 'the images are no files' in text
    assert text.count('<figure>') == 16


def test_datasets_that_are_joined_are_counted_together(drawn):
    cfg = config_of('detector', drawn)
    one, two = (cfg[f'{split}_dataloader'].dataset for split in ('train', 'val'))
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[one, two])
    )
    found = count(build(cfg, 'train_dataloader'), 'sample')
    objects = annotations(drawn)['annotations'] + annotations(drawn, 'val')['annotations']
    assert found.counts.sum() == len(objects)
    assert found.images == len(found.files) == 14


def test_boxes_as_seen_are_those_after_resizing(drawn):
    cfg = config_of('detector', drawn)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Resize', scale=(288, 288), keep_ratio=True))
    seen, looked = boxes_as_seen(build(cfg, 'train_dataloader'), 'sample')
    expected = [tuple(3 * side for side in a['bbox'][2:]) for a in annotations(drawn)['annotations']]
    assert sorted(map(tuple, seen.round().tolist())) == sorted(expected)
    assert looked == '10 of 10 images'
    repeated = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = repeated
    again, looked = boxes_as_seen(build(cfg, 'train_dataloader'), 'sample')
    assert sorted(again.tolist()) == sorted(seen.tolist())
    assert looked == '10 of 10 images'
    cfg.train_dataloader.dataset = repeated['dataset']
    cfg.train_dataloader.dataset.pipeline.insert(3, FILTER)  # needs masks
    assert boxes_as_seen(build(cfg, 'train_dataloader'), 'sample')[1] in (
        looked,
        f'{looked} with their pixels',
    )


def test_a_blank_image_has_the_annotated_size(drawn, tmp_path):
    data = annotations(drawn)
    data['images'] = [dict(id=1, file_name='not_there.png', width=64, height=40)]
    data['annotations'] = [dict(data['annotations'][0], id=1, image_id=1, bbox=[4, 4, 20, 10])]
    (tmp_path / 'a.json').write_text(json.dumps(data))
    cfg = config_of('detector', drawn)
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'a.json')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Resize', scale=(128, 200), keep_ratio=False))
    seen, _ = boxes_as_seen(build(cfg, 'train_dataloader'), 'none')
    np.testing.assert_allclose(seen, [(40, 50)], atol=1e-3)


def rectangles(text: str) -> list[tuple[float, ...]]:
    found = re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', text)
    return [tuple(map(float, one)) for one in found]


@pytest.mark.parametrize('split, scale', [('train_dataloader', 120 / 96), ('val_dataloader', 1)])
def test_boxes_are_drawn_where_the_objects_are(drawn, split, scale):
    """Training: as loaded; validation: resized before the boxes are loaded, which stay as in the file."""
    cfg = config_of('detector', drawn)
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if step.type != 'RandomFlip'
    ]
    side = 96 if split.startswith('train') else 128
    scale = max(side, 120) / 96  # smaller pictures are enlarged to 120 pixels
    text = samples.figures(cfg, build(cfg, split), split, HOSTILE, 20)
    expected = [
        tuple(round(side * scale, 1) for side in a['bbox'])
        for a in annotations(drawn, split.partition('_')[0])['annotations']
    ]
    np.testing.assert_allclose(sorted(rectangles(text)), sorted(expected), atol=0.2)
    assert text.count('<figure>') == (10 if split.startswith('train') else 4)
    assert text == samples.figures(cfg, build(cfg, split), split, HOSTILE, 20)  # seeded


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), 1) for one in found]


def test_names_beside_boxes_are_escaped_and_colours_those_of_the_file(drawn):
    cfg = config_of('detector', drawn)
    pipeline = cfg.val_dataloader.dataset.pipeline
    pipeline[1] = dict(type='Resize', scale=(288, 288), keep_ratio=True)
    text = samples.figures(cfg, build(cfg, 'val_dataloader'), 'val_dataloader', HOSTILE, 4)
    names = re.findall(r'<text [^>]*>([^<]*)</text>', text)
    objects = annotations(drawn, 'val')['annotations']
    assert sorted(names) == sorted(html.escape(HOSTILE[a['category_id'] - 1]) for a in objects)
    files = (drawn / 'images/val').iterdir()
    given = sorted(cv2.imread(str(file)).mean((0, 1)).tolist() for file in files)
    np.testing.assert_allclose(sorted(i.mean((0, 1)).tolist() for i in pictures(text)), given, atol=2)


def test_the_classifiers_images_have_their_colours_again(drawn):
    cfg = config_of('classifier', drawn)
    cfg.val_dataloader.dataset.transform.interpolation = 'nearest'
    dataset = build(cfg, 'val_dataloader')
    text = samples.figures(cfg, dataset, 'val_dataloader', dataset.metainfo['classes'], 10)
    files = (drawn / 'classification/val').rglob('*.png')
    given = sorted(cv2.imread(str(file)).mean((0, 1)).tolist() for file in files)
    found = sorted(image.mean((0, 1)).tolist() for image in pictures(text))
    np.testing.assert_allclose(found, given, atol=2)


def test_areas_have_the_outlines_of_the_mask(drawn):
    cfg = config_of('segmenter', drawn)
    text = samples.figures(cfg, build(cfg, 'val_dataloader'), 'val_dataloader', ('ground', *HOSTILE), 4)
    areas = [re.findall(r'<path class="area" [^>]*style="color:(#\w+)" d="([^"]+)"', figure)
             for figure in text.split('<figure>')[1:]]  # fmt: skip
    drawn_area = total = 0
    for paths in areas:
        for tint, path in paths:
            if tint != samples.colour(0):
                rings = [np.array([p.split(',') for p in ring.split('L')], float).astype(np.int32)
                         for ring in re.findall(r'M([^z]+)z', path)]  # fmt: skip
                drawn_area += cv2.fillPoly(np.zeros((120, 120), np.uint8), rings, 1).sum()
    for file in (drawn / 'semantic/val').iterdir():
        total += (cv2.imread(str(file), 0) > 0).sum() * (120 / 96) ** 2
    assert drawn_area == pytest.approx(total, rel=0.05)


def test_real_photos(real_data):
    """Numbers as the set's own description has them."""
    cfg = read_config('configs/detection/mask_rcnn_convnext_t.py')
    set_data_root(cfg, str(real_data / 'coco_mini'))
    train, val = (build(cfg, f'{split}_dataloader') for split in ('train', 'val'))
    one, other = count(train, 'sample'), count(val, 'sample')
    assert (one.images, one.counts.sum(), (one.counts == 0).sum()) == (98, 740, 11)
    assert (other.images, other.counts.sum(), (other.counts == 0).sum()) == (100, 707, 8)
    seen, looked = boxes_as_seen(train, 'sample')
    assert looked == '98 of 98 images'
    assert 600 < len(seen) <= 740 and seen.min() >= 0
    ratio = np.median(np.sqrt(seen.prod(1))) / np.median(np.sqrt(one.boxes.prod(1)))
    assert 1.1 < ratio < 2.2  # a short side of 480 to 800 in place of about 450
    assert twins(other.files, one.files, '') == ([], 0)


# -- the page --------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects text and elements of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.words, self.tags, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope='module')
def pages(drawn, tmp_path_factory):
    """Text of the page of each kind of model."""
    folder, found = tmp_path_factory.mktemp('pages'), {}
    for kind in KINDS:
        config = folder / f'{kind}.py'
        config.write_text(config_of(kind, drawn).pretty_text)
        check.main([str(config), '--page', str(folder / f'{kind}.html')])
        found[kind] = (folder / f'{kind}.html').read_text('utf-8')
    return found


@pytest.mark.parametrize('kind', KINDS)
def test_a_page_shows_everything_needs_nothing_and_escapes_names(pages, drawn, kind):
    text = pages[kind]
    page = Page(text)
    words = ' '.join(page.words)
    assert not {'script', 'link', 'iframe', 'b'} & set(page.tags) - {'b'}
    assert 'http' not in re.sub(r'base64,[^"]+', '', text)
    assert 'cannot be shown' not in words
    assert [name for name, value in page.attributes if name.startswith('on')] == []
    names = {'detector': HOSTILE, 'classifier': ('a&b', "it's", 'c"d', 'e<i>f', 'gł')}.get(kind, CLASSES)
    for name in names:
        assert name in words
    assert page.tags.count('figure') == {'detector': 14, 'segmenter': 14, 'classifier': 16}[kind]
    if kind == 'classifier':
        assert 'None was found.' in words
    else:
        assert '1 of 4 validation images are nearly the same as a training image' in words
        assert 'val: 000003.png' in words and 'train: 000002.png' in words
    assert ('model.rpn_head.anchor_generator' in words) == (kind == 'detector')
    assert ('Ignored pixels: train 0.83%' in words) == (kind == 'segmenter')


def test_findings_come_first_and_errors_leave_what_can_be_shown(drawn, tmp_path, capsys):
    cfg = config_of('detector', drawn)
    shutil.copytree(drawn / 'images', tmp_path / 'images')
    shutil.copytree(drawn / 'annotations', tmp_path / 'annotations')
    (tmp_path / 'annotations/instances_val.json').write_text('{"images": <b>')
    (tmp_path / 'images/train/000004.png').write_bytes(b'broken')
    set_data_root(cfg, str(tmp_path))
    (tmp_path / 'c.py').write_text(cfg.pretty_text)
    with pytest.raises(SystemExit) as end:
        check.main([str(tmp_path / 'c.py'), '--page', str(tmp_path / 'p.html')])
    assert end.value.code == 1
    text = (tmp_path / 'p.html').read_text()
    page = Page(text)
    words = ' '.join(page.words)
    assert words.index('no valid JSON') < words.index('What is trained')
    assert 'val cannot be shown: ' in words
    assert text.count('<figure>') == 9
    assert '000004.png cannot be read as an image' in words
    (tmp_path / 'c.py').write_text('model = dict(\n')
    with pytest.raises(SystemExit):
        check.main([str(tmp_path / 'c.py'), '--page', str(tmp_path / 'p.html')])
    assert '1 error' in (tmp_path / 'p.html').read_text()
    assert not list(tmp_path.glob('.*'))


def test_nothing_is_read_if_nothing_is_to_be_read(drawn, tmp_path, monkeypatch):
    cfg = config_of('detector', drawn)
    (tmp_path / 'c.py').write_text(cfg.pretty_text)
    monkeypatch.setattr(cv2, 'imdecode', None)
    monkeypatch.setattr(Image, 'open', None)
    check.main([str(tmp_path / 'c.py'), '--page', str(tmp_path / 'p.html'), '--check-data', 'none'])
    text = (tmp_path / 'p.html').read_text()
    assert text.count('No image was read') == 1 and '<img' not in text
    assert 'Not looked for: no image was read' in text
    assert 'model.rpn_head.anchor_generator' in text


@pytest.mark.parametrize('place, said', [
    ('absent/p.html', 'there is no folder'), ('.', 'is a folder'), ('/proc/p.html', 'cannot be written'),
])  # fmt: skip
def test_a_page_that_cannot_be_written_is_one_line_at_once(tmp_path, place, said):
    with pytest.raises(check.UserError, match=said) as error:
        check.main(['no_config.py', '--page', str(tmp_path / place)])
    assert '\n' not in str(error.value)


LOOK = """<script>addEventListener('load', () => {
const images = [...document.images], page = document.documentElement;
parent.postMessage(JSON.stringify({width: innerWidth, needed: page.scrollWidth, images: images.length,
  broken: images.filter(image => !image.naturalWidth).length,
  beyond: [...document.querySelectorAll('body *')].filter(e => !e.closest('.table, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).length}), '*') })</script>"""
FRAME = """<!doctype html><script>addEventListener('message', e => document.title = e.data)</script>
<iframe src="page.html" style="border:0;width:{}px;height:2000px"></iframe>"""


@pytest.mark.parametrize('width', [400, 1200])
@pytest.mark.parametrize('kind', KINDS)
def test_a_browser_shows_all_pictures_without_scrolling_sideways(pages, tmp_path, kind, width):
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if not browser:
        pytest.skip('no chromium here: apt install chromium')
    (tmp_path / 'page.html').write_text(pages[kind].replace('</html>', LOOK + '</html>'))
    file = tmp_path / 'frame.html'  # no window is narrower than 500 pixels
    file.write_text(FRAME.format(width))
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=3000', '--dump-dom']
    options += [f'--user-data-dir={tmp_path / "profile"}', '--window-size=1300,2100', file.as_uri()]
    dom = subprocess.run([browser, *options], capture_output=True, text=True, timeout=100).stdout
    seen = json.loads(re.search(r'<title>(\{.*?\})</title>', dom)[1])
    assert seen['width'] == width
    assert seen['needed'] <= width
    assert seen['broken'] == seen['beyond'] == 0
    assert seen['images'] >= 14
