"""COCO files as exporters write them: what is read, what is completed, what is refused, by name."""

import copy
import json
import math

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_backbone.datasets.annotations import (
    ABSENT,
    DAMAGED,
    FLAT,
    MASK_NO_NUMBER,
    MASK_OUTSIDE,
    NEGATIVE,
    NO_NUMBER,
    NO_SIZE,
    OUTSIDE,
    SHORT,
    UNLISTED,
    USED,
    WHOLE,
    Annotations,
    _compressed_length,
)
from convnext_backbone.errors import UserError

BOXES = [(10, 10, 20, 24), (40, 20, 12, 10), (2, 3, 30, 40), (33, 1, 8, 9)]
SQUARE = [10, 10, 30, 10, 30, 34, 10, 34]  # 20 x 24


def content() -> dict:
    """Two images of 64 x 48 with two objects each, whose masks are their boxes."""
    annotations = []
    for number, (x, y, width, height) in enumerate(BOXES, 1):
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append(
            dict(
                id=number,
                image_id=1 + number // 3,
                category_id=1 + number % 2,
                bbox=[x, y, width, height],
                area=width * height,
                iscrowd=0,
                segmentation=[corners],
            )
        )
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (1, 2)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        annotations=annotations,
    )


def read(tmp_path, data) -> Annotations:
    file = tmp_path / 'a.json'
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return Annotations(file)


def changed(**entries) -> dict:
    """The content with entries of the first annotation replaced; ``...`` removes one."""
    data = content()
    for key, value in entries.items():
        if value is ...:
            del data['annotations'][0][key]
        else:
            data['annotations'][0][key] = value
    return data


def kinds(annotations: Annotations, level: str) -> set[str]:
    return {finding.kind for finding in annotations.findings.of(level)}


def test_a_right_file_has_no_findings(tmp_path):
    annotations = read(tmp_path, content())
    assert annotations.findings == []
    assert (annotations.why == USED).all()
    assert (annotations.mask == WHOLE).all()


@pytest.mark.parametrize('area', [..., None, 0, -1, 0.0, '480', math.nan], ids=str)
def test_an_area_that_is_none_is_computed(tmp_path, area):
    annotations = read(tmp_path, changed(area=area))
    assert annotations.records[0]['area'] == 480  # 20 x 24
    assert kinds(annotations, 'note') == {'area'}


def test_the_area_of_run_lengths_and_of_boxes(tmp_path):
    mask = np.zeros((48, 64), np.uint8, order='F')
    mask[5:20, 7:30] = 1
    mask[8:10, 9:11] = 0
    encoded = rle.encode(mask)
    encoded['counts'] = encoded['counts'].decode()
    by_mask = read(tmp_path, changed(area=0, bbox=[7, 5, 23, 15], segmentation=encoded))
    assert by_mask.records[0]['area'] == mask.sum()
    by_box = read(tmp_path, changed(area=..., bbox=[7, 5, 23, 15], segmentation=...))
    assert by_box.records[0]['area'] == 23 * 15


@pytest.mark.parametrize(
    'given, right', [(..., 0), (None, 0), (False, 0), (True, 1), (1, 1), ('0', 0), ('1', 1)], ids=str
)
def test_iscrowd_becomes_a_number(tmp_path, given, right):
    record = read(tmp_path, changed(iscrowd=given)).records[0]
    assert record['iscrowd'] == right
    assert type(record['iscrowd']) is int


@pytest.mark.parametrize(
    'box, why',
    [
        ([10, 10, math.nan, 24], NO_NUMBER),
        ([10, 10, math.inf, 24], NO_NUMBER),
        (['a', 10, 20, 24], NO_NUMBER),
        ([10, 10, 20], NO_NUMBER),
        ('10 10 20 24', NO_NUMBER),
        ([10, 10, 0, 24], NO_SIZE),
        ([10, 10, 20, 0.0], NO_SIZE),
        ([10, 10, -20, 24], NEGATIVE),
        ([70, 10, 20, 24], OUTSIDE),
        ([10, -30, 20, 24], OUTSIDE),
    ],
    ids=str,
)
def test_a_box_that_is_none_is_left_out_and_says_why(tmp_path, box, why):
    annotations = read(tmp_path, changed(bbox=box, segmentation=[]))
    assert annotations.why.tolist() == [why, USED, USED, USED]
    truth = annotations.coco(COCO, with_masks=False)
    assert len(truth.anns) == 3


def test_a_missing_box_is_that_of_the_mask(tmp_path):
    annotations = read(tmp_path, changed(bbox=...))
    assert annotations.records[0]['bbox'] == [10, 10, 20, 24]
    assert annotations.why[0] == USED


@pytest.mark.parametrize(
    'mask, state',
    [
        (..., ABSENT),
        (None, ABSENT),
        ([], ABSENT),
        ([[]], ABSENT),
        ([[10, 10, 30, 10]], SHORT),
        ([[10, 10, 30, 10, 20]], SHORT),
        ([[10, 10, 30, 10, 20, 10]], FLAT),
        ([[10, 10, 20, 20, 30, 30]], FLAT),
        ([[70, 10, 90, 10, 90, 20]], MASK_OUTSIDE),
        ([[10, 10, math.nan, 10, 30, 34]], MASK_NO_NUMBER),
        ([[10, 10, 'x', 10, 30, 34]], MASK_NO_NUMBER),
        ('a mask', DAMAGED),
        ({'size': [48, 64]}, DAMAGED),
        ({'size': [48, 64], 'counts': [10, 20]}, DAMAGED),
        ({'size': [48, 64], 'counts': [-1, 48 * 64 + 1]}, DAMAGED),
        ({'size': [48, 64], 'counts': 'zzzz~~~~'}, DAMAGED),
        ({'size': [48, 64], 'counts': [48 * 64]}, FLAT),
        (SQUARE, WHOLE),  # not in a list
        ([SQUARE, [1, 1]], WHOLE),  # one part is none
    ],
    ids=str,
)
def test_each_kind_of_mask(tmp_path, mask, state):
    annotations = read(tmp_path, changed(segmentation=mask))
    assert annotations.mask.tolist() == [state, WHOLE, WHOLE, WHOLE]
    assert len(annotations.coco(COCO, with_masks=True).anns) == (4 if state == WHOLE else 3)
    assert len(annotations.coco(COCO, with_masks=False).anns) == 4
    assert annotations.records[0].get('segmentation') in ([SQUARE], [], None)


def test_boxes_as_fractions_are_an_error(tmp_path):
    data = content()
    for record in data['annotations']:
        x, y, width, height = record['bbox']
        record.update(bbox=[x / 64, y / 48, width / 64, height / 48], segmentation=[])
    assert 'boxes_normalised' in kinds(read(tmp_path, data), 'error')


@pytest.mark.parametrize('with_masks', [True, False])
def test_boxes_as_corners_are_an_error(tmp_path, with_masks):
    data = content()
    for record in data['annotations']:
        x, y, width, height = record['bbox']
        record['bbox'] = [x, y, x + width, y + height]
        if not with_masks:
            record['segmentation'] = []
    assert kinds(read(tmp_path, data), 'error') & {'boxes_as_corners', 'boxes_beyond'}


def test_corners_within_the_image_are_told_by_the_masks(tmp_path):
    data = content()
    for number, record in enumerate(data['annotations']):
        x, y, width, height = 2 + number, 3, 10, 8
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        record.update(bbox=[x, y, x + width, y + height], segmentation=[corners])  # at most 15 + 5 of 64
    findings = read(tmp_path, data).findings.of('error')
    assert [finding.kind for finding in findings] == ['boxes_as_corners']
    assert 'their masks lie so' in findings[0].text


def test_large_right_boxes_are_not_taken_for_corners(tmp_path):
    data = content()
    for record in data['annotations']:
        record.update(bbox=[1, 1, 62, 46], segmentation=[])
    assert read(tmp_path, data).findings.of('error') == []


def test_the_size_of_run_lengths_must_be_that_of_the_image(tmp_path):
    mask = np.zeros((64, 48), np.uint8, order='F')  # exchanged
    mask[10:34, 10:30] = 1
    encoded = rle.encode(mask)
    encoded['counts'] = encoded['counts'].decode()
    findings = read(tmp_path, changed(segmentation=encoded)).findings.of('error')
    assert [finding.kind for finding in findings] == ['rle_size']
    assert '[64, 48]' in findings[0].text
    assert '[48, 64]' in findings[0].text


def test_masks_that_lie_elsewhere_than_their_boxes_are_an_error(tmp_path):
    data = content()
    for record in data['annotations']:  # masks of an image of twice the size
        record['segmentation'] = [[2 * v for v in record['segmentation'][0]]]
    assert 'mask_beside_box' in kinds(read(tmp_path, data), 'error')


STRUCTURE = {
    'no JSON': (lambda d: b'{"images": [', 'no valid JSON'),
    'a list': (lambda d: d['annotations'], 'holds a list'),
    'no images': (lambda d: d.pop('images'), "'images' is absent"),
    'images are a dict': (lambda d: d.update(images={}), "'images' is an object"),
    'no categories': (lambda d: d.pop('categories'), "'categories' is absent"),
    'annotation is a list': (lambda d: d['annotations'].append([1]), 'annotations[4] is a list'),
    'category without name': (lambda d: d['categories'][1].pop('name'), "categories[1] has no 'name'"),
    'category id twice': (lambda d: d['categories'][1].update(id=1), "'cat' and 'dog' have the same id 1"),
    'category name twice': (lambda d: d['categories'][1].update(name='cat'), "2 categories are called 'cat'"),
    'category name is a number': (lambda d: d['categories'][1].update(name=7), 'is a number, expected text'),
    'image without id': (lambda d: d['images'][1].pop('id'), "has no 'id'"),
    'image without file': (lambda d: d['images'][1].pop('file_name'), "has no 'file_name'"),
    'image id twice': (lambda d: d['images'][1].update(id=1), '1.png and 2.png have the same id 1'),
    'width is text': (lambda d: d['images'][1].update(width='64'), "width of image 2.png is '64'"),
    'height is 0': (lambda d: d['images'][0].update(height=0), 'height of image 1.png is 0'),
    'category id is text': (
        lambda d: [a.update(category_id=str(a['category_id'])) for a in d['annotations']],
        "'2' is text, the listed 2 a number",
    ),
    'unknown category': (lambda d: d['annotations'][2].update(category_id=9), 'category_id 9'),
    'no category': (lambda d: d['annotations'][2].pop('category_id'), "annotation 3 has no 'category_id'"),
    'no image': (lambda d: d['annotations'][2].pop('image_id'), "annotation 3 has no 'image_id'"),
    'image id is a list': (lambda d: d['annotations'][2].update(image_id=[1]), 'image_id [1]'),
}


@pytest.mark.parametrize('name', STRUCTURE)
def test_what_is_no_coco_file_is_refused_in_one_line(tmp_path, name):
    change, text = STRUCTURE[name]
    data = content()
    result = change(data)
    given = result if isinstance(result, (bytes, list)) and name in ('no JSON', 'a list') else data
    with pytest.raises(UserError) as error:
        read(tmp_path, given)
    assert text in str(error.value)
    assert 'a.json' in str(error.value)
    assert '\n' not in str(error.value)


def test_objects_of_unlisted_images_are_counted(tmp_path):
    data = content()
    data['annotations'][0]['image_id'] = 77
    annotations = read(tmp_path, data)
    assert annotations.why.tolist() == [UNLISTED, USED, USED, USED]
    assert kinds(annotations, 'warning') == {'unlisted_image'}
    for record in data['annotations']:
        record['image_id'] = str(record['image_id'])
    assert kinds(read(tmp_path, data), 'error') == {'unlisted_image'}


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_other_encodings_and_the_literal_nan_are_read(tmp_path, encoding):
    text = json.dumps(changed(area=math.nan))
    assert 'NaN' in text
    assert read(tmp_path, text.encode(encoding)).records[0]['area'] == 480


def test_the_length_of_compressed_masks_is_that_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 40, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random()).astype(np.uint8)
        counts = rle.encode(mask)['counts']
        assert _compressed_length(counts) == height * width
        assert _compressed_length(counts.decode()) == height * width
        assert _compressed_length(counts[:-1] + b'~') == -1


def evaluate(truth: COCO, boxes: list, kind: str = 'bbox') -> float:
    evaluation = COCOeval(truth, truth.loadRes(boxes), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize('first', [0, 1, 500])
def test_a_perfect_detector_has_ap_1_whatever_the_ids(tmp_path, first):
    data = content()
    for number, record in enumerate(data['annotations'], first):
        record['id'] = number
    perfect = [
        dict(image_id=r['image_id'], category_id=r['category_id'], bbox=r['bbox'], score=0.9)
        for r in data['annotations']
    ]
    original = copy.deepcopy(data)
    truth = read(tmp_path, data).coco(COCO, with_masks=False)
    assert evaluate(truth, perfect) == pytest.approx(1)
    plain = COCO()
    plain.dataset = original
    plain.createIndex()
    if first:  # as pycocotools has it on the file itself; with an id 0 it has less
        assert evaluate(plain, perfect) == pytest.approx(1)
    else:
        assert evaluate(plain, perfect) < 0.95
