"""Data loading: what is measured of it, and the images of the plain pipelines of mmdet, mmseg and timm."""

import json
import pickle
import time
from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import DefaultScope
from mmseg.datasets.transforms import RandomCrop
from PIL import Image
from pycocotools import mask as coco
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader

from convnext_backbone.classification import ImageDataset
from convnext_backbone.cli import run_command
from convnext_backbone.config import read_config, set_data_root, use_stand_ins
from convnext_backbone.datasets import InOnePiece, improve
from convnext_backbone.datasets.parcel import Parcel
from convnext_backbone.engine import runner
from convnext_backbone.errors import UserError
from convnext_backbone.plan import images_per_second, parts_of_an_image, worker_counts
from convnext_backbone.plan.loading import COLLATE, HANDOVER, REST
from convnext_backbone.transforms import LoadImage, LoadMask

DEMOS = ('classifier_shapes', 'mask_rcnn_shapes', 'upernet_shapes')


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges and a little noise, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [127 + 90 * np.sin(x / (30 + 20 * n) + n) * np.cos(y / (50 - 10 * n)) for n in range(3)]
    image = np.stack(waves, 2) + 25 * ((x // 97 + y // 61) % 2)[..., None]
    return np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """A photo of 12 megapixels, 4000 x 3000."""
    file = tmp_path_factory.mktemp('photo') / 'photo.jpg'
    cv2.imwrite(str(file), picture(3000, 4000), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return str(file)


# --- what is handed over


class Numbers(torch.utils.data.Dataset):
    """Gives whatever a batch may hold, around :data:`LEAST` bytes of it."""

    def __len__(self):
        return 3

    def __getitem__(self, n):
        draw = np.random.default_rng(n)
        masks = draw.integers(0, 2, (3, 70, 50)).astype(np.uint8)
        labels = torch.from_numpy(draw.integers(0, 256, (1, 60, 60)))
        images = torch.from_numpy(draw.normal(size=(2, 3, 40, 50)).astype(np.float32))
        return dict(
            masks=BitmapMasks(masks, 70, 50),
            arrays=[masks * 3, masks > 0, draw.normal(size=(40, 30)), masks[:, ::2], masks[:0], masks[0, 0]],
            labels=[labels, labels + 1, labels - 1, labels[:0], labels[..., :2]],
            images=[
                images,
                images.contiguous(memory_format=torch.channels_last),
                images[..., ::3],
                images[1],
            ],
            low=[images.bfloat16(), images > 0, images.double().requires_grad_(), torch.nn.Parameter(images)],
            rest=('name.jpg', 3, None),
        )


def given(batch) -> list:
    """All that a batch holds, with types, shapes and strides."""
    leaves, tree = tree_flatten(batch)
    found = [str(tree)]
    for leaf in leaves:
        if isinstance(leaf, BitmapMasks):
            found.append((leaf.height, leaf.width))
            leaf = leaf.masks
        if isinstance(leaf, np.ndarray):
            found.append((leaf.dtype, leaf.shape, leaf.tobytes(), leaf.flags.writeable))
        elif isinstance(leaf, torch.Tensor):
            numbers = leaf.detach().contiguous().view(torch.uint8).numpy().tobytes() if leaf.numel() else b''
            found.append((type(leaf), leaf.dtype, leaf.shape, leaf.stride(), leaf.requires_grad, numbers))
        else:
            found.append(leaf)
    return found


def test_a_batch_arrives_as_it_was_collated():
    loader = DataLoader(Numbers(), 1, collate_fn=InOnePiece(list), num_workers=1)
    for number, batch in enumerate(loader):
        assert given(batch) == given([Numbers()[number]])


def test_a_batch_travels_in_one_piece():
    """Labels as bytes and masks as bits: 3600 + 64 + 10500 / 8 of 28800 + 10500 bytes, in one file."""
    batch = dict(labels=torch.arange(3600) % 256, masks=np.ones((3, 70, 50), np.uint8))
    text = ForkingPickler.dumps(Parcel(batch))
    assert len(bytes(text)) < 1000
    memory = Parcel(batch).memory
    assert memory.is_shared() and memory.nbytes == -(-3600 // 64) * 64 + -(-10500 // 8)
    assert given(pickle.loads(bytes(text))) == given(batch)


def batches(name: str, root, workers: int, count: int = 3) -> list:
    cfg = read_config(f'configs/demo/{name}.py')
    set_data_root(cfg, str(root))
    use_stand_ins(cfg)
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=False, batch_size=4)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        loader = runner.Runner.build_dataloader(runner.resumable(cfg.train_dataloader, True, 0), seed=0)
        found = iter(loader)
        return [next(found) for _ in range(count)]


def numbers_of(batch: dict) -> list:
    samples = batch.get('data_samples', ())
    parts = [batch['inputs'], batch.get('labels')]
    for sample in samples:
        parts += [sorted(sample.metainfo.items())]
        for name in ('gt_instances', 'ignored_instances', 'gt_sem_seg'):
            if name in sample:
                fields = sorted(getattr(sample, name).items())
                parts += [(key, getattr(value, 'tensor', value)) for key, value in fields]
    return given(parts)


@pytest.mark.parametrize('name', DEMOS)
def test_the_batches_are_those_of_the_plain_pipeline(shapes, monkeypatch, name):
    """Ours from a process, and mmdet's, mmseg's and torch's own steps without one."""
    root = shapes / 'classification' if name == DEMOS[0] else shapes
    ours = batches(name, root, 1)
    monkeypatch.setattr(runner, '_improve', lambda node, registry: None)
    plain = batches(name, root, 0)
    for one, other in zip(ours, plain, strict=True):
        assert numbers_of(one) == numbers_of(other)


@pytest.mark.parametrize('change', ['as it is', 'flipped', 'cropped', 'gray', 'float'])
def test_packed_images_are_those_of_mmdet(change):
    image = picture(61, 83)
    changes = dict(flipped=image[:, ::-1], cropped=image[3:50, 7:70], gray=image[..., :1], float=image / 2)
    image = changes.get(change, image)
    kind = improve(PackDetInputs)
    assert kind is not PackDetInputs
    packed, expected = (cls(meta_keys=())(dict(img=image))['inputs'] for cls in (kind, PackDetInputs))
    assert packed.dtype == expected.dtype and packed.stride() == expected.stride()
    assert torch.equal(packed, expected)


@pytest.mark.parametrize('kind', [np.uint8, np.int64])
def test_crops_are_those_that_mmseg_draws(kind):
    labels = np.kron(np.random.default_rng(1).integers(0, 4, (6, 6)), np.ones((20, 20))).astype(kind)
    labels[:40, :60] = 255
    image, tries = np.zeros((120, 120, 3), np.uint8), set()
    for ratio in (1.0, 0.75, 0.4):
        for seed in range(60):
            boxes = []
            for cls in (improve(RandomCrop), RandomCrop):
                np.random.seed(seed)  # noqa: NPY002
                step = cls(crop_size=(50, 40), cat_max_ratio=ratio)
                boxes.append(tuple(map(int, step.crop_bbox(dict(img=image, gt_seg_map=labels)))))
                boxes.append(np.random.random())  # noqa: NPY002  as many numbers were drawn
            assert boxes[:2] == boxes[2:]
            tries.add(boxes[1])
    assert len(tries) > 60  # crops were drawn anew


# --- JPEG at a part of its size


@pytest.mark.parametrize(('reduce_to', 'flag', 'size'), [
    (800, cv2.IMREAD_REDUCED_COLOR_2, (1500, 2000)),
    (750, cv2.IMREAD_REDUCED_COLOR_4, (750, 1000)),
    (100, cv2.IMREAD_REDUCED_COLOR_8, (375, 500)),
    (1501, cv2.IMREAD_COLOR, (3000, 4000)),
])  # fmt: skip
def test_a_reduced_photo_is_that_of_opencv(photo, reduce_to, flag, size):
    found = LoadImage(reduce_to=reduce_to).transform(dict(img_path=photo))
    assert found['img'].shape[:2] == found['img_shape'] == found['ori_shape'] == size
    assert np.array_equal(found['img'], cv2.imread(photo, flag))
    assert found.get('reduced_from', (3000, 4000)) == (3000, 4000)


def test_a_reduced_photo_is_nearer_to_the_means_than_a_resized_one(photo):
    """Bilinear resizing by 3.75 leaves out most pixels, the reduction takes the mean of four."""
    whole, half = (LoadImage(reduce_to=n).transform(dict(img_path=photo))['img'] for n in (None, 800))
    means = cv2.resize(whole, (1067, 800), interpolation=cv2.INTER_AREA).astype(int)
    plain, reduced = (np.abs(means - cv2.resize(one, (1067, 800))).mean() for one in (whole, half))
    assert reduced < plain < 3  # of 255


def test_a_turned_photo_and_other_formats(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, seen upright
    pixels = Image.fromarray(picture(101, 203))
    pixels.save(tmp_path / 'turned.jpg', exif=exif)
    pixels.save(tmp_path / 'whole.png')
    found = LoadImage(reduce_to=40).transform(dict(img_path=str(tmp_path / 'turned.jpg')))
    assert found['img'].shape == (102, 51, 3) and found['reduced_from'] == (203, 101)
    as_stored = LoadImage(reduce_to=40, color_type='color_ignore_orientation')
    found = as_stored.transform(dict(img_path=str(tmp_path / 'turned.jpg')))
    assert found['img'].shape == (51, 102, 3) and found['reduced_from'] == (101, 203)
    found = LoadImage(reduce_to=40).transform(dict(img_path=str(tmp_path / 'whole.png')))
    assert found['img'].shape == (101, 203, 3) and 'reduced_from' not in found


def test_objects_are_reduced_with_their_image(photo):
    whole = np.zeros((3000, 4000), np.uint8)
    whole[400:1200, 1000:2000] = 1
    box = [1000, 400, 2000, 1200]
    polygon = [[1000, 400, 2000, 400, 2000, 1200, 1000, 1200]]
    runs = coco.encode(np.asfortranarray(whole))
    instances = [dict(bbox=box, bbox_label=0, mask=mask, ignore_flag=0) for mask in (polygon, runs)]
    found = LoadImage(reduce_to=700).transform(dict(img_path=photo, instances=instances))['instances']
    assert [one['bbox'] for one in found] == [[250, 100, 500, 300]] * 2  # a quarter
    assert found[0]['mask'] == [[250, 100, 500, 100, 500, 300, 250, 300]]
    assert np.array_equal(coco.decode(found[1]['mask']), whole[::4, ::4])
    assert instances[0]['bbox'] == box and instances[1]['mask'] is runs  # those of the dataset stay


def test_masks_of_classes_are_reduced_with_their_image(tmp_path):
    labels = np.random.default_rng(0).integers(0, 9, (101, 203)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'a.jpg'), picture(101, 203))
    cv2.imwrite(str(tmp_path / 'a.png'), labels)
    results = dict(img_path=str(tmp_path / 'a.jpg'), seg_map_path=str(tmp_path / 'a.png'))
    found = LoadMask().transform(LoadImage(reduce_to=50).transform(results))
    assert found['gt_seg_map'].shape == found['img'].shape[:2] == (51, 102)
    rows, columns = np.arange(51) * 101 // 51, np.arange(102) * 203 // 102
    assert np.array_equal(found['gt_seg_map'], labels[rows][:, columns])
    cv2.imwrite(str(tmp_path / 'a.png'), labels[:51, :102])  # of the reduced size: it is not the image's
    with pytest.raises(UserError, match='102 x 51 pixels, its image .* 203 x 101'):
        LoadMask().transform(LoadImage(reduce_to=50).transform(results))
    with pytest.raises(UserError, match='reduce_to is for boxes'):
        LoadImage(reduce_to=50).transform(dict(results, instances=[]))


def test_a_reduced_photo_of_a_classifier(photo, tmp_path):
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    (folder / 'photo.jpg').symlink_to(photo)
    options = dict(data_root=str(tmp_path), split='train', transform=dict(input_size=64, is_training=False))
    reduced = ImageDataset(**options, reduce_to=375)
    reduced._images.transform = np.asarray
    expected = cv2.cvtColor(cv2.imread(photo, cv2.IMREAD_REDUCED_COLOR_8), cv2.COLOR_BGR2RGB).astype(int)
    assert reduced[0]['inputs'].shape == (375, 500, 3)
    assert np.abs(reduced[0]['inputs'] - expected).mean() < 0.5  # two builds of the same library
    assert ImageDataset(**options)[0]['inputs'].shape == (3, 64, 64)


def test_wrong_reductions_are_refused():
    for wrong in (0, True, 1.5, '800'):
        with pytest.raises(UserError, match='reduce_to is a number of pixels, 1 or more, got'):
            LoadImage(reduce_to=wrong)
    with pytest.raises(UserError, match="is for color_type=.* got 'unchanged'"):
        LoadImage(reduce_to=800, color_type='unchanged')
    cfg = read_config('mask_rcnn_convnext_t')
    cfg.train_dataloader.dataset.pipeline[0].reduce_to = 800
    use_stand_ins(cfg)
    cfg.val_dataloader.dataset.pipeline[0].reduce_to = 800
    with pytest.raises(UserError, match='val_dataloader: reduce_to .* is for the training pipeline'):
        use_stand_ins(cfg)


# --- what is measured


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, n):
        time.sleep(0.01)
        return dict(inputs=torch.zeros(3), labels=n)


def test_images_per_second_of_a_known_pace():
    """10 ms an image: at most 100 per second in one process, about 200 in two."""
    assert 10 < images_per_second(DataLoader(Slow(), 4), 0.2) <= 100
    assert 10 < images_per_second(DataLoader(Slow(), 4, num_workers=2), 0.1) < 230
    with pytest.raises(UserError, match='the data ends before 2 batches'):
        images_per_second(DataLoader(Slow(), 40), 0.1)


def test_numbers_of_workers():
    assert [worker_counts(n) for n in (1, 2, 6, 8)] == [
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 4, 6],
        [0, 1, 2, 4, 8],
    ]


def test_parts_of_an_image_by_a_pause(shapes, monkeypatch):
    """A step within a step, which waits 20 ms in half of the images; its outer step has none of them."""
    from mmdet.datasets.transforms import RandomFlip

    monkeypatch.setattr(RandomFlip, 'transform', lambda self, results: time.sleep(0.02) or results)
    cfg = read_config('configs/demo/mask_rcnn_shapes.py')
    set_data_root(cfg, str(shapes))
    use_stand_ins(cfg)
    loads, packs = cfg.train_dataloader.dataset.pipeline[:2], cfg.train_dataloader.dataset.pipeline[-1]
    turns = dict(type='RandomChoice', transforms=[[dict(type='RandomFlip', prob=1.0)], []], prob=[0.5, 0.5])
    cfg.train_dataloader.dataset.pipeline = [*loads, turns, packs]
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = runner.Runner.build_dataloader(runner.resumable(cfg.train_dataloader, True, 0), seed=0)
        parts = parts_of_an_image(loader, 1.0)
    assert [*parts][:3] == [REST, 'LoadImage', 'LoadAnnotations'] and [*parts][-2:] == [COLLATE, HANDOVER]
    assert parts['RandomFlip'] > 0.004 and parts['RandomChoice'] < 0.5 * parts['RandomFlip']
    assert all(seconds >= 0 for seconds in parts.values())


def test_the_command(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('convnext_backbone.plan.loading.images_per_second.__defaults__', (0.05,))
    monkeypatch.setattr('convnext_backbone.plan.loading.parts_of_an_image.__defaults__', (0.05,))
    monkeypatch.setattr('convnext_backbone.commands.plan.worker_counts', lambda: [0, 1])
    root = str(shapes / 'classification')
    options = ['--data-root', root, '--loading', '--out', str(tmp_path), '--cfg-options']
    run_command('plan', 'configs/demo/classifier_shapes.py', *options, 'train_dataloader.batch_size=4')
    printed = capsys.readouterr().out
    assert 'batches of 4 images' in printed and '\nworkers   images/s   per worker\n      0 ' in printed
    found = json.loads((tmp_path / 'plan.json').read_text())
    assert [*found['images_per_second']] == ['0', '1'] and min(found['images_per_second'].values()) > 0
    assert {REST, COLLATE, HANDOVER, 'Normalize'} < found['seconds_of_an_image'].keys()
    with pytest.raises(UserError, match='no images for split'):
        run_command('plan', 'configs/demo/classifier_shapes.py', '--data-root', str(tmp_path), '--loading')
