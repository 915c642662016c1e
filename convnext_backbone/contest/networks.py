"""Builds ConvNeXt of this package and of others, as backbones and as classifiers, with the same weights."""

import functools

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import backbones  # noqa: F401  registers ours
from ..backbones.convnext import ARCHITECTURES
from ..checkpoint.formats import from_released, released_names

CLASSES = 1000


# Contestants: (size, dense, drop_path, released weights) -> module that gives logits or a list of maps


def network(size: str, dense: bool, **options) -> nn.Module:
    """Build ours: the backbone without output norms, which the peers do not have, or the classifier."""
    backbone = dict(type='convnext_backbone.ConvNeXt', arch=size, **options)
    if dense:
        return MODELS.build(dict(backbone, output_norm=False))
    return MODELS.build(dict(type='convnext_backbone.Classifier', backbone=backbone, num_classes=CLASSES))


def ours(size: str, dense: bool, drop_path: float, weights: dict, **options) -> nn.Module:
    """Build our network with the given weights."""
    model = network(size, dense, drop_path_rate=drop_path, **options)
    names = released_names(model.state_dict())
    model.load_state_dict({own: weights[name] for own, name in names.items()})
    return model


def timm(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build timm's network with the given weights."""
    import timm

    options = dict(features_only=True) if dense else {}
    model = timm.create_model(f'convnext_{size}', drop_path_rate=drop_path, **options)
    tensors = from_released(weights, 'timm')
    if dense:
        tensors = {n.replace('stem.', 'stem_').replace('stages.', 'stages_'): t for n, t in tensors.items()}
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


class _TorchvisionMaps(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.features = model.features

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i % 2:
                maps.append(x)
        return maps


def torchvision(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build torchvision's network with the given weights.

    Raises:
        ImportError: torchvision does not have the size.
    """
    from torchvision import models

    if size == 'xlarge':
        raise ImportError('torchvision has no xlarge')
    model = getattr(models, f'convnext_{size}')(stochastic_depth_prob=drop_path)
    model.load_state_dict(from_released(weights, 'torchvision'))
    return _TorchvisionMaps(model) if dense else model


class _HuggingFace(nn.Module):
    def __init__(self, model: nn.Module, dense: bool):
        super().__init__()
        self.model, self.dense = model, dense

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if not self.dense:
            return self.model(x).logits
        return list(self.model(x, output_hidden_states=True).hidden_states[1:])


def transformers(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build Hugging Face's network with the given weights."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    depths, dims = ARCHITECTURES[size]
    config = ConvNextConfig(depths=depths, hidden_sizes=dims, drop_path_rate=drop_path, num_labels=CLASSES)
    model = ConvNextForImageClassification(config)
    model.load_state_dict(from_released(weights, 'hf'))
    return _HuggingFace(model.convnext if dense else model, dense)


class _MMPretrain(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module | None):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = self.backbone(x)
        return list(maps) if self.head is None else self.head.fc(maps[-1])


def mmpretrain(size: str, dense: bool, drop_path: float, weights: dict) -> nn.Module:
    """Build mmpretrain's network with the given weights."""
    from mmpretrain.models.backbones import ConvNeXt

    options = dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False) if dense else {}
    backbone = ConvNeXt(size, drop_path_rate=drop_path, **options)
    head = None if dense else nn.ModuleDict(dict(fc=nn.Linear(ARCHITECTURES[size][1][3], CLASSES)))
    if dense:  # the others have no output norms
        for i in range(4):
            setattr(backbone, f'norm{i}', nn.Identity())
    model = _MMPretrain(backbone, head)
    tensors = from_released(weights, 'mmpretrain')
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


OURS = {'ours': ours, 'ours triton': functools.partial(ours, fused='triton')}  # the latter on a GPU
PEERS = dict(timm=timm, torchvision=torchvision, transformers=transformers, mmpretrain=mmpretrain)


def random_weights(size: str) -> dict[str, Tensor]:
    """Return random weights under the released names.

    With layer scales and norms that a wrong implementation would show.
    """
    torch.manual_seed(0)
    model = network(size, dense=False, layer_scale_init_value=0.5)
    weights = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix('backbone.')
        weights[name] = tensor + 0.1 * torch.randn_like(tensor) if tensor.ndim == 1 else tensor
    return weights
