"""Parts of a model that fit or do not: what is measured, what is reported at which key, a training step."""

import copy
import importlib.util
from functools import cache
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmdet.models import MaskRCNN
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from convnext_backbone.checks import model as model_check
from convnext_backbone.checks.model import check_model
from convnext_backbone.checks.swapped import DILATED
from convnext_backbone.config import read_config
from convnext_backbone.engine import run
from convnext_backbone.engine.layer_decay import LayerDecayConstructor
from convnext_backbone.errors import UserError
from convnext_backbone.findings import Findings
from convnext_backbone.measure import Measured, build_model, channel_keys, measure, settings
from convnext_backbone.measure.trial import try_training

ROOT = Path(__file__).resolve().parent.parent
SHAPES, SEGMENTER = 'mask_rcnn_shapes', 'upernet_shapes'
R50, RETINA = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'retinanet/retinanet_r50_fpn_1x_coco.py'
DINO = 'dino/dino-4scale_r50_8xb2-12e_coco.py'
M2F = 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
PSP = 'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
SSD, YOLO3 = 'ssd/ssd300_coco.py', 'yolo/yolov3_d53_8xb8-320-273e_coco.py'
YOLOX, FCOS = 'yolox/yolox_s_8xb8-300e_coco.py', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
LAD = 'lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py'
SOFT = 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
OCR = 'ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py'
KNET = 'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py'
JPU = 'fastfcn/fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024.py'
ENC = 'encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
ANN = 'ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024.py'
HR18 = 'hrnet/fcn_hr18_4xb2-40k_cityscapes-512x1024.py'
M2F_SEG = 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
ICNET = 'icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py'
RPN = 'rpn/rpn_r50-caffe-c4_1x_coco.py'
YOLOF, DETR = 'yolof/yolof_r50-c5_8xb8-1x_coco.py', 'detr/detr_r50_8xb2-150e_coco.py'
SPARSE, SOLO = 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 'solov2/solov2_r50_fpn_1x_coco.py'


def folders() -> list[Path]:
    packages = ('mmdet', 'mmseg')
    return [Path(importlib.util.find_spec(p).origin).parent / '.mim' / 'configs' for p in packages]


@cache
def read(name: str) -> Config:
    found = [folder / name for folder in folders() if (folder / name).is_file()]
    return Config.fromfile(found[0]) if found else read_config(name)


@cache
def measured_as_it_is(name: str) -> Measured:
    return measure(read(name))


def config(name: str, changes: dict | None = None) -> Config:
    """One of ours by name, or one that mmdet or mmseg ships by path, with values changed by their keys."""
    cfg = copy.deepcopy(read(name))
    for key, value in (changes or {}).items():
        *way, last = key.split('.')
        node = cfg
        for part in way:
            node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        node[last] = value
    return cfg


def findings(cfg: Config) -> Findings:
    found = Findings()
    check_model(cfg, found)
    return found


def errors(cfg: Config) -> dict[str, str]:
    return {f.where: f.text for f in findings(cfg) if f.level == 'error'}


def run_for_real(cfg: Config) -> None:
    """Send an image through a model with values, as far as it takes no data; may raise the model's error."""
    model = build_model(cfg, 'cpu')
    with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        levels = model.extract_feat(torch.rand(1, 3, 128, 128))
        for name in ('rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head'):
            if hasattr(model, name):
                getattr(model, name)(levels)


# -- what is measured ------------------------------------------------------------------------


PUBLISHED = {  # channels and strides of the maps, by the papers
    R50: ([256, 512, 1024, 2048], [4, 8, 16, 32]),
    PSP: ([256, 512, 1024, 2048], [4, 8, 8, 8]),  # output stride 8
    YOLO3: ([256, 512, 1024], [8, 16, 32]),
    YOLOX: ([128, 256, 512], [8, 16, 32]),  # width 0.5
    DETR: ([2048], [32]),
    HR18: ([18, 36, 72, 144], [4, 8, 16, 32]),
    SSD: ([512, 1024], [300 / 38, 300 / 19]),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py': ([96, 192, 384, 768], [4, 8, 16, 32]),
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': ([32, 64, 160, 256], [4, 8, 16, 32]),
    'cascade_convnext_xl_in22k': ([256, 512, 1024, 2048], [4, 8, 16, 32]),
    SHAPES: ([64, 128, 256], [8, 16, 32]),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_channels_and_strides_are_the_published_ones(name):
    measured = measured_as_it_is(name)
    maps = measured.networks[0].maps
    channels, strides = PUBLISHED[name]
    assert [m.channels for m in maps] == channels
    for axis in (0, 1):
        assert [m.stride[axis] for m in maps] == pytest.approx(strides)
    assert measured.networks[0].failures == {}


READERS = {  # what receives the maps of the backbones
    R50: {'neck'},
    PSP: {'decode_head', 'auxiliary_head'},
    OCR: {'decode_head.0', 'decode_head.1'},
    M2F: {'panoptic_head'},
    LAD: {'neck', 'teacher_model.neck'},
    SOFT: {'student.neck', 'teacher.neck'},
    'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py': {'neck'},
    RPN: {'bbox_head'},  # as mmdet calls the module
}


@pytest.mark.parametrize('name', READERS)
def test_what_receives_the_maps_is_seen(name):
    networks = measured_as_it_is(name).networks
    found = {r.place for network in networks for r in network.readers if r.source == network.backbone}
    assert found == READERS[name]


KEYS = {  # what a swap of the backbone has to change, by the configs' own text
    R50: {'model.neck.in_channels': [256, 512, 1024, 2048]},
    PSP: {'model.decode_head.in_channels': 2048, 'model.auxiliary_head.in_channels': 1024},
    YOLO3: {'model.neck.in_channels': [1024, 512, 256]},
    YOLOF: {'model.neck.in_channels': 2048},
    KNET: {
        'model.decode_head.kernel_generate_head.in_channels': [256, 512, 1024, 2048],
        'model.auxiliary_head.in_channels': 1024,
    },
    ENC: {'model.decode_head.in_channels': [512, 1024, 2048], 'model.auxiliary_head.in_channels': 1024},
    RPN: {'model.rpn_head.in_channels': 1024},
}


@pytest.mark.parametrize('name', KEYS)
def test_keys_that_carry_the_channels_of_the_backbone(name):
    assert channel_keys(read(name), measured_as_it_is(name).networks[0]) == KEYS[name]


def test_settings_are_found_where_a_part_is_built_from_them():
    assert settings(config(SOFT), 'student.neck')[0] == 'model.detector.neck'
    assert settings(config(LAD), 'teacher_model.neck')[0] == 'model.teacher_neck'
    assert settings(config(OCR), 'decode_head.1')[0] == 'model.decode_head.1'
    assert settings(config(ICNET), 'backbone.backbone')[0] == 'model.backbone.backbone_cfg'
    key, node = settings(config(KNET), 'decode_head.kernel_generate_head')
    assert (key, node['in_channels']) == (
        'model.decode_head.kernel_generate_head',
        [256, 512, 1024, 2048],
    )


def test_measuring_changes_nothing_in_the_config_and_needs_no_weights():
    cfg = config(R50, {'model.backbone.init_cfg.checkpoint': '/no/such/file.pth'})
    before = cfg.to_dict()
    assert measure(cfg).networks[0].failures == {}
    assert cfg.to_dict() == before


def test_a_model_that_cannot_be_built_as_a_whole_is_measured_by_its_backbone():
    cfg = config(R50, {'model.roi_head.bbox_head.type': 'NoSuchHead'})
    measured = measure(cfg)
    assert measured.model is None and 'NoSuchHead' in str(measured.reason)
    assert [m.channels for m in measured.networks[0].levels] == [256] * 5


# -- channels and levels ---------------------------------------------------------------------


C = [96, 192, 384, 768]  # what stays when ConvNeXt-T is replaced by another, or the other way round
WRONG = [  # config, key that is changed, value, key of the error, value that fits
    (SHAPES, 'model.neck.in_channels', [32, 64, 128], None, '[64, 128, 256]'),
    (SHAPES, 'model.backbone.out_indices', (0, 1, 2, 3), 'model.neck.in_channels', '[32, 64, 128, 256]'),
    (SHAPES, 'model.neck.num_outs', 2, None, '3'),
    (SHAPES, 'model.rpn_head.in_channels', 128, None, '64'),
    (SHAPES, 'model.roi_head.bbox_head.in_channels', 128, None, '64'),
    (SHAPES, 'model.roi_head.mask_head.in_channels', 128, None, '64'),
    (SHAPES, 'model.roi_head.mask_roi_extractor.out_channels', 128, None, '64'),
    (SHAPES, 'model.backbone.in_channels', 4, 'model.data_preprocessor.mean', '4'),
    (SEGMENTER, 'model.decode_head.in_channels', [32, 64, 128, 128], None, '[32, 64, 128, 256]'),
    (SEGMENTER, 'model.auxiliary_head.in_channels', 256, None, '128, or model.auxiliary_head.in_index=3'),
    (SEGMENTER, 'model.auxiliary_head.in_index', 4, None, 'numbers from 0 to 3'),
    (SEGMENTER, 'model.backbone.out_indices', (2, 3), 'model.decode_head.in_index', 'numbers from 0 to 1'),
    (YOLO3, 'model.neck.in_channels', C[:0:-1], None, '[1024, 512, 256]'),
    (YOLO3, 'model.bbox_head.in_channels', [512, 256, 64], None, '[512, 256, 128]'),
    (YOLOF, 'model.neck.in_channels', 768, None, '2048'),
    (YOLOX, 'model.neck.in_channels', C[1:], None, '[128, 256, 512]'),
    (SSD, 'model.neck.in_channels', (192, 384), None, '[512, 1024]'),
    (FCOS, 'model.bbox_head.in_channels', 128, None, '256'),
    (DETR, 'model.neck.in_channels', [768], None, '[2048]'),
    (DINO, 'model.neck.in_channels', C[1:], None, '[512, 1024, 2048]'),
    (DINO, 'model.neck.num_outs', 5, 'model.encoder.layer_cfg.self_attn_cfg.num_levels', '5'),
    (M2F, 'model.panoptic_head.in_channels', C, None, '[256, 512, 1024, 2048]'),
    (M2F_SEG, 'model.decode_head.in_channels', C, None, '[256, 512, 1024, 2048]'),
    (PSP, 'model.decode_head.in_channels', 768, None, '2048'),
    (PSP, 'model.auxiliary_head.in_channels', 384, None, '1024'),
    (JPU, 'model.neck.in_channels', C[1:], None, '[512, 1024, 2048]'),
    (ANN, 'model.decode_head.in_channels', C[2:], None, '[1024, 2048]'),
    (OCR, 'model.decode_head.0.in_channels', 384, None, '1024'),
    (OCR, 'model.decode_head.1.in_channels', 768, None, '2048'),
    (KNET, 'model.decode_head.kernel_generate_head.in_channels', C, None, '[256, 512, 1024, 2048]'),
    (HR18, 'model.decode_head.in_channels', [18, 36, 72, 72], None, '[18, 36, 72, 144]'),
    (SOFT, 'model.detector.neck.in_channels', C, None, '[256, 512, 1024, 2048]'),
    (LAD, 'model.teacher_neck.in_channels', C, None, '[256, 512, 1024, 2048]'),
    (SOLO, 'model.mask_head.in_channels', 128, None, '256'),
]


@pytest.mark.parametrize(('name', 'key', 'value', 'where', 'fits'), WRONG)
def test_channels_and_levels_are_reported_at_their_key_with_the_value_that_fits(
    name, key, value, where, fits
):
    texts = errors(config(name, {key: value}))
    text = texts[where or key]
    assert f'needs {fits}' in text
    shown = value if where is None else ''
    assert f'got {list(value) if isinstance(shown, (list, tuple)) else shown}' in text


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [row[:3] for row in WRONG if row[0] in (SHAPES, SEGMENTER, FCOS) and 'roi_head' not in row[1]],
)
def test_what_is_reported_fails_when_it_is_really_run(name, key, value):
    run_for_real(config(name))
    with pytest.raises((RuntimeError, AssertionError, IndexError, ValueError)):
        run_for_real(config(name, {key: value}))


CASCADE, MASK_T = 'cascade_convnext_t', 'mask_rcnn_convnext_t_1x'
BOX, MASKS = 'model.roi_head.bbox_head.roi_feat_size', 'model.roi_head.mask_roi_extractor'
CUT = 'model.roi_head.bbox_roi_extractor.roi_layer.output_size'
REGIONS = [  # config, key that is changed, value, key of the error and its text
    (MASK_T, CUT, 14, BOX, f'got 7, needs 14, or set {CUT}=7'),
    (MASK_T, BOX, 14, BOX, f'got 14, needs 7, or set {CUT}=14'),
    (CASCADE, CUT, 14, CUT, 'got 14, needs 7, or set 14 as model.roi_head.bbox_head.0.roi_feat_size, '),
    (MASK_T, f'{MASKS}.roi_layer.output_size', 7, None, None),  # convolutions take any size
]


@pytest.mark.parametrize(('name', 'key', 'value', 'where', 'text'), REGIONS)
def test_regions_of_another_size_than_the_head_is_built_for(name, key, value, where, text):
    texts = errors(config(name, {key: value}))
    assert list(texts) == ([where] if where else [])
    if where:
        assert text in texts[where]


def test_a_neck_that_is_missing_is_named_once():
    cfg = config(MASK_T)
    del cfg.model['neck']
    texts = errors(cfg)
    assert list(texts) == ['model.neck']
    assert 'is missing' in texts['model.neck'] and '96, 192, 384 and 768' in texts['model.neck']
    assert 'model.rpn_head.in_channels is 256' in texts['model.neck']


# -- models that cannot be built -------------------------------------------------------------


ANCHORS = 'model.rpn_head.anchor_generator'
UNBUILDABLE = [  # config, key that is changed, value, key of the error, words of its text
    (MASK_T, 'model.backbone.arch', 'tinny', 'model.backbone', "did you mean 'tiny'"),
    (MASK_T, 'model.backbone.out_indices', (0, 1, 2, 4), 'model.backbone', 'got (0, 1, 2, 4)'),
    (MASK_T, 'model.backbone.output_stride', 7, 'model.backbone', '8, 16 or 32, got 7'),
    (MASK_T, 'model.neck.in_channels', 96, 'model.neck', 'FPN cannot be built: AssertionError'),
    (MASK_T, 'model.neck.in_channels', [96, '192', 384, 768], 'model.neck', 'TypeError'),
    (MASK_T, 'model.neck.out_channels', -3, 'model.neck', 'negative dimension -3'),
    (MASK_T, f'{ANCHORS}.strides', 4, ANCHORS, "'int' object is not iterable"),
    (MASK_T, f'{ANCHORS}.base_sizes', [4, 8, 16], ANCHORS, 'number of strides should be the same'),
    (MASK_T, 'model.backbone', 'convnext', 'model.backbone', 'cfg should be a dict'),
    (CASCADE, 'model.roi_head.num_stages', 2, 'model.roi_head', 'self.num_stages` does not hold'),
    (PSP, 'model.decode_head.in_index', [2, 3], 'model.decode_head', 'PSPHead cannot be built'),
    (SEGMENTER, 'model.decode_head.in_index', [0, 1, 2], 'model.decode_head', 'len(in_index)` does not hold'),
    (SHAPES, 'model.neck.num_outs', 2, 'model.neck.num_outs', 'needs 3'),  # which says more, and alone
    ('convnext_b_in1k', 'model.backbone.arch', 'tinny', 'model.backbone', "did you mean 'tiny'"),
]


@pytest.mark.parametrize(('name', 'key', 'value', 'where', 'text'), UNBUILDABLE)
def test_a_model_that_cannot_be_built_is_one_error_at_the_part_that_cannot(name, key, value, where, text):
    cfg = config(name, {key: value})
    with pytest.raises(Exception):  # noqa: B017, PT011 whatever constructors raise
        build_model(cfg, 'cpu')
    assert [(f.level, f.where) for f in findings(cfg) if f.level != 'warning'] == [('error', where)]
    assert text in errors(cfg)[where]


def test_a_model_without_a_backbone_cannot_be_built():
    cfg = config(MASK_T)
    del cfg.model['backbone']
    assert "missing 1 required positional argument: 'backbone'" in errors(cfg)['model']


@pytest.mark.parametrize(
    'error',
    [
        FileNotFoundError('anchors.json'),
        ConnectionError('hub'),
        ImportError('Please install Detectron2 first'),
        RuntimeError('mmpretrain is not installed'),
        AssertionError('Torch not compiled with CUDA enabled'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_what_this_machine_lacks_is_no_error_of_the_config(monkeypatch, error):
    monkeypatch.setattr(MaskRCNN, '__init__', Mock(side_effect=error))
    found = findings(config(MASK_T))
    assert [(f.level, f.kind, f.where) for f in found] == [('note', 'build', 'model')]
    assert str(error) in found[0].text


def test_a_model_that_cannot_be_built_on_the_meta_device_alone_is_no_error(monkeypatch):
    build = MaskRCNN.__init__

    def on_cpu(self, *args, **kwargs):
        if torch.get_default_device().type == 'meta':
            raise ValueError('no values')
        build(self, *args, **kwargs)

    monkeypatch.setattr(MaskRCNN, '__init__', on_cpu)
    assert findings(config(MASK_T)) == []


def test_a_package_that_a_constructor_goes_without_is_named(tmp_path, monkeypatch):
    file = tmp_path / 'heads_of_a_test.py'
    file.write_text(
        'try:\n    from no_such_package.parts import Base\nexcept ImportError:\n    Base = object\n'
        'class Head(Base):\n    def __init__(self, **settings):\n        super().__init__(settings)\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = config(MASK_T, {'model.neck': dict(type=importlib.import_module(file.stem).Head)})
    found = findings(cfg)
    assert [f.level for f in found] == ['note']
    assert found[0].text.endswith('not to be imported: no_such_package')


# -- strides ---------------------------------------------------------------------------------


ROI = 'model.roi_head.bbox_roi_extractor.featmap_strides'
STRIDES = [  # config, key, value, key of the error, strides that fit, by hand from the architecture
    (SHAPES, ROI, [8, 16, 32, 64], None, [8, 16, 32]),
    (SHAPES, ROI, [4, 8, 16], None, [8, 16, 32]),
    (SHAPES, 'model.rpn_head.anchor_generator.strides', [4, 8], None, [8, 16, 32]),
    (SHAPES, 'model.rpn_head.anchor_generator.strides', [4, 8, 16], None, [8, 16, 32]),
    (SHAPES, 'model.neck.num_outs', 4, 'model.rpn_head.anchor_generator.strides', [8, 16, 32, 64]),
    (R50, 'model.roi_head.mask_roi_extractor.featmap_strides', [8, 16, 32, 64], None, [4, 8, 16, 32]),
    (
        RETINA,
        'model.neck.start_level',
        0,
        'model.bbox_head.anchor_generator.strides',
        [4, 8, 16, 32, 64],
    ),
    (FCOS, 'model.bbox_head.strides', [4, 8, 16, 32, 64], None, [8, 16, 32, 64, 128]),
    (YOLO3, 'model.bbox_head.anchor_generator.strides', [8, 16, 32], None, [32, 16, 8]),
    (YOLOX, 'model.bbox_head.strides', [4, 8, 16], None, [8, 16, 32]),
    (M2F, 'model.panoptic_head.strides', [8, 16, 32, 64], None, [4, 8, 16, 32]),
    (M2F_SEG, 'model.decode_head.strides', [8, 16, 32, 64], None, [4, 8, 16, 32]),
    (SPARSE, ROI, [8, 16, 32, 64], None, [4, 8, 16, 32]),
    (RPN, 'model.rpn_head.anchor_generator.strides', [32], None, [16]),
]


@pytest.mark.parametrize(('name', 'key', 'value', 'where', 'fits'), STRIDES)
def test_strides_are_compared_with_those_of_the_maps(name, key, value, where, fits):
    assert f'needs {fits}: ' in errors(config(name, {key: value}))[where or key]


# -- batch and size --------------------------------------------------------------------------


def segmenter(**changes) -> Config:
    cfg = config(SEGMENTER, {'train_dataloader.batch_size': 1})
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.norm_cfg = dict(type='BN')
    cfg.merge_from_dict(changes)
    return cfg


def one_image_of_training(cfg: Config) -> None:
    head = build_model(cfg, 'cpu').decode_head.train()
    head([torch.rand(1, c, 32 >> i, 32 >> i) for i, c in enumerate((32, 64, 128, 256))])


def test_one_image_and_batch_norm_on_a_pooled_map_do_not_go_together():
    cfg = segmenter()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        one_image_of_training(cfg)
    text = errors(cfg)['train_dataloader.batch_size']
    assert 'got 1, needs at least 2' in text
    assert "model.decode_head.norm_cfg=dict(type='GN', num_groups=16)" in text
    cfg.model.decode_head.norm_cfg = dict(type='GN', num_groups=16)  # as the text says
    one_image_of_training(cfg)
    assert errors(cfg) == {}
    assert errors(segmenter(train_dataloader=dict(batch_size=2))) == {}


def test_batch_norm_that_fails_is_one_finding():
    cfg = swapped(PSP)
    heads = (cfg.model.decode_head, cfg.model.auxiliary_head)
    for head, channels in zip(heads, (768, 384)):
        head.update(in_channels=channels, norm_cfg=dict(type='BN'))
    cfg.train_dataloader.batch_size = 1
    assert [f.level for f in findings(cfg) if f.where == 'train_dataloader.batch_size'] == ['error']
    cfg.train_dataloader.batch_size = 2
    assert [f.level for f in findings(cfg) if f.where == 'train_dataloader.batch_size'] == ['warning']


def test_one_image_for_each_of_several_processes_is_enough_for_synchronised_batch_norm():
    cfg = config(SEGMENTER, {'train_dataloader.batch_size': 1})
    kinds = {f.level for f in findings(cfg) if f.kind == 'batch_norm'}
    assert kinds == {'warning'}


def test_a_crop_below_the_stride_of_the_last_map_is_an_error():
    text = errors(config(SEGMENTER, {'model.data_preprocessor.size': (16, 16)}))
    assert 'needs at least 32 x 32' in text['model.data_preprocessor.size']
    assert errors(config(SEGMENTER, {'model.data_preprocessor.size': (32, 32)})) == {}


@pytest.mark.parametrize(('size', 'padding', 'fails'), [(8, None, True), (8, 32, False), (40, None, False)])
def test_images_that_are_too_small_for_the_validation_are_named(tmp_path, size, padding, fails):
    for folder, mode in (('images', 'RGB'), ('masks', 'L')):
        (tmp_path / folder).mkdir()
        Image.new(mode, (size, size)).save(tmp_path / folder / 'a.png')
    cfg = config(SEGMENTER)
    dataset = cfg.val_dataloader.dataset
    dataset.update(data_root=str(tmp_path), data_prefix=dict(img_path='images', seg_map_path='masks'))
    if padding:
        cfg.model.data_preprocessor.test_cfg = dict(size_divisor=padding)
    found = Findings()
    check_model(cfg, found, ('val_dataloader',))
    texts = [f for f in found if f.where == 'val_dataloader']
    assert bool(texts) == fails
    if fails:
        assert (
            '8 x 8' in texts[0].text and '32 x 32' in texts[0].text and texts[0].examples[0].endswith('a.png')
        )


# -- what goes on in silence -----------------------------------------------------------------


SWAP = dict(
    _delete_=True,
    type='convnext_backbone.ConvNeXt',
    arch='tiny',
    init_cfg=dict(type='convnext_backbone.Pretrained', checkpoint='convnext_tiny_22k_224'),
)
ADAMW = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)


def swapped(base: str = R50, wrapper: dict | None = None, **model) -> Config:
    """A config of mmdet's or mmseg's with our backbone in it, all else right."""
    cfg = config(base)
    changes = dict(backbone=copy.deepcopy(SWAP), **model)
    if 'neck' in cfg.model:
        changes.setdefault('neck', {}).setdefault('in_channels', C)
    cfg.merge_from_dict(dict(model=changes))
    cfg.optim_wrapper = wrapper or dict(type='OptimWrapper', optimizer=ADAMW)
    return cfg


def warnings(cfg: Config) -> dict[str, str]:
    found = findings(cfg)
    assert found.of('error') == []
    return {f.where: f.text for f in found.of('warning')}


def test_a_swap_that_is_right_has_no_warning():
    assert warnings(swapped()) == {}


def test_weights_by_mmengines_own_loader_are_warned_of():
    init = dict(type='Pretrained', checkpoint='x.pth')
    cfg = swapped()
    cfg.model.backbone.init_cfg = init
    assert 'convnext_backbone.Pretrained' in warnings(cfg)['model.backbone.init_cfg.type']


@pytest.mark.parametrize(
    ('changes', 'where'),
    [
        (dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False), 'mean'),
        (dict(std=[1.0, 1.0, 1.0]), 'std'),
        (dict(mean=None, std=None), 'mean'),
        (dict(bgr_to_rgb=False), 'bgr_to_rgb'),
    ],
)
def test_images_that_are_not_those_of_the_released_weights(changes, where):
    """The released weights: mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 of RGB in 0 to 1."""
    text = warnings(swapped(data_preprocessor=changes))[f'model.data_preprocessor.{where}']
    assert 'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True' in text


@pytest.mark.parametrize(
    ('changes', 'where'),
    [
        ({}, 'mean'),
        (dict(mean=[122.771, 116.746, 104.094]), 'std'),
        (dict(mean=[122.771, 116.746, 104.094], std=[68.5, 66.63, 70.32]), None),
    ],
)
def test_weights_of_clip_are_not_for_images_of_imagenet(changes, where):
    """OpenAI's mean and std: 0.48145466 ... and 0.26862954 ..., times 255."""
    cfg = swapped(data_preprocessor=changes)
    cfg.model.backbone.init_cfg.checkpoint = 'clip_convnext_base_laion2b'
    found = warnings(cfg)
    assert set(found) == ({f'model.data_preprocessor.{where}'} if where else set())
    right = 'mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323], bgr_to_rgb=True'
    assert all(right in text for text in found.values())


OPENAI = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize('loaded', ['model.backbone', 'model'])
def test_a_classifiers_images_are_those_of_its_weights(loaded):
    """OpenAI's numbers, as its ``clip.py`` has them; without any, timm's transform takes ImageNet's."""
    init = dict(type='convnext_backbone.Pretrained', checkpoint='clip_convnext_base_laion2b')
    cfg = config('convnext_b_in22k_in1k', {'model.backbone.init_cfg': None, f'{loaded}.init_cfg': init})
    split = 'train_dataloader.dataset.transform'
    transform = cfg.train_dataloader.dataset.transform
    text = warnings(cfg)[f'{split}.mean']
    assert 'got [0.485, 0.456, 0.406]' in text and str(list(OPENAI['std'])) in text
    for key in ('mean', 'std'):
        assert list(warnings(cfg)) == [f'{split}.{key}']
        transform[key] = OPENAI[key]
    assert warnings(cfg) == {}
    transform.normalize = False
    assert 'mean=[122.771, 116.746, 104.094]' in warnings(cfg)['model.data_preprocessor.mean']
    pixels = {key: [255 * value for value in values] for key, values in OPENAI.items()}
    cfg.model.data_preprocessor = dict(type='mmengine.ImgDataPreprocessor', **pixels)
    assert warnings(cfg) == {}


def test_a_classifier_with_weights_of_imagenet_takes_its_images():
    cfg = config('convnext_b_in22k_in1k')
    assert warnings(cfg) == {}
    transform = cfg.train_dataloader.dataset.transform
    del transform['mean'], transform['std']  # timm's own are ImageNet's
    assert warnings(cfg) == {}
    transform.mean = (0.5, 0.5, 0.5)
    assert list(warnings(cfg)) == ['train_dataloader.dataset.transform.mean']


def test_the_checks_know_the_weights_that_an_option_names(tmp_path, monkeypatch):
    def images_of(cfg, splits, amount):
        findings = Findings()
        check_model(cfg, findings, splits)
        raise UserError('; '.join(finding.text for finding in findings))

    monkeypatch.setattr(run, 'check_config', images_of)
    with pytest.raises(
        UserError, match=r'clip_convnext_base_laion2b was trained on images with mean=\[0.481'
    ):
        run.train('convnext_b_in1k', pretrained='clip_convnext_base_laion2b', work_dir=tmp_path)


@pytest.mark.parametrize(('divisor', 'warns'), [(1, True), (16, True), (32, False), (64, False)])
def test_the_border_must_reach_the_last_map(divisor, warns):
    where = 'model.data_preprocessor.pad_size_divisor'
    assert (where in warnings(swapped(data_preprocessor=dict(pad_size_divisor=divisor)))) == warns


def test_nothing_is_said_of_training_where_a_model_is_tested():
    sgd = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
    found = Findings()
    check_model(swapped(wrapper=sgd), found, ('test_dataloader',))
    assert found == []


def test_a_rate_and_an_optimizer_for_resnet_are_warned_of():
    sgd = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
    assert 'AdamW' in warnings(swapped(wrapper=sgd))['optim_wrapper.optimizer.type']
    fast = dict(type='OptimWrapper', optimizer=dict(ADAMW, lr=0.02))
    assert '1e-4' in warnings(swapped(wrapper=fast))['optim_wrapper.optimizer.lr']


@pytest.mark.parametrize(('arch', 'number'), [('tiny', 6), ('base', 12)])
def test_depth_groups_of_another_constructor(arch, number):
    """Paper, App. A.2: three blocks of the third stage form a group, 9 blocks in T and 27 in B."""
    wrapper = dict(
        type='OptimWrapper',
        optimizer=ADAMW,
        constructor='LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=18 - number),
    )
    cfg = swapped(wrapper=wrapper)
    cfg.model.backbone.arch = arch
    cfg.model.neck.in_channels = [n * (4 if arch == 'base' else 3) // 3 for n in C]
    where = 'optim_wrapper.paramwise_cfg.num_layers'
    assert f'needs {number}' in warnings(cfg)[where]
    cfg.optim_wrapper.paramwise_cfg.num_layers = number
    assert where not in warnings(cfg)
    model = build_model(cfg)
    own = LayerDecayConstructor(dict(optimizer=ADAMW), dict(decay_rate=0.7))
    assert len({scale for _, _, scale in own.scales(model)}) == number + 2  # stem and head are groups, too


def test_frozen_stages_0_means_something_else_in_mmpretrain():
    cfg = swapped()
    cfg.model.backbone.frozen_stages = 0
    assert any(f.level == 'note' and f.where == 'model.backbone.frozen_stages' for f in findings(cfg))


def test_names_of_another_backbone_in_custom_keys():
    keys = {'absolute_pos_embed': dict(decay_mult=0.0), 'backbone': dict(lr_mult=0.1)}
    wrapper = dict(type='OptimWrapper', optimizer=ADAMW, paramwise_cfg=dict(custom_keys=keys))
    text = warnings(swapped(wrapper=wrapper))['optim_wrapper.paramwise_cfg.custom_keys']
    assert 'absolute_pos_embed' in text and 'backbone' not in text.partition(':')[0]


@pytest.mark.parametrize(('arch', 'tells'), [('tiny', 'flat_decay_mult=0.0'), ('v2_tiny', "'grn'")])
def test_norms_that_norm_decay_mult_does_not_reach(arch, tells):
    wrapper = dict(type='OptimWrapper', optimizer=ADAMW, paramwise_cfg=dict(norm_decay_mult=0.0))
    cfg = swapped(wrapper=wrapper)
    cfg.model.backbone.update(arch=arch, init_cfg=None)
    assert tells in warnings(cfg)['optim_wrapper.paramwise_cfg.norm_decay_mult']
    cfg.optim_wrapper.paramwise_cfg.update(flat_decay_mult=0.0, custom_keys={'grn': dict(decay_mult=0.0)})
    assert 'optim_wrapper.paramwise_cfg.norm_decay_mult' not in warnings(cfg)


def test_half_precision_that_may_overflow():
    wrapper = dict(type='AmpOptimWrapper', dtype='float16', optimizer=ADAMW)
    cfg = swapped(wrapper=wrapper)
    assert 'optim_wrapper.dtype' not in warnings(cfg)
    cfg.model.backbone.layer_scale_init_value = 1.0
    assert 'bfloat16' in warnings(cfg)['optim_wrapper.dtype']


def test_a_coarse_map_in_a_head_made_for_dilated_networks():
    cfg = swapped(
        PSP, decode_head=dict(in_channels=768), auxiliary_head=dict(in_channels=384), pretrained=None
    )
    cfg.train_dataloader.batch_size = 8
    assert 'set output_stride=8' in warnings(cfg)['model.backbone.output_stride']
    cfg.model.backbone.output_stride = 8
    assert warnings(cfg) == {}


def test_statistics_of_two_images():
    cfg = swapped(
        PSP, decode_head=dict(in_channels=768), auxiliary_head=dict(in_channels=384), pretrained=None
    )
    cfg.model.backbone.output_stride = 8
    cfg.model.decode_head.norm_cfg = dict(type='BN')
    assert 'model.decode_head' in warnings(cfg)['train_dataloader.batch_size']


def test_arguments_of_the_backbone_before_are_named():
    cfg = config(R50)
    cfg.model.backbone.type = 'convnext_backbone.ConvNeXt'  # without _delete_
    found = findings(cfg)
    text = next(f.text for f in found.of('error') if f.where == 'model.backbone')
    assert 'depth' in text and '_delete_=True' in text and 'frozen_stages=1' in text


# -- a training step -------------------------------------------------------------------------


@pytest.mark.parametrize('name', [SHAPES, SEGMENTER])
def test_a_step_on_made_up_data_has_finite_losses_and_all_gradients(name):
    file = dict(type='convnext_backbone.Pretrained', checkpoint='/no/such/file.pth')
    trial = try_training(config(name, {'model.backbone.init_cfg': file}))
    assert trial.finite and trial.losses['loss'] > 0
    assert trial.without_gradient == ()


KINDS = [  # made-up data of each kind: boxes, masks, label maps, proposals, videos, branches, edges, queries
    YOLOX,
    M2F,
    SOLO,
    SOFT,
    SPARSE,
    ENC,
    KNET,
    'cascade_rpn/cascade-rpn_fast-rcnn_r50-caffe_fpn_1x_coco.py',
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'boxinst/boxinst_r50_fpn_ms-90k_coco.py',
    'htc/htc_r50_fpn_1x_coco.py',
    DINO,
    'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
    'qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py',
    'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
]


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_a_step_of_every_kind_of_data(name):
    assert try_training(config(name)).finite


def test_a_parameter_without_gradient_is_named():
    """RetinaNet does not read the first map that is emitted: DDP refuses its norm without a gradient."""
    cfg = swapped(RETINA)
    cfg.model.backbone.update(arch='atto', init_cfg=None)
    cfg.model.neck.in_channels = [40, 80, 160, 320]
    assert 'backbone.norm0.weight' in try_training(cfg).without_gradient
    cfg.model.backbone.out_indices = (1, 2, 3)
    cfg.model.neck.update(in_channels=[80, 160, 320], start_level=0)
    assert try_training(cfg).without_gradient == ()


# -- everything that there is ----------------------------------------------------------------


BROKEN = {  # mmdet and mmseg cannot build these either, whatever is installed
    'cascade-rpn_r50-caffe_fpn_1x_coco': "missing 1 required positional argument: 'num_classes'",
    'clrnet': 'LineDetDataProcessor is not in the mmdet::model registry',
    'fcos_swinb_fpn_8x4_sample1e-3_mstrain_v3det_2x': "unexpected keyword argument 'force_grad_on_level'",
    'unet-s5-d16_fcn_4xb4-160k_hsidrive-192x384': '`bgr_to_rgb` should be a boolean',
}
OWN = [file for file in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in file.parts]


def shipped() -> list[Path]:
    files = [file for folder in folders() for file in sorted(folder.rglob('*.py'))]
    return [file for file in files if '_base_' not in file.parts]


def false_errors(files: list[Path]) -> dict[str, list[str]]:
    found = {}
    for file in files:
        try:
            cfg = Config.fromfile(file)
        except (ImportError, OSError):  # of mmpretrain; of a base that is not there
            continue
        texts = list(map(str, findings(cfg).of('error'))) if 'model' in cfg else []
        texts = [text for text in texts if BROKEN.get(file.stem, '\n') not in text]
        if texts:
            found[str(file)] = texts
    return found


def of_our_own(files: list[Path]) -> dict[str, list[str]]:
    found = {file.stem: list(map(str, findings(read_config(file)))) for file in files}
    return {name: texts for name, texts in found.items() if texts}


def test_our_own_recipes_have_no_findings():
    files = [file for file in OWN if file.stem.endswith(('_t', '_shapes', '_small', 'xl_in22k'))]
    files = [file for file in files if file.parent.name in ('detection', 'segmentation', 'demo')]
    assert len(files) >= 7
    assert of_our_own(files) == {}


@pytest.mark.slow
def test_none_of_our_own_configs_has_a_finding():
    assert of_our_own(OWN) == {}


def test_a_sample_of_what_mmdet_and_mmseg_ship_has_no_error():
    files = shipped()
    assert false_errors(files[:: len(files) // 5]) == {}


@pytest.mark.slow
def test_nothing_that_mmdet_and_mmseg_ship_has_an_error():
    assert false_errors(shipped()) == {}


@pytest.mark.slow
def test_heads_that_are_said_to_be_made_for_dilated_networks_are_shipped_on_these():
    strides = {}
    for file in shipped():
        if 'mmseg' not in file.parts or file.parent.name not in ('pspnet', 'ann', 'encnet', 'deeplabv3plus'):
            continue
        cfg = Config.fromfile(file)
        kind = cfg.model.decode_head.type if isinstance(cfg.model.decode_head, dict) else ''
        if kind in DILATED:
            strides.setdefault(kind, []).append(min(measure(cfg).networks[0].maps[-1].stride))
    shares = {kind: sum(s <= 16 for s in values) / len(values) for kind, values in strides.items()}
    assert len(shares) == 4 and min(shares.values()) > 0.9, shares


def test_a_mistake_within_the_measurement_is_a_note(monkeypatch):
    def fail(cfg):
        raise ZeroDivisionError('of ours')

    monkeypatch.setattr(model_check, 'measure', fail)
    found = findings(config(SHAPES))
    assert [(f.level, f.where) for f in found] == [('note', 'model')]
    assert 'ZeroDivisionError: of ours' in found[0].text
