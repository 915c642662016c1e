"""Every published config builds, is what its name says, and has the published recipe."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

from convnext_backbone.engine import prepare

CONFIGS = sorted(
    file for task in ('detection', 'segmentation') for file in (ROOT / 'configs' / task).glob('*.py')
)


def build(name: str):
    cfg = prepare.read_config(f'{ROOT}/configs/{name}.py')
    prepare.use_plain_batch_norm(cfg)
    prepare.drop_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    return cfg, MODELS.build(cfg.model)


@pytest.mark.parametrize('file', CONFIGS, ids=lambda file: file.stem)
def test_config_builds_and_its_heads_fit_its_backbone(file: Path):
    cfg, model = build(f'{file.parent.name}/{file.stem}')
    channels = list(model.backbone.out_channels)
    if hasattr(model, 'neck'):
        assert cfg.model.neck.in_channels == channels
        assert cfg.model.rpn_head.anchor_generator.strides[:4] == list(model.backbone.out_strides)
    else:
        assert cfg.model.decode_head.in_channels == channels
        assert cfg.model.auxiliary_head.in_channels == channels[cfg.model.auxiliary_head.in_index]
    assert cfg.model.backbone.arch == {'t': 'tiny'}[file.stem.split('_')[-1]]
    assert model.backbone.depths == (3, 3, 9, 3)
    assert file.read_text().startswith('"""') and 'Run: ' in file.read_text()


@pytest.mark.parametrize(
    ('name', 'millions'),
    # paper, Tables 3 and 4
    [
        ('detection/mask_rcnn_convnext_t', 48),
        ('detection/cascade_convnext_t', 86),
        ('segmentation/upernet_convnext_t', 60),
    ],
)
def test_model_has_the_published_size(name, millions):
    _, model = build(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_recipes_are_the_published_ones():
    file = SHARED / 'paper' / 'recipes.json'
    if not file.is_file():
        pytest.skip(f'the published recipes are not here: {file}')
    recipes = json.loads(file.read_text())
    rows = {
        'detection/mask_rcnn_convnext_t': recipes['detection']['mask_rcnn tiny 1k'],
        'detection/cascade_convnext_t': recipes['detection']['cascade tiny 1k'],
        'segmentation/upernet_convnext_t': {
            **recipes['segmentation']['tiny 1k 512'],
            'layer_decay': recipes['common_segmentation']['layer_decay'],
        },
    }
    for name, row in rows.items():
        cfg, model = build(name)
        assert cfg.optim_wrapper.optimizer.lr == row['lr']
        assert cfg.optim_wrapper.paramwise_cfg.decay_rate == row['layer_decay']
        assert cfg.model.backbone.drop_path_rate == row['drop_path']
        assert model.backbone.num_groups == row['layer_groups']
        assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size


def learning_rates(name: str, steps_per_epoch: int, wanted: list[int]) -> list[float]:
    """Of a parameter with the full rate, before the steps ``wanted``, relative to the base rate."""
    cfg = prepare.read_config(f'{ROOT}/configs/{name}.py')
    wrapper = build_optim_wrapper(
        torch.nn.Linear(1, 1),
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)),
    )
    schedulers = []
    for scheduler in cfg.param_scheduler:
        scheduler = dict(scheduler, optimizer=wrapper)
        if scheduler['by_epoch']:
            scheduler.update(convert_to_iter_based=False)
        schedulers.append((scheduler['by_epoch'], PARAM_SCHEDULERS.build(scheduler)))
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
