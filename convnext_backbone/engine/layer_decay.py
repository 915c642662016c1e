"""Decays learning rates layer by layer: the deeper a parameter lies in the backbone, the smaller its step.

The backbone answers how deep a parameter lies; here depth becomes a learning rate:
``lr * decay_rate ** (groups + 1 - depth)``. Definition: paper, App. A.2; the grouping of the
published detection and segmentation recipes, and that of the official V2's fine-tuning.
"""

from collections import defaultdict

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..backbones.base import DenseBackbone
from ..errors import UserError, some
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

NO_DECAY = ('.bias', '.gamma', '.beta')  # the last two also for the response norm's, of shape (1, 1, 1, D)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Groups parameters for the optimizer in classification, detection and segmentation.

    In a config::

        optim_wrapper = dict(
            constructor='convnext_backbone.LayerDecayConstructor',
            paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise'))

    Keys of ``paramwise_cfg``:
        decay_rate: factor per depth group, in (0, 1]; 1 leaves every learning rate as it is.
        decay_type: ``'layer_wise'`` (default), ``'stage_wise'`` or ``'block_wise'``, see the backbone's
            ``layer_depth``.
        num_layers: optional, as in mmdet and mmseg; it must equal the backbone's.
        custom_keys: optional, as in mmengine, of parameters outside the backbone: part of a name, and
            ``lr_mult`` and ``decay_mult``. The longest that is in a name holds.

    One-dimensional parameters, biases, layer scale and the parameters of V2's response norm get no weight
    decay, as in the official code. Everything outside the backbone's
    stages has the full learning rate.

    Raises:
        UserError: an unknown key, a rate out of range, a number of layers that contradicts the
            backbone, a learning rate above the head's, a custom key in no name, or a model without one
            of our backbones.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        given = paramwise_cfg or {}
        known = {'decay_rate', 'decay_type', 'num_layers', 'custom_keys'}
        if unknown := set(given) - known:
            raise UserError(
                f'paramwise_cfg of LayerDecayConstructor knows {", ".join(sorted(known))}, '
                f'got {", ".join(sorted(unknown))}'
            )
        rate = given.get('decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise UserError(
                f'paramwise_cfg.decay_rate must lie in (0, 1], got {rate!r}: '
                'above 1 the first layers would learn faster than the head'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None or self.base_wd is None:
            raise UserError('optimizer needs lr and weight_decay for layer-wise decay')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **_) -> None:
        """Append the parameter groups of ``module`` to ``params``, one for each (rate, decay)."""
        groups = defaultdict(list)
        for name, parameter, scale in self.scales(module):
            decay = 0.0 if parameter.ndim == 1 or name.endswith(NO_DECAY) else self.base_wd
            if not name.startswith(tuple(_backbones(module))):
                decay *= self._custom(name).get('decay_mult', 1.0)
            groups[scale, decay].append((name, parameter))
        rows = ['layer-wise learning rates', '        scale           lr  weight decay  tensors  first']
        for (scale, decay), members in sorted(groups.items()):
            names, parameters = zip(*members)
            params.append(
                dict(
                    params=list(parameters),
                    param_names=list(names),
                    lr=self.base_lr * scale,
                    lr_scale=scale,
                    weight_decay=decay,
                )
            )
            row = f'{scale:13.6f} {self.base_lr * scale:12.4g} {decay:13g} {len(names):8d}  {names[0]}'
            rows.append(row)
        print_log('\n'.join(rows), logger='current')

    def scales(self, module: nn.Module) -> list[tuple[str, nn.Parameter, float]]:
        """Return (name, parameter, learning-rate scale) of every trainable parameter of ``module``.

        Raises:
            UserError: a model without one of our backbones, a number of layers that contradicts the backbone,
                a learning rate above the head's, or a custom key that is in no name outside the backbone.
        """
        rate = self.paramwise_cfg['decay_rate']
        by = self.paramwise_cfg.get('decay_type', 'layer_wise')
        backbones = _backbones(module)
        if not backbones:
            raise UserError(
                f'layer-wise decay needs a backbone of convnext_backbone, and {type(module).__name__} has '
                'none: use it with such a backbone, or remove optim_wrapper.constructor'
            )
        for backbone in backbones.values():
            groups = backbone.depth_groups(by)
            given = self.paramwise_cfg.get('num_layers', groups)
            if given != groups:
                raise UserError(
                    f'paramwise_cfg.num_layers is {given}, but {type(backbone).__name__} '
                    f'{getattr(backbone, "arch", "")} has {groups} depth groups: '
                    'leave num_layers out, the backbone knows'
                )
        found, outside = [], []
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            prefix = next((p for p in backbones if name.startswith(p)), None)
            if prefix is None:
                outside.append(name)
                found.append((name, parameter, self._custom(name).get('lr_mult', 1.0)))
                continue
            backbone = backbones[prefix]
            depth = backbone.layer_depth(name.removeprefix(prefix), by)
            groups = backbone.depth_groups(by)
            steps = groups + 1 - depth  # below the full learning rate
            if steps < 0:
                raise UserError(
                    f'{name} would learn faster than the head (scale {rate**steps:.2f}): '
                    f'its depth is {depth}, of {groups} groups in {type(backbone).__name__}'
                )
            found.append((name, parameter, rate**steps))
        custom = self.paramwise_cfg.get('custom_keys') or {}
        if unused := [key for key in custom if not any(key in name for name in outside)]:
            raise UserError(
                f'paramwise_cfg.custom_keys: {some(unused)} is in the name of no trainable parameter outside '
                'the backbone, where decay_rate holds: take it out'
            )
        return found

    def _custom(self, name: str) -> dict:
        """Return what ``custom_keys`` say about a parameter outside the backbone."""
        custom = self.paramwise_cfg.get('custom_keys') or {}
        return custom[max(keys, key=len)] if (keys := [key for key in custom if key in name]) else {}


def _backbones(module: nn.Module) -> dict[str, DenseBackbone]:
    """Return our backbones by the beginning of the names of their parameters."""
    return {
        f'{name}.' if name else '': m for name, m in module.named_modules() if isinstance(m, DenseBackbone)
    }
