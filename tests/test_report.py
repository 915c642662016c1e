"""The report of an evaluation: figures against pycocotools, mmseg and hand calculations; the page."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import convnext
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_new import as_folders, make

from convnext_backbone.errors import UserError
from convnext_backbone.report import Report, classes, compare, make_report, objects, pixels

pytest.importorskip('hotcoco')


def random_set(seed: int, images: int = 12, masks: bool = False) -> tuple[dict, list[dict]]:
    """A COCO file with crowds, areas that are not the boxes', ids from 0, and detections of all kinds."""
    random = np.random.default_rng(seed)
    truth = dict(images=[], annotations=[], categories=[dict(id=i, name=f'c{i}') for i in (3, 0, 7)])
    found = []

    def shape(x, y, w, h):
        mask = np.zeros((200, 300), np.uint8)
        cv2.ellipse(
            mask, (int(x + w / 2), int(y + h / 2)), (int(w / 2) + 1, int(h / 2) + 1), 0, 0, 360, 1, -1
        )
        code = rle.encode(np.asfortranarray(mask))
        return dict(size=code['size'], counts=code['counts'].decode())

    for image in range(images):
        truth['images'].append(dict(id=image, width=300, height=200, file_name=f'{image}.jpg'))
        for _ in range(random.integers(0, 8)):
            x, y, w, h = *random.uniform(0, 100, 2), *random.choice([12, 25, 60, 110], 2)
            box = [float(v) for v in (x, y, w, h)]
            own = dict(
                id=len(truth['annotations']), image_id=image, category_id=int(random.choice([3, 0, 7]))
            )
            own.update(
                bbox=box, area=float(w * h * random.uniform(0.3, 1)), iscrowd=int(random.random() < 0.15)
            )
            if masks:
                own['segmentation'] = shape(*box)
            truth['annotations'].append(own)
            for _ in range(random.integers(0, 4)):
                near = [float(v) for v in np.array(box) + random.normal(0, [3, 3, 4, 4])]
                near[2:] = [max(2.0, v) for v in near[2:]]
                label = own['category_id'] if random.random() < 0.8 else int(random.choice([3, 0, 7]))
                score = float(np.round(random.random(), 1 if random.random() < 0.3 else 6))  # equal ones, too
                entry = dict(image_id=image, category_id=label, bbox=near, score=score)
                if masks:
                    entry['segmentation'] = shape(*near)
                found.append(entry)
    return truth, found


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(6))
def test_ap_is_that_of_pycocotools(seed, kind, tmp_path):
    truth, found = random_set(seed, masks=kind == 'segm')
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(truth))
    ours = objects.evaluate(objects.truth_of(str(file), set(range(12))), found, kind)
    for annotation in truth['annotations']:
        annotation['id'] += 1  # pycocotools takes 0 for none
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        theirs = COCOeval(ground, ground.loadRes([dict(entry) for entry in found]), kind)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    np.testing.assert_allclose(np.asarray(ours.stats), theirs.stats, atol=1e-12)
    np.testing.assert_allclose(np.asarray(ours.eval['precision']), theirs.eval['precision'], atol=1e-12)


def box(x: float, y: float = 0.0, side: float = 20.0) -> list[float]:
    return [float(x), float(y), float(side), float(side)]


def test_kinds_of_errors_by_hand():
    """One of each kind, on objects that lie far apart: TIDE's definitions (IoU 0.5 and 0.1)."""
    truth = dict(images=[dict(id=1, width=900, height=100, file_name='a')], annotations=[], categories=[])
    truth['categories'] = [dict(id=1, name='a'), dict(id=2, name='b')]
    for number, (x, label) in enumerate([(0, 1), (100, 1), (200, 1), (300, 1), (400, 2), (600, 1)], 1):
        own = dict(id=number, image_id=1, category_id=label, bbox=box(x), area=400.0, iscrowd=0)
        truth['annotations'].append(own)
    found = [
        (box(0), 1, 0.9),  # right
        (box(100), 2, 0.8),  # right place, wrong class
        (box(212), 1, 0.7),  # IoU 8 / 32 = 0.25
        (box(312), 2, 0.6),  # the same, and wrong class
        (box(0, 1), 1, 0.5),  # a second time
        (box(800), 1, 0.4),  # nothing there
    ]
    found = [dict(image_id=1, bbox=b, category_id=label, score=score) for b, label, score in found]
    counts = objects.evaluate(truth, found, 'bbox').tide_errors()['counts']
    assert {name: counts[name] for name in ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg')} == dict.fromkeys(
        ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg'), 1
    )
    assert counts['Miss'] >= 2  # 400 and 600, near which nothing was found


def test_the_best_threshold_by_hand():
    """Scores 0.9 right, 0.8 wrong, 0.7 right, 0.1 wrong; two objects: F1 is largest from 0.7 on."""
    truth = dict(images=[dict(id=1, width=900, height=100, file_name='a')], categories=[dict(id=1, name='a')])
    truth['annotations'] = [
        dict(id=i, image_id=1, category_id=1, bbox=box(100 * i), area=400.0, iscrowd=0) for i in (1, 2)
    ]
    found = [(100, 0.9), (500, 0.8), (200, 0.7), (700, 0.1)]
    found = [dict(image_id=1, category_id=1, bbox=box(x), score=s) for x, s in found]
    thresholds, f1 = objects.best_thresholds(objects.evaluate(truth, found, 'bbox'))
    assert thresholds == pytest.approx([0.7])
    assert f1 == pytest.approx([2 * (2 / 3) / (2 / 3 + 1)])


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    right = cv2.resize(random.integers(0, 4, (5, 7), np.uint8), (70, 50), interpolation=cv2.INTER_NEAREST)
    found = np.roll(right, 2, 1)
    right = right.copy()
    right[:4] = 255
    return right.astype(np.int64), found.astype(np.int64)


def sample_of(right: np.ndarray, found: np.ndarray, file: str = '') -> dict:
    data = [dict(data=torch.from_numpy(values[None])) for values in (found, right)]
    return dict(pred_sem_seg=data[0], gt_sem_seg=data[1], img_path=file)


def test_iou_is_that_of_mmseg():
    from mmseg.evaluation import IoUMetric

    metric, records = IoUMetric(), []
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'd'))
    for seed in range(5):
        sample = sample_of(*maps(seed))
        metric.process({}, [sample])
        records.append(pixels.collect(sample))
    expected = metric.evaluate(5)
    text = '\n'.join(pixels.parts(records, ('a', 'b', 'c', 'd'), None))
    iou, right = map(float, re.search(r'mIoU ([\d.]+), .* right pixels ([\d.]+)', text).groups())
    assert (iou, right) == pytest.approx((expected['mIoU'], expected['aAcc']), abs=0.06)  # both are rounded


def test_boundaries_by_distance():
    """Pixels of a class that lie within the width of what is not it, counted one by one."""
    right, found = maps(3)
    width = max(1, round(0.02 * np.hypot(*right.shape)))
    for label, (both, either) in pixels.edges(right, found).items():
        rims = []
        for values in (right, found):
            own = (values == label) & (right != 255)
            rim = np.zeros_like(own)
            for y, x in np.argwhere(own):
                y1, x1 = y - width, x - width
                window = own[max(y1, 0) : y + width + 1, max(x1, 0) : x + width + 1]
                rim[y, x] = window.size < (2 * width + 1) ** 2 or not window.all()
            rims.append(rim)
        assert (both, either) == ((rims[0] & rims[1]).sum(), (rims[0] | rims[1]).sum())


def test_calibration_by_hand():
    sure = np.array([0.95, 0.95, 0.55, 0.55])
    error, scores, shares = classes.calibration(sure, np.array([True, False, True, True]))
    assert error == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert scores == pytest.approx([0.55, 0.95])
    assert shares == [1.0, 0.5]


def test_two_models_are_compared_with_intervals():
    random = np.random.default_rng(0)
    label = random.integers(0, 5, 400)
    first = [dict(label=int(v), found=int(v) if random.random() < 0.6 else 9) for v in label]
    better = [dict(r, found=r['label'] if random.random() < 0.5 else r['found']) for r in first]
    before, after, gain, low, high = compare.difference_of_accuracy(first, better)['top-1']
    rights = [np.mean([r['label'] == r['found'] for r in results]) for results in (first, better)]
    assert (before, after) == pytest.approx([100 * value for value in rights])
    assert gain == pytest.approx(after - before)
    deviation = (
        100
        * np.std(
            [b['found'] == b['label'] for b in better]
            - np.array([r['found'] == r['label'] for r in first]).astype(float)
        )
        / 20
    )
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)  # of the mean of 400 differences
    assert 'better' in ''.join(compare.parts({'top-1': (before, after, gain, low, high)}, 'other'))
    same = compare.difference_of_accuracy(first, first)['top-1']
    assert same[2:] == (0, 0, 0)
    records = [[pixels.collect(sample_of(*maps(seed))) for seed in range(6)]] * 2
    assert compare.difference_of_iou(*records)['mIoU'][2:] == (0, 0, 0)
    truth, found = random_set(1)
    worse = [dict(entry, score=1 - entry['score']) for entry in found]
    for annotation in truth['annotations']:
        annotation['id'] += 1
    rows = compare.difference_of_ap(*(objects.evaluate(truth, own, 'bbox') for own in (worse, found)))
    assert rows['AP'][2] > 0
    assert rows['AP'][3] < rows['AP'][2] < rows['AP'][4]


def detector_page(folder: Path) -> Path:
    random = np.random.default_rng(0)
    truth, found = random_set(0, masks=True)
    names = ['c3', 'c0', 'c7 <&"']
    truth['categories'][2]['name'] = names[2]
    (folder / 'truth.json').write_text(json.dumps(truth))
    report = Report(str(folder / 'page.html'), title='A <model>', ann_file=str(folder / 'truth.json'))
    report.dataset_meta = dict(classes=tuple(names))
    for image in truth['images']:
        file = folder / image['file_name']
        cv2.imwrite(str(file), random.integers(0, 255, (200, 300, 3), np.uint8))
        own = [entry for entry in found if entry['image_id'] == image['id']]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry['bbox'] for entry in own)]
        predicted = dict(
            bboxes=torch.tensor(corners).reshape(-1, 4),
            scores=torch.tensor([entry['score'] for entry in own]),
            labels=torch.tensor([[3, 0, 7].index(entry['category_id']) for entry in own], dtype=torch.long),
            masks=[entry['segmentation'] for entry in own],
        )
        report.process({}, [dict(img_id=image['id'], img_path=str(file), pred_instances=predicted)])
    assert report.evaluate(len(truth['images'])) == {}
    return folder / 'page.html'


def test_the_page_of_a_detector(tmp_path):
    text = detector_page(tmp_path).read_text()
    truth, found = random_set(0, masks=True)
    ap = objects.evaluate(
        objects.truth_of(str(tmp_path / 'truth.json'), set(range(12))), found, 'bbox'
    ).stats[0]
    assert f'<td class="number">{100 * ap:.1f}</td>' in text
    assert 'A &lt;model&gt;' in text
    assert 'c7 &lt;&amp;' in text
    assert 'c7 <' not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    for part in ('Boxes', 'Masks', 'Kinds of errors', 'Calibration', 'Taken for', 'The worst images'):
        assert part in text


def test_the_page_in_a_browser(tmp_path):
    """Narrow and wide: nothing runs over, every picture is there."""
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if not browser:
        pytest.skip('no Chromium')
    page = detector_page(tmp_path)
    script = (
        '<script>onload = () => { const pictures = [...document.images]; document.title = [pictures.length, '
        'pictures.filter(p => !p.naturalWidth).length, document.documentElement.scrollWidth - innerWidth]; };'
        '</script>'
    )
    page.write_text(page.read_text().replace('</html>', f'{script}</html>'))
    for width in (400, 1200):
        line = [
            browser,
            '--headless',
            '--no-sandbox',
            f'--window-size={width},2000',
            '--dump-dom',
            f'file://{page}',
        ]
        dom = subprocess.run(line, capture_output=True, text=True, timeout=120).stdout
        pictures, broken, over = map(int, re.search(r'<title>(-?\d+),(-?\d+),(-?\d+)', dom).groups())
        assert pictures >= 10
        assert broken == 0
        assert over <= 0


@pytest.mark.long
def test_a_training_ends_with_a_report_and_a_test_compares_two_checkpoints(tmp_path):
    config = make(as_folders(tmp_path / 'insects'), '--epochs', '2')
    run = tmp_path / 'run'
    options = ('--device', 'cpu', '--work-dir', str(run))
    convnext('train', str(config), *options, '--cfg-options', 'default_hooks.checkpoint.interval=1')
    text = (run / 'report.html').read_text()
    assert 'Top-1' in text
    out = tmp_path / 'out.html'
    first, last = (str(run / f'epoch_{n}.pth') for n in (1, 2))
    convnext('test', str(config), last, *options, '--report', str(out), '--against', first)
    text = out.read_text()
    assert 'Against' in text
    assert 'epoch_1.pth' in text
    assert 'Taken for' in text


def test_a_report_says_what_is_missing(tmp_path, monkeypatch):
    from mmengine.config import Config

    cfg = Config(
        dict(test_evaluator=dict(type='CocoMetric', ann_file='a.json'), val_evaluator=dict(ann_file='a'))
    )
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='needs hotcoco: pip install'):
        make_report(cfg, 'out.html', '')
    assert make_report(cfg, 'out.html', '', at_end=True) is None  # a training goes on without
