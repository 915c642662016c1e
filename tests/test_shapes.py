"""The drawn dataset: its labels say what is in the pictures."""

import json

import cv2
import numpy as np
from pycocotools.coco import COCO

from convnext_backbone.shapes import CLASSES, make_shapes, outline


def test_boxes_masks_and_semantic_maps_agree(shapes):
    for split in ('train', 'val'):
        coco = COCO(str(shapes / 'annotations' / f'instances_{split}.json'))
        for image in coco.loadImgs(coco.getImgIds()):
            file = shapes / 'images' / split / image['file_name']
            assert cv2.imread(str(file)).shape == (image['height'], image['width'], 3)
            semantic = cv2.imread(str(shapes / 'semantic' / split / image['file_name']), cv2.IMREAD_GRAYSCALE)
            union = np.zeros_like(semantic)
            for annotation in coco.imgToAnns[image['id']]:
                mask = coco.annToMask(annotation).astype(bool)
                assert mask.sum() == annotation['area'] > 0
                assert (semantic[mask] == annotation['category_id']).all()
                assert not union[mask].any()  # only what is visible
                union[mask] = 1
                ys, xs = np.nonzero(mask)
                x, y, w, h = annotation['bbox']
                assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert ((semantic > 0) == (union > 0)).all()


def test_outlines_have_the_area_of_the_shapes():
    """Against the formulas for a circle of 0.85 r and for a square and a triangle in a circle of r."""
    r, size = 100, 256
    expected = {'circle': np.pi * (0.85 * r) ** 2, 'square': 2 * r**2, 'triangle': 3 * 3**0.5 / 4 * r**2}
    for name, area in expected.items():
        for angle in (0.0, 0.3):
            mask = outline(CLASSES.index(name), (128, 128), r, angle, size)
            assert 0 <= mask.sum() / area - 1 < 0.04, name  # the border belongs to it


def test_drawing_is_repeatable_and_not_repeated(tmp_path):
    numbers = dict(images=(2, 1), crops=(5, 5), size=48, crop_size=32)
    first, second = (make_shapes(tmp_path / name, **numbers) for name in 'ab')
    files = sorted(f.relative_to(first) for f in first.rglob('*') if f.is_file())
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
    times = {f: (first / f).stat().st_mtime_ns for f in files}
    make_shapes(first, **numbers)
    assert times == {f: (first / f).stat().st_mtime_ns for f in files}
    make_shapes(first, **{**numbers, 'seed': 1})
    assert (first / files[-1]).stat().st_mtime_ns != times[files[-1]]
    assert json.loads((first / 'shapes.json').read_text())['seed'] == 1
