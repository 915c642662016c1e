"""Files that hold no weights are named as what they are, in one line; nothing in them is run."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import Bomb
from safetensors.torch import save_file
from torch import nn

from convnext_backbone.checkpoint import UnreadableCheckpoint, kinds, read_checkpoint


class Evil(nn.Sequential):
    """A network that runs a command when it is unpickled."""

    def __init__(self, target):
        super().__init__(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.bomb = Bomb(target)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()


def _archive(file, mode: str, ran):
    with tarfile.open(file, mode) as archive:
        entry = tarfile.TarInfo('weights/a.pth')
        data = pickle.dumps(Bomb(ran))
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


def _zipped(file, ran):
    with zipfile.ZipFile(file, 'w') as archive:
        for number in range(5):
            archive.writestr(f'weights/{number}.pth', pickle.dumps(Bomb(ran)))


def _onnx(file, producer: str):
    onnx = pytest.importorskip('onnx')
    graph = onnx.helper.make_graph([], 'g', [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name=producer), file)


def _exported(file):
    torch.export.save(torch.export.export(network(), (torch.ones(1, 3, 4, 4),)), file)


def _flax(file):
    """As https://github.com/msgpack/msgpack/blob/master/spec.md says; Flax's own writer where it is."""
    file.write_bytes(b'\x82\xa6params\x81\xa4stem\xc4\x04abcd\xabbatch_stats\x80')


KINDS = {  # how the file is written, what the error says
    'Git LFS pointer': (
        lambda f, ran: f.write_text(
            f'version https://git-lfs.github.com/spec/v1\noid sha256:{"a" * 64}\nsize 114374272\n'
        ),
        'is a Git LFS pointer, not weights: fetch them with `git lfs pull`',
    ),
    'TorchScript': (
        lambda f, ran: torch.jit.save(torch.jit.script(network()), f),
        'is a TorchScript archive (torch.jit.save), a program, not weights',
    ),
    'traced TorchScript': (
        lambda f, ran: torch.jit.save(torch.jit.trace(network(), torch.ones(1, 3, 4, 4)), f),
        'is a TorchScript archive',
    ),
    'torch.export': (lambda f, ran: _exported(f), 'is an archive of torch.export (.pt2), a program'),
    'whole network': (
        lambda f, ran: torch.save(Evil(ran), f),
        'holds a network pickled as a whole (test_kinds.Evil), which is a program; nothing of it was run',
    ),
    'whole network, legacy': (
        lambda f, ran: torch.save(Evil(ran), f, _use_new_zipfile_serialization=False),
        'holds a network pickled as a whole (test_kinds.Evil)',
    ),
    'whole network, protocol 4': (
        lambda f, ran: torch.save(Evil(ran), f, pickle_protocol=4),
        'holds a network pickled as a whole (test_kinds.Evil)',
    ),
    'network in a dict': (
        lambda f, ran: torch.save(dict(epoch=1, model=Evil(ran), ema=None), f),
        'holds a network pickled as a whole (test_kinds.Evil)',
    ),
    'pickle.dump': (lambda f, ran: f.write_bytes(pickle.dumps(dict(a=1, b=Bomb(ran)))), None),
    'pickle.dump of arrays': (
        lambda f, ran: f.write_bytes(pickle.dumps(dict(model={'a': np.ones(3)}, author='x'))),
        'is a pickle that torch.save did not write (pickle.dump), which is not opened',
    ),
    'ONNX': (lambda f, ran: _onnx(f, ''), 'is an ONNX file, a program for inference, not weights'),
    'ONNX of torch': (lambda f, ran: _onnx(f, 'pytorch'), 'is an ONNX file, a program for inference'),
    'Flax': (lambda f, ran: _flax(f), 'is a msgpack file, as Flax writes them, not weights'),
    'Keras': (lambda f, ran: f.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(600)), 'is an HDF5 file (Keras)'),
    'tar': (lambda f, ran: _archive(f, 'w', ran), 'is a tar archive (weights/a.pth), not weights: unpack it'),
    'tar.gz': (
        lambda f, ran: _archive(f, 'w:gz', ran),
        'is a file compressed by gzip, not weights',
    ),
    'gzip': (lambda f, ran: f.write_bytes(gzip.compress(b'abc')), 'is a file compressed by gzip'),
    'bzip2': (lambda f, ran: f.write_bytes(bz2.compress(b'abc')), 'is a file compressed by bzip2'),
    'xz': (lambda f, ran: f.write_bytes(lzma.compress(b'abc')), 'is a file compressed by xz'),
    'zip': (
        lambda f, ran: _zipped(f, ran),
        'is a zip archive (weights/0.pth, weights/1.pth, weights/2.pth and 2 more), not weights: unpack it',
    ),
    'npz': (lambda f, ran: np.savez(f.open('wb'), a=np.ones(3)), 'is an archive of NumPy arrays (.npz)'),
    'npy': (lambda f, ran: np.save(f.open('wb'), np.ones(3)), 'is a NumPy array, not weights'),
    'index in JSON': (
        lambda f, ran: f.write_text(json.dumps(dict(metadata={}, weight_map={'a': 'b'}), indent=2)),
        'is a text in JSON, such as the index of weights in several files',
    ),
}


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_file_of_another_kind_is_named_and_nothing_of_it_is_run(kind, suffix, tmp_path):
    write, words = KINDS[kind]
    file, ran = tmp_path / f'a.{suffix}', tmp_path / 'ran'
    write(file, ran)
    with pytest.raises(UnreadableCheckpoint) as error:
        read_checkpoint(file)
    text = str(error.value)
    assert text.startswith(f'{file} ')
    assert '\n' not in text
    assert not ran.exists()
    if words and (suffix == 'pth' or 'pickle' not in words):  # a pickle named .safetensors is not looked into
        assert words in text


@pytest.mark.parametrize('zipped', [True, False])
def test_the_network_would_run_its_command_in_an_ordinary_load(zipped, tmp_path):
    """Otherwise the test above could not fail."""
    torch.save(Evil(tmp_path / 'ran'), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    torch.load(tmp_path / 'a.pth', weights_only=False)
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize('count', [0x7B, 0x3C, 0x81A4, 0x8B1F, 0x4B50, 0x0208])
def test_safetensors_whose_header_is_as_long_as_other_files_begin_is_read(count, tmp_path):
    """The format begins with the length of its header, in eight bytes, which may spell anything."""
    count = count if count >= 0x3C else count + 0x100
    head = json.dumps({'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}).encode()
    count = count if count >= len(head) else count + 0x100
    file = tmp_path / 'a.safetensors'
    file.write_bytes(struct.pack('<Q', count) + head.ljust(count) + struct.pack('<f', 2.5))
    assert read_checkpoint(file)['a'].item() == 2.5
    assert count & 0xFF in (0x7B, 0x3C, 0xA4, 0x1F, 0x50, 0x08)


def test_ordinary_files_of_weights_are_no_other_kind(tmp_path):
    weights = {'a.b': torch.ones(3)}
    torch.save(weights, tmp_path / 'zip.pth')
    torch.save(weights, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    torch.save(weights, tmp_path / 'protocol.pth', pickle_protocol=4, _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / 'a.safetensors')
    for file in tmp_path.iterdir():
        assert kinds.what_else(file, file.read_bytes()[: kinds.ENOUGH]) == '', file
        if file.name != 'protocol.pth':  # torch's safe reader knows protocol 2 alone
            assert torch.equal(read_checkpoint(file)['a.b'], weights['a.b'])


def test_a_folder_is_named_with_the_files_in_it(tmp_path):
    with pytest.raises(UnreadableCheckpoint, match=r'is a folder: .* in it, which has no \.pth'):
        read_checkpoint(tmp_path)
    (tmp_path / 'model.safetensors').touch()
    (tmp_path / 'config.json').touch()
    with pytest.raises(UnreadableCheckpoint, match='is a folder: .* in it, model.safetensors$'):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read_is_told(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save({}, file)
    file.chmod(0)
    with pytest.raises(UnreadableCheckpoint, match='cannot be opened: Permission denied'):
        read_checkpoint(file)
