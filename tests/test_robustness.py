"""Scores under shift and corruption: by hand on made-up results, and the tool on drawn images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tool
from PIL import Image
from timm.data import ImageNetInfo

from convnext_backbone.classification import Classifier, ImageDataset
from convnext_backbone.classification.robustness import (
    ALEXNET,
    CBAR,
    CORRUPTIONS,
    SEVERITIES,
    Corrupted,
    corrupt,
    severity_folders,
    summarise,
    top1,
)
from convnext_backbone.errors import UserError


def test_mce_by_hand():
    """AlexNet's own accuracies give 100, half its errors 50; so does half of its clean error, 43.5."""
    alexnet = {c: dict.fromkeys(SEVERITIES, 100 - error) for c, error in ALEXNET.items()}
    row = summarise(dict(clean=56.5, C=alexnet), imagenet=True)
    assert row['C_mCE'] == pytest.approx(100)
    assert row['C_relative_mCE'] == pytest.approx(100)
    assert row['C_error'] == pytest.approx(np.mean(list(ALEXNET.values())))
    half = {c: {s: 100 - error / 2 + (s - 3) for s in SEVERITIES} for c, error in ALEXNET.items()}
    row = summarise(dict(clean=78.25, C=half), imagenet=True)
    assert row['C_mCE'] == pytest.approx(50)
    assert row['C_relative_mCE'] == pytest.approx(50)


def test_alexnet_has_the_printed_errors():
    """arXiv:1903.12261, Table 2, first row, in the order of its columns."""
    printed = [88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7]
    assert list(ALEXNET.values()) == pytest.approx(printed, abs=0.051)
    assert len(CBAR) == 10


def test_what_is_not_there_is_absent_and_never_zero():
    nothing = summarise(dict(clean=None, A=None, R=None, Sketch=None, C=None, Cbar=None), imagenet=True)
    assert set(nothing.values()) == {None}
    errors = {c: dict.fromkeys(SEVERITIES, 50.0) for c in CORRUPTIONS}
    del errors['fog'][5]
    row = summarise(dict(clean=80.0, C=errors, Cbar={c: dict.fromkeys(SEVERITIES, 60.0) for c in CBAR}), True)
    assert row['C_mCE'] is None
    assert row['C_error'] is None
    assert row['clean'] == 80.0
    assert row['Cbar_error'] == pytest.approx(40)
    whole = {c: dict.fromkeys(SEVERITIES, 50.0) for c in CORRUPTIONS}
    other = summarise(dict(clean=80.0, C=whole), imagenet=False)
    assert other['C_mCE'] is None
    assert other['C_error'] == pytest.approx(50)


def test_corruptions_are_repeatable_and_grow_with_severity():
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(image).resize((16, 16)).resize((64, 64)))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for name in set(CORRUPTIONS) - {'glass_blur'}:  # slow to compile
        weak, strong = (corrupt(image, name, severity, seed=3) for severity in (1, 5))
        assert np.array_equal(weak, corrupt(image, name, 1, seed=3)) or name == 'impulse_noise', name
        assert weak.dtype == np.uint8
        assert weak.shape == image.shape
        far = [np.abs(x.astype(float) - image).mean() for x in (weak, strong)]
        assert far[1] > 0, name
        assert far[1] > far[0] or name in ('elastic_transform', 'snow', 'frost', 'fog'), name
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    with pytest.raises(UserError, match='too small to be corrupted'):
        corrupt(image[:31], 'fog', 1, 0)


class ByColour(torch.nn.Module):
    """Predicts the class whose number the red channel holds; 900 is the highest logit but one."""

    def forward(self, x):
        logits = torch.zeros(len(x), 1000)
        logits[:, 900] = 2.0
        return logits.index_put((torch.arange(len(x)), x[:, 0, 0, 0].round().long()), torch.tensor(1.0))


def test_subsets_are_scored_among_their_classes_only():
    """Every image is taken for class 900 among all; among the classes that occur, half are right."""
    data = [dict(inputs=torch.full((3, 2, 2), float(seen)), labels=label) for label, seen in ((3, 3), (5, 3))]
    options = dict(batch_size=2, num_workers=0, device='cpu')
    assert top1(ByColour(), data, **options) == 0.0
    assert top1(ByColour(), data, subset=True, **options) == 50.0


def test_imagenet_c_is_found_with_and_without_groups(tmp_path):
    for path in ('blur/defocus_blur/1', 'blur/defocus_blur/3', 'fog/5', 'other/1'):
        (tmp_path / path).mkdir(parents=True)
    found = severity_folders(tmp_path, CORRUPTIONS)
    assert {c: list(levels) for c, levels in found.items()} == {'defocus_blur': [1, 3], 'fog': [5]}


CONFIG = """
model = dict(
    type='convnext_backbone.Classifier',
    backbone=dict(type='convnext_backbone.ConvNeXt', depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
    num_classes=1000,
)
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        type='convnext_backbone.ImageDataset',
        data_root='.',
        split='val',
        transform=dict(input_size=32, is_training=False, crop_pct=1.0),
    ),
)
test_cfg = dict()
"""


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """Six classes of ImageNet, an image each, in the layouts of every set; a config and random weights."""
    wnids = ImageNetInfo('imagenet-1k').label_names()[100:106]
    random = np.random.default_rng(0)
    folders = ['val', 'imagenet-a', 'imagenet-r', 'sketch']
    folders += [f'imagenet-c/{c}/{s}' for c in CORRUPTIONS for s in SEVERITIES]
    for folder in folders:
        for wnid in wnids[: 3 if folder == 'imagenet-a' else 6]:
            (tmp_path / 'data' / folder / wnid).mkdir(parents=True)
            pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'data' / folder / wnid / 'a.png')
    (tmp_path / 'small.py').write_text(CONFIG)
    torch.manual_seed(0)
    backbone = dict(type='convnext_backbone.ConvNeXt', depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    model = Classifier(dict(backbone, layer_scale_init_value=1.0), 1000)
    torch.nn.init.normal_(model.head.bias)
    model.head.bias.data[100:106] += 20  # so that the classes that are here compete
    names = {name.removeprefix('backbone.'): value for name, value in model.state_dict().items()}
    torch.save({'model': names}, tmp_path / 'released.pth')  # as the official files are
    return tmp_path


def run(folder: Path, *options: str) -> dict:
    arguments = [folder / 'small.py', folder / 'released.pth', '--data-root', folder / 'data']
    arguments += ['--work-dir', folder / 'w', '--device', 'cpu', *options]
    return tool('robustness').main([str(a) for a in arguments])


def test_the_tool_prints_the_row_of_table_8_and_writes_it(imagenet, capsys):
    found = run(imagenet)
    out = capsys.readouterr().out
    row = found['row']
    assert 'Cbar: absent' in out
    assert row['Cbar_error'] is None
    sixths = [row[name] * 6 / 100 for name in ('clean', 'R', 'Sketch')] + [row['A'] * 3 / 100]
    assert sixths == pytest.approx([round(n) for n in sixths])
    errors = {c: 100 - np.mean(list(levels.values())) for c, levels in found['results']['C'].items()}
    assert row['C_mCE'] == pytest.approx(np.mean([100 * errors[c] / ALEXNET[c] for c in CORRUPTIONS]))
    assert out.splitlines()[-2].startswith('| small |')
    assert out.splitlines()[-2].count('absent') == 1
    assert json.loads((imagenet / 'w/robustness.json').read_text())['row'] == row
    assert (imagenet / 'w/robustness.png').stat().st_size > 10_000


def test_the_tool_corrupts_clean_images_itself(imagenet, capsys):
    for name in ('imagenet-c', 'imagenet-a', 'imagenet-r', 'sketch'):
        shutil.rmtree(imagenet / 'data' / name)
    found = run(imagenet, '--corrupt', '--corruptions', 'contrast', 'fog', '--severities', '1', '5')
    assert {c: list(levels) for c, levels in found['results']['C'].items()} == dict(
        contrast=[1, 5], fog=[1, 5]
    )
    assert found['row']['C_mCE'] is None
    assert found['row']['A'] is None
    assert 'A: absent' in capsys.readouterr().out


def test_unknown_classes_and_missing_folders_are_told(imagenet):
    (imagenet / 'data/val/zebra').mkdir()
    with pytest.raises(UserError, match='zebra is a class that the class index does not have'):
        run(imagenet)
    shutil.rmtree(imagenet / 'data')
    with pytest.raises(UserError, match='--data-root must be the folder of the datasets'):
        run(imagenet)


def test_corrupted_images_keep_their_labels_and_differ_from_the_clean_ones(shapes):
    transform = dict(input_size=64, is_training=False, crop_pct=1.0)
    clean = ImageDataset(str(shapes / 'classification'), 'val', transform)
    corrupted = Corrupted(clean, transform, 'contrast', 5)
    for i in range(len(clean)):
        a, b = clean[i], corrupted[i]
        assert a['labels'] == b['labels']
        assert a['inputs'].shape == b['inputs'].shape
        assert (b['inputs'].std((1, 2)) < 0.3 * a['inputs'].std((1, 2))).all()  # contrast taken away


@pytest.mark.slow
@pytest.mark.xdist_group('segmenter')
def test_a_segmenter_is_scored_relative_to_clean_images(shapes, tmp_path, capsys):
    from mmengine.registry import MODELS, init_default_scope

    from convnext_backbone.config import read_config, use_plain_batch_norm

    config = 'configs/demo/upernet_shapes.py'
    cfg = read_config(config)
    use_plain_batch_norm(cfg)
    init_default_scope('mmseg')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'w.pth')
    arguments = [
        config,
        str(tmp_path / 'w.pth'),
        '--data-root',
        str(shapes),
        '--work-dir',
        str(tmp_path / 'w'),
    ]
    with pytest.raises(UserError, match='is evaluated with --corrupt'):
        tool('robustness').main(arguments)
    options = ['--corrupt', '--corruptions', 'fog', '--severities', '2', '5', '--device', 'cpu']
    found = tool('robustness').main([*arguments, *options])
    numbers = found['row']['mIoU']
    values = [found['levels']['fog'][s]['mIoU'] for s in (2, 5)]
    assert numbers['corrupted'] == pytest.approx(sum(values) / 2)
    assert numbers['relative'] == pytest.approx(numbers['corrupted'] / numbers['clean'])
    assert len({*values, numbers['clean']}) > 1
    assert 'mean under corruption' in capsys.readouterr().out
