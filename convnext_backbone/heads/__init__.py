"""Has heads of mmdet and mmseg compute the same numbers, up to the order of sums, with less work."""

from torch import nn

from .class_map import predict_classes
from .fusion import use_small_maps
from .mask_targets import use_masks_once
from .pixel_loss import use_strips
from .rpn import use_sampled_gradients


def save_work(model: nn.Module, device: str) -> list[str]:
    """Change the heads of a model in place; parameters and their names stay.

    Args:
        model: any.
        device: on which it computes, ``cpu`` or ``cuda``.

    Returns:
        What was changed, one line for each kind.
    """
    done = {'targets of {} mask heads of masks that are there once': use_masks_once(model)}
    done['{} UPerHeads convolve maps before they enlarge them'] = use_small_maps(model)
    done['losses of {} decode heads strip by strip'] = use_strips(model)
    if device == 'cpu':
        done['gradients of {} convolutions of RPNHead at sampled positions'] = use_sampled_gradients(model)
    return [line.format(number) for line, number in done.items() if number]


__all__ = ['predict_classes', 'save_work']
