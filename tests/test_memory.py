"""The memory that tools/dev/memory.py counts: by hand, and by CUDA's own counters where there is a GPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from convnext_backbone import ConvNeXt
from convnext_backbone.contest import DROP_PATH, Cell, ours, random_weights
from convnext_backbone.contest.backbones import Contestant
from convnext_backbone.plan import Line
from tools.dev.memory import CONTEXT, SIDES, count, fixed_bytes, largest, lines_of

WIDTH = 32


class Mlp(nn.Module):
    """Two linear layers over channels with GELU between, (N, 32, H, W) -> list of one map."""

    def __init__(self, again: bool = False):
        super().__init__()
        self.first, self.second, self.again = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), again

    def body(self, x):
        return self.second(functional.gelu(self.first(x)))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return [checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)]


def test_what_an_mlp_keeps_by_hand():
    """8 x 16 x 16 positions: before and after GELU, 4 x 32 channels each, the output, 32, for the square."""
    images = torch.randn(8, WIDTH, 16, 16).contiguous(memory_format=torch.channels_last)
    positions = 8 * 16 * 16
    found = count(Mlp(), images, False)
    assert found.kept == 4 * positions * (4 * WIDTH + 4 * WIDTH + WIDTH) + 4  # and the loss, a number
    assert found.peak >= found.kept
    half = count(Mlp(), images.detach(), True)
    weights = 2 * 2 * 4 * WIDTH * WIDTH + 2 * 5 * WIDTH  # in bfloat16; the loss squares in float32
    kept = 2 * positions * (WIDTH + 4 * WIDTH + 4 * WIDTH) + 4 * positions * WIDTH
    assert kept <= half.kept <= kept + weights + 2 * positions * WIDTH + 4
    less = count(Mlp(again=True), images.detach(), False)
    assert less.kept == 4 * positions * WIDTH + 4  # the input is the images, which were there before
    assert less.peak >= found.kept - 4 * positions * WIDTH  # computed again


def test_counted_bytes_are_those_of_autograds_hooks(monkeypatch):
    """The benchmark counts by hooks of saved tensors."""
    monkeypatch.setitem(DROP_PATH, 'atto', 0.0)
    weights = random_weights('atto')
    cell = Cell('atto', '2x64x64', 'training', 'float32', False, 2, 'cpu')
    contestant = Contestant('ours', lambda *given: ours(*given[:2], 0.0, weights), 'NHWC', cell, weights)
    contestant.measure_memory()
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    found = count(contestant.model, images, False)
    assert (found.kept + images.nbytes) / 2**20 == pytest.approx(contestant.kept, rel=0.005)


def test_kept_bytes_are_in_proportion_to_the_pixels():
    model = ConvNeXt('atto').train()
    kept = [
        count(model, torch.randn(n, 3, side, side), False).kept for n, side in ((1, 64), (2, 64), (1, 128))
    ]
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.01) and kept[2] == pytest.approx(4 * kept[0], rel=0.01)


def test_checkpointing_keeps_less():
    weights = random_weights('atto')
    lines = [
        lines_of(ours('atto', False, 0.0, weights, with_cp=with_cp), 'float32', 'cpu')
        for with_cp in (False, True)
    ]
    assert lines[1][0].per_image < 0.4 * lines[0][0].per_image
    inputs = sum(n * dim * side**2 for n, dim, side in ((2, 40, 56), (2, 80, 28), (6, 160, 14), (2, 320, 7)))
    assert lines[1][0].per_image > 4 * inputs  # of the blocks, which are kept in any case


def test_the_prediction_by_hand():
    """1e9 parameters: weights, gradients and two moments of 4 bytes, a copy of 2 bytes."""
    assert fixed_bytes(10**9, 'float32') - CONTEXT == 16e9
    assert fixed_bytes(10**9, 'autocast') - CONTEXT == 18e9
    assert largest(80 * 2**30, fixed_bytes(10**9, 'float32'), 9e9) == int((80 * 2**30 - 16e9 - CONTEXT) / 9e9)
    assert largest(2**30, 2**31, 1.0) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here, whose counters are compared')
@pytest.mark.parametrize('again', [False, True])
def test_counted_bytes_are_those_of_cuda(again):
    images = torch.randn(8, WIDTH, 64, 64).contiguous(memory_format=torch.channels_last)
    counted = count(Mlp(again), images, False)
    measured = count(Mlp(again).cuda(), images.detach().cuda(), False)
    assert measured.kept == pytest.approx(counted.kept, rel=0.02)
    assert measured.peak == pytest.approx(counted.peak, rel=0.3)


def test_lines_are_of_images_of_a_classifier():
    """Counted at 64 x 64, given for 224 x 224."""
    assert SIDES['cpu'] == 64
    weights = random_weights('atto')
    model = ours('atto', False, 0.0, weights).train()
    kept, _ = lines_of(model, 'float32', 'cpu')
    whole = Line.through(
        1, count(model, torch.randn(1, 3, 224, 224), False).kept,
        2, count(model, torch.randn(2, 3, 224, 224), False).kept,
    )  # fmt: skip
    assert kept.per_image == pytest.approx(whole.per_image, rel=0.05)
