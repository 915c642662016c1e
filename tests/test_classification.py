"""The classifier's data and metrics."""

import shutil

import pytest
import torch

from convnext_backbone.classification import Accuracy, Classifier, ImageDataset
from convnext_backbone.errors import UnreadableImage, UserError
from convnext_backbone.shapes import CLASSES


def accuracy(logits, labels, topk=(1, 2)) -> dict:
    metric = Accuracy(topk=topk)
    metric.process({}, [dict(logits=torch.tensor(x), label=y) for x, y in zip(logits, labels)])
    return metric.compute_metrics(metric.results)


def test_accuracy_by_hand():
    logits = [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]
    assert accuracy(logits, [0, 2, 1, 1]) == {'top1': 50.0, 'top2': 75.0}
    assert accuracy(logits, [0, 2, 1, 1], topk=(1, 5)) == {'top1': 50.0}  # there are three classes


@pytest.mark.parametrize('value', [float('nan'), 0.0])
def test_a_classifier_that_says_nothing_is_not_right(value):
    """NaN everywhere is never right, constant logits once in as many classes."""
    found = accuracy([[value] * 4] * 4, [0, 1, 2, 3])['top1']
    assert found == (0.0 if value != value else 25.0)


def test_images_and_classes_come_from_folders(shapes):
    data = ImageDataset(
        str(shapes / 'classification'), 'val', dict(input_size=32, is_training=False, crop_pct=1.0)
    )
    assert len(data) == 10 and data.metainfo['classes'] == CLASSES
    assert data[9]['inputs'].shape == (3, 32, 32)
    assert [data[i]['labels'] for i in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_an_image_that_is_none_is_named_not_replaced(shapes, tmp_path):
    shutil.copytree(shapes / 'classification', tmp_path / 'c')
    victim = sorted((tmp_path / 'c/val/cross').iterdir())[0]
    victim.write_text('no image')
    data = ImageDataset(str(tmp_path / 'c'), 'val', dict(input_size=32))
    with pytest.raises(UnreadableImage, match=victim.name):
        data[2]
    with pytest.raises(UserError, match='no images'):
        ImageDataset(str(tmp_path / 'empty'), 'val', dict(input_size=32))


def test_head_init_scale_scales_the_head_and_nothing_else():
    models = []
    for scale in (1.0, 0.001):
        torch.manual_seed(0)
        backbone = dict(type='convnext_backbone.ConvNeXt', depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
        models.append(Classifier(backbone, 5, head_init_scale=scale).state_dict())
    torch.testing.assert_close(models[0]['head.weight'] * 0.001, models[1]['head.weight'])
    assert all(torch.equal(models[0][k], models[1][k]) for k in models[0] if k != 'head.weight')
