"""Weights: all of them or none, named in a report, and never code."""

import hashlib
import http.server
import io
import json
import os
import pickle
import re
import struct
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import DATA, Bomb
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt
from convnext_backbone.backbones.convnext import ARCHITECTURES as V1_AND_V2
from convnext_backbone.backbones.isotropic import ARCHITECTURES as ISOTROPIC
from convnext_backbone.checkpoint import (
    CheckpointMismatch,
    UnreadableCheckpoint,
    close_unsafe_reader,
    load_checkpoint,
    read_checkpoint,
    zoo,
)
from convnext_backbone.checkpoint import read as reading
from convnext_backbone.checkpoint.load import inflate
from convnext_backbone.classification import Classifier
from convnext_backbone.hub import mebibytes

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def classifier(**backbone) -> Classifier:
    return Classifier(dict(type='convnext_backbone.ConvNeXt', **{**SMALL, **backbone}), 10)


def official_file(path, model: Classifier) -> str:
    """A classification checkpoint as released: ``{'model': ...}``, no ``backbone.`` in the names."""
    torch.save({'model': {k.removeprefix('backbone.'): v for k, v in model.state_dict().items()}}, path)
    return str(path)


def state(module) -> dict:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.matrix
def test_classification_checkpoint_fills_the_dense_backbone_and_the_report_says_so(tmp_path):
    source = classifier()
    model = ConvNeXt(**SMALL)
    report = load_checkpoint(model, official_file(tmp_path / 'a.pth', source))
    for name, tensor in source.backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert report.skipped == ['head.bias', 'head.weight', 'norm.bias', 'norm.weight']
    assert report.fresh == [f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')]
    assert report.parameters == sum(p.numel() for p in source.backbone.parameters())
    lines = str(report).splitlines()
    assert lines[0].startswith(str(tmp_path / 'a.pth'))
    assert 'sha256' in lines[0]
    assert lines[1].split()[:3] == ['loaded', str(len(report.loaded)), 'tensors,']
    assert lines[-1].split() == ['missing', '0', 'unexpected', '0', 'wrong', 'shape', '0']


@pytest.mark.parametrize(
    ('wrap', 'write', 'suffix'),
    [
        pytest.param(lambda own, bare: {'model': bare}, torch.save, 'pth', id='official'),
        pytest.param(lambda own, bare: {'state_dict': own, 'meta': {}}, torch.save, 'pth', id='ours'),
        pytest.param(lambda own, bare: bare, torch.save, 'pth', id='bare'),
        pytest.param(
            lambda own, bare: {'state_dict': {f'module.{name}': tensor for name, tensor in own.items()}},
            torch.save,
            'pth',
            id='ddp',
        ),
        pytest.param(lambda own, bare: bare, save_file, 'safetensors', id='safetensors'),
    ],
)
def test_a_classifier_takes_every_tensor_of_a_classification_file(tmp_path, wrap, write, suffix):
    source, model = classifier(), classifier()
    own = source.state_dict()
    bare = {name.removeprefix('backbone.'): tensor for name, tensor in own.items()}
    path = tmp_path / f'a.{suffix}'
    write(wrap(own, bare), path)
    report = load_checkpoint(model, path)
    assert len(report.loaded) == len(own)
    assert not report.skipped
    assert not report.fresh
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in own)


def test_detection_checkpoint_gives_its_backbone_output_norms_included(tmp_path):
    source, model = ConvNeXt(**SMALL), ConvNeXt(**SMALL)
    torch.nn.init.normal_(source.norm2.weight)
    tensors = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save({'state_dict': {**tensors, 'neck.conv.weight': torch.zeros(3)}}, tmp_path / 'det.pth')
    report = load_checkpoint(model, tmp_path / 'det.pth')
    assert torch.equal(model.norm2.weight, source.norm2.weight)
    assert report.skipped == ['neck.conv.weight']
    assert not report.fresh


def test_stages_that_are_not_built_are_skipped_and_named(tmp_path):
    report = load_checkpoint(
        ConvNeXt(**SMALL, out_indices=(0, 1)), official_file(tmp_path / 'a.pth', classifier())
    )
    assert {name.split('.')[1] for name in report.skipped if 'stages' in name} == {'2', '3'}


def test_another_size_is_refused_with_its_name_and_nothing_is_changed(tmp_path):
    with torch.device('meta'):
        small = ConvNeXt('small', output_norm=False)
    file = tmp_path / 'small.pth'
    torch.save({'model': {k: torch.zeros(v.shape) for k, v in small.state_dict().items()}}, file)
    model = ConvNeXt('base', output_norm=False)
    before = state(model)
    with pytest.raises(CheckpointMismatch) as error:
        load_checkpoint(model, file)
    text = str(error.value)
    assert 'does not fit ConvNeXt base' in text
    assert 'downsample_layers.0.0.weight: file (96, 3, 4, 4), model (128, 3, 4, 4)' in text
    assert "The shapes in the file are those of arch='small'." in text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        pytest.param(
            lambda source: {k: v for k, v in source.items() if k != 'stages.2.1.pwconv1.weight'},
            ['missing', 'stages.2.1.pwconv1.weight'],
            id='missing',
        ),
        pytest.param(
            lambda source: {**source, 'stages.2.2.pwconv1.weight': torch.zeros(1)},
            ['unexpected', 'stages.2.2.pwconv1.weight'],
            id='unexpected',
        ),
        pytest.param(
            lambda source: {
                **source,
                'stages.2.1.pwconv1.weight': source['stages.2.1.pwconv1.weight'].T.contiguous(),
            },
            ['wrong shape', 'stages.2.1.pwconv1.weight'],
            id='wrong shape',
        ),
        pytest.param(
            lambda source: {f'layers.{number}': v for number, v in enumerate(source.values())},
            [],
            id='all names',
        ),
    ],
)
def test_one_wrong_tensor_stops_the_load_and_is_named(tmp_path, change, words):
    source = {k.removeprefix('backbone.'): v for k, v in classifier().state_dict().items()}
    torch.save(change(source), tmp_path / 'a.pth')
    model = ConvNeXt(**SMALL)
    before = state(model)
    with pytest.raises(CheckpointMismatch) as error:
        load_checkpoint(model, tmp_path / 'a.pth')
    assert [word for word in words if word not in str(error.value)] == []
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_new_head_is_fresh_only_when_it_is_named(tmp_path):
    file = official_file(tmp_path / 'a.pth', classifier())
    other = Classifier(dict(type='convnext_backbone.ConvNeXt', **SMALL), 7)
    with pytest.raises(CheckpointMismatch, match='head.weight: file'):
        load_checkpoint(other, file)
    report = load_checkpoint(other, file, skip=['head.*'], fresh=['head.*'])
    assert report.fresh == ['head.weight', 'head.bias'] == report.skipped[::-1]


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_stem_is_inflated_as_timm_does_it(tmp_path, channels):
    from timm.models import adapt_input_conv

    source = classifier()
    model = ConvNeXt(**SMALL, in_channels=channels)
    report = load_checkpoint(model, official_file(tmp_path / 'a.pth', source))
    expected = adapt_input_conv(channels, source.backbone.downsample_layers[0][0].weight.detach())
    torch.testing.assert_close(model.downsample_layers[0][0].weight, expected)
    assert report.inflated == ['downsample_layers.0.0.weight']
    assert 'inflated' in str(report)
    assert inflate(torch.zeros(8, 5, 4, 4), 4).shape == (8, 5, 4, 4)  # not made for three channels


def test_a_classifiers_init_cfg_is_not_undone_by_that_of_its_backbone(tmp_path):
    source = classifier()
    init = dict(type='convnext_backbone.Pretrained', checkpoint=official_file(tmp_path / 'a.pth', source))
    kaiming = dict(type='Kaiming', layer=['Conv2d', 'Linear'])
    backbone = dict(type='convnext_backbone.ConvNeXt', **SMALL, init_cfg=kaiming)
    model = Classifier(backbone, 10, init_cfg=init)
    model.init_weights()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


def save_legacy(content, file: Path) -> None:
    """Write the format of torch before 1.6."""
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_tar(content, file: Path) -> None:
    """Write the format of torch before 2017."""
    with tarfile.open(file, 'w') as tar:
        for name, part in (('sys_info', {}), ('storages', 0), ('tensors', 0), ('pickle', content)):
            data = pickle.dumps(part)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def save_pickle(content, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def save_getattr(content, file: Path) -> None:
    """Write a pickle that looks up ``dict.pop``, whatever the content."""
    file.write_bytes(b'\x80\x02cbuiltins\ngetattr\ncbuiltins\ndict\nX\x03\x00\x00\x00pop\x86R.')


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('content', 'write'),
    [
        pytest.param(lambda weights, bomb: bomb, torch.save, id='top'),
        pytest.param(
            lambda weights, bomb: {'state_dict': {**weights, 'x': bomb}}, torch.save, id='in state_dict'
        ),
        pytest.param(
            lambda weights, bomb: {'state_dict': weights, 'optimizer': {'state': {0: bomb}}},
            torch.save,
            id='in optimizer',
        ),
        pytest.param(
            lambda weights, bomb: {'state_dict': weights, 'meta': {'a': [({'b': {bomb: 1}},)]}},
            torch.save,
            id='nested',
        ),
        pytest.param(lambda weights, bomb: {'state_dict': weights, 'meta': bomb}, save_legacy, id='legacy'),
        pytest.param(lambda weights, bomb: bomb, save_tar, id='tar'),
        pytest.param(lambda weights, bomb: bomb, save_pickle, id='bare pickle'),
        pytest.param(lambda weights, bomb: bomb, save_getattr, id='getattr'),
    ],
)
def test_code_in_a_file_is_refused_and_never_run(tmp_path, content, write):
    ran, file = tmp_path / 'ran', tmp_path / 'evil.pth'
    write(content(ConvNeXt(**SMALL).state_dict(), Bomb(ran)), file)
    with pytest.raises(UnreadableCheckpoint) as error:
        read_checkpoint(file)
    assert str(file) in str(error.value)
    assert not ran.exists()
    close_unsafe_reader()
    from mmengine.runner.checkpoint import CheckpointLoader

    with pytest.raises(UnreadableCheckpoint):  # mmengine's own way in is closed too
        CheckpointLoader.load_checkpoint(str(file), map_location='cpu')
    assert not ran.exists()


@pytest.mark.matrix
@pytest.mark.parametrize('name', ['{url}', 'torchvision://m'], ids=['http', 'torchvision'])
def test_code_behind_a_url_of_mmengines_own_loader_is_not_run(server, tmp_path, monkeypatch, name):
    from mmengine.runner import checkpoint as mmengine_checkpoint

    torch.save({'x': Bomb(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    _Server.content = (tmp_path / 'evil.pth').read_bytes()
    _Server.announced = len(_Server.content)
    close_unsafe_reader()
    monkeypatch.setattr(mmengine_checkpoint, 'get_torchvision_models', lambda: {'m': server})
    with pytest.raises(UnreadableCheckpoint):
        mmengine_checkpoint.CheckpointLoader.load_checkpoint(name.format(url=server), map_location='cpu')
    assert _Server.requests == 1
    assert not (tmp_path / 'ran').exists()


def test_the_bomb_would_go_off_in_an_ordinary_load(tmp_path):
    """Otherwise the test above could not fail."""
    torch.save({'x': Bomb(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert (tmp_path / 'ran').exists()


@pytest.mark.matrix
def test_what_mmengine_writes_is_read(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = {
        'state_dict': ConvNeXt(**SMALL).state_dict(),
        'message_hub': {'log_scalars': {'train/loss': history}, 'lr': np.float64(0.5)},
        'meta': {'dataset_meta': {'palette': np.arange(3), 'classes': ('a',)}, 'iter': np.int64(3)},
    }
    torch.save(content, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert found['message_hub']['log_scalars']['train/loss'].mean() == 2.0
    assert found['meta']['iter'] == 3
    assert found['meta']['dataset_meta']['palette'].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'is empty (0 bytes)'),
        (b'\n<!DOCTYPE html><html>404</html>', 'is a web page, not weights'),
        (b'no weights at all, but text', 'is truncated, damaged or no file of weights'),
        (struct.pack('<Q', 10**10) + b'{"a":', 'is no complete safetensors file'),
    ],
)
def test_files_that_hold_no_weights_are_refused_in_words(tmp_path, content, words):
    file = tmp_path / 'a.pth'
    file.write_bytes(content)
    with pytest.raises(UnreadableCheckpoint) as error:
        read_checkpoint(file)
    assert str(error.value).startswith(str(file))
    assert words in str(error.value)
    assert '\n' not in str(error.value)


def test_the_pointer_to_the_newest_checkpoint_says_which_it_is(tmp_path):
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text('run/epoch_3.pth')
    with pytest.raises(UnreadableCheckpoint, match='no weights: give that file, run/epoch_3.pth'):
        read_checkpoint(pointer)


@pytest.mark.parametrize('share', [0.05, 0.5, 0.999])
@pytest.mark.parametrize(
    ('suffix', 'write'),
    [('pth', torch.save), ('legacy.pth', save_legacy), ('safetensors', save_file)],
    ids=['pth', 'legacy', 'safetensors'],
)
def test_truncated_files_are_refused_in_one_line(tmp_path, suffix, write, share):
    file = tmp_path / f'a.{suffix}'
    write(ConvNeXt(**SMALL).state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableCheckpoint) as error:
        read_checkpoint(file)
    assert str(file) in str(error.value)
    assert '\n' not in str(error.value)


class _Server(http.server.BaseHTTPRequestHandler):
    content, announced, requests = b'', 0, 0

    def do_GET(self):
        type(self).requests += 1
        self.send_response(200)
        self.send_header('Content-Length', str(self.announced))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    torch.save({'model': {'w': torch.ones(3)}}, tmp_path / 'source.pth')
    _Server.content, _Server.requests = (tmp_path / 'source.pth').read_bytes(), 0
    _Server.announced = len(_Server.content)
    instance = http.server.HTTPServer(('127.0.0.1', 0), _Server)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    monkeypatch.setenv('CONVNEXT_WEIGHTS', str(tmp_path / 'weights'))
    yield f'http://127.0.0.1:{instance.server_port}/w.pth'
    instance.shutdown()


def test_a_url_is_downloaded_once_into_the_weights_folder(server, tmp_path):
    for _ in range(2):
        assert torch.equal(read_checkpoint(server)['model']['w'], torch.ones(3))
    assert _Server.requests == 1
    assert sorted(os.listdir(tmp_path / 'weights')) == ['.lock', 'w.pth', 'w.pth.url']
    with pytest.raises(UnreadableCheckpoint, match='was downloaded from'):
        read_checkpoint(server.replace('/w.pth', '/other/w.pth'))


def test_a_download_that_breaks_off_leaves_nothing_behind(server, tmp_path):
    _Server.announced += 100
    with pytest.raises(UnreadableCheckpoint, match='cannot download'):
        read_checkpoint(server)
    assert os.listdir(tmp_path / 'weights') == ['.lock']


class _Hub(http.server.BaseHTTPRequestHandler):
    """A site that hands a file out to a token, by way of itself and of another host, as Hugging Face does."""

    content, seen = b'', []

    def do_GET(self):
        host, token = self.headers['Host'], self.headers['Authorization']
        self.seen.append((host.split(':')[0], self.path, token))
        if host.startswith('localhost'):
            self.send_response(200)
            self.send_header('Content-Length', str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)
        elif token == 'Bearer good':
            first = self.path.startswith('/lab/')
            self.send_response(307 if first else 302)
            self.send_header('Location', '/again' if first else f'http://localhost:{host.split(":")[1]}/file')
            self.end_headers()
        else:
            self.send_error(403 if token else 401)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(server, monkeypatch):
    _Hub.content, _Hub.seen = safetensors.torch.save({'w': torch.ones(3)}), []
    instance = http.server.HTTPServer(('127.0.0.1', 0), _Hub)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    monkeypatch.setattr(zoo, 'HUGGING_FACE', f'http://127.0.0.1:{instance.server_port}')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    yield f'{zoo.HUGGING_FACE}/lab/net/resolve/main/model.safetensors'
    instance.shutdown()


def test_a_gated_file_is_handed_out_to_the_token_which_no_other_host_sees(hub, server, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', ' good\n')
    assert torch.equal(read_checkpoint(hub)['w'], torch.ones(3))
    path = '/lab/net/resolve/main/model.safetensors'
    tokens = [('127.0.0.1', path, 'Bearer good'), ('127.0.0.1', '/again', 'Bearer good')]
    assert _Hub.seen == [*tokens, ('localhost', '/file', None)]
    assert (tmp_path / 'weights' / 'net-model.safetensors').is_file()
    _Hub.seen.clear()
    read_checkpoint(hub.replace('127.0.0.1', 'localhost').replace('/model.', '/other.'))
    assert [token for *_, token in _Hub.seen] == [None]


@pytest.mark.parametrize(('token', 'code'), [('', 401), ('secret', 403)])
def test_a_gated_file_that_is_refused_says_where_the_licence_is_and_how_to_give_a_token(
    hub, tmp_path, monkeypatch, token, code
):
    monkeypatch.setenv('HF_TOKEN', token)
    with pytest.raises(UnreadableCheckpoint) as error:
        read_checkpoint(hub)
    said = str(error.value)
    assert f'({code}, {"shown the" if token else "without a"} token in $HF_TOKEN)' in said
    assert f'accept the licence there, set HF_TOKEN to a token of that account ({zoo.HUGGING_FACE}/' in said
    assert f'log in at {zoo.HUGGING_FACE}/lab/net and' in said
    assert f'put it into {tmp_path}/weights as net-model.safetensors' in said
    assert '\n' not in said
    assert 'secret' not in said
    assert os.listdir(tmp_path / 'weights') == ['.lock']


def test_a_token_that_is_none_is_not_printed(hub, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'secret\nX-Header: 1')
    with pytest.raises(UnreadableCheckpoint, match=r'\$HF_TOKEN holds characters that no token has') as error:
        read_checkpoint(hub)
    assert 'secret' not in str(error.value)
    assert _Hub.seen == []


def test_an_unreachable_url_is_told_with_the_folder_to_put_the_file_in(tmp_path, monkeypatch):
    monkeypatch.setenv('CONVNEXT_WEIGHTS', str(tmp_path))
    with pytest.raises(UnreadableCheckpoint) as error:
        read_checkpoint('http://127.0.0.1:1/convnext_tiny_1k_224.pth')
    assert 'http://127.0.0.1:1/convnext_tiny_1k_224.pth' in str(error.value)
    assert f'put it into {tmp_path} (or' in str(error.value)
    assert ' as convnext_tiny_1k_224.pth, or' in str(error.value)
    assert '\n' not in str(error.value)


def test_the_size_in_a_file_is_named_for_every_kind_of_network(tmp_path):
    for kind, arch, words in (
        (ConvNeXt, 'v2_pico', "those of arch='v2_pico'."),
        (ConvNeXt, 'pico', "those of arch='pico'."),
        (IsotropicConvNeXt, 'small', "those of type='IsotropicConvNeXt', arch='small'."),
    ):
        torch.save(dict(model=kind(arch, output_norm=False).state_dict()), tmp_path / 'a.pth')
        with pytest.raises(CheckpointMismatch) as error:
            load_checkpoint(ConvNeXt('atto'), tmp_path / 'a.pth')
        assert words in str(error.value)


def test_an_isotropic_classifier_becomes_a_dense_backbone_also_for_one_channel(tmp_path):
    """The pyramid starts afresh; a dense file fits a backbone that emits fewer maps."""
    torch.manual_seed(0)
    trunk = IsotropicConvNeXt(depth=2, dim=16, out_indices=(2,), output_norm=False)
    names = {**trunk.state_dict(), 'norm.weight': torch.ones(16), 'head.weight': torch.ones(5, 16)}
    torch.save(dict(model=names), tmp_path / 'classifier.pth')
    dense = IsotropicConvNeXt(depth=2, dim=16, in_channels=1)
    report = load_checkpoint(dense, tmp_path / 'classifier.pth')
    assert report.inflated == ['stem.weight']
    assert 'pyramid.0.0.weight' in report.fresh
    torch.testing.assert_close(dense.stem.weight[:, 0], trunk.stem.weight.sum(1))
    torch.save(dense.state_dict(), tmp_path / 'dense.pth')
    for out_indices in ((2, 3), (2,), (0,)):
        fewer = IsotropicConvNeXt(depth=2, dim=16, in_channels=1, out_indices=out_indices)
        assert load_checkpoint(fewer, tmp_path / 'dense.pth').fresh == []


def test_released_names_are_those_of_the_published_list():
    file = DATA / 'recipes.json'
    weights = json.loads(file.read_text())['weights']
    listed = set()
    for entry in weights['names']:
        names = [entry.split()[0].removesuffix('.pth')]
        while any('{' in name for name in names):
            names = [
                name.replace(match[0], choice, 1)
                for name in names
                for match in [re.search(r'\{([^}]*)\}', name)]
                for choice in match[1].split(',')
            ]
        listed.update(names)
    v1 = {name: w.url for name, w in zoo.RELEASED.items() if name.startswith('convnext_')}
    assert set(v1) == listed
    assert all(url == f'{weights["base_url"]}{name}.pth' for name, url in v1.items())


def test_a_released_name_is_looked_up_in_the_weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('CONVNEXT_WEIGHTS', str(tmp_path))
    model = ConvNeXt('v2_atto', output_norm=False)
    torch.save(dict(model=model.state_dict()), tmp_path / 'convnextv2_atto_1k_224_ema.pt')
    said = []
    monkeypatch.setattr(reading, 'print_log', lambda text, *_: said.append(text))
    assert load_checkpoint(ConvNeXt('v2_atto'), 'convnextv2_atto_1k_224_ema').fits
    assert len(said) == 1
    assert said[0].startswith('convnextv2_atto_1k_224_ema: v2_atto, 1000 classes')
    assert 'top-1 76.7 published at 224 x 224' in said[0]
    assert said[0].endswith(': no commercial use')
    with pytest.raises(UnreadableCheckpoint, match="did you mean the released 'convnext_tiny_1k_224'"):
        load_checkpoint(model, 'convnext_tiny_1k_22')


def test_released_weights_are_described_as_timm_and_torchvision_describe_them():
    from timm.models import get_pretrained_cfg, list_pretrained
    from torchvision import models

    theirs = [get_pretrained_cfg(name) for name in list_pretrained('convnext*')]
    theirs = {cfg.url: cfg for cfg in theirs if 'fbaipublicfiles' in (cfg.url or '')}
    both = [w for w in zoo.RELEASED.values() if w.url in theirs]
    assert len(both) == len(theirs) >= 36
    for weights in both:
        cfg = theirs[weights.url]
        assert cfg.num_classes == weights.num_classes, weights.url
        assert cfg.input_size == (3, weights.input_size, weights.input_size), weights.url
        assert (cfg.mean, cfg.std) == (zoo.MEAN, zoo.STD)
        assert (cfg.license == 'cc-by-nc-4.0') == (weights.licence == zoo.RESTRICTED)
        assert (cfg.crop_mode == 'squash') == (weights.resize == weights.input_size), weights.url
        assert cfg.crop_mode == 'squash' or int(224 / cfg.crop_pct) == weights.resize
    for arch in ('tiny', 'small', 'base', 'large'):
        official = getattr(models, f'ConvNeXt_{arch.capitalize()}_Weights').IMAGENET1K_V1
        weights = zoo.RELEASED[f'torchvision_convnext_{arch}']
        assert official.url == weights.url
        assert weights.sha256 in official.url
        assert weights.sha256
        assert official.meta['_metrics']['ImageNet-1K']['acc@1'] == weights.top1
        assert abs(official.meta['_file_size'] / mebibytes(weights) - 1) < 1e-3
        preset = official.transforms()
        assert (preset.crop_size, preset.resize_size) == ([weights.input_size], [weights.resize])


def test_weights_that_timm_hands_out_are_described_as_timm_describes_them():
    from timm.models import get_pretrained_cfg
    from timm.models._hub import HF_SAFE_WEIGHTS_NAME

    licences = {'dinov3-license': zoo.DINOV3, 'apache-2.0': zoo.APACHE}
    ours = {name: w for name, w in zoo.RELEASED.items() if '/timm/' in w.url}
    assert len(ours) == 12
    for name, weights in ours.items():
        theirs = re.fullmatch(r'https://huggingface.co/timm/(.*)/resolve/main/(.*)', weights.url)
        cfg = get_pretrained_cfg(theirs[1])
        assert cfg.hf_hub_id == f'timm/{theirs[1]}', name
        assert theirs[2] == HF_SAFE_WEIGHTS_NAME
        assert cfg.input_size == (3, weights.input_size, weights.input_size), name
        assert round(weights.input_size / cfg.crop_pct) == weights.resize
        assert (cfg.mean, cfg.std) == (weights.mean, weights.std), name
        assert licences[cfg.license] == weights.licence, name
        assert cfg.architecture.removesuffix('_mlp') == f'convnext_{weights.arch}', name


def test_weights_of_dinov3_and_eupe_are_those_that_their_authors_list():
    """Names as in the READMEs of facebookresearch/dinov3 and facebookresearch/EUPE."""
    dinov3 = {name: w for name, w in zoo.RELEASED.items() if name.startswith('dinov3_')}
    eupe = {name: w for name, w in zoo.RELEASED.items() if name.startswith('eupe_')}
    for names, page in ((dinov3, 'dinov3-convnext-{}-pretrain-lvd1689m'), (eupe, 'EUPE-ConvNeXt-{}')):
        for name, weights in names.items():
            size = weights.arch if names is dinov3 else weights.arch[0].upper()
            assert weights.source == f'https://huggingface.co/facebook/{page.format(size)}', name
            assert weights.gated == (names is dinov3)
            assert (weights.mean, weights.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert [w.arch for w in dinov3.values()] == ['tiny', 'small', 'base', 'large']
    assert [w.arch for w in eupe.values()] == ['tiny', 'small', 'base']
    assert 'gated: accept the licence at https://hugg' in str(dinov3['dinov3_convnext_tiny'])


def test_no_two_released_files_are_kept_under_one_name():
    names = [zoo.file_name(weights.url) for weights in zoo.RELEASED.values()]
    assert len(set(names)) == len(names)
    for name, weights in zoo.RELEASED.items():
        assert zoo.released_as(weights.url) == zoo.released_as(f'here/{zoo.file_name(weights.url)}') == name
    assert zoo.released_as('https://huggingface.co/me/mine/resolve/main/model.safetensors') == ''
    assert zoo.released_as('here/model.safetensors') == zoo.released_as(None) == ''


def test_pixels_are_normalised_as_the_weights_saw_them():
    """By 255 times the numbers of OpenAI's CLIP and of ImageNet."""
    mean, std = zoo.normalisation('clip_convnext_base_laion2b')
    assert (mean, std) == ([122.771, 116.746, 104.094], [68.501, 66.632, 70.323])
    for other in ('dinov3_convnext_tiny', 'my.pth', None):
        assert zoo.normalisation(other) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def test_released_accuracies_are_those_the_paper_prints():
    file = DATA / 'tables.json'
    tables = json.loads(file.read_text())
    printed = {}
    for arch, data, size, *_, top1 in tables['table1_imagenet']['rows']:
        printed[f'convnext_{arch}_{"22k_1k" if data == "22k" else "1k"}_{size}'] = top1
    released = {name.removesuffix('_ema'): w.top1 for name, w in zoo.RELEASED.items() if w.top1}
    assert len(printed) == 12
    assert printed.items() <= released.items()


def test_each_released_name_has_an_architecture_of_ours():
    for name, weights in zoo.RELEASED.items():
        kind, table = weights.arch.removeprefix('isotropic_'), V1_AND_V2
        if weights.arch.startswith('isotropic_'):
            table = ISOTROPIC
        assert kind in table, name
        assert kind.removeprefix('v2_') in name


def test_a_download_must_have_the_hash_that_its_name_says(server, tmp_path):
    digits = hashlib.sha256(_Server.content).hexdigest()[:8]
    good, bad = (server.replace('w.pth', f'w-{start}.pth') for start in (digits, '00000000'))
    assert torch.equal(read_checkpoint(good)['model']['w'], torch.ones(3))
    for address in (bad, f'{bad}?dl=1'):
        with pytest.raises(UnreadableCheckpoint, match=f'SHA-256 begins with {digits}, not 00000000'):
            read_checkpoint(address)
    kept = tmp_path / 'weights'
    assert sorted(os.listdir(kept)) == ['.lock', f'w-{digits}.pth', f'w-{digits}.pth.url']
    with (kept / f'w-{digits}.pth').open('ab') as file:  # damaged afterwards
        file.write(b'0')
    with pytest.raises(UnreadableCheckpoint, match=f'not {digits}; remove it and download it again'):
        read_checkpoint(good)


def test_several_processes_download_a_file_once(server, monkeypatch):
    download = reading._download
    monkeypatch.setattr(reading, '_download', lambda *args: (time.sleep(0.3), download(*args)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_checkpoint, [server] * 4))
    assert _Server.requests == 1


def test_a_date_in_a_name_is_no_hash_and_a_url_without_a_file_is_told(server, tmp_path):
    read_checkpoint(server.replace('w.pth', 'w-20240131.pth'))
    for address in (server.removesuffix('w.pth'), 'http://[::1/w.pth', server.replace('w.pth', 'a b.pth')):
        with pytest.raises(UnreadableCheckpoint, match='cannot download') as error:
            read_checkpoint(address)
        assert '\n' not in str(error.value)
    assert sorted(os.listdir(tmp_path / 'weights')) == ['.lock', 'w-20240131.pth', 'w-20240131.pth.url']
    assert (tmp_path / 'weights' / 'w-20240131.pth').stat().st_mode & 0o044 == 0o044  # others may read it
