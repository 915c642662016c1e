"""Maps convolved at their own size: as if they had been enlarged, concatenated and convolved."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convnext_backbone.heads import fusion, save_work
from convnext_backbone.heads.bilinear import shares
from convnext_backbone.heads.fusion import FusingConv2d, use_small_maps

SIZES = [(13, 17), (7, 9), (13, 17), (4, 5), (1, 3)]
CHANNELS = [5, 2, 3, 4, 6]


def pair(kernel, bias=True, dtype=torch.float64, channels=CHANNELS):
    usual = nn.Conv2d(sum(channels), 7, kernel, padding=[k // 2 for k in kernel], bias=bias, dtype=dtype)
    ours = copy.deepcopy(usual)
    ours.__class__ = FusingConv2d
    return usual, ours


def enlarged(maps, align_corners):
    size = maps[0].shape[2:]
    return torch.cat([F.interpolate(m, size, mode='bilinear', align_corners=align_corners) for m in maps], 1)


def gradients(convolve, module, maps, autocast=False):
    maps = [m.detach().clone().requires_grad_() for m in maps]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = convolve(maps)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.backward(weights.to(y.dtype))
    return [y.detach(), *(m.grad for m in maps), *(p.grad for p in module.parameters())]


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('kernel', 'bias'), [((3, 3), True), ((3, 5), False), ((1, 1), True)], ids=str)
def test_results_are_those_of_the_enlarged_maps(monkeypatch, kernel, bias, align_corners):
    monkeypatch.setattr(fusion, 'MOST', 100)  # so small maps would have more products so
    torch.manual_seed(0)
    usual, ours = pair(kernel, bias)
    ours.align_corners = align_corners
    maps = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(CHANNELS, SIZES)]
    expected = gradients(lambda maps: usual(enlarged(maps, align_corners)), usual, maps)
    added, real = [], torch.baddbmm
    monkeypatch.setattr(torch, 'baddbmm', lambda *a: added.append(a) or real(*a))
    found = gradients(lambda maps: ours(tuple(maps)), ours, maps)
    assert len(added) == 1
    assert len(found) == 6 + 1 + bias
    for right, own in zip(expected, found):
        torch.testing.assert_close(own, right, rtol=1e-12, atol=1e-12)
    x = maps[0].repeat(1, 4, 1, 1)
    assert torch.equal(ours(x), usual(x))


def test_under_autocast_they_are_as_exact(monkeypatch):
    torch.manual_seed(0)
    channels, sizes = [64, 64, 64], [(24, 20), (12, 10), (6, 5)]
    usual, ours = pair((3, 3), dtype=torch.float32, channels=channels)
    maps = [torch.randn(2, c, *size).relu() for c, size in zip(channels, sizes)]
    doubles, exact = [m.double() for m in maps], copy.deepcopy(usual).double()
    right = gradients(lambda maps: exact(enlarged(maps, False)), exact, doubles)
    others = gradients(lambda maps: usual(enlarged(maps, False)), usual, maps, autocast=True)
    found = gradients(lambda maps: ours(tuple(maps)), ours, maps, autocast=True)
    assert found[0].dtype == torch.bfloat16
    for expected, other, own in zip(right, others, found):
        assert (own - expected).norm() <= 1.5 * (other - expected).norm()  # there is one more rounding


def test_maps_that_would_take_as_long_are_enlarged(monkeypatch):
    convolution = FusingConv2d(2048, 512, 3, padding=1, device='meta')
    size = torch.Size((128, 128))
    # 9 * 64 * 64 * (512 + 128) + 3 * 128 * 64 * 128 products are 0.35 of 9 * 128 * 128 * 512
    for own, cheaper in {(64, 64): True, (8, 8): True, (128, 128): False, (100, 100): False}.items():
        assert convolution._is_cheaper(torch.empty(1, 512, *own, device='meta'), size) is cheaper
    assert not convolution._is_cheaper(torch.empty(1, 8, 64, 64, device='meta'), size)
    usual, ours = pair((3, 3), dtype=torch.float32)
    monkeypatch.setattr(torch, 'baddbmm', None)
    maps = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, SIZES)]
    maps[1:] = [torch.randn(2, c, 12, 16) for c in CHANNELS[1:]]
    assert torch.equal(ours(tuple(maps)), usual(enlarged(maps, False)))


def head(kind=None, **settings):
    heads = pytest.importorskip('mmseg.models.decode_heads')
    kind = kind or heads.UPerHead
    given = dict(in_channels=[4, 6, 8, 10], in_index=[0, 1, 2, 3], channels=8, num_classes=5, **settings)
    return kind(norm_cfg=dict(type='BN'), loss_decode=dict(type='mmseg.CrossEntropyLoss'), **given).double()


@pytest.mark.parametrize('align_corners', [False, True])
def test_the_head_computes_the_same(monkeypatch, align_corners):
    monkeypatch.setattr(fusion, 'MOST', 100)
    torch.manual_seed(0)
    usual = head(align_corners=align_corners)
    ours = copy.deepcopy(usual)
    assert use_small_maps(ours) == 1
    assert use_small_maps(ours) == 0  # it does already
    assert isinstance(ours, type(usual))
    assert type(ours).__name__ == 'UPerHead'
    assert list(ours.state_dict()) == list(usual.state_dict())
    maps = [torch.randn(2, c, 32 >> k, 40 >> k, dtype=torch.float64) for k, c in enumerate((4, 6, 8, 10))]
    found, expected = (gradients(each._forward_feature, each, maps) for each in (ours, usual))
    for own, right in zip(found, expected):
        if right is not None:  # the classifier has no part in it
            torch.testing.assert_close(own, right, rtol=1e-10, atol=1e-10)
    means = [each.fpn_bottleneck.bn.running_mean for each in (ours, usual)]
    torch.testing.assert_close(*means, rtol=1e-10, atol=1e-12)


def test_tensors_are_on_the_device_of_the_maps(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(fusion, 'MOST', 100)
    maps = [torch.empty(2, c, *size) for c, size in zip(CHANNELS, SIZES)]
    _, ours = pair((3, 3), dtype=torch.float32)
    added, real = [], torch.baddbmm
    monkeypatch.setattr(torch, 'baddbmm', lambda *a: added.append(a) or real(*a))
    with FakeTensorMode(allow_non_fake_inputs=True):  # has CUDA's rules without its hardware
        for dtype in (torch.float32, torch.bfloat16):  # products in float32 are no TF32, as convolutions are
            kind = dict(dtype=dtype, device='cuda')
            ours.weight, ours.bias = (nn.Parameter(torch.empty(p.shape, **kind)) for p in ours.parameters())
            maps = [torch.empty(m.shape, **kind) for m in maps]
            found = ours(tuple(maps))
            assert (found.device.type, found.shape) == ('cuda', (2, 7, 13, 17))
            assert len(added) == (dtype == torch.bfloat16)
        with pytest.raises(RuntimeError, match='device'):
            ours((maps[0], *(torch.empty(m.shape) for m in maps[1:])))


def test_matrices_made_for_inference_serve_training():
    kind = torch.float32, torch.device('cpu')
    shares.cache_clear()
    with torch.inference_mode():
        shares(3, 7, 1, False, *kind)
    assert not shares(3, 7, 1, False, *kind).is_inference()


def test_other_heads_stay():
    heads = pytest.importorskip('mmseg.models.decode_heads')

    class Own(heads.UPerHead):
        def psp_forward(self, inputs):
            return self.bottleneck(torch.cat([inputs[-1], *self.psp_modules(inputs[-1])], 1))

    circular = head()
    circular.fpn_bottleneck.conv.padding_mode = 'reflect'
    first = head()
    first.bottleneck.order = ('norm', 'act', 'conv')
    pooling = head()
    pooling.psp_modules.__class__ = type('PPM', (type(pooling.psp_modules),), {})
    cnn = pytest.importorskip('mmcv.cnn')
    parts, kind = [head() for _ in range(5)], type(first.bottleneck)
    parts[0].fpn_bottleneck = cnn.DepthwiseSeparableConvModule(32, 8, 3, padding=1)
    parts[1].bottleneck = nn.Sequential(parts[1].bottleneck, nn.Dropout(0.1))
    parts[2].bottleneck.__class__ = type('Own', (kind,), {})
    parts[3].psp_modules.align_corners = True
    parts[4].bottleneck.turn_on_efficient_conv_bn_eval()
    others = head(Own), circular, first, pooling, *parts, nn.Linear(2, 2)
    assert [use_small_maps(each) for each in others] == [0] * 10
    assert type(circular.bottleneck.conv) is nn.Conv2d


def test_a_changed_head_is_pickled_and_copied_whole():
    usual = head()
    save_work(usual, 'cpu')
    maps = [torch.randn(2, c, 32 >> k, 40 >> k, dtype=torch.float64) for k, c in enumerate((4, 6, 8, 10))]
    expected = usual.eval()(maps)
    for other in (pickle.loads(pickle.dumps(usual)), copy.deepcopy(usual)):
        assert torch.equal(other(maps), expected)
        assert type(other).loss_by_feat is type(usual).loss_by_feat
        assert type(other)._forward_feature is type(usual)._forward_feature
        assert save_work(other, 'cpu') == []
