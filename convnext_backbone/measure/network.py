"""Describes what is measured of a model, and finds the settings from which each of its parts was built."""

from dataclasses import dataclass, field

from mmengine.config import Config
from torch import nn

from ..config.keys import walk

BACKBONES = ('backbone', 'teacher_backbone')
BESIDE = {'teacher_backbone': 'teacher_neck'}  # the neck of a network is called so; else ``neck``
# Module: where the config has its settings.
ELSEWHERE = {
    'student': 'detector',
    'teacher': 'detector',
    'bbox_head': 'rpn_head',
    'backbone': 'backbone_cfg',  # of ICNet
}
TEACHER = 'teacher_model'  # its settings are ``teacher_backbone``, ``teacher_neck`` ... beside the student's


@dataclass(frozen=True)
class Map:
    """Is one map that a backbone or a neck emits.

    Attributes:
        channels: of the map.
        stride: pixels of the image for each position, down and across.
    """

    channels: int
    stride: tuple[float, float]


@dataclass(frozen=True)
class Reader:
    """Is a module that receives maps themselves, not what another module made of them.

    Attributes:
        place: its name in the model, such as ``neck`` or ``decode_head.0``.
        source: name of the module that emits the maps.
        maps: which of them, counted from 0, in the order in which it receives them.
    """

    place: str
    source: str
    maps: tuple[int, ...]


@dataclass(frozen=True)
class Misfit:
    """Is a layer that received another number of channels than it was built for."""

    place: str
    built_for: int
    received: int


@dataclass
class Network:
    """Holds what was measured of one backbone and what reads it.

    Attributes:
        place: name in the model of what holds the backbone; empty for the model itself.
        backbone, neck: names of both within ``place``; ``neck`` is empty without one.
        module: what holds the backbone.
        in_channels: channels of the image.
        maps, levels: what the backbone and the neck emit; without neck both are the same.
        readers: what receives the maps of either.
        misfits: layers that received other channels than they were built for.
        failures: errors by the name of the part that raised them.
    """

    place: str
    backbone: str
    neck: str
    module: nn.Module
    in_channels: int = 3
    maps: tuple[Map, ...] = ()
    levels: tuple[Map, ...] = ()
    readers: list[Reader] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)

    def needs_values(self, part: str) -> bool:
        """Return whether a part failed because shapes alone do not tell what it would do."""
        error = self.failures.get(part)
        return isinstance(error, NotImplementedError) or 'meta' in str(error)

    def name(self, part: str) -> str:
        """Return the name in the model of a part of this network."""
        return f'{self.place}.{part}' if self.place else part


@dataclass
class Measured:
    """Holds what was measured of a model.

    Attributes:
        model: as it was built, on the meta device or the CPU; ``None`` if only parts of it could be built.
        networks: one for each backbone.
        reason: why the model as a whole could not be built; ``None`` if it could.
    """

    model: nn.Module | None
    networks: list[Network]
    reason: Exception | None = None


def networks_of(model: nn.Module) -> list[Network]:
    """Return a network, not yet measured, for each backbone of a model."""
    found, modules = [], dict(model.named_modules())
    if isinstance(teacher := vars(model).get(TEACHER), nn.Module):  # which is no part of the state dict
        modules[TEACHER] = teacher
    for place, module in modules.items():
        for name in BACKBONES:
            if isinstance(getattr(module, name, None), nn.Module):
                neck = BESIDE.get(name, 'neck')
                has_neck = isinstance(getattr(module, neck, None), nn.Module)
                found.append(Network(place, name, neck if has_neck else '', module))
    return found


def settings(cfg: Config, place: str) -> tuple[str, dict | None]:
    """Return the key and the settings of a module.

    Args:
        place: name of the module in the model.

    Returns:
        The dotted key; and the dict there, ``None`` if the config has none.
    """
    node, key = cfg.model, ['model']
    if place.startswith(f'{TEACHER}.') and TEACHER not in node:
        place = place.replace(f'{TEACHER}.', 'teacher_', 1)
    for part in filter(None, place.split('.')):
        if isinstance(node, dict) and part not in node:
            part = ELSEWHERE.get(part, part)
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part.isdigit() and len(key) > 1:
            continue  # several modules of the same settings
        else:
            return '.'.join([*key, part]), None
        key.append(part)
    return '.'.join(key), node if isinstance(node, dict) else None


def owner(cfg: Config, place: str, name: str) -> tuple[str, dict] | None:
    """Return key and settings of the nearest module, from ``place`` outward, whose settings have ``name``."""
    parts = place.split('.')
    for length in range(len(parts), 0, -1):
        key, node = settings(cfg, '.'.join(parts[:length]))
        if node is not None and name in node:
            return key, node
    return None


def channel_keys(cfg: Config, network: Network) -> dict[str, int | list[int]]:
    """Return keys and values of the settings that say which channels of the backbone are read.

    These are ``in_channels`` of whatever receives its maps, also where a part of that is built from settings
    of its own (the head that makes the kernels of K-Net). What reads the neck is not among them.

    Args:
        cfg: of the model that was measured.
        network: as it was measured, without misfits.
    """
    found, channels = {}, [m.channels for m in network.maps]
    for reader in network.readers:
        key, node = settings(cfg, reader.place)
        if reader.source != network.backbone or node is None:
            continue
        own = 'in_channels' in node
        for place, part in walk(node, key):
            if own and place != key or 'in_channels' not in part:
                continue
            given, index = part['in_channels'], part.get('in_index')
            several = isinstance(given, (list, tuple))
            if not own and index is None and not several:  # a number that is the same by chance
                continue
            if index is not None:
                read = [channels[i] for i in index] if several else channels[index]
                fits = read == (list(given) if several else given)
            else:
                fits = sorted(given) == sorted(channels) if several else given in channels
            if fits:
                found[f'{place}.in_channels'] = list(given) if several else given
    return found
