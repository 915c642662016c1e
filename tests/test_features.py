"""Features of images: those of timm, in whole files, with names and labels; scores beside scikit-learn's."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import tool
from PIL import Image
from safetensors import safe_open
from test_labels import make_image
from timm.data import create_transform

from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.checkpoint import zoo
from convnext_backbone.errors import UserError
from convnext_backbone.features import LinearProbe, knn, linear_probe, sets

SIZES = {'a.png': (96, 70), 'deep/b.png': (65, 130), 'deep/c.png': (64, 64)}


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    """timm's network with weights of order one, and a file of them."""
    torch.manual_seed(0)
    model = timm.create_model('convnext_atto', num_classes=7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = tmp_path_factory.mktemp('net') / 'timm.pth'
    torch.save(model.state_dict(), file)
    return model.eval(), file


@pytest.fixture
def images(tmp_path):
    for seed, (name, size) in enumerate(SIZES.items()):
        make_image(tmp_path / 'images' / name, size, seed)
    return tmp_path / 'images'


def features(*arguments) -> None:
    tool('features').main([*map(str, arguments), '--device', 'cpu'])


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(file, 'pt') as content:
        tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
        return tensors, {key: json.loads(value) for key, value in content.metadata().items()}


def theirs(model, images: Path, size: int, share: float, **options) -> torch.Tensor:
    """What timm gives for each image that timm has prepared."""
    options |= dict(is_training=False, interpolation='bicubic')
    prepare = create_transform(input_size=size, crop_pct=share, **options)
    pictures = [prepare(Image.open(images / name).convert('RGB')) for name in SIZES]
    with torch.no_grad():
        return torch.stack(pictures), model.forward_features(torch.stack(pictures))


def test_pooled_features_are_timms(net, images, tmp_path):
    model, file = net
    features(file, images / 'a.png', images / 'deep', '--size', 64, '--out', tmp_path / 'f.safetensors')
    tensors, facts = read(tmp_path / 'f.safetensors')
    _, maps = theirs(model, images, 64, 0.875)
    expected = model.forward_head(maps, pre_logits=True).detach()
    assert expected.std() > 0.1
    torch.testing.assert_close(tensors['features'], expected, rtol=1e-4, atol=1e-4)
    assert facts['names'] == list(SIZES)
    assert (facts['arch'], facts['size'], facts['stage'], facts['weights']) == ('atto', 64, None, str(file))
    assert 'labels' not in tensors


def test_released_weights_prepare_images_as_theirs_were(net, images, tmp_path, monkeypatch):
    """Size, crop, mean and deviation, by the name or by that of the file."""
    model, file = net
    options = dict(mean=zoo.CLIP_MEAN, std=zoo.CLIP_STD)
    url = 'https://huggingface.co/lab/small/resolve/main/model.pth'
    known = zoo.Weights(url, 'atto', 0, 64, 64, None, zoo.APACHE, *options.values())
    monkeypatch.setitem(zoo.RELEASED, 'clip_small', known)
    monkeypatch.setenv('CONVNEXT_WEIGHTS', str(tmp_path))
    copy = tmp_path / 'small-model.pth'
    copy.write_bytes(file.read_bytes())
    expected = model.forward_head(theirs(model, images, 64, 1.0, **options)[1], pre_logits=True).detach()
    for number, weights in enumerate(('clip_small', copy)):
        out = tmp_path / f'{number}.npy'
        features(weights, images / 'a.png', images / 'deep', '--out', out)
        torch.testing.assert_close(torch.from_numpy(np.load(out)), expected, rtol=1e-4, atol=1e-4)
        facts = json.loads(out.with_suffix('.json').read_text())
        assert (facts['names'], facts['size'], facts['mean']) == (list(SIZES), 64, list(zoo.CLIP_MEAN))


@pytest.mark.parametrize('suffix', ['.npy', '.safetensors'])
def test_maps_of_one_size_are_timms_in_one_array(net, images, tmp_path, suffix):
    model, file = net
    out = tmp_path / f'f{suffix}'
    paths = (images / 'a.png', images / 'deep')
    features(file, *paths, '--dense', '--stage', 3, '--size', 64, '--batch', 2, '--out', out)
    found = torch.from_numpy(np.load(out)) if suffix == '.npy' else read(out)[0]['features']
    pictures, _ = theirs(model, images, 64, 0.875)
    with torch.no_grad():
        expected = model.forward_intermediates(pictures, indices=[2], intermediates_only=True)[0]
    assert found.shape == (3, 160, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_maps_of_whole_images_are_a_file_each(net, images, tmp_path):
    model, file = net
    make_image(images / 'small.png', (31, 40), 9)
    with pytest.raises(UserError, match='1 of 4 images have no features, see above; the others have'):
        features(file, images / '*.png', images / 'deep', '--dense', '--out', tmp_path / 'maps')
    for name, (width, height) in SIZES.items():
        found = torch.from_numpy(np.load(tmp_path / 'maps' / f'{name}.npy'))
        assert found.shape == (320, height // 32, width // 32)
        picture = torch.from_numpy(np.array(Image.open(images / name).convert('RGB'))).permute(2, 0, 1) / 255
        picture = (picture - torch.tensor(zoo.MEAN)[:, None, None]) / torch.tensor(zoo.STD)[:, None, None]
        with torch.no_grad():
            torch.testing.assert_close(found, model.forward_features(picture[None])[0], rtol=1e-4, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == ['a.png.npy', 'deep', 'features.json']
    assert json.loads((tmp_path / 'maps' / 'features.json').read_text())['stage'] == 4


def test_the_maps_of_a_detectors_file_are_those_of_its_backbone(images, tmp_path):
    torch.manual_seed(1)
    backbone = ConvNeXt('femto', output_norm=False).eval()
    tensors = {f'backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
    tensors |= {'backbone.norm0.weight': torch.ones(48), 'neck.lateral.weight': torch.ones(3)}
    torch.save(dict(state_dict=tensors), tmp_path / 'epoch_12.pth')
    arguments = ('--dense', '--stage', 1, '--size', 32, '--out', tmp_path / 'f.npy')
    features(tmp_path / 'epoch_12.pth', images / 'a.png', *arguments)
    prepare = create_transform(input_size=32, is_training=False, crop_pct=0.875, interpolation='bicubic')
    with torch.no_grad():
        expected = backbone(prepare(Image.open(images / 'a.png').convert('RGB'))[None])[0]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / 'f.npy')), expected, rtol=1e-4, atol=1e-4)


def test_folders_of_classes_give_labels_and_a_broken_image_is_named_and_left_out(net, tmp_path, capsys):
    for number, name in enumerate(('Bee/1.png', 'Bee/2.png', 'ant/1.png')):
        make_image(tmp_path / 'set' / name, (40, 40), number)
    (tmp_path / 'set' / 'Bee' / '2.png').write_bytes(b'no image')
    (tmp_path / 'set' / 'README.txt').touch()  # beside the folders
    deep = np.full((40, 40), 3000, np.uint16)
    Image.fromarray(deep).save(tmp_path / 'set' / 'ant' / '2.png')
    with pytest.raises(UserError, match='2 of 4 images have no features'):
        features(net[1], tmp_path / 'set', '--size', 32, '--out', tmp_path / 'f.safetensors')
    broken, other = [line for line in capsys.readouterr().err.splitlines() if '2.png' in line]
    assert 'Bee/2.png cannot be read as an image' in broken
    assert 'ant/2.png has 16 bits, networks see 8' in other
    tensors, facts = read(tmp_path / 'f.safetensors')
    assert facts['classes'] == ['Bee', 'ant']
    assert facts['names'] == ['Bee/1.png', 'ant/1.png']
    assert tensors['labels'].tolist() == [0, 1]
    assert tensors['features'].shape == (2, 320)


@pytest.mark.parametrize('suffix', ['.npy', '.safetensors'])
def test_a_file_that_cannot_be_written_whole_is_not_there(net, images, tmp_path, monkeypatch, suffix):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(sets.os, 'replace', full)
    out = tmp_path / 'new' / f'f{suffix}'
    with pytest.raises(UserError, match=rf'cannot write {out}: No space left on device'):
        features(net[1], images / 'a.png', '--size', 32, '--out', out)
    assert list(out.parent.iterdir()) == []


def test_maps_beyond_the_memory_are_refused_before_they_are_computed(net, images, tmp_path, monkeypatch):
    monkeypatch.setattr(sets.os, 'sysconf', lambda name: 1)
    with pytest.raises(UserError, match='give --out a folder'):
        features(net[1], images / 'a.png', '--dense', '--size', 64, '--out', tmp_path / 'f.npy')


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ([], 'give either --out'),
        (['--out', '{folder}/f.npy', '--evaluate'], 'give either --out'),
        (['--evaluate', '--dense'], '--evaluate takes one folder and pooled features'),
        (['--out', '{folder}/f.npy', '--stage', '2'], '--stage chooses the map of --dense'),
        (['--out', '{folder}/f.npy', '--dense'], 'give --size PIXELS, or --out a folder'),
        (['--out', '{folder}/f.txt'], '--out must end in .safetensors or .npy'),
        (['--out', '{folder}/a.npy'], 'a.npy exists'),
        (['--out', '{folder}/b.npy'], 'b.json exists'),
        (['--out', '{folder}/f.npy', '--size', '20'], '--size must be at least 32'),
        (['--out', '{folder}/f.npy', '--batch', '0'], '--batch is a number of images'),
        (['--out', '{folder}/f.npy', '--arch', 'atta'], "'atta'"),
        (['--evaluate'], 'has no train/'),
    ],
)
def test_options_that_make_no_sense_are_one_line(net, images, tmp_path, options, said):
    (tmp_path / 'a.npy').touch()
    (tmp_path / 'b.json').touch()
    with pytest.raises(UserError, match=said) as error:
        features(net[1], images, *(option.format(folder=tmp_path) for option in options))
    assert '\n' not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.npy', 'b.json', 'images']


def test_weights_of_no_size_of_ours_are_one_line(images, tmp_path):
    torch.save(ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)).state_dict(), tmp_path / 'odd.pth')
    with pytest.raises(UserError, match='odd.pth: no size of ours has the shapes in it'):
        features(tmp_path / 'odd.pth', images / 'a.png', '--out', tmp_path / 'f.npy')


def blobs(count: int, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes that overlap, one channel without a difference; float64."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return torch.cat([centres[labels] * 2 + spread * noise + 5, torch.ones(count, 1)], 1), labels


def test_neighbours_vote_as_scikit_learns_do():
    neighbors = pytest.importorskip('sklearn.neighbors')
    train, labels = blobs(150)
    queries, _ = blobs(90)
    model = neighbors.KNeighborsClassifier(
        20, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, labels)
    found = knn(train, labels, queries)
    assert found.tolist() == model.predict(queries).tolist()
    assert 0.4 < (found == torch.arange(90) % 3).double().mean() < 0.99


def test_two_near_neighbours_outvote_three_far_ones():
    """By hand: exp(1 / 0.07) + exp(0.98 / 0.07) beside 3 exp(0.6 / 0.07)."""
    train = torch.tensor([[1.0, 0.0], [0.98, 0.19900], [0.6, 0.8], [0.6, 0.8], [0.6, -0.8]])
    assert knn(train, torch.tensor([1, 1, 0, 0, 0]), torch.tensor([[2.0, 0.0]])).tolist() == [1]


@pytest.mark.parametrize('decay', [1.0, 0.01])
def test_the_linear_probe_is_scikit_learns_logistic_regression(decay):
    linear_model = pytest.importorskip('sklearn.linear_model')
    train, labels = blobs(200)
    queries, _ = blobs(60)
    scaled = (train - train.mean(0)) / train.std(0, correction=0).clamp(min=1e-9)
    model = linear_model.LogisticRegression(C=1 / (decay * len(train)), tol=1e-10, max_iter=10000)
    model.fit(scaled, labels)
    probe = LinearProbe(train, labels, decay)
    np.testing.assert_allclose(probe.weight, model.coef_, atol=1e-4)
    np.testing.assert_allclose(probe.bias - probe.bias.mean(), model.intercept_, atol=1e-4)
    other = (queries - train.mean(0)) / train.std(0, correction=0).clamp(min=1e-9)
    np.testing.assert_allclose(probe.logits(queries).softmax(1), model.predict_proba(other), atol=1e-4)


def test_the_decay_is_chosen_on_images_that_are_held_out():
    """Of more channels than images a probe without a decay learns the noise."""
    train, labels = blobs(60)
    noise = torch.randn(60, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probe, decay = linear_probe(torch.cat([train, noise], 1), labels)
    assert decay >= 0.1
    assert probe.weight.shape == (3, 207)
    with pytest.raises(UserError, match='at least 10 images of 2 classes to learn from, got 60 of 1'):
        linear_probe(train, torch.zeros(60, dtype=torch.int64))


def test_a_folder_is_evaluated_by_one_command(net, tmp_path, capsys):
    """Dark, gray and bright images; in ``val`` one of four looks like another class, and two are absent."""
    generator = np.random.default_rng(0)

    def paint(name: str, value: int) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(-20, 20, (32, 32, 3))
        Image.fromarray((value + noise).astype(np.uint8)).save(tmp_path / name)

    for i in range(12):
        for name, value in (('bright', 200), ('dark', 60), ('gray', 130)):
            paint(f'train/{name}/{i}.png', value)
    for i, value in enumerate((60, 60, 60, 200)):
        paint(f'val/dark/{i}.png', value)
    features(net[1], tmp_path, '--evaluate', '--size', 32)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('36 images of 3 classes in train, 4 in val')
    assert lines[1].split()[:3] == ['k-NN', 'top-1', '75.00']
    assert lines[2].split()[:3] == ['linear', 'top-1', '75.00']
    (tmp_path / 'val' / 'dark').rename(tmp_path / 'val' / 'odd')
    with pytest.raises(UserError, match='val has the class odd'):
        features(net[1], tmp_path, '--evaluate', '--size', 32)
    (tmp_path / 'val' / 'odd' / '0.png').rename(tmp_path / 'val' / '0.png')
    with pytest.raises(UserError, match='no folder of a class'):
        features(net[1], tmp_path, '--evaluate', '--size', 32)
