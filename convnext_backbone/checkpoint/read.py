"""Reads files of weights without running code from them.

Only torch's ``weights_only`` unpickler and safetensors are ever used. Beyond torch's own list of
harmless types, :data:`ALLOWED` names what the checkpoints of an mmengine training contain; anything
else is refused. mmengine's own reader goes on with an unsafe load where the safe one refuses:
:func:`close_unsafe_reader` puts ours in its place.
"""

import argparse
import hashlib
import logging
import os
import re
import urllib.request
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np
import torch
from filelock import FileLock
from mmengine.logging import HistoryBuffer, print_log
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from tqdm import tqdm

from ..errors import UserError
from . import kinds, zoo

WEIGHTS_FOLDER = 'CONVNEXT_WEIGHTS'  # environment variable; where weights are looked up and kept
SUFFIXES = ('.pth', '.safetensors', '.pt', '.bin', '.ckpt', '.tar')  # of files of weights
TOKEN = 'HF_TOKEN'  # environment variable; shows Hugging Face who asks for a gated file
TIMEOUT = 30  # seconds without an answer from a server of weights


def _statistics_method(owner, name):
    """Stand in for ``getattr`` in a pickle: give what mmengine's HistoryBuffer refers to, nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise UnpicklingError(f'Unsupported global: GLOBAL getattr({owner}, {name}) was not allowed')


# What NumPy's own pickles call: its functions for an array and for a scalar.
_NEW_ARRAY, _NEW_SCALAR = (value.__reduce__()[0] for value in (np.empty(0), np.float64()))
# Written down whole: what our files may hold beside tensors, numbers, strings and containers.
ALLOWED = [
    HistoryBuffer,  # mmengine's log of scalars
    (_statistics_method, 'builtins.getattr'),
    (_statistics_method, '__builtin__.getattr'),
    _NEW_ARRAY,  # NumPy arrays and scalars: logged values, palettes, box scales
    (_NEW_ARRAY, 'numpy.core.multiarray._reconstruct'),  # as NumPy 1 wrote it
    _NEW_SCALAR,
    (_NEW_SCALAR, 'numpy.core.multiarray.scalar'),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefd'},
    argparse.Namespace,  # the arguments of the official training script
]


class UnreadableCheckpoint(UserError):
    """Is raised where the file is missing, damaged, no file of weights, or holds something else than data."""


def read_checkpoint(path: str | os.PathLike, map_location='cpu') -> dict:
    """Return the content of a ``.pth`` or ``.safetensors`` file or URL; no code in it is run.

    Raises:
        UnreadableCheckpoint: with one line that names the file and what is wrong with it.
    """
    file = local_file(path)
    try:
        with file.open('rb') as stream:
            start = stream.read(kinds.ENOUGH)
    except OSError as error:
        raise UnreadableCheckpoint(f'{file} cannot be opened: {error.strerror}') from error
    if not start:
        raise UnreadableCheckpoint(f'{file} is empty (0 bytes): copy or download it again')
    if other := kinds.what_else(file, start):
        raise UnreadableCheckpoint(f'{file} {other}')
    if file.suffix == '.safetensors' or start[8:9] == b'{':
        try:
            content = load_safetensors(file, device=str(map_location))
        except SafetensorError as error:
            raise UnreadableCheckpoint(f'{file} is no complete safetensors file: {error}') from error
    else:
        content = _torch_load(file, map_location)
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(
            f'{file} holds a {type(content).__name__}, expected a dict of tensors or a checkpoint'
        )
    return content


def _torch_load(file, map_location=None, weights_only=True):
    """Call ``torch.load``, always with ``weights_only`` (the argument exists to fit mmengine's calls)."""
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(file, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        if network := kinds.pickled_network(Path(file)):
            raise UnreadableCheckpoint(
                f'{file} holds a network pickled as a whole ({network}), which is a program; nothing of it '
                'was run: take its weights, or, if you trust it, write them where its code is by '
                "torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        if found := re.search(r'(?:GLOBAL|but got|function) (\S+)', str(error)):
            raise UnreadableCheckpoint(
                f'{file} holds {found[1]}, which is not data; nothing of it was run. A file of weights '
                'may hold tensors, numbers, strings and containers only: get the weights from a source '
                'that saves them so, or as .safetensors'
            ) from error
        raise UnreadableCheckpoint(_damaged(file, error)) from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the unpickler meets damaged bytes with any kind of error
        raise UnreadableCheckpoint(_damaged(file, error)) from error


def _damaged(file, error: Exception) -> str:
    if kinds.is_plain_pickle(Path(file)):
        return (
            f'{file} is a pickle that torch.save did not write (pickle.dump), which is not opened: get the '
            'weights as .safetensors or .pth'
        )
    if (path := Path(file)).name == 'last_checkpoint' and path.stat().st_size < 4096:
        named = path.read_text(errors='replace').strip()
        return f'{file} holds the name of the newest checkpoint, no weights: give that file, {named}'
    reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
    return f'{file} is truncated, damaged or no file of weights ({reason}): copy or download it again'


def close_unsafe_reader() -> None:
    """Make every load of mmengine, mmdet and mmseg in this process go through the safe reader.

    Files and URLs, by mmengine's table of loaders. Names of models (``torchvision://``, ``open-mmlab://``)
    are looked up by mmengine and end in ``load_url``, which would unpickle whatever comes, or in the
    maintained builds in ``_safe_torch_load``, which falls back to unpickling.
    """
    import mmengine.runner.checkpoint as mmengine_checkpoint

    def load_from_safe_reader(filename, map_location=None):
        return read_checkpoint(filename, map_location or 'cpu')

    def load_url(url, model_dir=None, map_location=None, progress=True, **_):
        return read_checkpoint(url, map_location or 'cpu')

    loaders = mmengine_checkpoint.CheckpointLoader
    loaders.register_scheme(['', 'http://', 'https://'], load_from_safe_reader, force=True)
    mmengine_checkpoint.load_url = load_url
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):
        mmengine_checkpoint._safe_torch_load = _torch_load


def local_file(path: str | os.PathLike) -> Path:
    """Return a file on this machine for ``path``: itself, or what a URL or a name of :mod:`zoo` stands for.

    The latter two are looked up in the weights folder, then downloaded. The folder is
    ``$CONVNEXT_WEIGHTS``, by default ``~/.cache/convnext_backbone``. A download goes to a temporary name
    and is renamed when it is complete and has the SHA-256 in its name, if there is one. Of several
    processes one downloads, the others wait. Hugging Face is shown the token in ``$HF_TOKEN``, if there is
    one; no other host ever is.

    Raises:
        UnreadableCheckpoint: there is no such file, the download fails or is refused, or the file of that
            name came from a different URL or has a different SHA-256.
    """
    if released := zoo.RELEASED.get(str(path)):
        level = logging.WARNING if released.licence in zoo.WARNED else logging.INFO
        print_log(f'{path}: {released}', 'current', level)
    url = released.url if released else str(path)
    if not url.startswith(('http://', 'https://')):
        file = Path(path).expanduser()
        if file.is_dir():
            inside = sorted(f.name for f in file.iterdir() if f.suffix in SUFFIXES)
            raise UnreadableCheckpoint(
                f'{file} is a folder: give a file of weights in it, '
                + (', '.join(inside[:4]) if inside else f'which has no {", ".join(SUFFIXES)}')
            )
        if not file.is_file():
            raise UnreadableCheckpoint(f'no file of weights at {file}{zoo.nearest(url)}')
        return file
    folder = Path(os.environ.get(WEIGHTS_FOLDER, '~/.cache/convnext_backbone')).expanduser()
    name = zoo.file_name(url)
    kept = f' as {name}' if name else ''
    try:
        if not name:
            raise ValueError('it names no file')
        file = folder / name
        source = file.with_name(f'{name}.url')  # where a downloaded file came from
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / '.lock', mode=0o666):
                if not file.is_file():
                    _download(url, file)
                    source.write_text(url)
        known = source.read_text().strip() if source.is_file() else url
        expected = zoo.published_hash(url)
        found = sha256(file)[: len(expected)] if expected else ''
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError) and error.code in (401, 403) and (site := zoo.page(url)):
            raise UnreadableCheckpoint(_refused(url, site, error.code, file)) from error
        reason = getattr(error, 'reason', error)
        raise UnreadableCheckpoint(
            f'cannot download {url} ({reason}); fetch it on another machine and put it into {folder} (or the '
            f'folder that ${WEIGHTS_FOLDER} names){kept}, or train from scratch with --pretrained none'
        ) from error
    if known != url:
        raise UnreadableCheckpoint(
            f'{file} was downloaded from {known}, not from {url}: move it away, or give its path'
        )
    if found != expected:
        raise UnreadableCheckpoint(
            f'{file} is not the file that {url} stands for: its SHA-256 begins with {found}, not {expected}; '
            'remove it and download it again'
        )
    return file


def _refused(url: str, site: str, code: int, file: Path) -> str:
    """Return the error for a file of Hugging Face that is not handed out to whoever asks."""
    shown = f'shown the token in ${TOKEN}' if os.environ.get(TOKEN) else f'without a token in ${TOKEN}'
    return (
        f'{url} is not handed out ({code}, {shown}): log in at {site} and accept the licence there, set '
        f'{TOKEN} to a token of that account ({zoo.HUGGING_FACE}/settings/tokens), and start again; or '
        f'download the file there, and give its path or put it into {file.parent} as {file.name}'
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Takes the token along within its own host, and never to the one that a redirect leads to."""

    def redirect_request(self, request, *rest):
        """Return the request that follows a redirect."""
        following = super().redirect_request(request, *rest)
        token = request.unredirected_hdrs.get('Authorization')
        if following is not None and token and _host(following.full_url) == _host(request.full_url):
            following.add_unredirected_header('Authorization', token)
        return following


def _host(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]


def _open(url: str):
    """Open a URL; a file of Hugging Face with the user's token, if there is one."""
    request = urllib.request.Request(url)
    token = os.environ.get(TOKEN, '').strip()
    if token and _host(url) == _host(zoo.HUGGING_FACE):
        if not re.fullmatch('[!-~]+', token):  # http.client would print it
            raise ValueError(f'${TOKEN} holds characters that no token has: set it anew')
        request.add_unredirected_header('Authorization', f'Bearer {token}')
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _download(url: str, file: Path) -> None:
    print_log(f'downloading {url} to {file}', 'current')
    part = file.with_name(f'{file.name}.part')  # the caller holds the folder's lock
    try:
        with _open(url) as answer, part.open('wb') as stream:
            size = int(answer.headers.get('Content-Length') or 0)
            with tqdm(total=size or None, unit='B', unit_scale=True, desc=file.name, disable=None) as bar:
                while block := answer.read(1 << 20):
                    stream.write(block)
                    bar.update(len(block))
            if size and stream.tell() != size:
                raise OSError(f'the connection ended after {stream.tell()} of {size} bytes')
        if expected := zoo.published_hash(url):
            found = sha256(part)[: len(expected)]
            if found != expected:
                raise OSError(f'its SHA-256 begins with {found}, not {expected}')
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of the file, in hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256."""
    return sha256(path)[:16]
