"""Hands the batches of a data loader's processes over in one piece of shared memory.

As they come from a collate function, each tensor is a shared file of its own, opened through a socket, and
NumPy's arrays (instance masks) go through a pipe, byte by byte.
"""

import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

LEAST = 1 << 12  # bytes of what goes into the shared memory, less is pickled as ever
ALIGNED = 64  # bytes
KINDS = 'biuf'  # of NumPy's types: bool, int, unsigned, float


class InOnePiece:
    """Collates as ``collate``; in a process of a data loader the batch is made ready to be handed over.

    The training gets what ``collate`` gave: the same types, shapes, strides and values.

    Attributes:
        collate: list of items -> batch.
    """

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, items: list):
        batch = self.collate(items)
        return Parcel(batch) if get_worker_info() is not None else batch


class Parcel:
    """Holds a batch, packed, that becomes itself again when it is unpickled in another process.

    Packed at once: an error where it is pickled, by a thread of the queue, would be lost.
    """

    def __init__(self, batch):
        text = io.BytesIO()
        packer = _Packer(text)
        packer.dump(batch)
        self.text, self.memory = text.getvalue(), torch.empty(0, dtype=torch.uint8)
        if packer.pieces:
            self.memory.set_(torch.UntypedStorage._new_shared(packer.size))
        for start, piece in packer.pieces:
            self.memory[start : start + piece.numel()] = piece

    def __reduce__(self):
        return _open, (self.memory, self.text)


class _Packer(ForkingPickler):
    """Pickles all but the numbers of large tensors and arrays, which it puts into :attr:`pieces`."""

    def __init__(self, file):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.pieces, self.size = [], 0  # (first byte, (bytes,) uint8)

    def persistent_id(self, value):
        """Return where and how a tensor or an array lies in the memory, ``None`` for what is pickled."""
        if type(value) is np.ndarray:
            if value.nbytes < LEAST or value.dtype.kind not in KINDS or not value.flags.c_contiguous:
                return None
            flat = value.reshape(-1)
            if value.dtype == np.uint8 and flat.max() <= 1:
                return 'bits', self._put(torch.from_numpy(np.packbits(flat))), value.size, value.shape
            return 'array', self._put(torch.from_numpy(flat.view(np.uint8))), value.dtype.str, value.shape
        if (
            type(value) is not Tensor
            or value.is_shared()
            or value.requires_grad
            or value.device.type != 'cpu'
        ):
            return None
        numbers = value.numel()
        if numbers * value.itemsize < LEAST or value.layout is not torch.strided:
            return None
        if not value.is_contiguous() and not value.is_contiguous(memory_format=torch.channels_last):
            return None
        flat = value.as_strided((numbers,), (1,))
        form = value.dtype, tuple(value.shape), value.stride()
        if value.dtype is torch.int64:
            low, high = flat.aminmax()
            if low >= 0 and high < 256:
                return 'labels', self._put(flat.to(torch.uint8)), *form
        return 'tensor', self._put(flat.view(torch.uint8)), *form

    def _put(self, piece: Tensor) -> tuple[int, int]:
        start = -(-self.size // ALIGNED) * ALIGNED
        self.pieces.append((start, piece))
        self.size = start + piece.numel()
        return start, self.size


class _Opener(pickle.Unpickler):
    def __init__(self, file, memory: Tensor):
        super().__init__(file)
        self.memory = memory

    def persistent_load(self, where):
        kind, (start, end), dtype, shape, *strides = where
        piece = self.memory[start:end]
        if kind == 'bits':
            return np.unpackbits(piece.numpy(), count=dtype).reshape(shape)
        if kind == 'array':
            return piece.numpy().view(dtype).reshape(shape)
        piece = piece.to(torch.int64) if kind == 'labels' else piece.view(dtype)
        return piece.as_strided(shape, *strides)


def _open(memory: Tensor, text: bytes):
    return _Opener(io.BytesIO(text), memory).load()
