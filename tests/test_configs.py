"""Every published config builds, is what its name says, and has the published recipe."""

import ast
import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import DATA, ROOT, tool
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

from convnext_backbone import complexity
from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt
from convnext_backbone.backbones.layers import DropPath
from convnext_backbone.backbones.roadmap import STEPS
from convnext_backbone.checkpoint import zoo
from convnext_backbone.classification.data import image_transform
from convnext_backbone.config import (
    PRETRAINED,
    dicts,
    drop_pretrained,
    published,
    read_config,
    set_batch,
    sizes,
    use_plain_batch_norm,
)
from convnext_backbone.measure import try_training
from convnext_backbone.swap import read_source

CONFIGS = ROOT / 'configs'
NAMES = sorted(
    file.relative_to(CONFIGS).with_suffix('').as_posix()
    for file in CONFIGS.rglob('*.py')
    if '_base_' not in file.parts
)
PUBLISHED = published()
SIZES = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large', 'xl': 'xlarge', 'h': 'huge'}
DETECTORS = {  # model, epochs or iterations, and how the title says it
    'mask_rcnn': ('MaskRCNN', 36, '3x schedule'),
    'cascade': ('CascadeRCNN', 36, '3x schedule'),
    'faster_rcnn': ('FasterRCNN', 36, '3x schedule'),
    'cascade_rcnn': ('CascadeRCNN', 36, '3x schedule'),
    'retinanet': ('RetinaNet', 36, '3x schedule'),
    'fcos': ('FCOS', 36, '3x schedule'),
    'atss': ('ATSS', 36, '3x schedule'),
    'rtmdet': ('RTMDet', 100, '100 epochs'),
    'dino': ('DINO', 12, '12 epochs'),
    'mask2former': ('Mask2Former', 368750, '50 epochs'),
    'mask2former_panoptic': ('Mask2Former', 368750, '50 epochs'),
}
ROI_HEADS = ('MaskRCNN', 'CascadeRCNN', 'FasterRCNN')
COMPUTED = ('dino', 'mask2former')  # whose transformers are counted on the CPU
every_config = pytest.mark.parametrize('name', NAMES)


def read(name: str):
    return read_config(f'{CONFIGS}/{name}.py')


def paper(file: str) -> dict:
    path = DATA / file
    return json.loads(path.read_text())


def build(cfg):
    """A model with weights, for a CPU."""
    use_plain_batch_norm(cfg)
    drop_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


@every_config
def test_config_builds_and_its_parts_fit_each_other(name):
    """Reading it checks that no key is without a reader."""
    cfg = read(name)
    model = complexity.build_on_meta(cfg)
    channels, strides = list(model.backbone.out_channels), list(model.backbone.out_strides)
    neck, kind = cfg.model.get('neck'), cfg.model.type
    if kind in ROI_HEADS:
        assert neck.in_channels == channels
        assert cfg.model.rpn_head.anchor_generator.strides[: len(strides)] == strides
        assert cfg.model.roi_head.bbox_roi_extractor.featmap_strides == strides
    elif neck:
        head = cfg.model.bbox_head
        assert neck.in_channels == channels
        given = head.get('strides') or (head.get('anchor_generator') or {}).get('strides')
        assert kind == 'DINO' or given[: len(strides)] == strides
    elif kind == 'convnext_backbone.FCMAE':
        assert model.proj.in_channels == channels[0]
    elif head := cfg.model.get('panoptic_head') or cfg.model.get('decode_head'):
        assert head.get('strides', strides) == strides
        for part in filter(None, (head, cfg.model.get('auxiliary_head'))):
            index = part.get('in_index')
            assert part.in_channels == (channels[index] if isinstance(index, int) else channels)
    else:
        assert model.head.in_features == channels[0]


@every_config
def test_config_is_what_its_name_and_its_docstring_say(name):
    cfg, text = read(name), (CONFIGS / f'{name}.py').read_text()
    backbone = complexity.build_on_meta(cfg).backbone
    folder, stem = name.split('/', 1)
    doc = ast.get_docstring(ast.parse(text))
    assert 'Run: ' in doc
    if folder == 'demo' or 'cifar10_mini' in stem or stem == 'camvid_small':
        return
    assert f'tools/dist_train.sh configs/{name}.py 8' in doc
    for key in ('top1', 'box_AP', 'mask_AP', 'mIoU_single_scale', 'mIoU_multi_scale_flip'):
        if printed := PUBLISHED.get(name, {}).get(key):
            assert re.search(rf'\b{printed.rstrip("0").rstrip(".")}', doc), key
    if 'roadmap' in stem:
        start, number, step = re.fullmatch(r'roadmap/(resnet\d+)_(\d\d)_(\w+)', stem).groups()
        assert backbone.arch == f'{start} {step}'
        assert list(STEPS)[int(number)] == step
        return
    version, size = re.match(r'.*(?:convnext|isotropic)_(v2_|)([a-z]+)', stem).groups()
    assert backbone.arch == version + SIZES.get(size, size)
    assert isinstance(backbone, IsotropicConvNeXt if stem.startswith('isotropic') else ConvNeXt)
    weights = [node['checkpoint'] for node in dicts(cfg.model) if node.get('type') == PRETRAINED]
    head = stem.partition('_convnext')[0]
    if folder in ('classification', 'pretraining'):
        side = 384 if stem.endswith('_384') else 224
        loaders = [cfg.train_dataloader, cfg.val_dataloader or cfg.train_dataloader]
        assert [loader.dataset.transform.input_size for loader in loaders] == [side, side]
    if folder == 'pretraining':
        source = None
        finetuning = f'convnext_v2_{size}_fcmae_in1k'
        assert f'configs/classification/{finetuning}.py' in doc
        assert read(f'classification/{finetuning}').model.backbone.arch == backbone.arch
        assert f'{cfg.train_cfg.max_epochs} epochs.' in doc.splitlines()[0]
    elif folder == 'classification':
        assert cfg.model.num_classes == (21841 if stem.endswith('in22k') else 1000)
        source = '22k_224' if 'in22k_in1k' in stem else '1k_224' if side == 384 else None
        source = '1k_224_fcmae' if 'fcmae' in stem else source
    elif version:
        source = '1k_224_fcmae'
    elif head in ('dino', 'rtmdet') or stem == 'mask2former_semantic_convnext_b':
        source = '22k_1k_384'
    else:
        source = '22k_224' if 'in22k' in stem else '1k_224'
    assert ('ImageNet-22K' in doc) == ('22k' in (source or '')) or folder == 'classification'
    ema = '_ema' * (stem == 'convnext_l_in1k_384')  # of large, only the average is published
    family = f'convnextv2_{SIZES.get(size, size)}' if version else f'convnext_{backbone.arch}'
    loaded = f'timm_dinov3_{family}' if '_dinov3' in stem else f'{family}_{source}{ema}'
    assert weights == ([loaded] if source else [])
    assert all(name in zoo.RELEASED for name in weights)
    if folder == 'detection':
        kind, lasts, words = DETECTORS[head]
        assert cfg.model.type == kind
        lasts, words = (12, '1x schedule') if stem.endswith('_1x') else (lasts, words)
        assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == lasts
        assert words in doc.splitlines()[0]


def test_a_frozen_backbone_learns_its_output_norms_alone_and_stays_in_evaluation_mode():
    """That of DINOv3; fine-tuned, all of it learns, the first layers slowest (0.95 for each of 7 groups)."""
    frozen, tuned = (read(f'detection/mask_rcnn_convnext_t_dinov3{end}') for end in ('_frozen', ''))
    backbone = build(frozen).train().backbone
    learning = {name.split('.')[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {'norm0', 'norm1', 'norm2', 'norm3'}
    parts = [*backbone.downsample_layers.modules(), *backbone.stages.modules()][1:]
    assert not any(part.training for part in parts if not isinstance(part, torch.nn.ModuleList))
    assert not any(part.rate for part in parts if isinstance(part, DropPath))
    model = build(tuned).train()
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())
    wrapper = dict(tuned.optim_wrapper, type='OptimWrapper')
    rates = [group['lr'] for group in build_optim_wrapper(model, wrapper).optimizer.param_groups]
    assert (min(rates), max(rates)) == (pytest.approx(1e-4 * 0.95**7), 1e-4)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow if name.split('/')[1].startswith(COMPUTED) else ())
        for name in PUBLISHED
    ],
)
def test_published_row_has_its_parameters_and_flops(name):
    row = next(complexity.compare([name]))
    assert row.agrees() or 'note' in row.printed, f'{row.measured.gflops} against {row.printed}'
    if row.printed['table'] in (10, 11) and 'note' not in row.printed:
        assert f'{row.measured.gflops:.2f}' == row.printed['gflops']
    assert '{} x {}'.format(*row.measured.input) == row.printed['input']
    listed, measured = sizes()[name], row.measured  # what `convnext configs` shows
    assert listed['parameters'] == measured.parameters, 'run: python -m tools.dev.results'
    assert listed['gflops'] == pytest.approx(measured.gflops, abs=1e-4)
    assert tuple(listed['input']) == measured.input


@pytest.mark.parametrize(
    'name', [n for n in NAMES if n not in PUBLISHED or n.split('/')[1].startswith(COMPUTED)]
)
def test_listed_parameters_are_those_of_the_model(name):
    model = complexity.build_on_meta(read(name))
    assert sizes()[name]['parameters'] == sum(p.numel() for p in model.parameters()), (
        'run: python -m tools.dev.results'
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'shape', 'millions', 'gflops'),
    [
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', (800, 1280), 47, 279),
        ('mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', (512, 512), 44, 71),
    ],
)
def test_transformers_are_counted_as_their_papers_do(config, shape, millions, gflops):
    """On ResNet-50: arXiv:2203.03605, and arXiv:2112.01527 for ADE20K, counted by another tool: some more."""
    counted = complexity.measure(read_source(config).cfg, shape)
    assert counted.parameters / 1e6 == pytest.approx(millions, abs=1)
    assert counted.gflops == pytest.approx(gflops, rel=0.01 if 'dino' in config else 0.08)


def test_notes_are_for_the_two_rows_that_contradict_each_other_in_print():
    noted = [name for name, row in PUBLISHED.items() if 'note' in row]
    assert [name.split('/')[-1][9:] for name in noted] == ['15_layer_norm', '16_separate_downsampling']
    assert not any(row.agrees() for row in complexity.compare(noted))


def test_published_numbers_are_those_of_the_paper():
    """Every row of Tables 1 to 4, 10 and 11 has a config, and the numbers are copied without a slip."""
    tables, found = paper('tables.json'), {}
    short = {size: letter for letter, size in SIZES.items()}
    for arch, data, side, params, gflops, _, top1 in tables['table1_imagenet']['rows']:
        kind = {('1k', 224): 'in1k', ('1k', 384): 'in1k_384'}.get((data, side))
        kind = kind or ('in22k_in1k' if side == 224 else 'in22k_in1k_384')
        found[f'classification/convnext_{short[arch]}_{kind}'] = (params, gflops, top1)
    for arch, params, gflops, _, _, top1 in tables['table2_isotropic']['rows']:
        found[f'classification/isotropic_{short[arch.split("_")[1]]}_in1k'] = (params, gflops, top1)
    for head, arch, data, params, gflops, _, *aps in tables['table3_coco']['rows']:
        name = f'detection/{head}_convnext_{short[arch]}' + '_in22k' * (data == '22k')
        found[name] = (params, gflops, *aps)
    for arch, data, _, params, gflops, _, *mious in tables['table4_ade20k']['rows']:
        name = f'segmentation/upernet_convnext_{short[arch]}' + '_in22k' * (data == '22k')
        found[name] = (params, gflops, *mious)
    for start, table in (
        ('resnet50', 'table10_roadmap_resnet50'),
        ('resnet200', 'table11_roadmap_resnet200'),
    ):
        for i, (step, (_, top1, gflops)) in enumerate(zip(STEPS, tables[table]['rows'], strict=True)):
            found[f'classification/roadmap/{start}_{i:02d}_{step}'] = (None, gflops, top1)
    keys = (
        'params_M',
        'gflops',
        'top1',
        'box_AP',
        'box_AP50',
        'box_AP75',
        'mask_AP',
        'mask_AP50',
        'mask_AP75',
    )
    keys += ('mIoU_single_scale', 'mIoU_multi_scale_flip')
    for name, values in found.items():
        printed = [float(PUBLISHED[name][key]) for key in keys if key in PUBLISHED[name]]
        assert printed == [float(value) for value in values if value is not None], name
    assert set(found) == {name for name, row in PUBLISHED.items() if row['table']}


@pytest.mark.parametrize('folder', ['classification', 'detection', 'pretraining', 'segmentation'])
def test_table_of_results_is_the_generated_one(folder):
    assert (CONFIGS / folder / 'README.md').read_text() == tool('results').table(folder, sizes()), (
        'run: python -m tools.dev.results'
    )


def test_recipes_of_detection_and_segmentation_are_the_published_ones():
    recipes = paper('recipes.json')
    short = {size: letter for letter, size in SIZES.items()}
    for row, values in {**recipes['detection'], **recipes['segmentation']}.items():
        *head, arch, data = row.removesuffix(' 512').removesuffix(' 640').split()
        task = 'detection/' + head[0] if head else 'segmentation/upernet'
        cfg = read(f'{task}_convnext_{short[arch]}' + '_in22k' * (data == '22k'))
        decay = values.get('layer_decay', recipes['common_segmentation']['layer_decay'])
        assert cfg.optim_wrapper.optimizer.lr == values['lr'], row
        assert cfg.optim_wrapper.paramwise_cfg.decay_rate == decay, row
        assert cfg.model.backbone.drop_path_rate == values['drop_path'], row
        assert cfg.model.backbone.layer_scale_init_value == 1.0
        assert complexity.build_on_meta(cfg).backbone.num_groups == values['layer_groups'], row
        assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
        if not head:
            crop = int(row.split()[-1])
            stride = {512: (341, 341), 640: (426, 426)}[crop]
            assert (cfg.model.test_cfg.crop_size, cfg.model.test_cfg.stride) == ((crop, crop), stride)
            assert cfg.model.data_preprocessor.size == (crop, crop)
            steps = cfg.train_dataloader.dataset.pipeline
            assert steps[3].crop_size == (crop, crop)
            assert steps[2].scale == (4 * crop, crop)
            assert cfg.test_dataloader.dataset.pipeline[1].scale == (4 * crop, crop)
            scales = [step.scale[1] / crop for step in cfg.tta_pipeline[1].transforms[0]]
            assert scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_what_the_detection_recipes_share():
    """ "common_detection" of the published recipes, and the 1x schedule of mmdet (steps 8 and 11 of 12)."""
    common = paper('recipes.json')['common_detection']
    own = re.compile(r'detection/(dino|rtmdet|mask2former|mask_rcnn_convnext_v2)')
    for name in (n for n in NAMES if n.startswith('detection/') and not own.match(n)):
        cfg = read(name)
        wrapper, (warm_up, steps) = cfg.optim_wrapper, cfg.param_scheduler
        assert wrapper.type == 'AmpOptimWrapper'
        assert wrapper.get('clip_grad') is None
        expected = dict(type='AdamW', lr=wrapper.optimizer.lr, betas=(0.9, 0.999), weight_decay=0.05)
        assert wrapper.optimizer == expected
        assert wrapper.paramwise_cfg.decay_type == 'layer_wise'
        assert (warm_up.type, warm_up.end, warm_up.start_factor) == ('LinearLR', 500, 0.001)
        assert not warm_up.by_epoch
        assert steps.by_epoch
        assert steps.gamma == 0.1
        pipeline = cfg.train_dataloader.dataset.pipeline
        if name.endswith('_1x'):
            parent = read(
                'detection/cascade_convnext_t' if 'cascade' in name else 'detection/mask_rcnn_convnext_t'
            )
            assert wrapper == parent.optim_wrapper
            assert steps.milestones == [8, 11]
            assert cfg.model.backbone.drop_path_rate == parent.model.backbone.drop_path_rate
            assert pipeline[2] == dict(type='Resize', scale=(1333, 800), keep_ratio=True)
        else:
            assert (steps.milestones, cfg.train_cfg.max_epochs) == (common['lr_steps'], common['epochs'])
            flip, choice = pipeline[2:4]
            scales = [(short, 1333) for short in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
            resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
            first = dict(resize, scales=[(400, 1333), (500, 1333), (600, 1333)])
            crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600))
            assert flip == dict(type='RandomFlip', prob=0.5)
            assert choice.type == 'RandomChoice'
            assert choice.transforms == [[resize], [first, dict(crop, allow_negative_crop=True), resize]]
        test = cfg.test_dataloader.dataset.pipeline
        assert test[1] == dict(type='Resize', scale=(1333, 800), keep_ratio=True)
        assert not any('Flip' in step.type for step in test)
        if 'cascade' in name:
            heads = cfg.model.roi_head.bbox_head
            assert [head.bbox_coder.target_stds for head in heads] == [
                (0.1, 0.1, 0.2, 0.2),
                (0.05, 0.05, 0.1, 0.1),
                (0.033, 0.033, 0.067, 0.067),
            ]
            for head in heads:
                assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
                assert head.norm_cfg.type == 'SyncBN'
                assert head.reg_decoded_bbox
                assert not head.reg_class_agnostic
                assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)


def test_what_the_segmentation_recipes_share():
    """ "common_segmentation" of the published recipes; augmentation of mmseg's ADE20K configs."""
    for name in PUBLISHED:
        if not name.startswith('segmentation/upernet'):
            continue
        cfg = read(name)
        wrapper, (warm_up, poly) = cfg.optim_wrapper, cfg.param_scheduler
        expected = dict(type='AdamW', lr=wrapper.optimizer.lr, betas=(0.9, 0.999), weight_decay=0.05)
        assert wrapper.type == 'AmpOptimWrapper'
        assert wrapper.optimizer == expected
        assert wrapper.paramwise_cfg == dict(decay_rate=0.9, decay_type='stage_wise')
        assert (warm_up.end, warm_up.start_factor) == (1500, 1e-6)
        assert (poly.type, poly.power, poly.eta_min, poly.end) == ('PolyLR', 1.0, 0.0, 160000)
        assert cfg.train_cfg.max_iters == 160000
        head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
        assert (head.channels, head.pool_scales, head.dropout_ratio) == (512, (1, 2, 3, 6), 0.1)
        assert (auxiliary.type, auxiliary.channels, auxiliary.num_convs) == ('FCNHead', 256, 1)
        assert (auxiliary.in_index, auxiliary.loss_decode.loss_weight) == (2, 0.4)
        assert head.norm_cfg.type == auxiliary.norm_cfg.type == 'SyncBN'
        assert cfg.model.test_cfg.mode == 'slide'
        assert cfg.tta_model.module.test_cfg.mode == 'whole'
        kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
        assert kinds[2:] == [
            'RandomResize',
            'RandomCrop',
            'RandomFlip',
            'PhotoMetricDistortion',
            'PackSegInputs',
        ]
        steps = cfg.train_dataloader.dataset.pipeline
        assert steps[2].ratio_range == (0.5, 2.0)
        assert steps[3].cat_max_ratio == 0.75
        assert steps[4].prob == 0.5
        assert [step.prob for step in cfg.tta_pipeline[1].transforms[1]] == [0.0, 1.0]
        test = cfg.test_dataloader.dataset.pipeline
        assert [step.type for step in test][1:3] == ['Resize', 'LoadAnnotations']
        assert test[2].reduce_zero_label


# Whose settings of the head ours are: config, parts of the model.
HEADS_OF = {
    'faster_rcnn_convnext_t': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'rpn_head roi_head train_cfg'),
    'retinanet_convnext_t': ('retinanet/retinanet_r50_fpn_1x_coco.py', 'bbox_head train_cfg test_cfg'),
    'fcos_convnext_t': (
        'fcos/fcos_r50_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
        'bbox_head test_cfg',
    ),
    'atss_convnext_t': ('atss/atss_r50_fpn_1x_coco.py', 'bbox_head test_cfg'),
    'rtmdet_convnext_b': (
        'rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py',
        'bbox_head neck train_cfg test_cfg',
    ),
    'dino_convnext_t': (
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        'encoder decoder positional_encoding bbox_head dn_cfg train_cfg test_cfg',
    ),
    'mask2former_convnext_t': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'panoptic_head panoptic_fusion_head train_cfg test_cfg',
    ),
    'mask2former_panoptic_convnext_t': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        'panoptic_head panoptic_fusion_head train_cfg test_cfg',
    ),
    'mask2former_semantic_convnext_t': (
        'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        'decode_head test_cfg',
    ),
    'segformer_convnext_t': (
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'decode_head test_cfg',
    ),
    'psp_convnext_t': (
        'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        'decode_head auxiliary_head test_cfg',
    ),
    'deeplab_convnext_t': (
        'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512.py',
        'decode_head auxiliary_head test_cfg',
    ),
}


FREE = ('in_channels', 'in_index', 'mask_size')  # what follows from the backbone; what reads no mask


def differing(ours, theirs, key: str = '') -> list[str]:
    """Settings of ours that theirs do not have so."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(name, ours[name], theirs.get(name)) for name in ours if name not in FREE]
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        pairs = [(index, *pair) for index, pair in enumerate(zip(ours, theirs))]
    else:
        return [] if ours == theirs else [f'{key}: {ours}, theirs {theirs}']
    return [line for name, *pair in pairs for line in differing(*pair, f'{key}.{name}')]


@pytest.mark.parametrize('name', HEADS_OF)
def test_heads_have_the_settings_of_mmdets_and_mmsegs_own_configs(name):
    config, parts = HEADS_OF[name]
    cfg, theirs = read_config(name), read_source(config).cfg
    for part in parts.split():
        assert differing(cfg.model[part], theirs.model[part], part) == []


def test_rtmdet_is_trained_as_mmdets_own_on_convnext_b():
    cfg = read('detection/rtmdet_convnext_b')
    theirs = read_source('rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py').cfg
    assert differing(cfg.train_dataloader.dataset.pipeline, theirs.train_dataloader.dataset.pipeline) == []
    assert cfg.param_scheduler == theirs.param_scheduler
    assert cfg.optim_wrapper.optimizer.lr == theirs.optim_wrapper.optimizer.lr
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == theirs.optim_wrapper.paramwise_cfg.decay_rate
    assert cfg.model.backbone.drop_path_rate == theirs.model.backbone.drop_path_rate
    assert cfg.train_cfg.max_epochs == theirs.train_cfg.max_epochs
    assert [hook.type for hook in cfg.custom_hooks] == [hook.type for hook in theirs.custom_hooks]
    ours, own = (c.custom_hooks[1].switch_pipeline for c in (cfg, theirs))
    assert differing(ours, own) == []
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 4 * 32


def test_dino_is_trained_as_detrex_does():
    """Its dino-convnext configs: AdamW, a tenth of the rate for the backbone, no dropped paths."""
    for name in (n for n in NAMES if n.startswith('detection/dino')):
        cfg = read(name)
        assert cfg.optim_wrapper.optimizer == dict(
            type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4
        )
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
        assert cfg.optim_wrapper.paramwise_cfg == dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
        assert (cfg.param_scheduler[0].milestones, cfg.train_cfg.max_epochs) == ([11], 12)
        assert 8 * cfg.train_dataloader.batch_size == 16
        assert (cfg.model.backbone.drop_path_rate, cfg.model.backbone.layer_scale_init_value) == (0.0, 1.0)


NEW_HEADS = ('faster_rcnn', 'retinanet', 'rtmdet', 'mask2former', 'mask2former_semantic', 'psp', 'segformer')
QUICK = [f'{head}_convnext_t' for head in NEW_HEADS]
BY_STEP = [
    *HEADS_OF,
    'cascade_rcnn_convnext_t',
    'rtmdet_convnext_t',
    'mask_rcnn_convnext_v2_b',
    'dino_convnext_s',
]
BY_STEP += ['dino_convnext_b', 'dino_convnext_l', 'mask2former_convnext_b', 'mask2former_semantic_convnext_b']
BY_STEP += ['mask2former_panoptic_convnext_b', 'mask_rcnn_convnext_v2_l']


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BY_STEP]
)
def test_a_step_of_a_new_head_is_finite_and_reaches_every_parameter(name):
    trial = try_training(read_config(name))
    assert trial.finite
    assert trial.without_gradient == ()


def test_the_roadmap_is_trained_as_the_paper_says():
    """As in Table 5, without EMA; stochastic depth 0.1 from ResNet-50. The first step as usual before."""
    scratch = read('classification/convnext_t_in1k')
    for name in (n for n in NAMES if 'roadmap' in n):
        cfg = read(name)
        assert not cfg.get('custom_hooks')
        if name.endswith('00_resnet'):
            sgd = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
            assert cfg.optim_wrapper.optimizer == sgd
            assert cfg.model.mixup is None
            assert 8 * cfg.train_dataloader.batch_size == 256
            assert cfg.param_scheduler[0].milestones == [
                30,
                60,
            ]
            continue
        assert cfg.optim_wrapper == scratch.optim_wrapper
        assert cfg.param_scheduler == scratch.param_scheduler
        assert cfg.train_dataloader == scratch.train_dataloader
        assert cfg.model.mixup == scratch.model.mixup
        assert cfg.model.backbone.drop_path_rate == (0.1 if 'resnet50' in name else 0.5)


def test_recipes_of_classification_are_the_published_ones():
    """Tables 5 and 6."""
    tables = paper('tables.json')
    scratch, finetune = tables['table5_pretraining']['imagenet1k'], tables['table6_finetuning']
    own_recipe = ('roadmap', 'cifar10', 'fcmae')
    for name in (n for n in NAMES if n.startswith('classification/') and not any(w in n for w in own_recipe)):
        cfg = read(name)
        set_batch(cfg)
        arch = cfg.model.backbone.arch
        optimizer, common = cfg.optim_wrapper.optimizer, finetune['from_1k_384']
        data = cfg.train_dataloader.dataset.transform
        batch = cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts  # one process
        rate, decay = cfg.model.backbone.drop_path_rate, cfg.optim_wrapper.paramwise_cfg.decay_rate
        assert (data.auto_augment, data.re_prob, cfg.model.label_smoothing) == (
            'rand-m9-mstd0.5-inc1',
            0.25,
            0.1,
        )
        ema = [hook for hook in cfg.get('custom_hooks', []) if hook.type == 'EMAHook']
        updates = cfg.optim_wrapper.accumulative_counts
        assert all((1 - hook.momentum, hook.interval) == (0.9999, updates) for hook in ema)
        if name.endswith('_384') or 'in22k_in1k' in name:
            own = common if 'in22k' not in name else finetune['from_22k_224_and_384']
            expected = (common['base_lr'], common['weight_decay'], common['batch'], common['epochs'])
            assert (rate, decay) == (own['stochastic_depth'][arch], own['layer_decay']), name
            assert cfg.model.mixup is None
            assert cfg.model.head_init_scale == common['head_init_scale']
            assert bool(ema) == bool('in22k' in name and own['ema'][arch])
        else:
            table5 = tables['table5_pretraining']
            own = table5[
                'isotropic' if 'isotropic' in name else 'imagenet22k' if '22k' in name else 'imagenet1k'
            ]
            epochs = own.get('epochs', 300)
            expected = (scratch['base_lr'], scratch['weight_decay'], scratch['batch'], epochs)
            assert decay == 1.0, name
            assert rate == own['stochastic_depth'].get(arch, rate), name
            assert cfg.model.mixup == dict(mixup_alpha=scratch['mixup'], cutmix_alpha=scratch['cutmix'])
            assert cfg.param_scheduler[0].end == own['warmup_epochs'] == cfg.param_scheduler[1].begin
            assert cfg.param_scheduler[1].T_max == epochs - own['warmup_epochs']
            assert bool(ema) == bool(own.get('ema', scratch['ema']))
        assert (optimizer.lr, optimizer.weight_decay, batch, cfg.train_cfg.max_epochs) == expected, name
        assert optimizer.type == 'AdamW'
        assert optimizer.betas == (0.9, 0.999)
        cosine = cfg.param_scheduler[-1]
        assert (cosine.type, cosine.end) == ('CosineAnnealingLR', cfg.train_cfg.max_epochs)
        assert cosine.T_max == cosine.end - cosine.begin
        assert cosine.eta_min_ratio * optimizer.lr == pytest.approx(1e-6)  # of the official schedule
        assert all(part.convert_to_iter_based for part in cfg.param_scheduler)
        if cfg.test_dataloader:
            test = cfg.test_dataloader.dataset.transform
            assert test.interpolation == data.interpolation == 'bicubic'
            assert test.get('crop_mode') == ('squash' if data.input_size == 384 else None)
            crop = finetune['test_crop_ratio'][str(data.input_size)]
            assert cfg.test_dataloader.dataset.transform.crop_pct == crop


def fcmae_recipe(kind: str, size: str) -> dict:
    """What TRAINING.md of the official V2 prints, of the size whose recipe ours has, and the defaults."""
    recipes = paper('fcmae_recipes.json')[kind]
    whose = dict(femto='atto', pico='atto', nano='atto', large='base', huge='base').get(size, size)
    return {**recipes['defaults'], **recipes.get(whose, {})}


V2_SIZES = ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')


def check_schedule(cfg, recipe: dict, batch: int) -> None:
    """Epochs, warm-up, rate and its end, weight decay and images of an update."""
    assert cfg.auto_scale_lr.base_batch_size == batch
    set_batch(cfg)  # one process
    *warm_up, cosine = cfg.param_scheduler
    optimizer, epochs = cfg.optim_wrapper.optimizer, recipe['epochs']
    assert cfg.train_cfg.max_epochs == cosine.end == epochs
    assert [part.end for part in warm_up] == [recipe['warmup_epochs']] * bool(recipe['warmup_epochs'])
    assert (cosine.begin, cosine.T_max) == (recipe['warmup_epochs'], epochs - recipe['warmup_epochs'])
    assert all(part.convert_to_iter_based for part in cfg.param_scheduler)
    assert optimizer.lr == pytest.approx(recipe['blr'] * batch / 256)
    ends = cosine.get('eta_min', cosine.get('eta_min_ratio', 0) * optimizer.lr)
    assert ends == pytest.approx(recipe['min_lr'])
    assert (optimizer.type, list(optimizer.betas)) == ('AdamW', recipe['betas'])
    assert optimizer.weight_decay == recipe['weight_decay']
    assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == batch
    assert cfg.optim_wrapper.get('clip_grad') is None


@pytest.mark.parametrize('size', V2_SIZES)
def test_recipes_of_pretraining_without_labels_are_the_published_ones(size):
    """What differs from the printed 1600 epochs of base has the default of the official program."""
    cfg, recipe = read(f'pretraining/fcmae_convnext_v2_{size}'), fcmae_recipe('pretrain', size)
    base = paper('fcmae_recipes.json')['pretrain']['base']
    check_schedule(cfg, recipe, base['nodes'] * base['ngpus'] * base['batch_size'])
    model = complexity.build_on_meta(cfg)
    assert (model.mask_ratio, len(model.decoder)) == (recipe['mask_ratio'], recipe['decoder_depth'])
    assert model.proj.out_channels == recipe['decoder_embed_dim']
    steps = image_transform(**cfg.train_dataloader.dataset.transform).transforms
    kinds = ['RandomResizedCropAndInterpolation', 'RandomHorizontalFlip', 'MaybeToTensor', 'Normalize']
    assert [type(step).__name__ for step in steps] == kinds
    assert steps[0].size == (recipe['input_size'],) * 2
    assert list(steps[0].scale) == recipe['crop_scale']
    assert steps[0].ratio == pytest.approx((3 / 4, 4 / 3), rel=1e-4)  # of the sides, torchvision's default
    assert steps[0].interpolation.value == 'bicubic'


@pytest.mark.parametrize('size', V2_SIZES)
def test_recipes_of_fine_tuning_after_it_are_the_published_ones(size):
    cfg, recipe = read(f'classification/convnext_v2_{size}_fcmae_in1k'), fcmae_recipe('finetune', size)
    check_schedule(cfg, recipe, recipe['nodes'] * recipe['ngpus'] * recipe['batch_size'])
    decay = dict(single='block_wise', group='layer_wise')[recipe['layer_decay_type']]
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=recipe['layer_decay'], decay_type=decay)
    mixed = dict(mixup_alpha=recipe['mixup'], cutmix_alpha=recipe['cutmix'])
    assert cfg.model.mixup == (mixed if any(mixed.values()) else None)
    assert cfg.model.label_smoothing == recipe['smoothing']
    assert cfg.model.head_init_scale == recipe['head_init_scale']
    assert cfg.model.backbone.drop_path_rate == recipe['drop_path']
    data = cfg.train_dataloader.dataset.transform
    assert (data.auto_augment, data.re_prob, data.re_mode) == (
        recipe['aa'],
        recipe['reprob'],
        recipe['remode'],
    )
    (ema,) = cfg.custom_hooks
    assert (ema.type, 1 - ema.momentum) == ('EMAHook', recipe['model_ema_decay'])


# Two images with labels, as the data loader of each task gives them.


def images_with_a_class() -> dict:
    return dict(inputs=torch.randn(2, 3, 64, 64), labels=torch.tensor([1, 2]))


def images_with_objects() -> dict:
    from mmdet.testing import demo_mm_inputs

    data = demo_mm_inputs(2, [[3, 128, 160]] * 2, num_classes=80, num_items=[3, 2], with_mask=True)
    boxes = torch.tensor([[10.0, 10, 60, 70], [40, 30, 120, 100], [70, 60, 150, 120]])
    for sample, number in zip(data['data_samples'], (3, 2)):
        sample.gt_instances.bboxes = boxes[:number]
    return data


def images_with_a_map() -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = PixelData(data=torch.randint(0, 150, (1, 128, 128)))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(128, 128))))
    images = [torch.randint(0, 255, (3, 128, 128), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


ISOTROPIC = dict(_delete_=True, type='convnext_backbone.IsotropicConvNeXt', depth=2, dim=64)
DILATED = dict(arch='atto', output_stride=8, out_indices=(2, 3))
DILATED_HEAD = dict(
    _delete_=True,
    in_channels=320,
    in_index=1,
    channels=32,
    num_classes=150,
    loss_decode=dict(type='CrossEntropyLoss'),
)
V2 = dict(arch='v2_atto', layer_scale_init_value=None)
TASKS = {  # a batch, and what makes the task's configs smaller
    'classification': (images_with_a_class, {}),
    'detection': (
        images_with_objects,
        dict(model=dict(train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100)))),
    ),
    'segmentation': (images_with_a_map, dict(model=dict(data_preprocessor=dict(size=(128, 128))))),
}
NO_STAGES = dict(paramwise_cfg=dict(decay_type='layer_wise'))
KINDS = {  # config, changes of its model, of its optimizer
    'classifier': ('classification/convnext_t_in1k', {}, {}),
    'classifier, fine-tuned': ('classification/convnext_t_in22k_in1k', {}, {}),
    'classifier, V2': ('classification/convnext_t_in1k', dict(backbone=V2), {}),
    'isotropic classifier': ('classification/isotropic_s_in1k', {}, {}),
    'roadmap, first step': ('classification/roadmap/resnet50_00_resnet', {}, {}),
    'roadmap, in between': ('classification/roadmap/resnet50_13_fewer_activations', {}, {}),
    'Mask R-CNN': ('detection/mask_rcnn_convnext_t', {}, {}),
    'Cascade Mask R-CNN': ('detection/cascade_convnext_t', {}, {}),
    'Mask R-CNN, isotropic': (
        'detection/mask_rcnn_convnext_t',
        dict(backbone=ISOTROPIC, neck=dict(in_channels=[16, 32, 64, 64])),
        {},
    ),
    'UPerNet': ('segmentation/upernet_convnext_t', {}, {}),
    'UPerNet, isotropic': (
        'segmentation/upernet_convnext_t',
        dict(
            backbone=ISOTROPIC,
            decode_head=dict(in_channels=[16, 32, 64, 64]),
            auxiliary_head=dict(in_channels=64),
        ),
        NO_STAGES,
    ),
    'PSPNet at stride 8': (
        'segmentation/upernet_convnext_t',
        dict(
            backbone=DILATED,
            decode_head=dict(type='PSPHead', **DILATED_HEAD),
            auxiliary_head=dict(in_channels=160, in_index=0),
        ),
        {},
    ),
    'DeepLabV3 at stride 8, V2': (
        'segmentation/upernet_convnext_t',
        dict(
            backbone={**DILATED, **V2},
            decode_head=dict(type='ASPPHead', **DILATED_HEAD),
            auxiliary_head=dict(in_channels=160, in_index=0),
        ),
        {},
    ),
}


@pytest.mark.parametrize(('name', 'changes', 'optimizer'), KINDS.values(), ids=KINDS)
def test_a_training_step_gives_every_parameter_a_gradient(name, changes, optimizer):
    cfg = read(name)
    batch, smaller = TASKS[name.split('/')[0]]
    cfg.merge_from_dict(smaller)
    cfg.merge_from_dict(dict(model=copy.deepcopy(changes), optim_wrapper=optimizer))  # takes _delete_ out
    model = build(cfg).train()
    for part in model.modules():
        if isinstance(part, DropPath):  # the gradients of a dropped block are zero
            part.rate = 0.0
    torch.manual_seed(0)
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in trained.values())
    moved = [n for n, p in trained.items() if p.grad.any()]
    assert len(moved) > 0.95 * len(trained)
    assert any(n.startswith('backbone.') for n in moved)
    set_batch(cfg)
    optim_wrapper = ConfigDict(cfg.optim_wrapper, type='OptimWrapper')
    groups = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    assert sum(len(group['params']) for group in groups) == len(trained)


def learning_rates(name: str, steps_per_epoch: int, wanted: list[int]) -> list[float]:
    """Of a parameter with the full rate, before the steps ``wanted``, relative to the base rate."""
    cfg = read_config(f'{ROOT}/configs/{name}.py')
    wrapper = build_optim_wrapper(
        torch.nn.Linear(1, 1),
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)),
    )
    schedulers = []
    for scheduler in cfg.param_scheduler:
        scheduler = dict(scheduler, optimizer=wrapper)
        by_epoch = scheduler.get('by_epoch', True)
        if scheduler.pop('convert_to_iter_based', False):
            by_epoch = False
            kind = PARAM_SCHEDULERS.get(scheduler.pop('type'))
            built = kind.build_iter_from_epoch(**scheduler, epoch_length=steps_per_epoch)
        else:
            built = PARAM_SCHEDULERS.build(scheduler)
        schedulers.append((by_epoch, built))
    found = {}
    for step in range(max(wanted) + 1):
        found[step] = wrapper.get_lr()['lr'][0]
        wrapper.optimizer.step()
        for by_epoch, scheduler in schedulers:
            if not by_epoch or (step + 1) % steps_per_epoch == 0:
                scheduler.step()
    return [found[step] for step in wanted]


def test_detection_schedule_warms_up_over_500_steps_and_drops_after_27_and_33_epochs():
    epoch = 100
    steps = [0, 250, 600, 27 * epoch - 1, 27 * epoch, 33 * epoch - 1, 33 * epoch]
    expected = [0.001, 0.001 + 0.999 * 250 / 499, 1, 1, 0.1, 0.1, 0.01]
    found = learning_rates('detection/mask_rcnn_convnext_t', epoch, steps)
    assert found == pytest.approx(expected, rel=1e-3)


def test_segmentation_schedule_falls_linearly_from_the_first_step_and_warms_up_over_1500():
    """mmseg 0.x: the polynomial runs over all iterations and the warm-up scales it."""
    steps = [0, 750, 3000, 80000]
    expected = [1e-6, 750 / 1499 * (1 - 750 / 160000), 1 - 3000 / 160000, 0.5]
    found = learning_rates('segmentation/upernet_convnext_t', 10**9, steps)
    assert found == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ('name', 'epochs', 'rises', 'last'),
    [
        ('convnext_t_in1k', 300, {0: 1e-6, 10: 0.5, 20: 1.0}, 1e-6 / 4e-3),
        ('convnext_t_in22k', 90, {0: 1e-6, 2.5: 0.5, 5: 1.0}, 1e-6 / 4e-3),
        ('isotropic_s_in1k', 300, {0: 1e-6, 25: 0.5, 50: 1.0}, 1e-6 / 4e-3),
        ('convnext_t_in22k_in1k', 30, {0: 1.0}, 1e-6 / 5e-5),
    ],
)
def test_classification_schedules_warm_up_linearly_then_follow_the_cosine(name, epochs, rises, last):
    """Tables 5 and 6: rates by epoch in the warm-up, after it half a cosine from 1 to ``last``."""
    warm_up = max(rises)
    epoch, span = 40, epochs - warm_up

    def cosine(share: float) -> float:
        return last + (1 - last) * (1 + math.cos(math.pi * share)) / 2

    expected = {(warm_up + span // 4) * epoch: cosine((span // 4) / span), epochs * epoch - 1: last}
    expected |= {(warm_up + span // 2) * epoch: cosine((span // 2) / span)}
    expected |= {round(when * epoch): rate for when, rate in rises.items()}
    found = learning_rates(f'classification/{name}', epoch, list(expected))
    assert found == pytest.approx(list(expected.values()), rel=0.02, abs=1e-5)


@every_config
def test_every_config_gives_each_depth_one_rate_and_every_parameter_a_group(name):
    """As many rates as depth groups, stem and head included (a stage-wise decay has five and the head)."""
    cfg = read(name)
    set_batch(cfg)
    model = complexity.build_on_meta(cfg)
    wrapper = ConfigDict(cfg.optim_wrapper, type='OptimWrapper')
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    grouped = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    decay = wrapper.get('paramwise_cfg') or dict(decay_rate=1.0)
    rates = {group['lr'] / wrapper.optimizer.lr for group in optimizer.param_groups}
    if 'decay_rate' not in decay:
        assert rates == {0.1, 1.0}
    elif decay['decay_rate'] == 1.0:
        assert rates == {1.0}
    else:
        top = model.backbone.num_groups + 1
        depths = [0, 1, 2, 3, 4] if 'stage_wise' in decay.values() else range(top)
        if 'block_wise' in decay.values():
            top = sum(model.backbone.depths) + 1
            depths = range(1, top)
        expected = {decay['decay_rate'] ** (top - depth) for depth in depths} | {1.0}
        assert sorted(rates) == pytest.approx(sorted(expected))


def test_backbone_goes_into_mmdets_own_config_as_the_readme_says():
    import mmdet
    from mmengine.config import Config

    folder = Path(mmdet.__file__).parent / '.mim/configs/mask_rcnn'
    cfg = Config.fromfile(folder / 'mask-rcnn_r50_fpn_1x_coco.py')
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(_delete_=True, type='convnext_backbone.ConvNeXt', arch='atto'),
                neck=dict(in_channels=[40, 80, 160, 320]),
            )
        )
    )
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        maps = model.extract_feat(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
