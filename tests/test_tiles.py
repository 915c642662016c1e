"""Large images by tiles: nothing is lost, doubled or changed where tiles meet."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from conftest import tool
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as coding
from test_infer import CLASSES, DETECTOR, SEGMENTER, checkpoint

from convnext_backbone.errors import UnreadableImage, UserError, message
from convnext_backbone.predictions import class_shares
from convnext_backbone.shapes import make_shapes
from convnext_backbone.tiles import MapFile, Pixels, Rows, Tiling, predict_by_tiles, source
from convnext_backbone.tiles.grid import Axis
from convnext_backbone.tiles.masks import PlacedMask, rle


def rasterio():
    return pytest.importorskip('rasterio', reason="pip install 'convnext_backbone[large]'")


# Where tiles lie


@pytest.mark.parametrize('overlap', [0, 0.05, 0.2, 0.5])
@pytest.mark.parametrize('size', [64, 100, 256])
def test_the_weights_of_all_tiles_add_up_to_one_and_borders_do_not_count(size, overlap):
    for length in (1, 63, 64, 65, 99, 101, 130, 256, 257, 300, 511, 777):
        axis = Axis(length, Tiling(size, overlap))
        total = np.zeros(length)
        for i in range(len(axis)):
            first, stop = axis.reach(i)
            assert axis.starts[i] <= first < stop <= axis.stop(i)
            total[first:stop] += axis.weights(i)
            least = int(overlap * size / 4)  # pixels at an inner border that do not count
            assert i == 0 or first - axis.starts[i] >= least
            assert i + 1 == len(axis) or axis.stop(i) - stop >= least
        assert np.abs(total - 1).max() < 1e-6
        assert axis.stop(len(axis) - 1) == length


def refused(*numbers) -> str:
    with pytest.raises(UserError) as error:
        Tiling(*numbers).checked()
    return message(error.value)


def test_numbers_that_cannot_be_meant_are_refused():
    assert 'at least 64, got 10' in refused(10)
    assert '0 to 0.5, got 0.9' in refused(1024, 0.9)
    assert '0 to 0.5, got -1' in refused(1024, -1.0)


# Class numbers


def local_network(classes: int, reach: int):
    """A network that sees ``reach`` pixels around each, in float64; and its logits of a whole image."""
    torch.manual_seed(0)
    weight = torch.randn(classes, 3, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)

    def logits(image: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
        return F.conv2d(x, weight, padding=reach)[0]

    def predict(images) -> list:
        found = []
        for image in images:
            numbers = logits(image)
            if classes == 1:
                numbers = numbers.sigmoid()
            found.append(
                SegDataSample(seg_logits=PixelData(data=numbers), pred_sem_seg=PixelData(data=numbers[:1]))
            )
        return found

    return predict, logits


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ('height', 'width', 'tiling'),
    [
        (300, 411, Tiling(96, 0.3)),
        (97, 96, Tiling(96, 0.5, 3)),
        (50, 400, Tiling(100, 0.4, 2)),
        (40, 30, Tiling(64)),
    ],
)
@pytest.mark.parametrize('classes', [1, 4])
def test_class_numbers_are_those_of_the_whole_image(height, width, tiling, classes):
    """The network sees no further than what does not count at a border of a tile."""
    predict, logits = local_network(classes, reach=int(tiling.overlap * tiling.size / 4))
    image = picture(height, width)
    expected = logits(image).sigmoid()[0] > 0.3 if classes == 1 else logits(image).argmax(0)
    found = predict_by_tiles(predict, Pixels(image), tiling, 0.3)
    assert torch.equal(found.pred_sem_seg.data[0].long(), expected.long())
    assert len(expected.unique()) > 1


def test_one_tile_passes_into_the_next():
    """Of tiles that say another number each, a pixel between them has a mean of both: no step."""
    values = iter([0.0, 1.0])

    def predict(images) -> list:
        data = torch.full((1, 64, 64), next(values))
        return [SegDataSample(seg_logits=PixelData(data=data), pred_sem_seg=PixelData(data=data))]

    found = []
    for threshold in (0.1, 0.5, 0.9):
        values = iter([0.0, 1.0])
        sample = predict_by_tiles(predict, Pixels(picture(64, 96)), Tiling(64, 0.5), threshold)
        found.append(int((sample.pred_sem_seg.data[0, 0] == 0).sum()))
    # the common strip is 32 to 64, its middle 48; weights pass from 40 to 56: (k + 0.5) / 16
    assert found == [40 + 2, 48, 40 + 14]


# Objects


def rectangles(images) -> list:
    """Finds each rectangle of a tile, whose red is its class and whose green its score; masks are exact."""
    found = []
    for image in images:
        boxes, scores, labels, masks = [], [], [], []
        for colour in np.unique(image.reshape(-1, 3), axis=0):
            if not colour.any():
                continue
            mask = (image == colour).all(2)
            ys, xs = np.nonzero(mask)
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            labels.append(int(colour[2]) - 1)
            scores.append(int(colour[1]) / 255)
            masks.append(torch.from_numpy(mask))
        objects = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor(scores),
            labels=torch.tensor(labels, dtype=torch.long),
            masks=torch.stack(masks) if masks else torch.zeros(0, *image.shape[:2], dtype=torch.bool),
        )
        found.append(DetDataSample(pred_instances=objects))
    return found


TRUTH = {  # x1 y1 x2 y2: in one tile, across a border, across a corner, across four tiles, over a whole row
    (1, 250): (10, 10, 40, 30),
    (1, 240): (70, 50, 140, 70),
    (2, 230): (80, 80, 150, 150),
    (1, 220): (20, 160, 190, 190),
    (2, 210): (200, 20, 230, 300),
    (3, 200): (385, 290, 400, 300),
}


def drawn() -> np.ndarray:
    image = np.zeros((300, 400, 3), np.uint8)
    for k, ((label, score), (x1, y1, x2, y2)) in enumerate(TRUTH.items()):
        image[y1:y2, x1:x2] = k + 1, score, label
    return image


def without_the_whole(images) -> list:
    """As a detector that finds nothing in an image that is reduced: the tiles have to do it alone."""
    found = rectangles(images)
    if images[0].shape[0] > 128:
        for sample in found:
            sample.pred_instances = sample.pred_instances[:0]
    return found


@pytest.mark.parametrize('predict', [rectangles, without_the_whole])
@pytest.mark.parametrize('tiling', [Tiling(128, 0.25), Tiling(128, 0.5, 4), Tiling(96, 0.3, 2)])
def test_each_object_is_found_once_and_whole(predict, tiling):
    image = drawn()
    found = predict_by_tiles(predict, Pixels(image), tiling).pred_instances
    boxes = {
        (int(label) + 1, round(255 * float(score))): tuple(box.int().tolist())
        for label, score, box in zip(found.labels, found.scores, found.bboxes)
    }
    assert boxes == TRUTH
    assert len(found) == len(TRUTH)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    for label, score, mask in zip(found.labels, found.scores, found.masks):
        colour = int(label) + 1, round(255 * float(score))
        expected = (image[..., 2] == colour[0]) & (image[..., 1] == colour[1])
        encoded = rle(mask)
        assert np.array_equal(coding.decode(encoded), expected)


def test_an_unsure_whole_object_does_not_take_the_place_of_a_sure_part():
    """In the tiles the object is cut and sure; the whole image shows a box around it, hardly sure."""

    def predict(images) -> list:
        if images[0].shape[1] > 128:
            box, score = [[0.0, 0.0, 200.0, 100.0]], 0.05
        else:
            box, score = [[64.0, 10.0, 128.0, 40.0]], 0.9
        objects = InstanceData(
            bboxes=torch.tensor(box), scores=torch.tensor([score]), labels=torch.zeros(1).long()
        )
        return [DetDataSample(pred_instances=objects) for _ in images]

    found = predict_by_tiles(predict, Pixels(picture(128, 200)), Tiling(128, 0.25)).pred_instances
    assert found.scores[0] == pytest.approx(0.9)
    assert 0.05 in found.scores.numpy().round(3)


def test_a_model_of_things_and_stuff_is_refused():
    sample = DetDataSample(pred_panoptic_seg=PixelData(data=torch.zeros(1, 64, 64)))
    with pytest.raises(UserError, match='predict without --tile'):
        predict_by_tiles(lambda images: [sample], Pixels(picture(64, 64)), Tiling(64))


# Masks as windows


def test_placed_masks_are_encoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = rng.integers(1, 9, 2)
        mask, other = (rng.random((height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1]) for _ in range(2))
        encoded = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle(PlacedMask.of(mask)) == dict(size=encoded['size'], counts=encoded['counts'].decode())
        both = PlacedMask.union([PlacedMask.of(mask), PlacedMask.of(other)])
        assert np.array_equal(both.whole(), mask | other)
        large = PlacedMask.of(mask).enlarged(3)
        assert np.array_equal(large.whole(), np.kron(mask, np.ones((3, 3))) > 0)
        assert np.array_equal(large.reduced(3).whole(), mask)


# Files that are read by rows


def written(image: PIL.Image.Image, file: Path, **options) -> Path:
    image.save(file, **options)
    return file


FILES = {
    'a.png': lambda f: written(PIL.Image.fromarray(picture(200, 150)), f),
    'gray.png': lambda f: written(PIL.Image.fromarray(picture(200, 150)[..., 0]), f),
    'bits.png': lambda f: written(PIL.Image.fromarray(picture(200, 150)[..., 0]).convert('1'), f),
    'palette.png': lambda f: written(PIL.Image.fromarray(picture(200, 150)).quantize(16), f),
    'alpha.png': lambda f: written(
        PIL.Image.fromarray(np.dstack([picture(200, 150), picture(200, 150, 1)[..., :1]])), f
    ),
    'strips.tif': lambda f: written(PIL.Image.fromarray(picture(200, 150)), f, compression='tiff_deflate'),
    'a.jpg': lambda f: written(PIL.Image.fromarray(cv2.resize(picture(20, 15), (150, 200))), f),
}


@pytest.mark.parametrize('name', FILES)
def test_rows_are_those_of_the_whole_file(name, tmp_path):
    rasterio()
    file = FILES[name](tmp_path / name)
    expected = cv2.imread(str(file), cv2.IMREAD_COLOR)
    rows = Rows(file)
    assert rows.shape == (200, 150)
    bands = [rows.rows(top, min(top + 64, 200)) for top in range(0, 200, 40)]
    for k, band in enumerate(bands):
        there = expected[40 * k : 40 * k + len(band)]
        if name.endswith('jpg'):  # GDAL interpolates the colours of a JPEG by another rule than OpenCV
            band, there = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (band, there))
        assert np.abs(band.astype(int) - there).max() <= 3 * name.endswith('jpg')


def test_rows_of_many_channels_are_left_as_they_are(tmp_path):
    bands = np.random.default_rng(0).integers(0, 4000, (5, 90, 70)).astype(np.uint16)
    with rasterio().open(
        tmp_path / 'a.tif', 'w', driver='GTiff', height=90, width=70, count=5, dtype='uint16'
    ) as out:
        out.write(bands)
    assert np.array_equal(
        Rows(tmp_path / 'a.tif', 'unchanged').rows(10, 60), bands[:, 10:60].transpose(1, 2, 0)
    )
    with pytest.raises(UserError, match="5 channels of uint16.*color_type='unchanged'"):
        Rows(tmp_path / 'a.tif')


def test_the_whole_image_is_reduced_by_the_mean_of_squares(tmp_path, monkeypatch):
    rasterio()
    monkeypatch.setattr(source, 'LONGEST', 50)
    image = picture(201, 150)
    rows = Rows(written(PIL.Image.fromarray(image), tmp_path / 'a.png'))
    rows.rows(0, 33)
    whole = rows.whole()
    assert whole.factor == 5
    expected = image[:200].reshape(40, 5, 30, 5, 3).mean((1, 3))[..., ::-1]
    assert np.abs(whole.pixels - expected).max() <= 0.51


@pytest.mark.parametrize('channels', [3, 5])
def test_an_image_in_memory_is_reduced_alike(monkeypatch, channels):
    monkeypatch.setattr(source, 'LONGEST', 50)
    image = np.random.default_rng(0).integers(0, 256, (201, 150, channels), dtype=np.uint8)
    whole = Pixels(image).whole()
    expected = image[:200].reshape(40, 5, 30, 5, channels).mean((1, 3))
    assert whole.factor == 5
    assert np.abs(whole.pixels - expected).max() <= 0.51


def test_a_strip_that_is_thinner_than_it_is_reduced_keeps_a_row(tmp_path, monkeypatch):
    rasterio()
    monkeypatch.setattr(source, 'LONGEST', 50)
    image = picture(3, 901)
    rows = Rows(written(PIL.Image.fromarray(image), tmp_path / 'a.png')).whole()
    pixels = Pixels(image[..., ::-1]).whole()
    assert rows.factor == pixels.factor == 3
    assert rows.pixels.shape == (1, 300, 3)
    assert np.array_equal(rows.pixels, pixels.pixels)


def test_a_file_that_is_none_or_turned_is_named(tmp_path):
    rasterio()
    (tmp_path / 'a.png').write_bytes(b'text')
    with pytest.raises(UnreadableImage, match='a.png cannot be read by rows'):
        Rows(tmp_path / 'a.png')
    whole = written(PIL.Image.fromarray(picture(200, 150)), tmp_path / 'b.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match=r'cut.png cannot be read by rows: cut.png, band 1: IReadBlock'):
        Rows(tmp_path / 'cut.png').rows(0, 200)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(UserError, match=r'EXIF orientation 6.*save it upright'):
        Rows(written(PIL.Image.fromarray(picture(9, 7)), tmp_path / 'a.jpg', exif=exif))


def test_without_rasterio_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    with pytest.raises(UserError, match=r"7 x 9 pixels.*pip install 'convnext_backbone\[large\]'"):
        Rows(written(PIL.Image.fromarray(picture(9, 7)), tmp_path / 'a.png'))


def test_class_numbers_of_rows_go_through_a_file(tmp_path):
    rasterio()
    image = picture(300, 211)
    predict, logits = local_network(4, 5)
    file = written(PIL.Image.fromarray(image[..., ::-1]), tmp_path / 'a.png')
    found = predict_by_tiles(predict, Rows(file), Tiling(100, 0.2))
    expected = logits(image).argmax(0).numpy()
    assert isinstance(found, MapFile)
    assert np.array_equal(found.rows(0, 300), expected)
    assert np.array_equal(found.rows(17, 40), expected[17:40])
    assert np.array_equal(found.reduced(3), expected[1:300:3, 1:210:3])
    assert class_shares(found) == {k: (expected == k).mean() for k in range(4)}
    palette = np.arange(12, dtype=np.uint8).reshape(4, 3)
    found.write_tiff(tmp_path / 'map.tif', palette)
    with rasterio().open(tmp_path / 'map.tif') as written_map:
        assert np.array_equal(written_map.read(1), expected)
        assert written_map.colormap(1)[2] == (6, 7, 8, 255)
    assert np.array_equal(PIL.Image.open(tmp_path / 'map.tif'), expected)


# The commands


@pytest.fixture(scope='module')
def large(tmp_path_factory) -> Path:
    """Drawn images of more than one tile."""
    return make_shapes(tmp_path_factory.mktemp('large'), images=(1, 3), crops=(1, 1), size=160)


def evaluated(config: str, weights: str, data: Path, work: Path, *options) -> dict:
    loader = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    where = ['--data-root', str(data), '--work-dir', str(work), '--device', 'cpu', '--check-data', 'none']
    return tool('test').main([config, weights, *options, *where, '--cfg-options', *loader])


def infer(*arguments) -> None:
    tool('infer').main([str(argument) for argument in (*arguments, '--device', 'cpu')])


def test_a_segmenter_is_tested_by_the_tiles_that_infer_writes(large, tmp_path):
    weights = checkpoint(SEGMENTER, tmp_path / 'c.pth', ['background', *CLASSES])
    tiles = ['--tile', '96', '--overlap', '0.25']
    infer(SEGMENTER, weights, large / 'images/val', '--out', tmp_path / 'out', '--format', 'labels', *tiles)
    found, right = (
        np.stack([np.asarray(PIL.Image.open(file)) for file in sorted(folder.glob('*.png'))])
        for folder in (tmp_path / 'out/labels', large / 'semantic/val')
    )
    assert found.shape == right.shape == (3, 160, 160)
    pairs = [
        ((found == k) & (right == k)).sum() / max(((found == k) | (right == k)).sum(), 1) for k in range(6)
    ]
    metrics = evaluated(SEGMENTER, weights, large, tmp_path / 'w', *tiles)
    assert metrics['single_scale/mIoU'] == pytest.approx(100 * np.mean(pairs), abs=0.01)
    whole = evaluated(SEGMENTER, weights, large, tmp_path / 'w')
    assert metrics['single_scale/mIoU'] != whole['single_scale/mIoU']


def test_a_detector_is_tested_by_the_tiles_that_infer_writes(large, tmp_path):
    weights = checkpoint(DETECTOR, tmp_path / 'c.pth', CLASSES)
    tiles = ['--tile', '96', '--overlap', '0.25']
    truth = large / 'annotations/instances_val.json'
    given = [large / 'images/val', '--out', tmp_path / 'out', '--format', 'coco', '--ann-file', truth]
    infer(DETECTOR, weights, *given, *tiles, '--batch', '4')
    found = json.loads((tmp_path / 'out/predictions.json').read_text())
    # as truth, what was found itself: the test by tiles finds the same
    content = json.loads(truth.read_text())
    best = sorted(found, key=lambda each: -each['score'])[:60]
    content['annotations'] = [
        dict(each, id=k + 1, area=float(coding.area(each['segmentation'])), iscrowd=0)
        for k, each in enumerate(best)
    ]
    data = tmp_path / 'data'
    (data / 'annotations').mkdir(parents=True)
    (data / 'annotations/instances_val.json').write_text(json.dumps(content))
    (data / 'images').symlink_to(large / 'images')
    metrics = evaluated(DETECTOR, weights, data, tmp_path / 'w', *tiles)
    assert metrics['coco/bbox_mAP'] > 0.9
    assert metrics['coco/segm_mAP'] > 0.9
    assert evaluated(DETECTOR, weights, data, tmp_path / 'w')['coco/bbox_mAP'] < 0.6


def test_an_image_that_is_read_by_rows_is_predicted_in_every_format(large, tmp_path, monkeypatch):
    monkeypatch.setattr(source, 'LARGE', 0)
    monkeypatch.setattr(source, 'LONGEST', 80)
    rasterio()
    image = sorted((large / 'images/val').iterdir())[0].rename(large / 'a.png')
    for config, classes, formats in (
        (DETECTOR, CLASSES, ['json', 'csv', 'coco', 'cvat', 'label-studio']),
        (SEGMENTER, ['background', *CLASSES], ['json', 'csv', 'labels']),
    ):
        weights = checkpoint(config, tmp_path / 'c.pth', classes)
        out = tmp_path / classes[0]
        infer(config, weights, image, '--out', out, '--tile', '96', '--score', '0.1', '--format', *formats)
        assert cv2.imread(str(out / 'a.png.png')).shape == (80, 80, 3)
        result = json.loads((out / 'a.png.json').read_text())
        assert (result['width'], result['height']) == (160, 160)
    with rasterio().open(out / 'labels/a.png.tif') as labels:
        shares = np.bincount(labels.read(1).ravel(), minlength=6) / 160**2
    named = {name: share for name, share in zip(['background', *CLASSES], shares) if share}
    assert result['share_of_pixels'] == pytest.approx(named, abs=1e-6)
    objects = json.loads((tmp_path / 'circle/a.png.json').read_text())['objects']
    table = (tmp_path / 'circle/predictions.csv').read_text().splitlines()
    assert table[0] == 'image,label,score,x1,y1,x2,y2'
    assert (
        len(table) - 1 == len(objects) == len(json.loads((tmp_path / 'circle/predictions.json').read_text()))
    )
    assert all(each['mask']['size'] == [160, 160] for each in objects)


def test_tiles_and_views_are_two_ways_to_test(large, tmp_path):
    with pytest.raises(UserError, match='--tile and --tta'):
        evaluated(SEGMENTER, 'c.pth', large, tmp_path, '--tile', '96', '--tta')
    with pytest.raises(UserError, match='at least 64, got 9'):
        evaluated(SEGMENTER, 'c.pth', large, tmp_path, '--tile', '9')
