"""Predictions as CVAT and Label Studio import them, read back by labelformat and our reader of labels."""

import contextlib
import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from labelformat.formats import CVATObjectDetectionInput
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from test_labels import make_image

from convnext_backbone.labels import read_labels
from convnext_backbone.preannotations import CvatXml, LabelStudio
from convnext_backbone.predictions import Image

CLASSES = ('zebra', 'a "b" <c>', 'ü &')
SIZE = (60, 90)  # height, width


def samples(masks: bool) -> list[DetDataSample]:
    random, found = np.random.default_rng(0), []
    for _ in range(3):
        corner = random.uniform(1, 20, (4, 2))
        boxes = np.concatenate([corner, corner + random.uniform(8, 35, (4, 2))], 1).round(2)
        own = InstanceData(
            bboxes=torch.tensor(boxes),
            labels=torch.tensor(random.integers(0, 3, 4)),
            scores=torch.tensor([0.9, 0.8, 0.31, 0.1]),
        )
        if masks:
            own.masks = torch.zeros(4, *SIZE, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(own.masks, boxes.astype(int)):
                mask[y1:y2, x1:x2] = True
                mask[y1 + 2, x1 + 3] = False  # a hole, and a corner that is cut off
                mask[y1, x1] = False
        sample = DetDataSample(metainfo=dict(ori_shape=SIZE))
        sample.pred_instances = own
        found.append(sample)
    return found


def write(writer, folder: Path, masks: bool) -> list[DetDataSample]:
    found = samples(masks)
    with contextlib.ExitStack() as stack:
        writer.start(stack)
        for number, sample in enumerate(found, 1):
            name = f'a b&{number}.jpg'
            make_image(folder / name, SIZE[::-1], number)
            writer.write(writer.encode(Image(folder / name, name, number), sample))
    assert writer.finish() == ''
    return found


def test_boxes_for_cvat_are_read_back(tmp_path):
    found = write(CvatXml(CLASSES, tmp_path, 0.3), tmp_path, False)
    labels = read_labels(tmp_path, format='cvat', split=0, classes=CLASSES)
    for sample, own in zip(labels.splits[''], found):
        expected = [
            (int(n), tuple(b)) for n, b in zip(own.pred_instances.labels, own.pred_instances.bboxes.tolist())
        ]
        assert [(item.label, item.box) for item in sample.objects] == expected[:3]
    reader = CVATObjectDetectionInput(tmp_path / 'annotations.xml')
    theirs = {label.image.filename: label.objects for label in reader.get_labels()}
    assert {name: len(objects) for name, objects in theirs.items()} == {f'a b&{n}.jpg': 3 for n in (1, 2, 3)}
    first = theirs['a b&1.jpg'][0]
    box = (first.box.xmin, first.box.ymin, first.box.xmax, first.box.ymax)
    assert box == pytest.approx(found[0].pred_instances.bboxes[0].tolist())
    assert first.category.name == CLASSES[int(found[0].pred_instances.labels[0])]


def test_masks_for_cvat_are_read_back_pixel_by_pixel(tmp_path):
    from pycocotools import mask as rle

    found = write(CvatXml(CLASSES, tmp_path, 0.3), tmp_path, True)
    labels = read_labels(tmp_path, format='cvat', split=0, classes=CLASSES)
    for sample, own in zip(labels.splits[''], found):
        assert len(sample.objects) == 3
        for item, mask in zip(sample.objects, own.pred_instances.masks):
            counts = item.mask.counts
            code = dict(size=list(item.mask.size), counts=counts if isinstance(counts, str) else list(counts))
            code = code if isinstance(counts, str) else rle.frPyObjects(code, *code['size'])
            assert (rle.decode(code).astype(bool) == mask.numpy()).all()


@pytest.mark.parametrize('masks', [False, True], ids=['boxes', 'masks'])
def test_tasks_for_label_studio(masks, tmp_path):
    """Places in percent, as its documentation has them; names that its configuration lists."""
    found = write(LabelStudio(CLASSES, tmp_path, 0.3, 'model'), tmp_path, masks)
    tasks = json.loads((tmp_path / 'tasks.json').read_text())
    config = ElementTree.parse(tmp_path / 'labeling_config.xml').getroot()
    names = {tag.get('name'): [label.get('value') for label in tag] for tag in config if tag.tag != 'Image'}
    assert names == dict(box=list(CLASSES), polygon=list(CLASSES))
    assert [task['data']['image'] for task in tasks] == [
        f'/data/local-files/?d=a%20b%26{n}.jpg' for n in (1, 2, 3)
    ]
    for task, sample in zip(tasks, found):
        (prediction,) = task['predictions']
        assert len(prediction['result']) == 3
        assert prediction['score'] == pytest.approx((0.9 + 0.8 + 0.31) / 3, abs=1e-3)
        own = sample.pred_instances
        for result, box, label in zip(prediction['result'], own.bboxes.tolist(), own.labels.tolist()):
            value, (height, width) = result['value'], SIZE
            assert (result['original_width'], result['original_height']) == (width, height)
            assert value[f'{"polygon" if masks else "rectangle"}labels'] == [CLASSES[label]]
            assert result['from_name'] in names
            if masks:
                points = np.array(value['points']) / 100 * [width, height] - 0.5
                drawn = np.zeros(SIZE, np.uint8)
                cv2.fillPoly(drawn, [points.round().astype(int)], 1)
                mask = own.masks[prediction['result'].index(result)].numpy()
                assert (drawn.astype(bool) != mask).sum() <= 2  # the hole
            else:
                x, y = value['x'] / 100 * width, value['y'] / 100 * height
                w, h = value['width'] / 100 * width, value['height'] / 100 * height
                assert (x, y, x + w, y + h) == pytest.approx(box, abs=1e-3)


def test_an_object_whose_mask_cannot_be_written_keeps_its_box(tmp_path):
    """A mask without pixels, and one that is a line, which has no polygon."""
    sample = samples(True)[0]
    own = sample.pred_instances
    own.masks[:2] = False
    own.masks[1, 20:40, 30] = True
    image = Image(tmp_path / 'a.jpg', 'a.jpg', 1)
    element = ElementTree.fromstring(CvatXml(CLASSES, tmp_path, 0.3).encode(image, sample))
    kinds = [each.tag for each in element]
    assert kinds == ['box', 'mask', 'mask']
    (prediction,) = LabelStudio(CLASSES, tmp_path, 0.3, 'model').encode(image, sample)['predictions']
    assert [result['from_name'] for result in prediction['result']] == ['box', 'box', 'polygon']
    assert [result['score'] for result in prediction['result']] == [0.9, 0.8, 0.31]


def test_a_run_that_fails_leaves_no_half_file(tmp_path):
    writer = CvatXml(CLASSES, tmp_path, 0.3)
    with pytest.raises(ZeroDivisionError), contextlib.ExitStack() as stack:
        writer.start(stack)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
