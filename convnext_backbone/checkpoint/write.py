"""Writes checkpoints that are whole or not there, and finds the newest of them that is whole."""

import contextlib
import hashlib
import json
import os
import re
import time
import zipfile
from pathlib import Path

import torch

from .read import sha256

OF_A_TRAINING = re.compile(r'(epoch|iter)_\d+\.pth')
POINTER = 'last_checkpoint'  # mmengine's name: a file with the path of the newest checkpoint


class _Hashing:
    """Wraps a stream to write to, and knows the SHA-256 of what was written."""

    def __init__(self, stream):
        self.stream, self.hash = stream, hashlib.sha256()

    def write(self, data) -> int:
        self.hash.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


def side_file(file: Path) -> Path:
    """Return the file that notes size, hash and place in the training of a checkpoint."""
    return file.with_name(f'{file.name}.json')


def write_checkpoint(content: dict, file: Path, **facts) -> None:
    """Write ``content`` so that a crash at any moment leaves the old file, the new one, or none.

    Written beside under another name, flushed to the disk, read again and compared, then renamed; a side
    file notes size and SHA-256. A checkpoint without side file is checked by the checksums inside it.

    Args:
        facts: what the side file notes besides: ``epoch``, ``iter``, ...

    Raises:
        OSError: the disk is full, or what is on it is not what was written. Nothing is left over, and an
            older ``file`` is as it was.
    """
    try:
        with _replacing(file, 'wb') as stream:
            hashing = _Hashing(stream)
            torch.save(content, hashing)
            _to_the_disk(stream)
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read again from the disk
            digest, size = hashing.hash.hexdigest(), stream.tell()
            if sha256(stream.name) != digest:
                raise OSError(f'{stream.name} does not hold what was written: the disk is faulty')
            side_file(file).unlink(missing_ok=True)
    except RuntimeError as error:  # torch's, around an OSError of the stream
        raise OSError(str(error.__cause__ or error)) from error
    write_text(side_file(file), json.dumps(dict(size=size, sha256=digest, written=time.time(), **facts)))


def write_text(file: Path, text: str) -> None:
    """Replace ``file`` as a whole, in UTF-8."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace ``file`` as a whole."""
    with _replacing(file, 'wb') as stream:
        stream.write(content)


@contextlib.contextmanager
def _replacing(file: Path, mode: str):
    """Open a stream beside ``file``, whose content takes its place when it is on the disk, or is removed."""
    part = file.with_name(f'.{file.name}.part')
    try:
        with part.open(mode) as stream:
            yield stream
            _to_the_disk(stream)
        os.replace(part, file)
        sync_folder(file.parent)
    finally:
        part.unlink(missing_ok=True)


def _to_the_disk(stream) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_metadata(file: Path) -> dict:
    """Return the content of a checkpoint's side file; empty without one."""
    try:
        return json.loads(side_file(file).read_text())
    except (OSError, ValueError):
        return {}


def note_validation(file: Path) -> None:
    """Note that the validation that was due at this checkpoint has been done."""
    if facts := read_metadata(file):
        write_text(side_file(file), json.dumps({**facts, 'validated': True}))


def why_damaged(file: Path) -> str:
    """Return why ``file`` is not the checkpoint that was written; empty if it is."""
    facts = read_metadata(file)
    try:
        size = file.stat().st_size
        if facts and size != facts['size']:
            return f'it has {size} bytes, {facts["size"]} were written'
        if facts:
            return '' if sha256(file) == facts['sha256'] else 'its content is not what was written (SHA-256)'
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
        return f'{broken} in it is damaged (CRC-32)' if broken else ''
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        return str(error)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a training from which it can go on, the newest first.

    Those in ``folder``; if there are none, what its file ``last_checkpoint`` points to, and those beside it.
    """
    found = _resumable(folder)
    pointer = folder / POINTER
    if not found and pointer.is_file() and (target := Path(pointer.read_text().strip())).is_file():
        found = list({target.resolve(), *_resumable(target.parent)})
    return sorted(found, key=_written, reverse=True)


def _resumable(folder: Path) -> list[Path]:
    files = folder.resolve().glob('*.pth') if folder.is_dir() else []
    return [file for file in files if OF_A_TRAINING.fullmatch(file.name) or 'iter' in read_metadata(file)]


def _written(file: Path) -> float:
    try:
        return read_metadata(file).get('written') or file.stat().st_mtime
    except OSError:
        return 0.0


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint in ``folder`` that is whole, and a line about each one passed over."""
    passed_over = []
    for file in checkpoints_in(folder):
        if not (reason := why_damaged(file)):
            return file, passed_over
        passed_over.append(f'{file} is passed over: {reason}')
    return None, passed_over
