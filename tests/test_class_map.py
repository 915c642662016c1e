"""Class numbers found strip by strip are those of mmseg, which keeps every score of every pixel."""

import copy

import pytest
import torch
import torch.nn.functional as F

from convnext_backbone.config import read_config
from convnext_backbone.heads import class_map, predict_classes
from convnext_backbone.heads.class_map import classes_of
from convnext_backbone.measure import build_model

CLASSES = 5


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(23, 31), (40, 7), (3, 4), (9, 11), (1, 50)], ids=str)
def test_classes_are_those_of_enlarged_scores(monkeypatch, size, align_corners):
    monkeypatch.setattr(class_map, 'STRIP', 4 * CLASSES * size[1])  # four rows
    torch.manual_seed(0)
    scores = torch.randn(CLASSES, 9, 11, dtype=torch.float64)
    enlarged = F.interpolate(scores[None], size, mode='bilinear', align_corners=align_corners)[0]
    assert torch.equal(classes_of(scores, size, align_corners), enlarged.argmax(0))


def test_under_autocast_they_are_the_same():
    scores = torch.randn(CLASSES, 20, 30, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', torch.bfloat16):
        found = classes_of(scores, (50, 70), False)
    assert torch.equal(found, classes_of(scores, (50, 70), False))


@pytest.fixture(scope='module')
def segmenter():
    pytest.importorskip('mmseg')
    torch.manual_seed(0)
    model = build_model(read_config('upernet_shapes'), 'cpu').eval()
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    return model


def batch(*metas):
    from mmseg.structures import SegDataSample

    images = torch.randint(0, 256, (len(metas), 3, 64, 96), dtype=torch.uint8)
    samples = [SegDataSample(metainfo=dict(img_shape=(64, 96), pad_shape=(64, 96), **meta)) for meta in metas]
    return dict(inputs=list(images), data_samples=samples)


METAS = {
    'larger': [dict(ori_shape=(100, 131)), dict(ori_shape=(64, 96))],
    'a border': [dict(ori_shape=(90, 130), img_padding_size=[0, 8, 3, 5])] * 2,
    'mirrored': [
        dict(ori_shape=(70, 80), flip=True, flip_direction='horizontal'),
        dict(ori_shape=(70, 80), flip=True, flip_direction='vertical', padding_size=[4, 0, 0, 9]),
    ],
}


@pytest.mark.parametrize('windows', [None, (64, 40), (128, 128), (40, 23)], ids=str)
@pytest.mark.parametrize('metas', METAS.values(), ids=METAS)
def test_samples_are_those_of_mmseg_without_logits(segmenter, monkeypatch, metas, windows):
    given = {**segmenter.test_cfg, 'mode': 'slide' if windows else 'whole'}
    if windows:  # one that is higher, one that has all, and many
        given.update(crop_size=(windows[0], 64 if windows[0] < 128 else 128), stride=(windows[1],) * 2)
    monkeypatch.setattr(segmenter, 'test_cfg', type(segmenter.test_cfg)(given))
    data = batch(*metas)
    with torch.no_grad():
        expected = segmenter.test_step(copy.deepcopy(data))
    found = predict_classes(segmenter, data)
    for own, right in zip(found, expected, strict=True):
        classes = right.pred_sem_seg.data
        assert len(classes.unique()) > 1
        assert (own.pred_sem_seg.data != classes).float().mean() < 1e-3  # two scores alike, in float32
        assert own.pred_sem_seg.data.dtype == classes.dtype
        assert own.pred_sem_seg.data.shape == classes.shape
        assert own.metainfo == right.metainfo
        assert 'seg_logits' not in own


def test_windows_that_leave_gaps_are_mmsegs_error(segmenter, monkeypatch):
    given = dict(mode='slide', crop_size=(32, 32), stride=(33, 33))
    monkeypatch.setattr(segmenter, 'test_cfg', type(segmenter.test_cfg)(given))
    with pytest.raises(AssertionError), torch.no_grad():
        segmenter.test_step(batch(*METAS['larger']))
    with pytest.raises(AssertionError):
        predict_classes(segmenter, batch(*METAS['larger']))


def test_what_predicts_in_another_way_does_so(segmenter, monkeypatch):
    asked = []
    other = copy.copy(segmenter)
    other.__class__ = type('Own', (type(segmenter),), dict(postprocess_result=None))
    monkeypatch.setattr(other.__class__, 'test_step', lambda self, data: asked.append(data), raising=False)
    data = dict(data_samples=[0])
    predict_classes(other, data)
    assert asked == [data]
    monkeypatch.setattr(segmenter, 'out_channels', 1)  # probabilities, a threshold
    monkeypatch.setattr(type(segmenter), 'test_step', lambda self, data: asked.append(data))
    predict_classes(segmenter, data)
    assert asked == [data] * 2
    alone = dict(inputs=[1])
    monkeypatch.undo()
    monkeypatch.setattr(type(segmenter), 'test_step', lambda self, data: asked.append(data))
    predict_classes(segmenter, alone)
    assert asked[2:] == [alone]
