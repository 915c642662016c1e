"""Measures which maps the backbones of a model emit, which parts receive them, and what does not fit there.

A made-up image is sent through backbone, neck and heads, on the meta device where that works: shapes without
values, in a fraction of a second for any size. What is found is seen, not taken from names in the config.
"""

from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from ..config import datasets, dicts
from ..registry import type_name
from .build import build_model, building, settled, without_weights
from .network import BACKBONES, BESIDE, Measured, Network, networks_of, settings
from .tracing import run

SIDE = 512  # pixels of the image: every level of a pyramid up to stride 128 has whole positions
SIDE_ON_CPU = 128


def measure(cfg: Config) -> Measured:
    """Build the model of a config and measure every backbone in it.

    Args:
        cfg: any config with a ``model``, of mmdet, mmseg or ours; it stays as it is. No weights are loaded.

    Returns:
        What was measured. A model that cannot be built as a whole is measured by backbone and neck.
    """
    try:
        model, reason = build_model(cfg), None
        networks = networks_of(model)
    except Exception as error:  # whatever constructors raise
        model, reason = None, error
        networks = list(_parts(cfg))
    for network in networks:
        _measure_network(cfg, network)
        if (
            network.needs_values(network.backbone)
            and model is not None
            and (again := _again_on_cpu(cfg, network))
        ):
            networks[networks.index(network)] = again
    return Measured(model, networks, reason)


def _measure_network(cfg: Config, network: Network) -> None:
    backbone = getattr(network.module, network.backbone)
    _, node = settings(cfg, network.name(network.backbone))
    given = (node or {}).get('in_channels')
    network.in_channels = given if isinstance(given, int) else 3
    usual = SIDE if _device(backbone).type == 'meta' else SIDE_ON_CPU
    side = _side_of_backbone(node or {}) or side_of_anchors(cfg) or usual
    with building(cfg.get('default_scope'), str(_device(backbone))):
        run(network, torch.zeros(1, network.in_channels, side, side))


def _side_of_backbone(node: dict) -> int:
    """Return the side of the images that a transformer takes, if it takes no others (BEiT); else 0."""
    size = node.get('img_size')
    size = size[0] if isinstance(size, (list, tuple)) and size else size
    return size if isinstance(size, int) else 0


def side_of_anchors(cfg: Config) -> int:
    """Return the side of the images that the anchors of SSD are made for: its last maps are small; else 0."""
    head = cfg.model.get('bbox_head')
    anchors = head.get('anchor_generator') if isinstance(head, dict) else None
    if 'SSD' not in type_name(anchors or {}):
        return 0
    steps = [step for _, data in datasets(cfg, ('test_dataloader',)) for step in dicts(data.get('pipeline'))]
    scales = [step.get('scale') for step in steps if type_name(step) == 'Resize']
    sides = [anchors.get('input_size'), *(s[0] for s in scales if isinstance(s, (list, tuple)) and s)]
    return next((side for side in sides if isinstance(side, int)), 0)


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device('cpu'))


def _parts(cfg: Config) -> Iterator[Network]:
    """Yield networks of backbone and neck alone, of a model that cannot be built as a whole."""
    alone = without_weights(cfg)
    for place, node in _holders(alone.model, ''):
        for name in BACKBONES:
            if not isinstance(node.get(name), dict):
                continue
            holder, neck = nn.Module(), BESIDE.get(name, 'neck')
            network = Network(place, name, '', holder)
            with building(cfg.get('default_scope'), 'meta'):
                try:
                    holder.add_module(name, MODELS.build(node[name]))
                except Exception:  # then nothing of it can be measured
                    continue
                try:
                    if node.get(neck):
                        holder.add_module(neck, MODELS.build(node[neck]))
                        network.neck = neck
                except Exception as error:
                    network.failures[neck] = error
            settled(holder, 'meta')
            yield network


def _holders(node, place: str) -> Iterator[tuple[str, dict]]:
    """Yield name and settings of each part of a model that has a backbone."""
    if not isinstance(node, dict):
        return
    if any(name in node for name in BACKBONES):
        yield place, node
    for key, child in node.items():
        yield from _holders(child, f'{place}.{key}' if place else key)


def _again_on_cpu(cfg: Config, network: Network) -> Network | None:
    """Measure a network on the CPU that needs values; ``None`` if that fails, too."""
    try:
        _, node = settings(cfg, network.name(network.backbone))
        with building(cfg.get('default_scope'), 'cpu'):
            holder = nn.Module()
            holder.add_module(network.backbone, MODELS.build(without_weights(Config(dict(model=node))).model))
        settled(holder, 'cpu')
        again = Network(network.place, network.backbone, '', holder)
        _measure_network(cfg, again)
    except Exception:
        return None
    return again if again.maps else None
