"""`convnext swap`: what changes by kind of config, what is written and refused, that the result trains."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from convnext_backbone.checks import model as model_check
from convnext_backbone.cli import run_command
from convnext_backbone.config import read_config
from convnext_backbone.config.keys import value_at
from convnext_backbone.engine.layer_decay import LayerDecayConstructor
from convnext_backbone.errors import UserError
from convnext_backbone.findings import Findings
from convnext_backbone.measure import settings, try_training
from convnext_backbone.swap import Refused, config_text, plan_swap, prove, read_source
from convnext_backbone.swap.recipe import images_of_step, recipe_of
from convnext_backbone.swap.sweep import report_text, row_of, swapped, sweep

RETINA, MASK = 'retinanet/retinanet_r50_fpn_1x_coco.py', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
PSP = 'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
DETR = 'detr/detr_r50_8xb2-150e_coco.py'
OCR = 'ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py'
# One for each kind of neck and head: maps by their stage, output stride.
KINDS = {
    MASK: ((0, 1, 2, 3), 32),
    RETINA: ((1, 2, 3), 32),
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': ((1, 2, 3), 32),
    'atss/atss_r50_fpn_1x_coco.py': ((1, 2, 3), 32),
    'rpn/rpn_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'pafpn/faster-rcnn_r50_pafpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py': ((3,), 16),
    'dyhead/atss_r50-caffe_fpn_dyhead_1x_coco.py': ((1, 2, 3), 32),
    'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py': ((0, 1, 2, 3), 32),
    'hrnet/faster-rcnn_hrnetv2p-w32-1x_coco.py': ((0, 1, 2, 3), 32),
    'htc/htc_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'solov2/solov2_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'queryinst/queryinst_r50_fpn_1x_coco.py': ((0, 1, 2, 3), 32),
    'dino/dino-4scale_r50_8xb2-12e_coco.py': ((1, 2, 3), 32),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': ((1, 2, 3), 32),
    DETR: ((3,), 32),
    'yolof/yolof_r50-c5_8xb8-1x_coco.py': ((3,), 32),
    'centernet/centernet_r18_8xb16-crop512-140e_coco.py': ((0, 1, 2, 3), 32),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': ((0, 1, 2, 3), 32),
    'yolo/yolov3_d53_8xb8-320-273e_coco.py': ((1, 2, 3), 32),
    'yolox/yolox_s_8xb8-300e_coco.py': ((1, 2, 3), 32),
    'rtmdet/rtmdet_s_8xb32-300e_coco.py': ((1, 2, 3), 32),
    'ssd/ssd300_coco.py': ((1, 2), 32),
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py': ((2, 3), 32),
    'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': ((0, 1, 2, 3), 32),
    'upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py': ((0, 1, 2, 3), 32),
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': ((0, 1, 2, 3), 32),
    'hrnet/fcn_hr18_4xb2-40k_cityscapes-512x1024.py': ((0, 1, 2, 3), 32),
    'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py': ((0, 1, 2, 3), 32),
    'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py': ((0, 1, 2, 3), 32),
    PSP: ((2, 3), 8),
    OCR: ((2, 3), 8),
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py': ((0, 1, 2, 3), 8),
    'deeplabv3/deeplabv3_r101-d16-mg124_4xb2-40k_cityscapes-512x1024.py': ((2, 3), 16),
    'encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': ((0, 1, 2, 3), 8),
    'fastfcn/fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024.py': ((1, 2, 3), 32),
    'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py': ((0, 1, 2, 3), 32),
    'ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024.py': ((0, 1, 2, 3), 8),
}
PROVEN = (RETINA, PSP, OCR, 'yolox/yolox_s_8xb8-300e_coco.py', DETR)
PROVEN += ('faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py', 'rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py')
WIDTHS = (96, 192, 384, 768)  # of ConvNeXt-T (paper, Section 2.2)
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def lines_of(source, plan, folder: Path) -> list[str]:
    return config_text(source, plan, 'tiny', folder).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize('first', [0, 1, 2, 3])
def test_maps_are_chosen_by_stride_for_every_kind(tmp_path, first):
    """Also: what is written says what was planned, in less than 40 lines as a rule. Every fourth kind."""
    numbers = []
    for name, (indices, output_stride) in list(KINDS.items())[first::4]:
        source = read_source(name)
        plan = plan_swap(source, 'tiny')
        for place in plan.backbones:
            node = settings(plan.cfg, place)[1]
            assert tuple(node.get('out_indices', (0, 1, 2, 3))) == indices, name
            assert node.get('output_stride', 32) == output_stride, name
        numbers.append(len(lines_of(source, plan, tmp_path)))
        places = (
            'model.data_preprocessor',
            'model.data_preprocessor.data_preprocessor',
            'model.detector.data_preprocessor',
        )
        inner = [p for place in places if (p := value_at(plan.cfg, place)) and p.get('mean')][-1]
        assert [list(inner['mean']), list(inner['std'])] == list(IMAGENET), name
        assert inner['bgr_to_rgb'] is True, name
    assert statistics.median(numbers) < 40


def test_images_are_normalised_as_those_of_the_weights():
    """CLIP's, by OpenAI: 0.48145466 ... and 0.26862954 ... of RGB in 0 to 1, times 255."""
    images = plan_swap(read_source(MASK), 'base', 'clip_convnext_base_laion2b').cfg.model.data_preprocessor
    assert [list(images.mean), list(images.std)] == [[122.771, 116.746, 104.094], [68.501, 66.632, 70.323]]
    with pytest.raises(UserError, match='of another network than --arch tiny: choose .*dinov3_convnext_tiny'):
        plan_swap(read_source(MASK), 'tiny', 'clip_convnext_base_laion2b')


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (MASK, {'model.neck.in_channels': list(WIDTHS)}),
        (RETINA, {'model.neck.in_channels': list(WIDTHS[1:]), 'model.neck.start_level': 0}),
        ('yolo/yolov3_d53_8xb8-320-273e_coco.py', {'model.neck.in_channels': [768, 384, 192]}),
        ('yolof/yolof_r50-c5_8xb8-1x_coco.py', {'model.neck.in_channels': 768}),
        (PSP, {'model.decode_head.in_channels': 768, 'model.auxiliary_head.in_channels': 384}),
        (OCR, {'model.decode_head.0.in_channels': 384, 'model.decode_head.1.in_channels': 768}),
        (
            'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            {'model.decode_head.in_channels': 768, 'model.decode_head.c1_in_channels': 96},
        ),
        (
            'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',
            {'model.decode_head.kernel_generate_head.in_channels': list(WIDTHS)},
        ),
        (
            'faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py',
            {
                'model.rpn_head.in_channels': 768,
                'model.roi_head.bbox_roi_extractor.out_channels': 768,
                'model.roi_head.bbox_head.in_channels': 768,
            },
        ),
        (
            'cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
            {'model.decode_head.in_channels': 768, 'model.decode_head.channels': 768},
        ),
        (
            'ssd/ssd300_coco.py',
            {
                'model.bbox_head.in_channels': [192, 384, 512, 256, 256, 256],
                'model.neck.in_channels': [192, 384],
            },
        ),
        (
            'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            {'model.panoptic_head.in_channels': list(WIDTHS)},
        ),
    ],
)
def test_what_reads_the_maps_gets_their_channels(name, expected):
    plan = plan_swap(read_source(name), 'tiny')
    for key, value in expected.items():
        found = value_at(plan.cfg, key)
        assert (list(found) if isinstance(value, list) else found) == value, key
    assert plan.cfg.model.get('pretrained') is None


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=() if n in PROVEN else pytest.mark.slow, id=Path(n).stem) for n in KINDS],
)
def test_the_result_trains_a_step(name):
    """Finite losses, a gradient for every parameter of the backbone, and no warning about a swap by hand."""
    plan, trial = swapped(read_source(name), 'atto', None, 'paper', proof=True)
    assert trial.losses
    assert not [n for n in trial.without_gradient if any(n.startswith(f'{b}.') for b in plan.backbones)]
    findings = Findings()
    model_check.check_model(plan.cfg, findings)
    assert not findings.of('error')
    assert not [f for f in findings.of('warning') if f.kind == 'swapped' and 'batch_size' not in f.where]


def test_maps_that_nothing_reads_are_not_emitted():
    """PSPNet's heads read the last two maps; the norms of the others would have no gradient."""
    model = plan_swap(read_source(PSP), 'atto').cfg.model
    assert tuple(model.backbone.out_indices) == (2, 3)
    assert (model.decode_head.in_index, model.auxiliary_head.in_index) == (1, 0)
    assert (model.decode_head.in_channels, model.auxiliary_head.in_channels) == (320, 160)


def test_maps_that_nothing_reads_are_found_by_the_proof():
    """CenterNet reads the last map of four; DeepLabV3+ the first, without naming it, and two others."""
    for name, stages in (
        ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', (3,)),
        ('deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py', (0, 2, 3)),
    ):
        plan, _ = swapped(read_source(name), 'atto', None, 'paper', proof=True)
        assert tuple(plan.cfg.model.backbone.out_indices) == stages


@pytest.mark.parametrize('name', [MASK, PSP, OCR])
def test_what_is_written_is_read_back_by_mmengine(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_command('swap', name, '--arch', 'small', '--out', 'new.py', '--no-proof')
    printed = capsys.readouterr().out
    text = Path('new.py').read_text()
    assert '_base_ = ' in text
    assert 'model.backbone' in printed
    cfg = Config.fromfile('new.py')
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch) == ('convnext_backbone.ConvNeXt', 'small')
    assert backbone.init_cfg.checkpoint == 'convnext_small_1k_224'
    assert 'depth' not in backbone
    scope = cfg.default_scope
    init_default_scope(scope)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'), DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    constructor = LayerDecayConstructor(cfg.optim_wrapper, cfg.optim_wrapper.paramwise_cfg)
    rates = {scale for _, _, scale in constructor.scales(model)}
    assert min(rates) < max(rates) == 1


def test_the_written_config_is_one_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command('swap', f'mmdet::{RETINA}', '--arch', 'atto', '--out', 'new.py')
    cfg = read_config('new.py')
    assert try_training(cfg).finite
    assert '2' not in cfg.optim_wrapper.optimizer.type


def test_a_swap_of_a_swap_changes_the_arch(tmp_path, monkeypatch):
    """The user's own config, whose base lies beside it; a dumped one; another library's ConvNeXt."""
    monkeypatch.chdir(tmp_path)
    run_command('swap', RETINA, '--arch', 'atto', '--out', 'first.py', '--no-proof')
    Path('own').mkdir()
    Path('own/mine.py').write_text("_base_ = '../first.py'\nmodel = dict(bbox_head=dict(num_classes=3))\n")
    run_command('swap', 'own/mine.py', '--arch', 'tiny', '--out', 'own/second.py', '--no-proof')
    cfg = Config.fromfile('own/second.py')
    assert (cfg.model.backbone.arch, cfg.model.bbox_head.num_classes) == ('tiny', 3)
    assert list(cfg.model.neck.in_channels) == [192, 384, 768]
    assert "_base_ = './mine.py'" in Path('own/second.py').read_text()
    Config.fromfile('first.py').dump('dumped.py')
    Config.fromfile('first.py').dump('dumped.json')
    for name in ('dumped.py', 'dumped.json'):
        run_command('swap', name, '--arch', 'nano', '--out', f'of_{Path(name).suffix[1:]}.py', '--no-proof')
        cfg = Config.fromfile(f'of_{Path(name).suffix[1:]}.py')
        assert list(cfg.model.neck.in_channels) == [160, 320, 640]


@pytest.mark.parametrize('name', ['mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'])
def test_the_convnext_of_mmpretrain_is_replaced_without_mmpretrain(name):
    source = read_source(name)
    plan = plan_swap(source, 'base')
    assert plan.cfg.model.backbone.type == 'convnext_backbone.ConvNeXt'
    assert list(plan.cfg.model.neck.in_channels) == [128, 256, 512, 1024]


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (MASK, ()),  # its samplers count regions: the proof leaves them as they are
        ('ssd/ssd300_coco.py', ('--no-proof',)),  # a key that nothing reads
        ('convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', ('--no-proof',)),  # custom_imports
        ('dumped.json', ('--no-proof',)),  # variables that have done their part
        ('dumped.py', ('--no-proof',)),
    ],
)
def test_what_is_written_is_taken_by_our_tools(name, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in ('dumped.json', 'dumped.py'):
        read_source(MASK).cfg.dump(file)
    run_command('swap', name, '--arch', 'atto', '--out', 'new.py', *options)
    assert read_config('new.py').model.backbone.arch == 'atto'
    assert 'stops at it' not in capsys.readouterr().out
    assert 'mmpretrain' not in Path('new.py').read_text().replace('mmpretrain.ConvNeXt', '')


def test_a_config_of_python_imports_gets_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = Config.fromfile(read_source(RETINA).cfg.filename).to_dict()
    kept = {key: old[key] for key in ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler')}
    text = '\n'.join(f'{key} = {value!r}' for key, value in kept.items())
    imports = 'from mmengine.config import read_base\n\nwith read_base():\n    from .empty import *\n\n'
    Path('empty.py').write_text("default_scope = 'mmdet'\n")
    Path('original.py').write_text(f'{imports}{text}\n')
    run_command('swap', 'original.py', '--arch', 'atto', '--out', 'new.py', '--no-proof')
    text = Path('new.py').read_text()
    assert 'from .original import *' in text
    cfg = Config.fromfile('new.py').to_dict()
    assert cfg['model']['backbone']['arch'] == 'atto'
    assert 'depth' not in cfg['model']['backbone']
    assert list(cfg['model']['neck']['in_channels']) == [80, 160, 320]
    assert cfg['optim_wrapper']['optimizer']['type'] == 'AdamW'


# recipe


@pytest.mark.parametrize(
    ('name', 'images', 'rate'),
    [(MASK, 16, 1e-4), ('yolox/yolox_s_8xb8-300e_coco.py', 64, 4e-4), (PSP, 8, 5e-5)],
)
def test_the_learning_rate_is_for_the_images_of_a_step(name, images, rate):
    """auto_scale_lr says 16 and 64; mmseg's names say 4 GPUs with 2 images. The published rate is for 16."""
    source = read_source(name)
    assert images_of_step(source.cfg, source.base)[0] == images
    assert recipe_of(source.cfg, 'tiny', source.base).rate == pytest.approx(rate)


def test_what_an_update_of_the_users_own_training_has(tmp_path, monkeypatch):
    """Accumulated steps count; a folder's name does not; a swapped config says it, for the next swap."""
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(train_dataloader=dict(batch_size=4), optim_wrapper=dict(accumulative_counts=2)))
    assert images_of_step(cfg, '/work_4xb4_old/mine.py')[0] == 8
    assert images_of_step(cfg, '/data/net_4xb3-80k.py')[0] == 4 * 3 * 2
    run_command('swap', PSP, '--arch', 'atto', '--out', 'first.py', '--no-proof')
    run_command('swap', 'first.py', '--arch', 'v2_atto', '--out', 'second.py', '--no-proof')
    rates = [Config.fromfile(name).optim_wrapper.optimizer.lr for name in ('first.py', 'second.py')]
    assert rates == [5e-5, 5e-5]
    assert Config.fromfile('second.py').auto_scale_lr.base_batch_size == 8


@pytest.mark.parametrize(('total', 'end'), [(1000, 200), (40000, 1500)])
def test_a_short_training_warms_up_as_long_as_before(total, end):
    """The published 1500 steps are for 160 000; the schedule behind begins where the warm-up ends."""
    source = read_source(PSP)
    source.cfg.train_cfg.max_iters = total
    source.cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=200),
        dict(type='PolyLR', eta_min=0, power=0.9, begin=200, end=total, by_epoch=False),
    ]
    warm_up, poly = plan_swap(source, 'tiny').cfg.param_scheduler
    assert (warm_up.end, poly.begin, poly.end) == (end, end, total)


def test_settings_of_single_parameters_outside_the_backbone_stay():
    source = read_source('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    plan = plan_swap(source, 'tiny')
    given = plan.cfg.optim_wrapper.paramwise_cfg
    old = source.cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert set(given.custom_keys) == set(old) - {'backbone'}
    assert given.custom_keys.sampling_offsets == old.sampling_offsets
    assert any('backbone' in note for note in plan.notes)


def test_the_schedule_keeps_its_length_and_its_end():
    source = read_source(PSP)
    plan = plan_swap(source, 'tiny')
    warm_up, poly = plan.cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 1e-6, 1500)  # as UPerNet's
    assert (poly.type, poly.end) == ('PolyLR', 40000)
    assert poly.eta_min == pytest.approx(1e-4 / 0.01 * 5e-5)  # the same share of the rate
    assert plan.cfg.train_cfg == source.cfg.train_cfg


def test_images_are_padded_to_the_stride_of_the_last_map():
    """SSD's images of 300 pixels have maps of 38 and 19 positions, as with VGG: at strides 8 and 16."""
    for name, divisor in (('ssd/ssd300_coco.py', 16), ('dino/dino-4scale_r50_8xb2-12e_coco.py', 32)):
        assert plan_swap(read_source(name), 'tiny').cfg.model.data_preprocessor.pad_size_divisor == divisor


def test_keep_leaves_optimizer_and_schedule_and_says_what_that_risks():
    source = read_source(MASK)
    plan = plan_swap(source, 'tiny', recipe='keep')
    assert plan.cfg.optim_wrapper.to_dict() == source.cfg.optim_wrapper.to_dict()
    assert plan.cfg.model.backbone.get('drop_path_rate') is None
    assert any('SGD' in note and 'AdamW' in note for note in plan.notes)


# refusals and errors


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py', 'last stage of a ResNet'),
        ('tridentnet/tridentnet_r50-caffe_1x_coco.py', 'branches'),
        ('detectors/detectors_cascade-rcnn_r50_1x_coco.py', 'second ResNet'),
        ('unet/unet-s5-d16_fcn_4xb4-40k_hrf-256x256.py', 'at strides 1, 2; ConvNeXt has 4, 8, 16 and 32'),
        ('icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py', 'backbone_cfg .ResNetV1c. .* one by one'),
        ('vit/vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py', 'strides 16'),
        ('pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', 'in training'),
        ('cornernet/cornernet_hourglass104_10xb5-crop511-210e-mstest_coco.py', '2 maps at strides 4'),
    ],
)
def test_what_cannot_be_swapped_is_refused_with_the_reason(name, reason):
    with pytest.raises(Refused, match=reason):
        plan_swap(read_source(name), 'tiny')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('mask-rcnn_r50_fpn_1x_cocoo.py',), "did you mean 'mask-rcnn_r50_fpn_1x_coco.py'"),
        (('mmdet::nothing/here.py',), 'mmdet has no config nothing/here.py'),
        ((MASK, '--arch', 'tinny'), "no ConvNeXt is called 'tinny'; did you mean 'tiny'"),
        ((MASK, '--weights', 'convnext_tiny_1k_225'), "did you mean 'convnext_tiny_1k_224'"),
        ((MASK, '--weights', 'convnext_base_22k_224'), 'another network than --arch tiny'),
        ((MASK, '--out', 'x' * 300 + '.py'), 'File name too long'),
        (('classification/cifar10_mini.py',), 'it is a classifier'),
        ((MASK, '--out', 'there.py'), 'there.py exists'),
        ((MASK, '--out', 'nowhere/new.py'), 'a folder that exists'),
        (
            ('faster-rcnn_r50-caffe-c4_ms-1x_coco.py',),
            'stage of a ResNet; the nearest that can be is mmdet::faster_rcnn/faster-rcnn_r50',
        ),
        (('nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py',), 'model.neck is NASFCOS_FPN'),
        (('broken.py',), 'broken.py cannot be read: SyntaxError'),
        (('part.py',), 'has no model'),
        ((), 'give a config'),
        (('--all', 'mmdet', '--out', 'x.py'), 'no config, --out or --weights'),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('there.py').write_text('x = 1\n')
    Path('broken.py').write_text('model = dict(\n')
    Path('part.py').write_text('x = 1\n')
    with pytest.raises(UserError, match=message) as error:
        run_command('swap', *arguments)
    assert '\n' not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['broken.py', 'part.py', 'there.py']


def test_a_model_that_does_not_train_is_not_written(tmp_path, monkeypatch):
    """Anchors at other strides than the maps: an error at its key, and no file."""
    monkeypatch.chdir(tmp_path)
    source = read_source(RETINA)
    plan = plan_swap(source, 'atto')
    plan.cfg.model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    with pytest.raises(UserError, match='anchor_generator.strides'):
        prove(plan)


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """What is in the file beside the report is not done again; the report has every config."""
    names = dict.fromkeys(['rpn/rpn_r50_fpn_1x_coco.py', DETR, 'no/such.py'])
    monkeypatch.setattr('convnext_backbone.swap.sweep.shipped_configs', lambda package: names)
    monkeypatch.setattr(
        'convnext_backbone.swap.sweep._rows', lambda left, *args: [row_of(n, *args) for n in left]
    )
    known = dict(config=f'mmdet::{DETR}', arch='atto', outcome='refused', reason='by hand')
    (tmp_path / 'all.jsonl').write_text(json.dumps(known) + '\n')
    rows = sweep(['mmdet'], tmp_path / 'all.md', 'atto', 'paper')
    assert [row['outcome'] for row in rows] == ['swapped', 'refused', 'unreadable']
    assert '1 swapped, 0 unproven, 1 refused, 0 failed, 1 unreadable' in capsys.readouterr().out
    text = (tmp_path / 'all.md').read_text()
    assert '| mmdet::rpn/rpn_r50_fpn_1x_coco.py | swapped | [0, 1, 2, 3] stride 32 |' in text
    assert '| 1 | by hand |' in text


def test_the_report_counts_what_came_of_each():
    rows = [
        dict(config='a.py', outcome='swapped', reason='', lines=30, task='detection', backbone='ResNet'),
        dict(config='b.py', outcome='swapped', reason='', lines=50, task='detection', backbone='ResNet'),
        dict(config='c.py', outcome='refused', reason='no', task='segmentation', backbone='UNet'),
    ]
    text = report_text(rows, 'atto')
    assert '3 configs: 2 swapped, 0 unproven, 1 refused, 0 failed, 0 unreadable' in text
    assert 'median 40, at most 50' in text
    assert '| detection | ResNet |  | 2 | 0 | 0 | 0 |' in text
    assert '| 1 | no |' in text
