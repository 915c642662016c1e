"""The masked autoencoder: what it computes is a sparse convolution, and nothing hidden is ever seen."""

import cv2
import numpy as np
import pytest
import torch
from conftest import tool
from torch import distributed

from convnext_backbone import complexity
from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.checks import check_model
from convnext_backbone.config import read_config
from convnext_backbone.engine.launch import shard
from convnext_backbone.errors import UserError
from convnext_backbone.export import Network
from convnext_backbone.findings import Findings
from convnext_backbone.plan import largest_shape
from convnext_backbone.plan.steps import batch_of
from convnext_backbone.pretraining import FCMAE
from convnext_backbone.pretraining.masks import Hidden

SMALL = dict(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10))


def autoencoder(arch: str = 'v2_atto', **options) -> FCMAE:
    """A small one in float64, with values in every parameter."""
    torch.manual_seed(0)
    backbone = dict(type='convnext_backbone.ConvNeXt', arch=arch, **SMALL)
    model = FCMAE(backbone, decoder_dim=12, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


def images(number: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(
        number, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def hidden(*rows: str) -> Hidden:
    """Patches by letters, one word for each image: x is hidden, lines are separated by /."""
    return Hidden(torch.tensor([[[c == 'x' for c in line] for line in row.split('/')] for row in rows]))


# A sparse convolution by hand: visible positions in a dict, in numpy


def norm(v: np.ndarray, layer) -> np.ndarray:
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    return (v - v.mean()) / np.sqrt(v.var() + 1e-6) * weight + bias


def sparse_block(block, sites: dict) -> dict:
    kernel, bias = block.dwconv.weight.detach().numpy()[:, 0], block.dwconv.bias.detach().numpy()
    hid = {}
    for y, x in sites:
        total = bias.copy()
        for dy in range(7):
            for dx in range(7):
                if (at := (y + dy - 3, x + dx - 3)) in sites:
                    total += kernel[:, dy, dx] * sites[at]
        first = block.pwconv1
        h = first.weight.detach().numpy() @ norm(total, block.norm) + first.bias.detach().numpy()
        hid[y, x] = torch.nn.functional.gelu(torch.from_numpy(h)).numpy()
    if hasattr(block.grn, 'gamma'):
        energy = np.sqrt(sum(h**2 for h in hid.values()))
        share = energy / (energy.mean() + 1e-6)
        gamma, beta = (p.detach().numpy().ravel() for p in (block.grn.gamma, block.grn.beta))
        hid = {at: gamma * h * share + beta + h for at, h in hid.items()}
    second, out = block.pwconv2, {}
    for at, h in hid.items():
        v = second.weight.detach().numpy() @ h + second.bias.detach().numpy()
        out[at] = sites[at] + (v if block.gamma is None else block.gamma.detach().numpy() * v)
    return out


def strided(conv, sites: dict, stride: int) -> dict:
    """A convolution whose windows do not overlap, where all of a window is visible."""
    kernel, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    windows = {}
    for (y, x), v in sites.items():
        windows.setdefault((y // stride, x // stride), []).append(kernel[:, :, y % stride, x % stride] @ v)
    assert {len(parts) for parts in windows.values()} == {stride**2}
    return {at: sum(parts) + bias for at, parts in windows.items()}


def sparse_encoder(backbone: ConvNeXt, image: torch.Tensor, patches: torch.Tensor) -> dict:
    pixels = image.numpy()
    sites = {
        (y, x): pixels[:, y, x]
        for y in range(pixels.shape[1])
        for x in range(pixels.shape[2])
        if not patches[y // 32, x // 32]
    }
    for i, (down, stage) in enumerate(zip(backbone.downsample_layers, backbone.stages)):
        if i == 0:
            sites = {at: norm(v, down[1]) for at, v in strided(down[0], sites, 4).items()}
        else:
            sites = strided(down[1], {at: norm(v, down[0]) for at, v in sites.items()}, 2)
        for block in stage:
            sites = sparse_block(block, sites)
    return sites


@pytest.mark.parametrize(('arch', 'gather'), [('v2_atto', True), ('v2_atto', False), ('tiny', True)])
def test_the_encoder_is_a_sparse_convolution(arch, gather):
    model, mask = autoencoder(arch, gather=gather), hidden('xo/ox')
    x = images(1, 64, 64)
    found = model.encode(x, mask)[0].detach().numpy()
    expected = sparse_encoder(model.backbone, x[0], mask.patches[0])
    assert sorted(expected) == [(0, 1), (1, 0)]
    for y, column in np.ndindex(2, 2):
        there = expected.get((y, column), np.zeros(10))
        assert np.abs(found[:, y, column] - there).max() < 1e-10 * max(1, np.abs(there).max())


MASK = hidden('xxo/oxo', 'oxx/xoo')


def test_no_hidden_pixel_reaches_a_feature_or_a_gradient():
    model, x = autoencoder(), images()
    other = torch.where(MASK.visible(32).bool(), x, 100 * torch.randn_like(x))
    weights, features = torch.randn(2, 10, 2, 3, dtype=torch.float64), []
    gradients = []
    for given in (x, other):
        model.zero_grad()
        features.append(model.encode(given, MASK))
        (features[-1] * weights).sum().backward()
        gradients.append([p.grad.clone() for p in model.backbone.parameters()])
    assert torch.equal(*features)
    assert all(map(torch.equal, *gradients))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_with_nothing_hidden_it_is_the_ordinary_network():
    model, x = autoencoder(), images()
    nothing = Hidden(torch.zeros(2, 2, 3, dtype=torch.bool))
    (expected,) = model.backbone(x)
    assert (model.encode(x, nothing) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_norm_and_mlp_at_visible_positions_alone_give_the_same_numbers_and_gradients():
    results = []
    for gather in (True, False):
        model = autoencoder(gather=gather)
        predicted = model.decode(model.encode(images(), MASK), MASK)
        model.loss(images(), predicted, MASK).backward()
        results.append([predicted.detach(), *(p.grad for p in model.parameters())])
    for fast, plain in zip(*results):
        assert (fast - plain).abs().max() <= 1e-10 * plain.abs().max()


def test_each_image_hides_the_same_number_of_patches_other_ones():
    """Of 7 x 7 patches 19 are visible, as in the official code."""
    torch.manual_seed(0)
    patches = Hidden.random(200, 7, 7, 0.6, 'cpu').patches
    assert (patches.flatten(1).sum(1) == 30).all()
    often = patches.float().mean(0)
    assert often.min() > 0.45
    assert often.max() < 0.77  # 30 / 49 = 0.61, four deviations of 0.035
    assert len({tuple(each.flatten().tolist()) for each in patches}) == 200


def test_the_loss_is_that_of_normalised_hidden_patches():
    model, x = autoencoder(), images()
    predicted = torch.randn(2, 3 * 32 * 32, 2, 3, dtype=torch.float64)
    errors = []
    for n, y, column in np.argwhere(MASK.patches.numpy()):
        patch = (
            x[n, :, 32 * y : 32 * y + 32, 32 * column : 32 * column + 32].numpy().transpose(1, 2, 0).ravel()
        )
        target = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        errors.append(((predicted[n, :, y, column].numpy() - target) ** 2).mean())
    assert len(errors) == 6
    assert model.loss(x, predicted, MASK).item() == pytest.approx(np.mean(errors), rel=1e-12)


def test_a_perfect_prediction_reconstructs_the_image(monkeypatch):
    model, x = autoencoder(), images()
    target, _, _ = model.targets(x)
    monkeypatch.setattr(model, 'decode', lambda features, mask: target.reshape(2, -1, 2, 3))
    found, seen = model.reconstruct(x, MASK)
    assert (found - x).abs().max() < 1e-12
    assert torch.equal(seen, x * MASK.visible(32))


def test_gradient_checkpointing_gives_the_same_gradients_from_half_the_memory():
    gradients, kept = [], []
    for with_cp in (False, True):
        model, saved = autoencoder(), []
        model.backbone.with_cp = with_cp

        def keep(x, saved=saved):
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            features = model.encode(images(), MASK)
        features.square().sum().backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
        kept.append(sum(saved))
    assert all(map(torch.equal, *gradients))
    assert kept[1] < 0.5 * kept[0]


@pytest.fixture
def one_process(tmp_path):
    """A group of processes that has one member, as FSDP needs."""
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_divided_autoencoder_computes_the_same(one_process):
    found = []
    for divided in (False, True):
        model = autoencoder()
        if divided:
            shard(model, 'cpu')
        torch.manual_seed(0)
        model(images(), mode='loss')['loss'].backward()
        gradients = [p.grad.full_tensor() if divided else p.grad for p in model.parameters()]
        torch.manual_seed(0)
        found.append([*gradients, *model(images())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize('patch_size', [32, 64])
def test_patches_may_be_larger_than_a_position(patch_size):
    model = autoencoder(patch_size=patch_size)
    loss = model(images(2, 128, 128), mode='loss')['loss']
    assert loss.isfinite()
    assert model(images(2, 128, 128))[0].shape == (2, 3, 128, 128)


def test_what_cannot_be_meant_is_refused():
    backbone = dict(type='convnext_backbone.ConvNeXt', arch='v2_atto')
    for options, words in (
        (dict(mask_ratio=1.0), 'between 0 and 1, got 1.0'),
        (dict(patch_size=48), 'multiple of 32 pixels, got 48'),
    ):
        with pytest.raises(UserError, match=words):
            FCMAE(backbone, **options)
    with pytest.raises(UserError, match='of stride 32'):
        FCMAE(dict(backbone, output_stride=16))
    with pytest.raises(UserError, match=r'multiples of 32, got 64 x 70'):
        autoencoder()(images(1, 64, 70), mode='loss')
    with pytest.raises(UserError, match='leaves none of 1 x 1 patches'):
        autoencoder()(images(1, 32, 32), mode='loss')


def test_multiply_adds_are_those_of_the_network_and_of_three_layers_and_a_block():
    """By hand: the decoder on 7 x 7 positions, 320 channels in, 512 within, 3 * 32 ** 2 out."""
    counted = complexity.measure(read_config('fcmae_convnext_v2_atto'))
    network = complexity.measure(read_config('convnext_v2_atto_in1k')).macs['backbone']
    decoder = 49 * (320 * 512 + (49 + 2 * 4 * 512) * 512 + 512 * 3 * 32**2)
    assert counted.macs == dict(backbone=network, decoder=decoder)


COMMANDS = {  # what a pretraining is no config for, and words of the one line that says so
    'test': ('fcmae_convnext_v2_atto CHECKPOINT', 'test_dataloader'),
    'infer': ('fcmae_convnext_v2_atto CHECKPOINT docs/predictions.jpg --out OUT', 'predicts nothing'),
    'serve': ('fcmae_convnext_v2_atto CHECKPOINT', 'predicts nothing'),
    'robustness': ('fcmae_convnext_v2_atto CHECKPOINT', 'test_dataloader'),
    'swap': ('fcmae_convnext_v2_atto --arch tiny', 'chosen by model.backbone.arch'),
}


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_that_needs_predictions_says_so_in_one_line(name, tmp_path):
    arguments, words = COMMANDS[name]
    file = tmp_path / 'epoch_1.pth'
    file.touch()
    given = arguments.replace('CHECKPOINT', str(file)).replace('OUT', str(tmp_path / 'out'))
    with pytest.raises(UserError) as caught:
        tool(name).main(given.split())
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('part', ['whole', 'backbone'])
def test_an_autoencoder_is_not_exported(part):
    with pytest.raises(UserError, match='FCMAE'):
        Network(autoencoder(), part)


def test_images_that_do_not_divide_into_patches_are_found_before_the_training():
    cfg = read_config('fcmae_convnext_v2_atto')
    cfg.train_dataloader.dataset.transform.input_size = 240
    check_model(cfg, findings := Findings())
    text = (
        'train_dataloader.dataset.transform.input_size: got 240, needs a multiple of 32, the side of a patch'
    )
    assert [str(finding).startswith(text) for finding in findings.of('error')] == [True]
    cfg.train_dataloader.dataset.transform.input_size = (3, 256, 192)
    check_model(cfg, findings := Findings())
    assert findings == []


def test_a_plan_knows_the_images_of_a_pretraining():
    cfg = read_config('fcmae_convnext_v2_atto')
    assert largest_shape(cfg).size == (224, 224)
    assert batch_of(cfg, (64, 96), 3)['inputs'].shape == (3, 3, 64, 96)


def test_a_pretraining_writes_pictures_and_weights_that_a_classifier_takes(shapes, tmp_path):
    """From the command to a fine-tuning, on drawn shapes; each tensor of the encoder is in the file."""
    small = [f'model.backbone.{key}={list(value)}' for key, value in SMALL.items()]
    loader = ['num_workers=0', 'persistent_workers=False', 'pin_memory=False', 'batch_size=8']
    options = [*small, *(f'train_dataloader.{each}' for each in loader)]
    options += [
        'train_dataloader.dataset.transform.input_size=64',
        'train_cfg.max_epochs=2',
        'param_scheduler=[]',
    ]
    options += ['optim_wrapper.accumulative_counts=1', 'model.decoder_dim=16', 'custom_hooks.0.interval=1']
    data = ['--data-root', str(shapes / 'classification'), '--device', 'cpu', '--seed', '0']
    work = tmp_path / 'pretraining'
    train = tool('train').main
    config = 'configs/pretraining/fcmae_convnext_v2_atto.py'
    train([config, *data, '--work-dir', str(work), '--cfg-options', *options])
    picture = cv2.imread(str(work / 'reconstructions/epoch_2.png'))
    assert picture.shape == (8 * 64, 3 * 64, 3)
    original, seen, found = (picture[:, 64 * k : 64 * (k + 1)].astype(int) for k in range(3))
    gray = np.abs(seen - np.array([104, 116, 124])).max(2) < 3  # the mean of ImageNet: hidden
    assert 0.4 < gray.mean() < 0.9
    assert np.abs(original - found)[~gray].max() <= 3
    assert np.abs(original - found)[gray].mean() > 1

    model = ConvNeXt(
        'v2_atto',
        **SMALL,
        init_cfg=dict(type='convnext_backbone.Pretrained', checkpoint=str(work / 'epoch_2.pth')),
    )
    model.init_weights()
    state = torch.load(work / 'epoch_2.pth', weights_only=False)['state_dict']
    own = {f'backbone.{name}' for name in model.state_dict() if not name.startswith('norm')}
    assert own == {name for name in state if name.startswith('backbone.')}
    assert all(
        torch.equal(value, state[f'backbone.{name}'])
        for name, value in model.state_dict().items()
        if not name.startswith('norm')
    )
