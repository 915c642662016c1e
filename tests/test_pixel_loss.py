"""Losses of pixels strip by strip: mmseg's, with the same gradients, and little kept."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convnext_backbone.heads import pixel_loss
from convnext_backbone.heads.pixel_loss import use_strips

pytest.importorskip('mmseg')
CLASSES, IGNORED = 7, 255


def head(loss=None, align_corners=False, **settings):
    from mmseg.models.decode_heads import FCNHead

    loss = loss or dict(type='mmseg.CrossEntropyLoss', loss_weight=0.4)
    given = dict(in_channels=3, channels=4, num_classes=CLASSES, align_corners=align_corners)
    return FCNHead(**given, loss_decode=loss, **settings)


def labels(n, *size):
    drawn = torch.randint(0, CLASSES, (n, 1, *size), generator=torch.Generator().manual_seed(0))
    drawn[:, :, : size[0] // 3] = IGNORED
    return drawn


def losses(head, scores, truth):
    scores = scores.detach().clone().requires_grad_()
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=each)) for each in truth]
    found = head.loss_by_feat(scores, samples)
    found[head.loss_decode.loss_name].backward()
    return {name: value.detach() for name, value in found.items()}, scores.grad


WEIGHTS = {}, dict(avg_non_ignore=True), dict(class_weight=[0.3, 1.0, 2.0, 0.0, 0.5, 1.0, 1.5])


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(20, 28), (19, 31)], ids=str)
@pytest.mark.parametrize('settings', WEIGHTS, ids=['of all', 'of those that count', 'by class'])
def test_losses_and_gradients_are_those_of_mmseg(monkeypatch, settings, size, align_corners):
    monkeypatch.setitem(pixel_loss.STRIP, 'cpu', 3 * CLASSES * size[1])  # rows of three
    usual = head(dict(type='mmseg.CrossEntropyLoss', loss_weight=0.4, **settings), align_corners)
    ours = copy.deepcopy(usual)
    assert use_strips(ours) == 1
    assert use_strips(ours) == 0
    torch.manual_seed(0)
    scores, truth = 3 * torch.randn(2, CLASSES, 5, 7, dtype=torch.float64), labels(2, *size)
    expected, expected_grad = losses(usual, scores, truth)
    calls, real = [], torch.Tensor.scatter_add_
    monkeypatch.setattr(torch.Tensor, 'scatter_add_', lambda *a: calls.append(1) or real(*a))
    found, grad = losses(ours, scores, truth)
    assert len(calls) == 2 * -(-size[0] // 3)
    assert list(found) == list(expected) == ['loss_ce', 'acc_seg']
    for name, value in expected.items():
        torch.testing.assert_close(found[name].to(value), value, rtol=1e-6, atol=0)
        assert found[name].shape == value.shape
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-12)
    enlarged = F.interpolate(scores, size, mode='bilinear', align_corners=align_corners)
    weights = torch.tensor(settings.get('class_weight', [1.0] * CLASSES), dtype=torch.float64)
    right = 0.4 * F.cross_entropy(enlarged, truth[:, 0], weights, ignore_index=IGNORED, reduction='sum')
    count = weights[truth[truth != IGNORED]].sum() if settings else truth.numel()
    torch.testing.assert_close(found['loss_ce'], right / count, rtol=1e-6, atol=0)


def test_nothing_as_large_as_the_labels_is_kept():
    ours, scores = head(), torch.randn(2, CLASSES, 8, 8, requires_grad=True)
    use_strips(ours)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        losses(ours, scores, labels(2, 64, 64))
    assert max(kept) <= scores.numel()


def test_in_bfloat16_it_is_nearer_to_float64_than_mmseg():
    torch.manual_seed(0)
    usual, scores, truth = head(), 3 * torch.randn(2, CLASSES, 8, 8).bfloat16(), labels(2, 32, 32)
    ours = copy.deepcopy(usual)
    use_strips(ours)
    right, right_grad = losses(usual, scores.double(), truth)
    with torch.autocast('cpu', torch.bfloat16):
        (other, other_grad), (own, grad) = (losses(each, scores, truth) for each in (usual, ours))
    assert grad.dtype == torch.bfloat16
    assert abs(own['loss_ce'] - right['loss_ce']) <= 1e-6
    assert (grad - right_grad).norm() <= (other_grad - right_grad).norm()


def test_other_numbers_of_images_are_an_error():
    ours = head()
    use_strips(ours)
    with pytest.raises(ValueError, match='longer'):
        losses(ours, torch.randn(1, CLASSES, 4, 4), labels(2, 16, 16))


def test_a_label_beyond_the_classes_is_the_same_error():
    ours, truth = head(), labels(1, 16, 16)
    use_strips(ours)
    truth[0, 0, 9, 9] = CLASSES
    with pytest.raises(IndexError) as expected:
        losses(head(), torch.randn(1, CLASSES, 4, 4), truth)
    with pytest.raises(IndexError) as found:
        losses(ours, torch.randn(1, CLASSES, 4, 4), truth)
    assert str(found.value) == str(expected.value)


def test_of_equal_scores_the_first_is_the_guess_and_no_pixel_at_all_is_no_error():
    ours, truth = head(), labels(1, 16, 16)
    use_strips(ours)
    found, _ = losses(ours, torch.zeros(1, CLASSES, 4, 4), truth)
    counted = truth[truth != IGNORED]
    assert found['acc_seg'].item() == pytest.approx(100 * (counted == 0).float().mean().item(), rel=1e-5)
    nothing = torch.full_like(truth, IGNORED)
    expected, _ = losses(head(), torch.randn(1, CLASSES, 4, 4), nothing)
    found, grad = losses(ours, torch.randn(1, CLASSES, 4, 4), nothing)
    assert found == expected
    assert not grad.any()


OTHERS = {
    'weights': dict(
        loss=dict(type='mmseg.CrossEntropyLoss', class_weight=[1.0] * CLASSES, avg_non_ignore=True)
    ),
    'sigmoid': dict(loss=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=True)),
    'another loss': dict(loss=dict(type='mmseg.DiceLoss')),
    'two losses': dict(loss=[dict(type='mmseg.CrossEntropyLoss'), dict(type='mmseg.DiceLoss')]),
    'a sampler': dict(sampler=dict(type='mmseg.OHEMPixelSampler', min_kept=10)),
}


def test_tensors_are_on_the_device_of_the_scores():
    from torch._subclasses.fake_tensor import FakeTensorMode

    ours = head()
    use_strips(ours)
    with FakeTensorMode(allow_non_fake_inputs=True):  # has CUDA's rules without its hardware
        truth = torch.empty(1, 1, 16, 16, dtype=torch.long, device='cuda')
        samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=truth[0]))]
        scores = torch.empty(1, CLASSES, 4, 4, device='cuda', requires_grad=True)
        found = ours.loss_by_feat(scores, samples)
        with pytest.raises(RuntimeError, match='device'):
            found['loss_ce'] + torch.ones(1)
    assert {value.device.type for value in found.values()} == {'cuda'}


@pytest.mark.parametrize('settings', OTHERS.values(), ids=OTHERS)
def test_other_losses_stay(settings):
    assert use_strips(head(**settings)) == 0


def test_scores_of_the_size_of_the_labels_are_left_to_mmseg(monkeypatch):
    ours = head()
    use_strips(ours)
    monkeypatch.setattr(pixel_loss, '_SumOfLosses', None)
    expected, expected_grad = losses(head(), torch.ones(1, CLASSES, 6, 6), labels(1, 6, 6))
    found, grad = losses(ours, torch.ones(1, CLASSES, 6, 6), labels(1, 6, 6))
    assert found == expected
    assert torch.equal(grad, expected_grad)
    assert use_strips(nn.Linear(2, 2)) == 0
