"""Measures which maps a backbone emits, which parts of the model receive them, and what does not fit there.

A made-up image is sent through backbone, neck and heads, on the meta device where that works: shapes without
values, in a fraction of a second for any size. What is found is seen, not taken from names in the config.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from .build import build_model, building, settled, without_weights

SIDE = 512  # pixels of the image: every level of a pyramid up to stride 128 has whole positions
SIDE_ON_CPU = 128
BACKBONES = ('backbone', 'teacher_backbone')
BESIDE = {'teacher_backbone': 'teacher_neck'}  # the neck of a network is called so; else ``neck``
# Module: where the config has its settings.
ELSEWHERE = {'student': 'detector', 'teacher': 'detector', 'bbox_head': 'rpn_head'}
TEACHER = (
    'teacher_model'  # whose settings are ``teacher_backbone``, ``teacher_neck`` ... of the student's model
)
PREDICTORS = ('rpn_head', 'bbox_head', 'mask_head', 'panoptic_head', 'query_head')


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
        if not network.maps and model is not None and (again := _again_on_cpu(cfg, network)):
            networks[networks.index(network)] = again
    return Measured(model, networks, reason)


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


def tensors(value) -> list[Tensor]:
    """Return the tensors of four dimensions in nested lists, tuples and dicts, in their order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim == 4 else []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def run(network: Network, image: Tensor, training: bool = False) -> Tensor | None:
    """Send an image through a network: backbone, neck and heads; note readers, misfits and failures.

    Args:
        network: gets what is found; its lists are extended.
        image: (N, channels, height, width), on the device of the network.
        training: whether neck and heads are in training mode; the backbone is in evaluation mode.
    """
    module, backbone = network.module, getattr(network.module, network.backbone)
    with torch.no_grad(), _mode(module, backbone, training):
        try:
            output = backbone(image)
        except Exception as error:  # whatever a network raises
            network.failures[network.backbone] = error
            return
        emitted = tensors(output)
        network.maps = network.levels = _as_maps(emitted, image)
        with _tracing(network, emitted) as trace:
            if network.neck:
                try:
                    output = getattr(module, network.neck)(output)
                except Exception as error:
                    network.failures[network.neck] = error
                    return
                network.levels = _as_maps(tensors(output), image)
                trace(network.neck, tensors(output))
            if network.backbone == 'backbone':
                _run_heads(network, output, image)


def _measure_network(cfg: Config, network: Network) -> None:
    backbone = getattr(network.module, network.backbone)
    _, node = settings(cfg, network.name(network.backbone))
    given = (node or {}).get('in_channels')
    network.in_channels = given if isinstance(given, int) else 3
    _, node = settings(cfg, network.place)
    side = _own_side(node) or (SIDE if _device(backbone).type == 'meta' else SIDE_ON_CPU)
    with building(cfg.get('default_scope'), str(_device(backbone))):
        run(network, torch.zeros(1, network.in_channels, side, side))


def _own_side(node: dict | None) -> int:
    """Return the side of the image for which anchors are made, where a config names it (SSD); else 0."""
    head = (node or {}).get('bbox_head')
    anchors = head.get('anchor_generator') if isinstance(head, dict) else None
    side = anchors.get('input_size') if isinstance(anchors, dict) else None
    return side if isinstance(side, int) else 0


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


def _as_maps(emitted: list[Tensor], image: Tensor) -> tuple[Map, ...]:
    height, width = image.shape[-2:]
    return tuple(Map(t.shape[1], (height / t.shape[2], width / t.shape[3])) for t in emitted)


@contextlib.contextmanager
def _mode(module: nn.Module, backbone: nn.Module, training: bool) -> Iterator[None]:
    module.train(training)
    backbone.train(False)
    try:
        yield
    finally:
        module.train(False)


@contextlib.contextmanager
def _tracing(network: Network, emitted: list[Tensor]) -> Iterator[Callable]:
    """Note which modules receive maps, and which layers receive channels they were not built for."""
    source = {id(tensor): (network.backbone, index) for index, tensor in enumerate(emitted)}
    alive = list(emitted)  # an id is that of a map as long as the map is there

    def also(name: str, more: list[Tensor]) -> None:
        source.update({id(tensor): (name, index) for index, tensor in enumerate(more)})
        alive.extend(more)

    def note(place: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        given = tensors((args, kwargs))
        known = [source[id(tensor)] for tensor in given if id(tensor) in source]
        for name in dict.fromkeys(name for name, _ in known):
            maps = tuple(index for other, index in known if other == name)
            within = any(place.startswith(f'{r.place}.') and r.source == name for r in network.readers)
            if not within and not any(r.place == place for r in network.readers):
                network.readers.append(Reader(place, name, maps))
        if isinstance(wanted := _channels_of(layer), int) and given and given[0].shape[1] != wanted:
            network.misfits.append(Misfit(place, wanted, given[0].shape[1]))

    handles = [
        part.register_forward_pre_hook(
            lambda layer, args, kwargs, place=place: note(network.name(place), layer, args, kwargs),
            with_kwargs=True,
        )
        for place, part in network.module.named_modules()
        if place and place.partition('.')[0] not in BACKBONES
    ]
    try:
        yield also
    finally:
        for handle in handles:
            handle.remove()


def _channels_of(layer: nn.Module) -> int | None:
    """Return the channels that a convolution or a norm over channels was built for; ``None`` for others."""
    if isinstance(getattr(layer, 'weight', None), Tensor):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return layer.num_features
        if isinstance(layer, nn.GroupNorm):
            return layer.num_channels
        if hasattr(layer, 'kernel_size'):
            return getattr(layer, 'in_channels', None)
    return None


def _run_heads(network: Network, output, image: Tensor) -> None:
    """Call what reads the levels of a network, each by itself: one that fails says nothing about others."""
    module, samples = network.module, _samples(network.module, image)
    if hasattr(module, 'forward_transformer'):  # of the kind of DETR
        module.extract_feat = lambda *args, **kwargs: output
        try:
            module._forward(image, samples)
        except Exception as error:
            network.failures['forward_transformer'] = error
        finally:
            del module.extract_feat
        return
    heads = {name: getattr(module, name, None) for name in (*PREDICTORS, 'decode_head', 'auxiliary_head')}
    heads['roi_head.semantic_head'] = getattr(getattr(module, 'roi_head', None), 'semantic_head', None)
    for name, head in heads.items():
        several = isinstance(head, nn.ModuleList)
        before = None
        for index, part in enumerate(head if several else [head]):
            if not isinstance(part, nn.Module):
                continue
            place = f'{name}.{index}' if several else name
            try:
                before = _call(part, output, samples, before)
            except Exception as error:
                network.failures[place] = error
    _run_on_regions(network)


def regions(network: Network) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Yield name and module of each head that reads regions, and of what cuts them out of the levels."""
    holder = getattr(network.module, 'roi_head', None)
    if not isinstance(holder, nn.Module) or getattr(holder, 'shared_head', None) is not None:
        return
    for part in ('bbox', 'mask'):
        named = [f'{part}_head', f'{part}_roi_extractor']
        pair = [getattr(holder, name, None) for name in named]
        if not all(isinstance(module, nn.Module) for module in pair):
            continue
        if not isinstance(pair[0], nn.ModuleList):
            pair, ends = [[module] for module in pair], ['']
        else:
            ends = [f'.{index}' for index in range(len(pair[0]))]
        for end, head, extractor in zip(ends, *pair):
            yield f'roi_head.{named[0]}{end}', head, f'roi_head.{named[1]}{end}', extractor


def _run_on_regions(network: Network) -> None:
    """Call the heads that read regions on regions of zeros, as their extractors give them."""
    for place, head, _, extractor in regions(network):
        layers = getattr(extractor, 'roi_layers', None)
        size, channels = getattr(layers[0], 'output_size', None) if layers else None, extractor.out_channels
        if not isinstance(size, tuple):
            continue
        try:
            _call(head, torch.zeros(2, channels, *size), [], None)
        except Exception as error:
            network.failures[place] = error


def _call(head: nn.Module, output, samples: list, before):
    """Call a head by the arguments its ``forward`` names; return ``None`` where it needs something else."""
    parameters = inspect.signature(head.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if len(needed) == 1:
        return head(output)
    if len(needed) == 2 and 'sample' in needed[1] and samples:
        return head(output, samples)
    if len(needed) == 2 and 'prev' in needed[1] and before is not None:
        return head(output, before)
    return None


def _samples(module: nn.Module, image: Tensor) -> list:
    """Return what goes with an image without objects, of mmdet's or mmseg's kind."""
    size = tuple(image.shape[-2:])
    info = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1, 1))
    if hasattr(module, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    return [Sample(metainfo=dict(info)) for _ in range(image.shape[0])]
