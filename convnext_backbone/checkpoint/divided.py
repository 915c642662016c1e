"""Tensors of which each process has a part (FSDP): whole ones for a file, and back."""

from collections import OrderedDict

from torch import Tensor


def is_divided(tensor) -> bool:
    return hasattr(tensor, 'full_tensor')


def whole(value, keep: bool):
    """``value`` with every tensor in it whole and on the CPU; all processes must call it.

    Args:
        keep: whether this process wants the result; others get ``None``.
    """
    if isinstance(value, Tensor):
        value = value.full_tensor() if is_divided(value) else value
        return value.cpu() if keep else None
    if type(value) in (dict, OrderedDict):
        found = type(value)((key, whole(child, keep)) for key, child in value.items())
        if hasattr(value, '_metadata'):  # of a state_dict: the versions of its layers
            found._metadata = value._metadata
        return found
    if type(value) in (list, tuple):
        return type(value)(whole(child, keep) for child in value)
    return value


def divided_as(tensor: Tensor, model: Tensor) -> Tensor:
    """This process's part of ``tensor``, as ``model`` is divided; ``tensor`` itself if that is not."""
    if not is_divided(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
