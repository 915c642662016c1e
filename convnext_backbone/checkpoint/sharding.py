"""Converts tensors of which each process holds a shard (FSDP): full ones for a file, and back."""

import copy
from collections import OrderedDict

from torch import Tensor


def is_sharded(tensor) -> bool:
    """Return whether a tensor is divided among the processes."""
    return hasattr(tensor, 'full_tensor')


def full_state(value, keep: bool):
    """Return ``value`` with every tensor in it full and on the CPU; all processes must call it.

    Args:
        value: a tensor, or dicts and lists with tensors in them.
        keep: whether this process wants the result; others get ``None`` for each tensor.
    """
    if isinstance(value, Tensor):
        value = value.full_tensor() if is_sharded(value) else value
        return value.cpu() if keep else None
    if type(value) in (dict, OrderedDict):
        full = copy.copy(value)  # with what a state_dict has beside its tensors: the versions of the layers
        full.update((key, full_state(child, keep)) for key, child in value.items())
        return full
    if type(value) in (list, tuple):
        return type(value)(full_state(child, keep) for child in value)
    return value


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return this process's shard of ``tensor``, sharded as ``model`` is; all of it if that is not."""
    if not is_sharded(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
