"""Gives networks and released weights by name, in the manner of timm."""

import inspect
import os
from fnmatch import fnmatchcase

import torch
from torch import nn

from .backbones import ConvNeXt, IsotropicConvNeXt
from .backbones.base import STRIDES, DenseBackbone
from .backbones.convnext import ARCHITECTURES
from .backbones.isotropic import ARCHITECTURES as ISOTROPIC
from .checkpoint import load_checkpoint, read_checkpoint
from .checkpoint.networks import recognise, tensors_of
from .checkpoint.read import local_file
from .checkpoint.zoo import RELEASED, Weights
from .classification import Classifier
from .errors import UserError, suggest


def _model_name(arch: str) -> str:
    """Name a size as timm and the released files do, e.g. ``v2_tiny`` -> ``convnextv2_tiny``."""
    if arch.startswith('v2_'):
        return f'convnextv2_{arch.removeprefix("v2_")}'
    if arch.startswith('isotropic_'):
        return f'convnext_iso_{arch.removeprefix("isotropic_")}'
    return f'convnext_{arch}'


MODELS = {_model_name(arch): arch for arch in (*ARCHITECTURES, *(f'isotropic_{arch}' for arch in ISOTROPIC))}
DEFAULT_WEIGHTS = '{}_1k_224_ema'  # ImageNet-1K alone, at 224 x 224, the average, whose accuracy is published


def list_models(pattern: str = '*') -> list[str]:
    """Return the names that :func:`create_model` knows, those that fit the ``fnmatch`` pattern."""
    return [name for name in MODELS if fnmatchcase(name, pattern)]


def list_pretrained(pattern: str = '*') -> list[str]:
    """Return the names of the released weights that fit the ``fnmatch`` pattern.

    ``convnext convert --list`` shows size, accuracy, image size and licence of each.
    """
    return [name for name in RELEASED if fnmatchcase(name, pattern)]


def _classes_of(weights: str | os.PathLike) -> int:
    """Return the number of classes of a file of weights, 0 if it has no classifier."""
    if str(weights) in RELEASED:
        return RELEASED[str(weights)].num_classes
    file = local_file(weights)
    _, tensors = recognise(tensors_of(read_checkpoint(file), str(file), None))
    return len(tensors['head.weight']) if 'head.weight' in tensors else 0


def mebibytes(weights: Weights) -> float:
    """Return the size of a released network's weights in float32; a file may hold more (FCMAE's decoder)."""
    kind, arch = _network(weights.arch)
    backbone = dict(type=f'convnext_backbone.{kind.__name__}', arch=arch)
    with torch.device('meta'):
        model = Classifier(backbone, weights.num_classes or 1)
    return sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20


def _network(arch: str) -> tuple[type[DenseBackbone], str]:
    """Return the class of a size, and what the size is called there."""
    if arch.startswith('isotropic_'):
        return IsotropicConvNeXt, arch.removeprefix('isotropic_')
    return ConvNeXt, arch


def create_model(
    name: str,
    pretrained: bool | str = False,
    *,
    features_only: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    **options,
) -> nn.Module:
    """Build a classifier, or with ``features_only`` a backbone that emits maps.

    Args:
        name: of :func:`list_models` (``convnext_tiny``), or of :func:`list_pretrained`
            (``convnext_tiny_22k_224``), which also says what ``pretrained=True`` loads.
        pretrained: ``True`` for released weights, or their name, path or URL. Every tensor is loaded, or the
            call fails; a classifier for other classes starts with a fresh head.
        features_only: return a tuple of maps (N, C, H / stride, W / stride), by default at strides 4, 8, 16
            and 32, without output norms; ``model.out_channels`` and ``model.out_strides`` describe them.
        num_classes: length of the logits; 0: pooled and normed features. By default as many as the weights
            have, or 1000.
        in_chans: channels of the image; a pretrained stem is inflated from three.
        options: of the backbone, such as ``drop_path_rate``, ``out_indices`` or ``output_stride``.

    Returns:
        A model in training mode that takes images (N, in_chans, H, W), RGB in 0 to 1, normalised with
        ``convnext_backbone.checkpoint.zoo.MEAN`` and ``STD``, or with ``CLIP_MEAN`` and ``CLIP_STD``.

    Raises:
        UserError: an unknown name (the nearest is in the message), or weights that do not fit.
    """
    if type(num_classes) not in (int, type(None)) or (num_classes or 0) < 0:
        raise UserError(f'num_classes must be a whole number from 0 on, got {num_classes!r}')
    if name in RELEASED:
        arch, released = RELEASED[name].arch, name
    elif name in MODELS:
        arch = MODELS[name]
        released = DEFAULT_WEIGHTS.format(name)
    else:
        raise UserError(f'no model is called {name!r}{suggest(name, [*MODELS, *RELEASED], 0.6)}')
    if pretrained is True and released not in RELEASED:
        raise UserError(
            f'{name} was never released with weights for ImageNet-1K: name one of '
            f'{", ".join(n for n in RELEASED if RELEASED[n].arch == arch) or "another model"}'
        )
    weights = released if pretrained is True else pretrained or None
    kind, size = _network(arch)
    known_options = [n for n in inspect.signature(kind).parameters if n not in ('arch', 'in_channels')]
    near = [*known_options, 'in_chans']
    for option in options:
        if option not in known_options:
            raise UserError(
                f'create_model does not know {option}{suggest(option, near, 0.6)}; see '
                f'convnext_backbone.{kind.__name__} for the options of {name}'
            )
    if features_only:
        options = dict(out_indices=tuple(range(len(STRIDES))), output_norm=False) | options
        model = kind(size, in_channels=in_chans, **options)
        if weights:
            load_checkpoint(model, weights, weights=None)
        return model
    known = None if weights is None else _classes_of(weights)
    backbone = dict(type=f'convnext_backbone.{kind.__name__}', arch=size, in_channels=in_chans, **options)
    classes = next(number for number in (num_classes, known, 1000) if number is not None)
    model = Classifier(backbone, classes)
    if weights:
        fresh = ('head.*',) if known != classes or not known else ()  # CLIP's head projects to its texts
        load_checkpoint(model, weights, skip=fresh, fresh=(*fresh, *('norm.*',) * (known == 0)), weights=None)
    return model
