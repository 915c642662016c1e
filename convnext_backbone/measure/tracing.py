"""Sends an image through a network, and sees which parts receive the maps and what does not fit there."""

import contextlib
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .network import BACKBONES, Map, Misfit, Network, Reader

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
PREDICTORS = ('rpn_head', 'bbox_head', 'mask_head', 'panoptic_head', 'query_head')


def tensors(value) -> list[Tensor]:
    """Return the tensors of four dimensions in nested lists, tuples and dicts, in their order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim == 4 else []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def run(network: Network, image: Tensor, training: bool = False) -> None:
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
        if isinstance(layer, nn.Sequential):  # necks one after the other: the first of them reads
            known = []
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
        if isinstance(layer, BATCH_NORMS):
            return layer.num_features
        if isinstance(layer, nn.GroupNorm):
            return layer.num_channels
        if hasattr(layer, 'kernel_size'):
            return getattr(layer, 'in_channels', None)
    return None


def _run_heads(network: Network, output, image: Tensor) -> None:
    """Call what reads the levels of a network, each by itself: one that fails says nothing about others."""
    module, samples = network.module, samples_of(network.module, image)
    if hasattr(module, 'forward_transformer'):  # of the kind of DETR
        module.extract_feat = lambda *args, **kwargs: output
        try:
            module(image, samples, mode='tensor')
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


def size_of_regions(extractor: nn.Module) -> tuple[int, int] | None:
    """Return height and width of the regions that an extractor cuts out; ``None`` if it does not say."""
    layers = getattr(extractor, 'roi_layers', None)
    size = getattr(layers[0], 'output_size', None) if layers else None
    return size if isinstance(size, tuple) else None


def _run_on_regions(network: Network) -> None:
    """Call the heads that read regions on regions of zeros, as their extractors give them."""
    for place, head, _, extractor in regions(network):
        size, channels = size_of_regions(extractor), extractor.out_channels
        if size is None:
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


def samples_of(module: nn.Module, image: Tensor) -> list:
    """Return what goes with an image without objects, of mmdet's or mmseg's kind."""
    size = tuple(image.shape[-2:])
    info = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1, 1))
    if hasattr(module, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    return [Sample(metainfo=dict(info)) for _ in range(image.shape[0])]
