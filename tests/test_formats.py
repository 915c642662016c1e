"""Weights of other libraries: recognised by their keys, equal outputs, and back again bit by bit."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import tool
from mmengine.registry import MODELS, init_default_scope
from torchvision.models.convnext import CNBlockConfig

from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.checkpoint import CheckpointMismatch, load_checkpoint, load_trained, read_checkpoint
from convnext_backbone.checkpoint.formats import FAMILIES, from_released, to_released
from convnext_backbone.checkpoint.networks import tensors_of
from convnext_backbone.classification import Classifier
from convnext_backbone.config import read_config
from convnext_backbone.errors import UserError

# As dinov3/models/convnext.py calls the tensors of a stage's block, with shapes for C channels.
DINOV3_BLOCK = {
    'dwconv.weight': ('C', 1, 7, 7),
    'dwconv.bias': ('C',),
    'norm.weight': ('C',),
    'norm.bias': ('C',),
    'pwconv1.weight': ('4C', 'C'),
    'pwconv1.bias': ('4C',),
    'pwconv2.weight': ('C', '4C'),
    'pwconv2.bias': ('C',),
    'gamma': ('C',),
}
DEPTHS, DIMS = (1, 2, 3, 1), (8, 16, 24, 32)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of order one everywhere, so that no part is without effect; float64."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model.double().eval()


def timm_v1(**kwargs):
    import timm

    return timm.create_model('convnext_tiny', depths=DEPTHS, dims=DIMS, num_classes=5, **kwargs)


def open_clip(head: str):
    """A CLIP of open_clip with an image tower of timm, and its text tower; ``head`` as in its configs."""
    library = pytest.importorskip('open_clip', reason='pip install open_clip_torch')
    model = library.CLIP(
        embed_dim=6,
        vision_cfg=dict(timm_model_name='convnext_atto', timm_pool='', timm_proj=head, image_size=64),
        text_cfg=dict(context_length=4, vocab_size=8, width=6, heads=2, layers=1),
    )
    trunk = timm_v1()
    trunk.reset_classifier(0, '')
    model.visual.trunk = trunk
    return model


def authors_file(eupe: bool) -> dict[str, torch.Tensor]:
    """Random tensors as the files of facebookresearch/dinov3 and facebookresearch/EUPE name them."""
    torch.manual_seed(0)
    shapes = {'norm.weight': (DIMS[3],), 'norm.bias': (DIMS[3],)}
    for i, (depth, dim) in enumerate(zip(DEPTHS, DIMS)):
        conv, norm, before = (0, 1, 3) if i == 0 else (1, 0, DIMS[i - 1])
        side, normed = (4, dim) if i == 0 else (2, before)
        shapes[f'downsample_layers.{i}.{conv}.weight'] = (dim, before, side, side)
        shapes[f'downsample_layers.{i}.{conv}.bias'] = (dim,)
        shapes |= {f'downsample_layers.{i}.{norm}.{p}': (normed,) for p in ('weight', 'bias')}
        sizes = {'C': dim, '4C': 4 * dim}
        for j, (name, shape) in itertools.product(range(depth), DINOV3_BLOCK.items()):
            shapes[f'stages.{i}.{j}.{name}'] = tuple(sizes.get(size, size) for size in shape)
    tensors = {
        name: torch.randn(shape, dtype=torch.float64) * 0.3 + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    # self.norms.append(self.norm)
    tensors |= {f'norms.3.{p}': tensors[f'norm.{p}'] for p in ('weight', 'bias')}
    return tensors | ({'projectors.0.0.weight': torch.ones(4, DIMS[3])} if eupe else {})


def authors_model(eupe: bool):
    """timm's network, filled by timm from a file of the authors; its ``file`` is what is to be loaded."""
    from timm.models.convnext import checkpoint_filter_fn

    file, model = authors_file(eupe), timm_v1().double()
    model.reset_classifier(0)
    model.load_state_dict(checkpoint_filter_fn(dict(file), model))
    model.file = file
    return model


def timm_v2():
    import timm

    return timm.create_model('convnextv2_tiny', depths=DEPTHS, dims=DIMS, num_classes=5)


def torchvision_v1():
    widths = (*DIMS, None)
    blocks = [CNBlockConfig(dim, after, depth) for dim, after, depth in zip(DIMS, widths[1:], DEPTHS)]
    return torchvision.models.ConvNeXt(blocks, num_classes=5)


def hugging_face(kind: str):
    transformers = pytest.importorskip('transformers')
    if kind == 'DINOv3ConvNext':
        config = transformers.DINOv3ConvNextConfig(depths=list(DEPTHS), hidden_sizes=list(DIMS))
        return transformers.DINOv3ConvNextModel(config)
    config = getattr(transformers, f'{kind}Config')(
        depths=list(DEPTHS), hidden_sizes=list(DIMS), num_labels=5, layer_norm_eps=1e-6
    )
    return getattr(transformers, f'{kind}ForImageClassification')(config)


# name: network, family, V2, how its logits and its stage maps are asked for
def call(model, x):
    return model(x)


LIBRARIES = {
    'timm': (timm_v1, 'timm', False, call),
    'timm with convolutions in place of linear layers': (lambda: timm_v1(conv_mlp=True), 'timm', False, call),
    'timm V2': (timm_v2, 'timm', True, call),
    'torchvision': (torchvision_v1, 'torchvision', False, call),
    'Hugging Face': (lambda: hugging_face('ConvNext'), 'hf', False, lambda m, x: m(x).logits),
    'Hugging Face V2': (lambda: hugging_face('ConvNextV2'), 'hf_v2', True, lambda m, x: m(x).logits),
}


def ours(v2: bool, **kwargs) -> dict:
    return dict(
        type='convnext_backbone.ConvNeXt',
        arch='v2_tiny' if v2 else 'tiny',
        depths=DEPTHS,
        dims=DIMS,
        **kwargs,
    )


@pytest.mark.parametrize('library', LIBRARIES)
def test_logits_are_those_of_the_library_the_weights_are_from(library, tmp_path):
    build, family, v2, logits = LIBRARIES[library]
    theirs = randomise(build())
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    model = Classifier(ours(v2), 5).double().eval()
    report = load_checkpoint(model, tmp_path / 'theirs.pth')
    assert f', {family})' in report.file
    assert report.skipped == report.fresh == []
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = logits(theirs, x)
        assert expected.std() > 0.1
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def timm_maps(model, x) -> list[torch.Tensor]:
    return model.forward_intermediates(x, intermediates_only=True)


def torchvision_maps(model, x) -> list[torch.Tensor]:
    found = []
    for i, part in enumerate(model.features):
        x = part(x)
        found += [x] if i % 2 else []
    return found


def hugging_face_maps(model, x) -> list[torch.Tensor]:
    return model(x, output_hidden_states=True).hidden_states[1:]


MAPS = {
    'timm': (timm_v1, False, timm_maps),
    'timm with convolutions in place of linear layers': (lambda: timm_v1(conv_mlp=True), False, timm_maps),
    'timm V2': (timm_v2, True, timm_maps),
    'torchvision': (torchvision_v1, False, torchvision_maps),
    'Hugging Face': (
        lambda: hugging_face('ConvNext'),
        False,
        lambda model, x: hugging_face_maps(model.convnext, x),
    ),
    'Hugging Face V2': (
        lambda: hugging_face('ConvNextV2'),
        True,
        lambda model, x: hugging_face_maps(model.convnextv2, x),
    ),
    'DINOv3': (lambda: hugging_face('DINOv3ConvNext'), False, hugging_face_maps),
    'DINOv3 of its authors': (lambda: authors_model(eupe=False), False, timm_maps),
    'EUPE of its authors': (lambda: authors_model(eupe=True), False, timm_maps),
    'open_clip': (lambda: open_clip('linear'), False, lambda m, x: timm_maps(m.visual.trunk, x)),
    'open_clip with a head of two layers': (
        lambda: open_clip('mlp'),
        False,
        lambda m, x: timm_maps(m.visual.trunk, x),
    ),
}


def saved(theirs: torch.nn.Module, folder: Path) -> Path:
    """A file of a model's weights; of one that was filled from a file, that."""
    torch.save(getattr(theirs, 'file', None) or theirs.state_dict(), folder / 'theirs.pth')
    return folder / 'theirs.pth'


@pytest.mark.parametrize(('build', 'v2', 'maps_of'), MAPS.values(), ids=MAPS)
def test_stage_maps_are_those_of_the_library(build, v2, maps_of, tmp_path):
    theirs = build()
    theirs = theirs.eval() if hasattr(theirs, 'file') else randomise(theirs)
    model = ConvNeXt(**{k: v for k, v in ours(v2).items() if k != 'type'}, output_norm=False).double().eval()
    load_checkpoint(model, saved(theirs, tmp_path))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for found, expected in zip(model(x), maps_of(theirs, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('source', ['DINOv3', 'DINOv3 of its authors', 'EUPE of its authors', 'open_clip'])
def test_the_weights_of_today_load_into_a_detector_strictly(source, tmp_path):
    """In float32, and beside them in the file whatever is not the image's network: named as left out."""
    build, _, maps_of = MAPS[source]
    theirs = build()
    theirs = (theirs if hasattr(theirs, 'file') else randomise(theirs)).float().eval()
    cfg = read_config('detection/mask_rcnn_convnext_t.py')
    init = dict(type='convnext_backbone.Pretrained', checkpoint=str(saved(theirs, tmp_path)))
    cfg.model.backbone.update(depths=DEPTHS, dims=DIMS, drop_path_rate=0.0, output_norm=False, init_cfg=init)
    cfg.model.neck.update(in_channels=list(DIMS), out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    init_default_scope(cfg.default_scope)
    backbone = MODELS.build(cfg.model).backbone.eval()
    backbone.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(backbone(x), maps_of(theirs, x), strict=True):
            assert (found - expected).norm() / expected.norm() < 1e-4
    report = load_checkpoint(backbone, tmp_path / 'theirs.pth')
    left_out = {'DINOv3': 2, 'DINOv3 of its authors': 4, 'EUPE of its authors': 5, 'open_clip': 21}[source]
    assert len(report.skipped) == left_out
    assert ('outside visual.trunk.' in report.skip) == (source == 'open_clip')
    torch.save(dict(torch.load(tmp_path / 'theirs.pth'), odd=torch.ones(1)), tmp_path / 'more.pth')
    if source.endswith('authors'):  # in the others it lies outside the network
        with pytest.raises(CheckpointMismatch, match='unexpected    1   odd'):
            load_checkpoint(backbone, tmp_path / 'more.pth')


def test_pooled_features_of_the_authors_files_are_timms(tmp_path):
    theirs = authors_model(eupe=True).float().eval()
    model = Classifier(ours(False), 0).eval()
    assert ', official DINOv3)' in load_checkpoint(model, saved(theirs, tmp_path)).file
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_what_only_the_pretraining_has_is_named_and_left_out_of_a_converted_file(tmp_path, capsys):
    theirs = authors_model(eupe=True)
    out = tmp_path / 'timm.safetensors'
    tool('convert').main([str(saved(theirs, tmp_path)), '--to', 'timm', '--out', str(out)])
    said = capsys.readouterr().out
    assert 'left out, of the pretraining alone: 3 tensors (norms.3.weight, norms.3.bias, projectors' in said
    assert 'official DINOv3' in said
    theirs.load_state_dict(read_checkpoint(out))  # strictly


@pytest.mark.parametrize('family', ['timm', 'torchvision', 'hf', 'official', 'mmpretrain'])
def test_a_classifier_is_tested_and_exported_from_a_file_of_any_family(family, tmp_path):
    """``load_trained``, by which tools/test.py, export.py and robustness.py load."""
    model, again = randomise(Classifier(ours(False), 5)), Classifier(ours(False), 5).double()
    released = released_names(model)
    torch.save(from_released(released, family), tmp_path / 'a.pth')
    report = load_trained(again, read_checkpoint(tmp_path / 'a.pth'), tmp_path / 'a.pth')
    assert f', {family})' in report.file
    assert len(report.loaded) == len(released)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize('library', LIBRARIES)
def test_a_round_trip_changes_no_bit_of_names_shapes_and_values(library):
    build, family, _, _ = LIBRARIES[library]
    theirs = randomise(build()).state_dict()
    found, released = to_released(theirs)
    assert found == family
    back = from_released(released, family)
    assert list(back) == list(theirs)
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


def released_names(model: Classifier) -> dict:
    return {name.removeprefix('backbone.'): t for name, t in model.state_dict().items()}


INEXPRESSIBLE = [('torchvision', True), ('hf', True), ('hf_dinov3', True), ('hf_v2', False)]  # family, V2


@pytest.mark.parametrize(('family', 'v2'), INEXPRESSIBLE)
def test_a_format_that_cannot_express_ours_is_refused(family, v2):
    with pytest.raises(UserError, match=f'{family} has no name for'):
        from_released(released_names(randomise(Classifier(ours(v2), 5))), family)


@pytest.mark.parametrize(
    ('family', 'v2'),
    [pair for pair in itertools.product(FAMILIES, (False, True)) if pair not in INEXPRESSIBLE],
)
def test_ours_come_back_from_every_format_that_can_express_them(family, v2, tmp_path):
    model = randomise(Classifier(ours(v2), 5))
    released = released_names(model)
    torch.save(from_released(released, family), tmp_path / 'a.pth')
    again = Classifier(ours(v2), 5).double()
    assert f', {family})' in load_checkpoint(again, tmp_path / 'a.pth').file
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_mmpretrain_final_norm_and_output_norms_are_told_apart(tmp_path):
    """Its classifier calls the final norm norm3; in a detector norm0 ... norm3 belong to the maps."""
    released = {
        n.removeprefix('backbone.'): t for n, t in randomise(Classifier(ours(False), 5)).state_dict().items()
    }
    names = from_released(released, 'mmpretrain')
    assert 'backbone.norm3.weight' in names
    assert 'backbone.stages.0.0.depthwise_conv.weight' in names
    dense = randomise(ConvNeXt(depths=DEPTHS, dims=DIMS))
    detector = {'neck.x': torch.ones(1)}
    for name, tensor in dense.state_dict().items():
        name = name.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv')
        detector[f'backbone.{name}'] = tensor
    torch.save(dict(state_dict=detector, meta={}), tmp_path / 'detector.pth')
    fresh = ConvNeXt(depths=DEPTHS, dims=DIMS).double()
    report = load_checkpoint(fresh, tmp_path / 'detector.pth')
    assert report.fresh == []
    assert report.skipped == ['neck.x']
    assert all(torch.equal(t, fresh.state_dict()[name]) for name, t in dense.state_dict().items())


def test_fcmae_sparse_layers_become_dense():
    """(taps, channels), taps column by column, as MinkowskiEngine keeps them; by hand on a 2x2 kernel."""
    kernel = torch.arange(4.0 * 3 * 2).view(4, 3, 2)  # (taps, in, out)
    depthwise = torch.arange(49.0 * 8).view(49, 8)
    file = {
        'encoder.downsample_layers.1.1.kernel': kernel,
        'encoder.downsample_layers.1.1.bias': torch.ones(1, 2),
        'encoder.downsample_layers.1.0.ln.weight': torch.ones(3),
        'encoder.stages.0.0.dwconv.kernel': depthwise,
        'encoder.stages.0.0.pwconv1.linear.weight': torch.ones(32, 8),
        'encoder.stages.0.0.grn.gamma': torch.ones(1, 32),
        'decoder.0.dwconv.weight': torch.ones(1),
    }
    family, found = to_released(file)
    assert family == 'official FCMAE'
    weight = found['downsample_layers.1.1.weight']
    assert weight.shape == (2, 3, 2, 2)
    # tap 1 lies below tap 0, tap 2 to the right of it
    assert weight[1, 2, 1, 0] == kernel[1, 2, 1]
    assert weight[1, 2, 0, 1] == kernel[2, 2, 1]
    dense = found['stages.0.0.dwconv.weight']
    assert dense.shape == (8, 1, 7, 7)
    assert dense[5, 0, 3, 2] == depthwise[2 * 7 + 3, 5]
    assert found['downsample_layers.1.1.bias'].shape == (2,)
    assert 'decoder.0.dwconv.weight' in found
    assert {'downsample_layers.1.0.weight', 'stages.0.0.pwconv1.weight', 'stages.0.0.grn.gamma'} < set(found)


def test_clip_image_towers_and_wrappers_are_unwrapped(tmp_path):
    theirs = randomise(timm_v1()).state_dict()
    tower = {f'visual.trunk.{n}': t for n, t in theirs.items() if not n.startswith('head.fc')}
    tower |= {
        'visual.head.proj.weight': torch.ones(2),
        'transformer.x': torch.ones(2),
        'logit_scale': torch.ones(()),
    }
    wrapped = {f'module.{name}': tensor for name, tensor in tower.items()}
    torch.save(dict(epoch=3, state_dict=wrapped), tmp_path / 'clip.pth')
    model = ConvNeXt(depths=DEPTHS, dims=DIMS).double()
    report = load_checkpoint(model, tmp_path / 'clip.pth')
    assert set(report.skipped) >= {'visual.head.proj.weight', 'transformer.x', 'logit_scale'}
    assert torch.equal(model.stages[2][1].dwconv.weight, theirs['stages.2.blocks.1.conv_dw.weight'])
    nested = dict(teacher=dict(model={'a': torch.ones(1)}), model_ema={'a': torch.zeros(1)})
    assert tensors_of(nested, 'f')['a'] == 1  # teacher before model_ema, and what is in it


def test_a_network_that_is_none_of_these_is_listed_as_unexpected(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'r.pth')
    with pytest.raises(CheckpointMismatch, match='unexpected'):
        load_checkpoint(ConvNeXt(depths=DEPTHS, dims=DIMS), tmp_path / 'r.pth')
    with pytest.raises(UserError, match="got 'jax'"):
        from_released({}, 'jax')


def test_the_size_is_named_whatever_the_format(tmp_path):
    import timm

    torch.save(timm.create_model('convnext_nano').state_dict(), tmp_path / 'nano.pth')
    with pytest.raises(CheckpointMismatch) as error:
        load_checkpoint(ConvNeXt('pico'), tmp_path / 'nano.pth')
    assert re.search(r"those of arch='nano'\.", str(error.value))
    assert read_checkpoint(tmp_path / 'nano.pth')


def converted(model: Classifier, target: str, folder: Path) -> Path:
    torch.save(dict(state_dict=model.state_dict()), folder / 'ours.pth')
    arguments = [str(folder / 'ours.pth'), '--to', target, '--out', str(folder / f'{target}.pth')]
    out = tool('convert').main(arguments)
    with pytest.raises(UserError, match='exists: remove it'):
        tool('convert').main(arguments)
    return out


@pytest.mark.parametrize(
    ('target', 'library'), [('timm', 'timm'), ('torchvision', 'torchvision'), ('hf', 'Hugging Face')]
)
def test_the_converter_writes_files_that_the_library_loads(target, library, tmp_path, capsys):
    model = randomise(Classifier(ours(False), 5))
    out = converted(model, target, tmp_path)
    assert 'ours.pth (official, a size of its own) ->' in capsys.readouterr().out
    build, _, _, logits = LIBRARIES[library]
    theirs = build().double().eval()
    theirs.load_state_dict(torch.load(out), strict=True)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(logits(theirs, x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('target', ['official', 'mmpretrain', 'safetensors'])
def test_the_converter_writes_files_that_we_load(target, tmp_path, capsys):
    model, again = randomise(Classifier(ours(False), 5)), Classifier(ours(False), 5).double()
    load_checkpoint(again, converted(model, target, tmp_path))
    assert 'ours.pth (official, a size of its own) ->' in capsys.readouterr().out
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_the_converter_refuses_what_cannot_be_expressed_and_leaves_nothing(tmp_path):
    torch.save(randomise(Classifier(ours(True), 5)).state_dict(), tmp_path / 'v2.pth')
    for arguments, words in (
        (['--to', 'torchvision'], 'torchvision has no name for 14 of the 90 tensors'),
        (['--to', 'timm', '--out', 'a.bin'], 'must end in .pth or .safetensors'),
        (['--to', 'timm', '--out', str(tmp_path / 'no/a.pth')], 'cannot write'),
        (['--to', 'timm', '--weights', 'ema'], 'holds no moving average'),
    ):
        with pytest.raises(UserError, match=words):
            tool('convert').main([str(tmp_path / 'v2.pth'), *arguments])
    assert [file.name for file in tmp_path.iterdir()] == ['v2.pth']


def test_tensors_that_are_no_numbers_are_named(tmp_path):
    state = ConvNeXt(depths=DEPTHS, dims=DIMS, output_norm=False).state_dict()
    state['stages.1.0.gamma'][2] = float('nan')
    state['stages.2.1.dwconv.weight'][0] = float('inf')
    torch.save(state, tmp_path / 'a.pth')
    model = ConvNeXt(depths=DEPTHS, dims=DIMS)
    before = model.stages[0][0].gamma.clone()
    with pytest.raises(
        CheckpointMismatch, match=r'2 of \d+ tensors: stages.1.0.gamma, stages.2.1.dwconv.weight'
    ):
        load_checkpoint(model, tmp_path / 'a.pth')
    assert torch.equal(before, model.stages[0][0].gamma)
