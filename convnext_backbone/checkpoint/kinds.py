"""Tells what a file is that holds no weights, by its first bytes and its table of contents; runs nothing."""

import pickletools
import tarfile
import zipfile
from pathlib import Path

BEGINNINGS = {  # first bytes: what the file is, what to do
    b'version https://git-lfs': ('a Git LFS pointer', 'fetch them with `git lfs pull`'),
    b'\x89HDF\r\n\x1a\n': ('an HDF5 file (Keras)', 'take the weights as .pth or .safetensors'),
    b'GGUF': ('a GGUF file', 'take the weights as .pth or .safetensors'),
    b'\x93NUMPY': ('a NumPy array', 'save a dict of tensors with torch.save'),
    b'\x1f\x8b': ('a file compressed by gzip', 'unpack it'),
    b'BZh': ('a file compressed by bzip2', 'unpack it'),
    b'\xfd7zXZ\x00': ('a file compressed by xz', 'unpack it'),
    b'\x28\xb5\x2f\xfd': ('a file compressed by zstd', 'unpack it'),
    b'7z\xbc\xaf\x27\x1c': ('a 7z archive', 'unpack it and give the file of weights in it'),
    b'Rar!': ('a RAR archive', 'unpack it and give the file of weights in it'),
    b'\x08\x01\x12': ('a SavedModel of TensorFlow', 'take the weights as .pth or .safetensors'),
}
TEXTS = {  # first letter, likewise
    b'{': ('a text in JSON, such as the index of weights in several files', 'give a file of weights'),
    b'<': ('a web page', 'download it again'),
}
ENOUGH = 512  # bytes, for what is told by the beginning
LEGACY = b'l\xfc\x9cF\xf9 j\xa8P\x19.'  # ends the first pickle of a file in torch's format of before 1.6


def what_else(file: Path, start: bytes) -> str:
    """Return what the file is and what to do, where it is something else than weights; empty if it is not.

    Args:
        start: its first bytes, :data:`ENOUGH` of them.
    """
    if start[6:9] == b'\x00\x00{':  # safetensors, which may begin with any number
        return ''
    if kind := next((kind for begin, kind in BEGINNINGS.items() if start.startswith(begin)), None):
        return _say(*kind)
    if (kind := TEXTS.get(start.lstrip()[:1])) and b'\x00' not in start:
        return _say(*kind)
    if start.startswith(b'PK'):
        return _zip(file)
    if start[257:262] == b'ustar':
        return _tar(file)
    if _is_onnx(start):
        return _say(
            'an ONNX file, a program for inference', 'take the .pth or .safetensors that it was made from'
        )
    if _is_msgpack(start):
        return _say('a msgpack file, as Flax writes them', 'take the weights as .pth or .safetensors')
    return ''


def _say(what: str, advice: str) -> str:
    return f'is {what}, not weights: {advice}'


def _is_onnx(start: bytes) -> bool:
    """Return whether a protobuf begins with ONNX's version of the format, then another field of a model."""
    fields = {0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42}
    return len(start) > 2 and start[0] == 0x08 and 1 < start[1] < 32 and start[2] in fields


def _is_msgpack(start: bytes) -> bool:
    """Return whether a map begins whose first key is a short text."""
    skip = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else 0)
    length = start[skip] - 0xA0 if skip and len(start) > skip else 0
    key = start[skip + 1 : skip + 1 + length]
    return 0 < length < 32 and key.isascii() and key.decode().isprintable()


def _zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return ''  # damaged, which the reader says
    parts = {part for name in names for part in name.split('/')}
    inner = {name.partition('/')[2] for name in names}
    if 'constants.pkl' in inner and 'data.pkl' in inner:
        return _say(
            'a TorchScript archive (torch.jit.save), a program',
            'take the weights that it was made from, or, if you trust it, write them by '
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    if parts & {'serialized_exported_program.json', 'archive_format', 'aotinductor'}:
        return _say(
            'an archive of torch.export (.pt2), a program',
            'take the weights that it was made from, or, if you trust it, write them by '
            "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')",
        )
    if 'data.pkl' in parts:
        return ''
    if names and all(name.endswith('.npy') for name in names):
        return _say('an archive of NumPy arrays (.npz)', 'save a dict of tensors with torch.save')
    if 'model.weights.h5' in parts:
        return _say('a model of Keras', 'take the weights as .pth or .safetensors')
    return _say(f'a zip archive ({_contents(names)})', 'unpack it and give the file of weights in it')


def _tar(file: Path) -> str:
    try:
        with tarfile.open(file) as archive:
            names = archive.getnames()
    except (OSError, tarfile.TarError):
        return ''
    if {'storages', 'tensors', 'pickle'} <= set(names):
        return _say(
            "a file in torch's format of before 2017, which cannot be read safely",
            'get the weights as .safetensors, or saved by a newer torch',
        )
    return _say(f'a tar archive ({_contents(names)})', 'unpack it and give the file of weights in it')


def _contents(names: list[str]) -> str:
    return ', '.join(names[:3]) + f' and {len(names) - 3} more' * (len(names) > 3)


def is_plain_pickle(file: Path) -> bool:
    """Return whether ``pickle.dump`` wrote the file, not ``torch.save``."""
    with file.open('rb') as stream:
        start = stream.read(40)
    return start[:1] == b'\x80' and start[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05') and LEGACY not in start


def pickled_network(file: Path) -> str:
    """Return the class of a network that was pickled as a whole, ``torch.save(model)``; empty if none was.

    The instructions of the pickle are listed, not followed.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
                return _class_in(archive.read(name))
        with file.open('rb') as stream:
            legacy = LEGACY in stream.read(40)
            stream.seek(0)
            for _ in range(3 * legacy):  # magic number, version, the machine it was written on
                for _ in pickletools.genops(stream):
                    pass
            return _class_in(stream)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return ''


def _class_in(pickled) -> str:
    """Return the first class of a pickle that is no container, if there are networks in it."""
    classes, texts, recent = [], set(), []
    for code, argument, _ in pickletools.genops(pickled):
        if code.name == 'GLOBAL':
            classes.append(str(argument).replace(' ', '.'))
        elif code.name == 'STACK_GLOBAL':
            classes.append('.'.join(recent[-2:]))
        elif isinstance(argument, str):
            texts.add(argument)
            recent = [*recent[-1:], argument]
    known = (
        'collections.',
        'torch._utils.',
        'builtins.',
        '__builtin__.',
        'torch.storage',
        'torch.nn.parameter.',
    )
    if not {'_parameters', '_modules'} <= texts:
        return ''
    return next((name for name in classes if not name.startswith(known)), '')
