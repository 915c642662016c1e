"""The published configs on real images: a handful is learned by heart, evaluated and drawn.

Smaller networks and images than in the configs, so that it takes minutes on a CPU; everything else
(pipelines, heads, losses, optimizer, evaluation) is the configs'.
"""

import json

import cv2
import pytest
import torch
from conftest import ROOT, log_of, tool
from mmengine.registry import MODELS, init_default_scope

from convnext_backbone.classification import Classifier
from convnext_backbone.config import read_config, use_plain_batch_norm

COCO_IMAGES = 4


def folder_or_skip(folder):
    if not folder.is_dir():
        pytest.skip(f'real images are not here: {folder}')
    return folder


def write_config(folder, base: str, text: str) -> str:
    file = folder / 'real.py'
    file.write_text(f"_base_ = '{ROOT}/configs/{base}.py'\n{text}")
    return str(file)


def losses(work_dir) -> list[float]:
    scalars = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda file: file.stat().st_mtime)
    return [row['loss'] for row in map(json.loads, scalars.read_text().splitlines()) if 'loss' in row]


def run_and_draw(config: str, folder, image, *options) -> tuple[float, str]:
    """Train, then predict on ``image``; the factor by which the loss fell, and the log."""
    work_dir = folder / 'w'
    tool('train').main([config, '--work-dir', str(work_dir), '--device', 'cpu', '--seed', '0', *options])
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    arguments = [config, checkpoint, str(image), '--out', str(folder / 'out'), '--device', 'cpu']
    tool('infer').main([*arguments, '--score', '0.1'])
    picture = cv2.imread(str(folder / 'out' / f'{image.name}.png'))
    original = cv2.imread(str(image))
    assert picture.shape == original.shape
    assert (picture != original).mean() > 0.001
    found = losses(work_dir)
    return found[0] / (sum(found[-5:]) / 5), log_of(work_dir)


RECIPE = """
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr={lr}), paramwise_cfg=dict(decay_rate=1.0))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval={steps}, max_keep_ckpts=1)
)
log_processor = dict(by_epoch=False, window_size=1)
"""


@pytest.mark.slow
@pytest.mark.xdist_group('real detection')
def test_mask_rcnn_learns_a_handful_of_coco_images(real_data, tmp_path):
    """The loss of the first step, over that of the last five: at least 2.5."""
    folder_or_skip(real_data / 'coco_mini')
    coco = json.loads((real_data / 'coco_mini/annotations/instances_val2017.json').read_text())
    labelled = {annotation['image_id'] for annotation in coco['annotations']}
    coco['images'] = [image for image in coco['images'] if image['id'] in labelled][:COCO_IMAGES]
    kept = {image['id'] for image in coco['images']}
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] in kept]
    assert all(isinstance(a['segmentation']['counts'], str) for a in coco['annotations'])  # RLE
    (tmp_path / 'few.json').write_text(json.dumps(coco))
    steps = 40
    config = write_config(
        tmp_path,
        'detection/mask_rcnn_convnext_t',
        f"""
model = dict(
    backbone=dict(arch='atto', drop_path_rate=0.0),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    train_cfg=dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=20)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64),
    ),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(
        ann_file='{tmp_path}/few.json',
        data_prefix=dict(img='val2017/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(192, 192), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(ann_file='{tmp_path}/few.json', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{tmp_path}/few.json')
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={steps}, val_interval={steps})
"""
        + RECIPE.format(lr=5e-4, steps=steps),
    )
    image = real_data / 'coco_mini/val2017' / coco['images'][0]['file_name']
    options = ['--data-root', str(real_data / 'coco_mini'), '--pretrained', 'none']
    factor, log = run_and_draw(config, tmp_path, image, *options)
    assert factor > 2.5
    assert 'coco/bbox_mAP' in log
    assert 'coco/segm_mAP' in log


SEGMENTATION = """
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(arch='atto', drop_path_rate=0.0),
    decode_head=dict(in_channels=[40, 80, 160, 320], channels=64, num_classes={classes}),
    auxiliary_head=dict(in_channels=160, channels=32, num_classes={classes}),
    test_cfg=dict(crop_size=(128, 128), stride=(85, 85)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label={reduce}),
    dict(type='Resize', scale=(192, 144), keep_ratio=False),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 144), keep_ratio=False),
    dict(type='LoadAnnotations', reduce_zero_label={reduce}),
    dict(type='PackSegInputs'),
]
few = dict(indices={few}, {dataset})
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline, **few),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **few)
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters={steps}, val_interval={steps})
"""


def camvid(root) -> dict:
    meta = json.loads((root / 'classes.json').read_text())
    metainfo = f'dict(classes={meta["classes"]}, palette={meta["palette"]})'
    dataset = f"type='BaseSegDataset', metainfo={metainfo}, img_suffix='.jpg', seg_map_suffix='.png'"
    return dict(classes=len(meta['classes']), reduce=False, few=4, dataset=dataset)


def ade20k(root) -> dict:
    return dict(classes=150, reduce=True, few=3, dataset='')


@pytest.mark.long
@pytest.mark.xdist_group('real segmentation')
@pytest.mark.parametrize(
    ('folder', 'settings', 'least'),
    [
        pytest.param('camvid', camvid, 3, marks=pytest.mark.slow),
        pytest.param('ade20k_mini/ADEChallengeData2016', ade20k, 2, marks=pytest.mark.slow),
    ],
    ids=['camvid', 'ade20k'],
)
def test_upernet_learns_a_handful_of_images(real_data, tmp_path, folder, settings, least):
    """The loss of the first step, over that of the last five: at least 3 (11 classes), 2 (150)."""
    steps = 60
    root = folder_or_skip(real_data / folder)
    text = SEGMENTATION.format(**settings(root), steps=steps) + RECIPE.format(lr=1e-3, steps=steps)
    config = write_config(tmp_path, 'segmentation/upernet_convnext_t', text)
    image = sorted((root / 'images/validation').iterdir())[0]
    factor, log = run_and_draw(config, tmp_path, image, '--data-root', str(root), '--pretrained', 'none')
    assert factor > least
    assert 'mIoU' in log


@pytest.mark.slow
@pytest.mark.xdist_group('real views')
def test_both_published_test_protocols_run_on_ade20k(real_data, tmp_path):
    """A narrow network with random weights: sliding windows, and six scales with flip on the whole image."""
    root = folder_or_skip(real_data / 'ade20k_mini/ADEChallengeData2016')
    narrow = "model = dict(backbone=dict(arch='atto', init_cfg=None), decode_head=dict("
    narrow += 'in_channels=[40, 80, 160, 320], channels=8), auxiliary_head=dict(in_channels=160, channels=8))'
    config = write_config(tmp_path, 'segmentation/upernet_convnext_t', narrow)
    cfg = read_config(config)
    use_plain_batch_norm(cfg)
    init_default_scope('mmseg')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'w.pth')
    options = ['--data-root', str(root), '--work-dir', str(tmp_path / 'w'), '--device', 'cpu']
    options += [
        '--cfg-options',
        'test_dataloader.dataset.indices=1',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    for extra, name, words in (
        ([], 'single_scale', 'sliding window (512, 512), stride (341, 341)'),
        (['--tta'], 'multi_scale_flip', 'whole image'),
    ):
        found = tool('test').main([config, str(tmp_path / 'w.pth'), *extra, *options])
        assert set(found) == {f'{name}/{key}' for key in ('aAcc', 'mIoU', 'mAcc')}
        assert f'testing: {name.replace("_", " ")}, {words}' in log_of(tmp_path / 'w')


@pytest.mark.xdist_group('real views')
def test_a_thousand_classes_in_the_order_of_their_index(real_data, tmp_path):
    """The published config on one image per class of ImageNet, small images, random weights."""
    root = folder_or_skip(real_data / 'imagenet_mini')
    torch.manual_seed(0)
    backbone = dict(type='convnext_backbone.ConvNeXt', arch='atto')
    torch.save({'state_dict': Classifier(backbone, 1000).state_dict()}, tmp_path / 'w.pth')
    options = ['model.backbone.arch=atto', 'test_dataloader.num_workers=0']
    options += [
        f'test_dataloader.dataset.{o}' for o in ('class_index=class_index.json', 'transform.input_size=32')
    ]
    options += ['test_dataloader.persistent_workers=False']
    config = str(ROOT / 'configs/classification/convnext_t_in1k.py')
    arguments = ['--data-root', str(root), '--work-dir', str(tmp_path / 'w'), '--device', 'cpu']
    found = tool('test').main([config, str(tmp_path / 'w.pth'), *arguments, '--cfg-options', *options])
    assert set(found) == {'top1', 'top5'}
    assert found['top5'] < 5
    index = json.loads((root / 'class_index.json').read_text())
    per_class = json.loads((tmp_path / 'w/per_class.json').read_text())
    assert list(per_class) == sorted(index, key=lambda wnid: index[wnid][0])
    assert all(entry['images'] == 1 for entry in per_class.values())
    right = sum(entry['top1'] for entry in per_class.values()) / 1000
    assert right == pytest.approx(found['top1'])
