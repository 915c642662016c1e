"""The front door in Python: names, models by name, and what they compute beside timm."""

import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT

import convnext_backbone as cb
from convnext_backbone.checkpoint.zoo import RELEASED


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_importing_the_package_loads_nothing_heavy():
    loaded = run('import sys, convnext_backbone; print(*sys.modules)').stdout.split()
    assert 'convnext_backbone' in loaded
    assert not {'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'timm', 'torchvision'} & set(loaded)


@pytest.mark.parametrize('name', cb.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cb, name) is not None
    assert name in dir(cb)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ConvNext'"):
        cb.ConvNext  # noqa: B018


@pytest.mark.parametrize('package', ['mmengine', 'mmcv'])
def test_a_missing_package_gives_the_line_to_type(package):
    hide = f'import sys; sys.modules[{package!r}] = None; import convnext_backbone as cb; cb.Predictor'
    last = run(hide).stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"ModuleNotFoundError: {package} is not installed: pip install 'convnext_backbone[openmmlab]'"
    )


def test_a_command_without_mmengine_says_what_to_install_in_one_line():
    result = run(
        'import sys; sys.modules["mmengine"] = None; from convnext_backbone.cli import main; '
        'main(["train", "cascade_convnext_t"])'
    )
    assert result.returncode == 1
    assert result.stderr.startswith('error: mmengine is not installed: pip install')
    assert len(result.stderr.strip().splitlines()) == 1


def same_weights(theirs: torch.nn.Module, tmp_path) -> str:
    """A file of timm's weights, none of them zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    return str(tmp_path / 'timm.pth')


@pytest.mark.matrix
@pytest.mark.parametrize('name', ['convnext_atto', 'convnextv2_atto'])
def test_a_classifier_computes_what_timm_does_with_the_same_file(name, tmp_path):
    theirs = timm.create_model(name, num_classes=7).eval()
    file = same_weights(theirs, tmp_path)
    ours = cb.create_model(name, pretrained=file, num_classes=7).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_features_only_gives_the_maps_that_timm_gives(tmp_path):
    theirs = timm.create_model('convnext_atto', num_classes=7).eval()
    file = same_weights(theirs, tmp_path)
    maps = timm.create_model('convnext_atto', features_only=True)
    names = {k: k.replace('stem.', 'stem_').replace('stages.', 'stages_') for k in theirs.state_dict()}
    maps.load_state_dict({names[k]: v for k, v in torch.load(file).items() if not k.startswith('head')})
    ours = cb.create_model('convnext_atto', pretrained=file, features_only=True).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for mine, expected in zip(ours(images), maps.eval()(images), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    assert list(ours.out_channels) == maps.feature_info.channels()
    assert list(ours.out_strides) == maps.feature_info.reduction()


def test_no_classes_give_the_features_that_timm_gives(tmp_path):
    theirs = timm.create_model('convnext_atto', num_classes=0).eval()
    file = same_weights(theirs, tmp_path)
    ours = cb.create_model('convnext_atto', pretrained=file, num_classes=0).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_other_input_channels_inflate_the_stem_as_timm_does(tmp_path):
    theirs = timm.create_model('convnext_atto', num_classes=7)
    file = same_weights(theirs, tmp_path)
    own = dict(pretrained=True, pretrained_cfg_overlay=dict(file=file, num_classes=7))
    gray = timm.create_model('convnext_atto', num_classes=7, in_chans=1, **own)
    ours = cb.create_model('convnext_atto', pretrained=file, num_classes=7, in_chans=1)
    images = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), gray.eval()(images), rtol=1e-4, atol=1e-4)


def test_released_weights_by_name_make_the_model_they_are_of(tmp_path, monkeypatch):
    """The files cannot be downloaded here: one of the right names and shapes lies in the weights folder."""
    monkeypatch.setenv('CONVNEXT_WEIGHTS', str(tmp_path))
    made = cb.create_model('convnext_tiny', num_classes=1000)
    names = cb.Classifier.checkpoint_names(made.state_dict())
    tensors = {official: made.state_dict()[own] for own, official in names.items()}
    torch.save(dict(model=tensors), tmp_path / 'convnext_tiny_1k_224_ema.pth')
    loaded = cb.create_model('convnext_tiny', pretrained=True)
    torch.testing.assert_close(loaded.state_dict(), made.state_dict())
    fresh = cb.create_model('convnext_tiny_1k_224_ema', pretrained=True, num_classes=5)
    assert fresh.head.weight.shape == (5, 768)
    torch.testing.assert_close(fresh.backbone.state_dict(), made.backbone.state_dict())


def test_every_listed_model_is_built():
    for name in cb.list_models():
        with torch.device('meta'):
            assert cb.create_model(name, features_only=True).out_strides == (4, 8, 16, 32)
    assert 'convnext_tiny' in cb.list_models()
    v2 = ['atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge']
    assert cb.list_models('convnextv2_*') == [f'convnextv2_{size}' for size in v2]


def test_every_released_name_has_its_model_and_names_match_a_pattern():
    assert set(cb.list_pretrained()) == set(RELEASED)
    assert cb.list_pretrained('*_tiny_22k_1k_384') == ['convnext_tiny_22k_1k_384']


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (dict(name='convnext_tinny'), "did you mean 'convnext_tiny'"),
        (dict(name='convnext_atto', pretrained=True), 'never released'),
        (dict(name='convnext_tiny', drop_path=0.1), "does not know drop_path; did you mean 'drop_path_rate'"),
        (dict(name='convnext_tiny', pretrained='no/such.pth'), 'no file of weights at no/such.pth'),
    ],
)
def test_a_wrong_call_is_one_line_with_what_is_near(arguments, said):
    with pytest.raises(cb.UserError, match=said):
        cb.create_model(**arguments)


def test_weights_of_a_file_say_how_many_classes_there_are(tmp_path):
    made = cb.create_model('convnext_atto', num_classes=10)
    torch.save(made.state_dict(), tmp_path / 'ten.pth')
    assert cb.create_model('convnext_atto', pretrained=tmp_path / 'ten.pth').head.out_features == 10
    fresh = cb.create_model('convnext_atto', pretrained=tmp_path / 'ten.pth', num_classes=5)
    assert fresh.head.out_features == 5
    features = cb.create_model('convnext_atto', pretrained=tmp_path / 'ten.pth', num_classes=0)
    torch.testing.assert_close(features.backbone.state_dict(), made.backbone.state_dict())


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(device='gpu'), "device must be one of cpu, cuda, got 'gpu'"),
        (dict(device='cpu', launcher='mpi'), 'launcher must be one of none, pytorch, slurm'),
    ],
)
def test_a_wrong_option_of_a_training_is_one_line(options, said):
    with pytest.raises(cb.UserError, match=said):
        cb.train('classifier_shapes', **options)


def test_a_missing_mmdet_is_said_before_anything_is_built():
    result = run(
        'import sys; sys.modules["mmdet"] = None; from convnext_backbone.cli import main; '
        'main(["flops", "mask_rcnn_convnext_t"])'
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith('error: mmdet is not installed: pip install')


def test_a_classifier_of_the_new_style_is_known_by_its_class():
    from convnext_backbone.config import task_of

    assert task_of(dict(type=cb.Classifier)) == 'classification'
    assert task_of(torch.nn.Module()) == 'other'
