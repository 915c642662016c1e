"""Whole detectors as one ONNX file: the objects of mmdet's own prediction, for images of any size."""

import importlib.util
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL_DATA, ROOT, tool
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask

from convnext_backbone.config import read_config, use_plain_batch_norm
from convnext_backbone.errors import UserError
from convnext_backbone.export import METADATA, export
from convnext_backbone.export.compare import Objects
from convnext_backbone.export.detectors import DetectorNetwork
from convnext_backbone.inference import Predictor

onnxruntime = pytest.importorskip('onnxruntime')
DIMS = (8, 16, 24, 32)
KINDS = ('mask_rcnn', 'faster_rcnn', 'cascade', 'cascade_rcnn', 'retinanet', 'fcos', 'atss')
CLASSES = ('cat', 'dog', 'hen', 'cow', 'pig')
NARROW = {256: 32, 1024: 32, 80: len(CLASSES)}  # channels, classes
SPREAD = {  # standard deviation that the outputs of a layer are given, by its name
    **dict.fromkeys(('rpn_cls', 'retina_cls', 'conv_cls', 'atss_cls'), 1.5),
    **dict.fromkeys(('rpn_reg', 'retina_reg', 'conv_reg', 'atss_reg'), 0.3),
    **dict(fc_cls=2.0, fc_reg=1.0, conv_logits=2.0, conv_centerness=1.0, atss_centerness=1.0),
}
SIZES = [(128, 160), (101, 133), (33, 31), (64, 200)]


def small_config(kind: str):
    """The config of a detector, narrow; with three levels if it has two stages."""
    cfg = read_config(f'configs/detection/{kind}_convnext_t.py')
    use_plain_batch_norm(cfg)
    model = cfg.model
    model.backbone.update(depths=(1, 1, 1, 1), dims=DIMS, init_cfg=None, out_indices=(1, 2, 3))
    del model.backbone['arch']
    model.neck.in_channels = list(DIMS[1:])
    if kind == 'mask_rcnn':  # onnxruntime has no group norm of nothing
        model.roi_head.mask_head.norm_cfg = dict(type='GN', num_groups=4)
    if 'roi_head' in model:
        model.neck.num_outs = 3
        model.rpn_head.anchor_generator.update(strides=[8, 16, 32], scales=[4])
    else:
        model.bbox_head.stacked_convs = 1
    if kind in ('fcos', 'atss'):  # one number of a group has no norm
        model.bbox_head.norm_cfg = dict(type='GN', num_groups=8)

    def narrow(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list, tuple)):
                narrow(value)
            elif key in (
                'in_channels',
                'out_channels',
                'feat_channels',
                'conv_out_channels',
                'fc_out_channels',
                'num_classes',
            ):
                node[key] = NARROW.get(value, value)
            elif key in ('num_convs', 'num_shared_convs'):
                node[key] = 1
        if isinstance(node, dict) and 'featmap_strides' in node:
            node.update(featmap_strides=[8, 16, 32], finest_scale=28)

    narrow(model)
    return cfg


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(small_config(kind).model)
    return spread(model.eval())


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """With scores and boxes as those of a trained model: no two the same, many above the least."""
    hooks = {}
    for name, layer in model.named_modules():
        if (key := name.rpartition('.')[2]) in SPREAD:

            def scale(layer, inputs, out, key=key):
                if hooks.pop(layer, None) is None:  # of another level: scaled before
                    return None
                layer.weight.data.mul_(SPREAD[key] / out.std())
                layer.bias.data.zero_()
                return type(layer).forward(layer, *inputs)

            hooks[layer] = layer.register_forward_hook(scale)
    handles = list(hooks.values())
    mmdet_predicts(model, noise((128, 160)))
    for handle in handles:
        handle.remove()
    return model


def noise(size, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def mmdet_predicts(model: torch.nn.Module, image: torch.Tensor):
    """What mmdet finds: the authority."""
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[2:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    padded = F.pad(image, (0, -size[1] % 32, 0, -size[0] % 32))
    with torch.no_grad():
        return model.predict(padded, [sample])[0].pred_instances


def assert_same_objects(found: list, expected, atol: float = 1e-3) -> None:
    boxes, scores, labels = (torch.as_tensor(out) for out in found[:3])
    assert len(expected) > 5
    torch.testing.assert_close(scores, expected.scores, atol=atol, rtol=0)
    torch.testing.assert_close(boxes, expected.bboxes, atol=atol, rtol=1e-4)
    assert torch.equal(labels, expected.labels)
    if len(found) > 3:
        masks = [
            predict().paste(np.asarray(m), b.tolist(), *expected.masks.shape[1:], 0.5)
            for m, b in zip(found[3], boxes)
        ]
        different = np.stack(masks) != expected.masks.numpy()
        assert different.mean() < 1e-3


def predict():
    """tools/predict.py as a module."""
    spec = importlib.util.spec_from_file_location('predict', ROOT / 'tools/predict.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_file(file, image: torch.Tensor, min_score: float | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if min_score is not None:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(min_score, np.float32))
        options.add_initializer('min_score', value)  # which does not keep it
    return onnxruntime.InferenceSession(file, options).run(None, {'images': image.numpy()})


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A Mask R-CNN as `convnext export` writes it: folder with its config, checkpoint and file."""
    folder = tmp_path_factory.mktemp('exported')
    cfg = small_config('mask_rcnn')
    for loader in ('test_dataloader', 'val_dataloader'):
        cfg[loader].dataset.pipeline[1].scale = (256, 160)
    cfg.dump(folder / 'small.py')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=build('mask_rcnn').state_dict(), meta=meta), folder / 'c.pth')
    asked = [str(folder / 'small.py'), str(folder / 'c.pth'), '--format', 'onnx', '--size', '160', '224']
    assert tool('export').main([*asked, '--out', str(folder / 'm.onnx')]) == folder / 'm.onnx'
    assert sorted(file.name for file in folder.iterdir()) == ['c.pth', 'm.onnx', 'small.py']
    return folder


@pytest.mark.parametrize('kind', KINDS)
def test_the_objects_are_those_that_mmdet_finds(kind):
    model = build(kind)
    for size in SIZES[:2]:
        image = noise(size, 1)
        with torch.no_grad():
            found = DetectorNetwork(model)(image)
        assert_same_objects(found, mmdet_predicts(model, image), 1e-5)


@pytest.mark.xdist_group('exported')
def test_a_file_gives_mmdets_objects_for_images_of_any_size(exported):
    model = build('mask_rcnn')
    for size in SIZES:
        assert_same_objects(
            run_file(exported / 'm.onnx', noise(size, 1)), mmdet_predicts(model, noise(size, 1))
        )


@pytest.mark.xdist_group('exported')
def test_a_file_finds_one_object_or_none(exported):
    image = noise((101, 133), 1)
    scores = run_file(exported / 'm.onnx', image)[1]
    boxes, one, labels, masks = run_file(exported / 'm.onnx', image, float(scores[:2].mean()))
    assert (boxes.shape, one.tolist(), masks.shape) == ((1, 4), [scores[0]], (1, 28, 28))
    shapes = [out.shape for out in run_file(exported / 'm.onnx', image, 1.1)]
    assert shapes == [(0, 4), (0,), (0,), (0, 28, 28)]


@pytest.mark.xdist_group('exported')
def test_a_file_knows_how_its_images_are_read(exported):
    session = onnxruntime.InferenceSession(exported / 'm.onnx')
    facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert facts['steps'] == [dict(resize=[256, 160], keep_ratio=True)]
    assert (facts['task'], facts['channels'], facts['mean']) == (
        'detection',
        'RGB',
        [123.675, 116.28, 103.53],
    )
    assert (facts['classes'], facts['min_score'], facts['mask_threshold']) == (list(CLASSES), 0.05, 0.5)
    assert [out.name for out in session.get_outputs()] == ['boxes', 'scores', 'labels', 'masks']
    assert session.get_inputs()[0].shape[:2] == [1, 3]


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        ours = 'torch torchvision mmcv mmdet mmseg mmengine cv2 timm convnext_backbone'
        if name.split('.')[0] in ours.split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run_predict(*words) -> subprocess.CompletedProcess:
    """tools/predict.py in a process that has onnxruntime, NumPy and Pillow, but nothing of ours."""
    command = [sys.executable, '-c', WITHOUT, str(ROOT / 'tools/predict.py'), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """A real image; a drawn one where there is none."""
    file = REAL_DATA / 'coco_mini/val2017/000000000139.jpg'
    if file.is_file():
        return file
    file = tmp_path_factory.mktemp('photo') / 'a.png'
    pixels = F.interpolate(noise((12, 16)), size=(240, 320), mode='bilinear')[0].permute(1, 2, 0)
    Image.fromarray((pixels * 60 + 120).clamp(0, 255).byte().numpy()).save(file)
    return file


@pytest.mark.xdist_group('exported')
def test_predict_needs_nothing_of_ours_and_finds_what_the_predictor_finds(exported, photo, tmp_path):
    result = run_predict(exported / 'm.onnx', photo, '--out', tmp_path / 'p', '--draw', '--min-score', '0.05')
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'p' / f'{photo.name}.json').read_text())
    predictor = Predictor(str(exported / 'small.py'), str(exported / 'c.pth'), 'cpu')
    expected = predictor.to_json(predictor.predict(photo), 0.05)
    assert len(expected['objects']) > 5
    same = 0
    for one in found['objects']:
        close = [
            other
            for other in expected['objects']
            if one['label'] == other['label'] and np.allclose(one['bbox'], other['bbox'], atol=0.03)
        ]
        close = [other for other in close if abs(one['score'] - other['score']) < 1e-3]
        same += bool(close)
        for other in close[:1]:
            own = coco_mask.decode(coco_mask.frPyObjects(one['mask'], *one['mask']['size']))
            assert (own != coco_mask.decode(other['mask'])).mean() < 1e-3
    assert same >= 0.95 * max(len(found['objects']), len(expected['objects']))
    assert Image.open(tmp_path / 'p' / f'{photo.name}.png').size == Image.open(photo).size


@pytest.mark.xdist_group('exported')
def test_predict_says_what_is_wrong_in_one_line(exported, photo, tmp_path):
    (tmp_path / 'text.onnx').write_text('no model')
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / 'deep/folder.png').mkdir(parents=True)  # is none of the images
    Image.fromarray(np.full((70, 90), 300, np.uint16)).save(tmp_path / 'deep/a.png')
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / 'deep/b.png')  # is predicted nevertheless
    for words, said in (
        ((tmp_path / 'nowhere.onnx', photo), 'no file'),
        ((tmp_path / 'text.onnx', photo), 'cannot be read as ONNX'),
        ((exported / 'm.onnx', tmp_path / 'nowhere.jpg'), 'no image at'),
        ((exported / 'm.onnx', tmp_path / 'text.jpg'), 'cannot be read as an image'),
        ((exported / 'm.onnx', photo, '--min-score', 7), '--min-score is a number from 0 to 1, got 7'),
        ((exported / 'm.onnx', photo, tmp_path / photo.name), 'have one name'),
        ((exported / 'm.onnx', tmp_path / 'deep'), 'has more than 8 bits (I;16)'),
    ):
        result = run_predict(*words, '--out', tmp_path / 'p')
        assert result.returncode == 1
        assert result.stderr.startswith('error: ') and said in result.stderr
        assert result.stderr.count('\n') == 1
    assert sorted(file.name for file in (tmp_path / 'p').iterdir()) == ['b.png.json']


@pytest.mark.parametrize('size', [(37, 91), (200, 300), (480, 640), (100, 640)])
def test_predict_resizes_as_opencv_does(size):
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    expected = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    different = abs(predict().resize(pixels, size).astype(int) - expected)
    assert different.max() <= 1 and different.mean() < 2e-3  # to twice the size OpenCV rounds otherwise


def test_predict_writes_run_lengths_that_coco_reads():
    random = np.random.default_rng(0)
    for mask in (random.random((7, 5)) > 0.5, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        lengths = predict().run_lengths(mask)
        assert sum(lengths['counts']) == mask.size
        assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(lengths, *mask.shape)), mask)


def test_a_detector_that_predicts_otherwise_is_refused_in_one_line():
    def with_(kind, change):
        model = build_plain(kind)
        change(model)
        return model

    for kind, change, said in (
        ('retinanet', lambda m: m.bbox_head.test_cfg.nms.update(type='soft_nms'), 'nms=.*soft_nms'),
        (
            'mask_rcnn',
            lambda m: setattr(m.roi_head.bbox_roi_extractor.roi_layers[0], 'pool_mode', 'max'),
            'largest',
        ),
        (
            'faster_rcnn',
            lambda m: setattr(m.rpn_head.bbox_coder, 'add_ctr_clamp', True),
            'DeltaXYWHBBoxCoder',
        ),
    ):
        with pytest.raises(UserError, match=f'{said}.*--part backbone') as error:
            DetectorNetwork(with_(kind, change))
        assert '\n' not in str(error.value)
    for format in ('torchscript', 'torch_export'):
        with pytest.raises(UserError, match='as a whole it is exported to onnx'):
            export(build_plain('retinanet'), 'a.pt2', format)


def build_plain(kind: str) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(small_config(kind).model).eval()


def test_a_lower_precision_needs_onnx_and_int8_images():
    with pytest.raises(UserError, match='torchscript is written in fp32 only'):
        export(build_plain('retinanet'), 'a.pt', 'torchscript', precision='fp16')
    with pytest.raises(UserError, match='int8 needs real images'):
        export(build_plain('retinanet'), 'a.onnx', 'onnx', precision='int8')
    with pytest.raises(UserError, match='give a folder of some with --images'):
        tool('export').main(['retinanet_convnext_t', 'c.pth', '--format', 'onnx', '--precision', 'int8'])


def test_a_file_that_finds_other_objects_is_not_kept():
    model = build('retinanet')
    judge, image = Objects(model), noise((101, 133), 1)
    with torch.no_grad():
        right = [out.numpy() for out in DetectorNetwork(model)(image)]

    def load(*_):
        return lambda images: [torch.from_numpy(out) for out in right]

    with torch.no_grad():
        assert judge.compare(load, image, 'onnx', True).matched == 1
        right[0] = right[0] + 2.0
        with pytest.raises(UserError, match='gives other objects than eager'):
            judge.compare(load, image, 'onnx', True)
        assert judge.compare(load, image, 'onnx', False).boxes == pytest.approx(2, abs=1e-3)


def test_where_nothing_is_found_the_best_below_are_compared():
    model = build('retinanet')
    model.bbox_head.test_cfg.score_thr = 0.9999
    judge, image, asked = Objects(model), noise((101, 133), 1), []

    def load(min_score=None):
        asked.append(min_score)
        network = DetectorNetwork(model)
        network.min_score.fill_(0.9999 if min_score is None else min_score)
        return network

    with torch.no_grad():
        agreement = judge.compare(load, image, 'onnx', True)
    assert (agreement.lowered, agreement.objects, agreement.matched) == (True, 20, 1)
    assert asked == [agreement.min_score] and 0 < agreement.min_score < 0.9999
    assert model.bbox_head.test_cfg.score_thr == 0.9999


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS[1:])
def test_every_kind_is_exported(kind, tmp_path):
    model = build(kind)
    export(model, tmp_path / 'a.onnx', 'onnx', size=(160, 224))
    for size in SIZES:
        assert_same_objects(
            run_file(tmp_path / 'a.onnx', noise(size, 1)), mmdet_predicts(model, noise(size, 1))
        )


@pytest.mark.slow
def test_predict_sees_the_classes_of_a_segmenter_that_the_predictor_sees(tmp_path):
    file = REAL_DATA / 'camvid/images/validation'
    if not file.is_dir():
        pytest.skip(f'real images are not here: {REAL_DATA}')
    photo = sorted(file.iterdir())[0]
    config = 'configs/segmentation/camvid_small.py'
    cfg = read_config(config)
    use_plain_batch_norm(cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=0.5)
    meta = dict(dataset_meta=dict(cfg.test_dataloader.dataset.metainfo))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'c.pth')
    words = [config, str(tmp_path / 'c.pth'), '--format', 'onnx', '--out', str(tmp_path / 's.onnx')]
    tool('export').main([*words, '--size', '96', '128', '--images', str(file)])
    result = run_predict(tmp_path / 's.onnx', photo, '--out', tmp_path / 'p', '--draw')
    assert result.returncode == 0, result.stderr
    predictor = Predictor(config, str(tmp_path / 'c.pth'), 'cpu')
    expected = predictor.predict(photo).pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 2
    assert (np.array(Image.open(tmp_path / 'p' / f'{photo.name}.labels.png')) == expected).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['fp16', 'int8'])
def test_a_lower_precision_finds_most_of_it(precision, tmp_path):
    model = build('mask_rcnn')
    images = [noise((128, 160), seed) for seed in range(4)]
    report = export(model, tmp_path / 'a.onnx', 'onnx', size=(160, 224), precision=precision, images=images)
    assert len(report) == 6
    assert all(row.matched > (0.9 if precision == 'fp16' else 0.2) for row in report)
