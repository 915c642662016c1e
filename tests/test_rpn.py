"""Gradients of a region proposal network at sampled positions: those of PyTorch's convolution."""

import copy

import pytest
import torch
from torch import nn

from convnext_backbone.heads.rpn import SampledConv2d, is_plain, use_sampled_gradients


def sampled(convolution: nn.Conv2d) -> SampledConv2d:
    other = copy.deepcopy(convolution)
    other.__class__ = SampledConv2d
    return other


def some(shape, positions: int) -> torch.Tensor:
    """A gradient that is zero but at some positions, corners among them."""
    images, channels, height, width = shape
    grad = torch.zeros(images, height * width, channels, dtype=torch.float64)
    for each in grad:
        places = [0, height * width - 1, *torch.randperm(height * width).tolist()][:positions]
        each[places] = torch.randn(len(places), channels, dtype=torch.float64)
    return grad.view(images, height, width, channels).permute(0, 3, 1, 2)


def gradients(convolution, x, grad, autocast=False):
    x = x.detach().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = convolution(x)
    y.backward(grad.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in convolution.parameters())]


@pytest.mark.parametrize('positions', [0, 7, 20, 99], ids=['none', 'few', 'too many', 'all'])
@pytest.mark.parametrize(('kernel', 'padding', 'bias'), [(3, 1, True), (1, 0, True), ((3, 5), (1, 2), False)])
def test_gradients_are_those_of_pytorch(kernel, padding, bias, positions):
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 4, kernel, padding=padding, bias=bias, dtype=torch.float64)
    x, grad = torch.randn(2, 5, 9, 11, dtype=torch.float64), some((2, 4, 9, 11), positions)
    expected, found = (gradients(each, x, grad) for each in (convolution, sampled(convolution)))
    assert len(found) == 3 + bias
    for right, ours in zip(expected, found):
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)


def test_only_positions_with_a_gradient_are_computed(monkeypatch):
    seen = []
    ours = SampledConv2d(2, 3, 3, padding=1)
    real = torch.Tensor.index_add_
    monkeypatch.setattr(torch.Tensor, 'index_add_', lambda t, *a: seen.append(len(a[1])) or real(t, *a))
    gradients(ours, torch.randn(1, 2, 9, 9), some((1, 3, 9, 9), 5))
    assert seen == [5] * 9


def test_under_autocast_results_are_those_of_pytorch_to_a_rounding():
    torch.manual_seed(0)
    convolution = nn.Conv2d(16, 8, 3, padding=1)
    x, grad = torch.randn(2, 16, 9, 11), some((2, 8, 9, 11), 6)
    expected, found = (gradients(each, x, grad, True) for each in (convolution, sampled(convolution)))
    assert found[0].dtype == torch.bfloat16
    for right, ours in zip(expected, found):
        assert ours.dtype == right.dtype
        assert (ours - right).float().norm() <= 4e-3 * right.float().norm()


def test_a_gradient_that_is_no_number_stays_one():
    grad = torch.zeros(1, 3, 9, 9)
    grad[0, 1, 4, 4] = torch.nan
    _, of_x, of_weight, of_bias = gradients(SampledConv2d(2, 3, 3, padding=1), torch.randn(1, 2, 9, 9), grad)
    assert of_x.isnan().sum() == 2 * 9
    assert of_weight[1].isnan().all() and of_bias[1].isnan()


def test_what_is_no_plain_convolution_stays():
    assert is_plain(nn.Conv2d(2, 2, 3, padding=1)) and is_plain(nn.Conv2d(2, 2, 1))
    others = [
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 2, padding=1),
        nn.Conv2d(2, 2, 3, padding=1, stride=2),
        nn.Conv2d(2, 2, 3, padding='same'),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2),
        nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode='reflect'),
        SampledConv2d(2, 2, 1),
        nn.Linear(2, 2),
    ]
    assert not any(map(is_plain, others))


def test_the_rpn_of_mmdet_learns_the_same():
    """Losses and gradients of a training step of mmdet's own head, before and after."""
    pytest.importorskip('mmdet')
    from convnext_backbone.config import read_config
    from convnext_backbone.measure import build_model, make_batch

    cfg = read_config('mask_rcnn_convnext_t_1x')
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu').rpn_head
    maps = [torch.randn(2, 256, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32, 64)]
    samples = make_batch(cfg, 256, 2)['data_samples']
    for sample in samples:
        sample.gt_instances.labels.zero_()
    steps = []
    for _ in range(2):
        leaves = [each.detach().requires_grad_() for each in maps]
        model.zero_grad()
        torch.manual_seed(1)  # of the sampled anchors
        losses = model.loss(tuple(leaves), samples)
        sum(sum(each) for each in losses.values()).backward()
        steps.append([*(leaf.grad for leaf in leaves), *(p.grad.clone() for p in model.parameters())])
        count = use_sampled_gradients(model)
    assert count == 0 and isinstance(model.rpn_conv, SampledConv2d)
    for right, ours in zip(*steps):
        assert (ours - right).norm() <= 1e-5 * right.norm()
