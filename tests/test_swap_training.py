"""Swapped configs, and those of today's heads, train: on real images the loss falls.

A swapped one is trained beside the original at the same budget.

Nothing here has pretrained weights: both begin with random ones. That shows that a swapped model learns by
the recipe that was written for it, and nothing about accuracy.

    python -m pytest tests/test_swap_training.py -m slow -s      prints the table of docs/backbone.md
"""

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from convnext_backbone.cli import run_command
from convnext_backbone.config import drop_pretrained, read_config, use_plain_batch_norm
from convnext_backbone.config.keys import dicts
from convnext_backbone.measure import build_model, building
from convnext_backbone.swap import read_source

ARCH = 'tiny'
IMAGES, BATCH, SIDE = 6, 2, 128  # six images, again and again: two in a step, pixels
COMPARED = 9  # steps at the beginning and at the end whose mean losses are compared: three times each image
SHARE = 0.25  # of the recipe's learning rate, which is for 8 to 64 images in a step


@dataclass(frozen=True)
class Kind:
    """Is a config, and what is asked of the loss after it was swapped.

    Attributes:
        config: of mmdet or mmseg.
        factor: the swapped model's loss at the end is less than this share of the first.
        steps: of both trainings.
        changes: of both models, which make them smaller.
    """

    config: str
    factor: float
    steps: int = 36
    changes: dict = field(default_factory=dict)


KINDS = {
    'RetinaNet': Kind('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 0.8, steps=48),
    'DINO': Kind('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', 0.95, changes=dict(num_queries=100)),
    'Mask2Former': Kind('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 0.8),
    'PSPNet': Kind('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', 0.8, steps=60),
    'YOLOX': Kind('mmdet::yolox/yolox_s_8xb8-300e_coco.py', 0.9, steps=60),
}


def with_small_images(cfg: Config, data: Path) -> Config:
    """Return a config whose training data are a few small images, read by its own kind of dataset."""
    load = [dict(type='LoadImageFromFile')]
    resize = dict(type='Resize', scale=(SIDE, SIDE), keep_ratio=False)
    if cfg.default_scope == 'mmseg':
        dataset = dict(
            type=cfg.train_dataloader.dataset.type,
            data_root=str(data / 'camvid'),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            img_suffix='.jpg',
            seg_map_suffix='.png',
            pipeline=[*load, dict(type='LoadAnnotations'), resize, dict(type='PackSegInputs')],
        )
    else:
        annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask='panoptic_head' in cfg.model)
        dataset = dict(
            type='CocoDataset',  # of YOLOX within one that mixes images
            data_root=str(data / 'coco_mini'),
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=[*load, annotations, resize, dict(type='PackDetInputs')],
        )
    cfg.train_dataloader = dict(
        batch_size=BATCH,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
        dataset=dict(dataset, indices=IMAGES, _scope_=cfg.default_scope),
    )
    for node in dicts(cfg.model):
        node.pop('batch_augments', None)  # they enlarge the images
        if 'size' in node and str(node.get('type', '')).endswith('DataPreProcessor'):
            node['size'] = (SIDE, SIDE)
    return cfg


def train_all(cfg: Config) -> Config:
    """Return an original whose norms and first stages are trained: they are random, too."""
    for node in dicts(cfg.model):
        if 'frozen_stages' in node:
            node['frozen_stages'] = -1
        if 'norm_eval' in node:
            node['norm_eval'] = False
        if node.get('requires_grad') is False:
            node['requires_grad'] = True
    return cfg


def losses_of(cfg: Config, steps: int, share: float = SHARE) -> list[float]:
    """Train by the config's own losses and optimizer, without the warm-up, which is longer than all this."""
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu')
    with building(cfg.default_scope, 'cpu'):
        model.init_weights()
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        cfg.optim_wrapper.type = 'OptimWrapper'  # no mixed precision on a CPU
        cfg.optim_wrapper.optimizer.lr *= share
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        model.train()
        losses = []
        for _, batch in zip(range(steps), loader):
            log = model.train_step(batch, optimizer)
            losses.append(float(log['loss']))
    return losses


def ratio(losses: list[float]) -> float:
    return statistics.fmean(losses[-COMPARED:]) / statistics.fmean(losses[:COMPARED])


@pytest.fixture(scope='module')
def table():
    """Rows that are printed at the end."""
    rows = []
    yield rows
    print('\n\n| head | steps | original | ConvNeXt |\n|---|---|---|---|', *rows, sep='\n')


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_the_loss_falls_after_a_swap(name, real_data, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = KINDS[name]
    run_command('swap', kind.config, '--arch', ARCH, '--out', 'swapped.py')
    ratios = []
    for cfg in (train_all(read_source(kind.config).cfg), Config.fromfile('swapped.py')):
        cfg.merge_from_dict(dict(model=kind.changes))
        losses = losses_of(with_small_images(cfg, real_data), kind.steps)
        print(name, cfg.model.backbone.type, [round(loss, 2) for loss in losses])
        ratios.append(ratio(losses))
    table.append(f'| {name} | {kind.steps} | {ratios[0]:.2f} | {ratios[1]:.2f} |')
    assert ratios[1] < kind.factor


# The configs of today's heads that come along: atto in the place of their network, random weights

SMALL = dict(arch='atto', layer_scale_init_value=1.0, drop_path_rate=0.0)
DETECTORS = dict(mask_rcnn=0.9, faster_rcnn=0.9, cascade_rcnn=0.9, retinanet=0.9, fcos=0.95, atss=0.95)
DETECTORS |= dict(rtmdet=0.95, dino=0.95, mask2former=0.9, mask2former_panoptic=0.9)
SEGMENTERS = dict(mask2former_semantic=0.9, segformer=0.9, psp=0.9, deeplab=0.9)


class AddStuff(BaseTransform):
    """Makes what no object covers the first class of stuff."""

    def transform(self, results: dict) -> dict:
        covered = results['gt_masks'].to_ndarray().any(0)
        results['gt_seg_map'] = np.where(covered, 255, 80).astype(np.uint8)
        return results


def small_network(folder: str, head: str) -> Config:
    """Return a config that comes along, with a smaller network and the channels that it gives."""
    cfg = read_config(f'configs/{folder}/{head}_convnext_t.py')
    drop_pretrained(cfg)
    use_plain_batch_norm(cfg)
    wide = dict(zip((96, 192, 384, 768), (40, 80, 160, 320)))
    cfg.model.backbone.update(SMALL)
    for part in ('neck', 'decode_head', 'auxiliary_head', 'panoptic_head', 'bbox_head'):
        node = cfg.model.get(part) or {}
        if (given := node.get('in_channels')) is not None and node is not cfg.model.get('bbox_head'):
            many = isinstance(given, (list, tuple))
            node['in_channels'] = [wide[n] for n in given] if many else wide.get(given, given)
        if 'c1_in_channels' in node:
            node['c1_in_channels'] = wide[node['c1_in_channels']]
    if head == 'dino':
        cfg.model.num_queries = 100
    for node in dicts(cfg.model):  # fewer regions and points, for speed
        if node.get('type') == 'RandomSampler':
            node['num'] = 64
        if node.get('type') == 'GN':
            node['num_groups'] = 8
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    ('folder', 'head', 'factor'),
    [
        *(('detection', head, factor) for head, factor in DETECTORS.items()),
        *(('segmentation', head, factor) for head, factor in SEGMENTERS.items()),
    ],
)
def test_the_loss_of_each_head_falls(folder, head, factor, real_data):
    cfg = with_small_images(small_network(folder, head), real_data)
    steps = cfg.train_dataloader.dataset.pipeline
    if head == 'mask_rcnn':
        steps[1].with_mask = True
    if head == 'mask2former_panoptic':
        steps.insert(3, dict(type=AddStuff))
    losses = losses_of(cfg, 45, share=1.0)
    print(head, [round(loss, 2) for loss in losses])
    assert ratio(losses) < factor
