"""From the content of a checkpoint to tensors under the names of the released ConvNeXt.

Recognised now: the official files (``{'model': ...}``), bare dicts of tensors, and what a training of
ours or of mmengine writes (``{'state_dict': ...}``, with the network below ``backbone.``).
"""

import re

from torch import Tensor

from ..backbones.convnext import ARCHITECTURES
from ..backbones.isotropic import ARCHITECTURES as ISOTROPIC
from ..errors import UserError

# Where a checkpoint keeps its tensors; the first that is there counts.
WRAPPERS = ('state_dict', 'model')
# Where one that holds both keeps the last weights of the training and their moving average. mmengine puts
# the average into state_dict, and the last weights into what it calls ema_state_dict.
BOTH = {'ema_state_dict': dict(final='ema_state_dict', ema='state_dict')}
BOTH['model_ema'] = dict(final='model', ema='model_ema')  # the official training script


def tensors_of(content: dict, file: str, weights: str | None = None) -> dict[str, Tensor]:
    """The named tensors in a checkpoint, out of their wrapper and without ``module.``.

    Args:
        weights: ``'final'`` or ``'ema'``, of a training with a moving average; without one, final is what
            there is. ``None`` takes what the training evaluated, in the order of :data:`WRAPPERS`.

    Raises:
        UserError: there are none, or ``'ema'`` where there is no average.
    """
    choices = next((BOTH[key] for key in BOTH if isinstance(content.get(key), dict)), {})
    if weights == 'ema' and not choices:
        raise UserError(f'{file} holds no moving average (EMA): take its final weights')
    keys = (choices[weights],) if choices and weights else WRAPPERS
    found = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    tensors = {name.removeprefix('module.'): t for name, t in found.items() if isinstance(t, Tensor)}
    if choices:
        tensors.pop('steps', None)  # mmengine's counter
    if not tensors:
        raise UserError(
            f'{file} holds no tensors under {", ".join(map(repr, WRAPPERS))} or at the top; '
            f'its keys are {", ".join(map(str, list(content)[:8]))}'
        )
    return tensors


def released_names(names) -> dict[str, str]:
    """Name in the file or module -> name in the released checkpoints.

    Ours differ in nothing but the ``backbone.`` in front of what lies in the backbone.
    """
    return {name: name.removeprefix('backbone.') for name in names}


def infer_arch(tensors: dict[str, Tensor]) -> str | None:
    """The network whose depths and widths the tensors (released names) have, ``None`` if there is none.

    Returns:
        As it is said in a config: ``arch='tiny'``, or ``type='IsotropicConvNeXt', arch='small'``.
    """
    depths, dims = [0] * 4, [0] * 4
    for name, tensor in tensors.items():
        if match := re.fullmatch(r'(?:stages\.([0-3])|blocks)\.(\d+)\.dwconv\.weight', name):
            stage = int(match[1] or 0)
            depths[stage] = max(depths[stage], int(match[2]) + 1)
            dims[stage] = tensor.shape[0]
    if 'stem.weight' in tensors:
        found = (arch for arch, size in ISOTROPIC.items() if size[:2] == (depths[0], dims[0]))
        return next((f"type='IsotropicConvNeXt', arch={arch!r}" for arch in found), None)
    v2 = any('.grn.' in name for name in tensors)
    sizes = (tuple(depths), tuple(dims))
    found = (arch for arch, size in ARCHITECTURES.items() if size == sizes and arch.startswith('v2_') == v2)
    return next((f'arch={arch!r}' for arch in found), None)
