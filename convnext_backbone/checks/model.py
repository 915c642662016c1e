"""Checks that the parts of a model fit each other: channels, levels, strides, batch and size of the images.

Nothing is taken from names: :mod:`convnext_backbone.measure` builds the model and runs it on a made-up image.
An error is reported only for what was seen to fail, or for strides that differ from the measured ones.
"""

from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..config import datasets, dicts, task_of
from ..config.keys import walk
from ..errors import message
from ..findings import Findings
from ..measure import (
    PREDICTORS,
    Map,
    Measured,
    Network,
    Reader,
    build_model,
    building,
    measure,
    owner,
    regions,
    run,
    settings,
    size_of_regions,
)
from .builds import check_build
from .sizes import check_sizes
from .swapped import bracketed, check_images, check_swapped

STRIDES = (  # where a head's settings say the strides of the maps that it receives
    'anchor_generator.strides',
    'prior_generator.strides',
    'approx_anchor_generator.strides',
    'square_anchor_generator.strides',
    'point_generator.strides',
    'point_strides',
    'strides',
)
NEAR = 1.4  # strides that differ by less are the same: maps of odd sizes are rounded
TRAINING = 'train_dataloader'
MOST_LEVELS = 8  # of a neck, when a number that fits is sought


def check_model(cfg: Config, findings: Findings, splits=(TRAINING,), amount: str = 'sample') -> None:
    """Report parts of the model that do not fit each other, each at its key with the value that fits.

    Args:
        cfg: of a run, as :func:`~convnext_backbone.config.read_config` returns it.
        findings: gets an error (kind ``fit``) for what would fail or compute wrong numbers, and one (kind
            ``build``) for a part that cannot be built; a warning for what would be worse than it could be, a
            note where the model could not be measured.
        splits: keys of the data loaders that will be used; without the first, nothing is said of training.
        amount: ``'none'``: no images are looked at; else the smallest of a segmenter's: is it large enough?
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    task = task_of(cfg.model)
    if task in ('classification', 'pretraining'):
        _check_whole(cfg, findings)
        try:
            check_images(cfg, findings, splits)
        except Exception as error:
            _note(findings, error)
        if task == 'pretraining' and TRAINING in splits:
            _check_patches(cfg, findings)
        return
    try:
        measured = measure(cfg)
    except Exception as error:  # a mistake in here must not stop a run that would have worked
        _note(findings, error)
        return
    failed = None
    try:
        _Fit(cfg, findings, measured).check()
        check_sizes(cfg, findings, measured, splits, amount != 'none')
        check_swapped(cfg, findings, measured, TRAINING in splits)
    except Exception as error:
        failed = error
    wrong = measured.reason is not None and check_build(cfg, findings)
    if failed is not None and not wrong:  # else it comes of settings that are reported
        _note(findings, failed)


def _check_whole(cfg: Config, findings: Findings) -> None:
    """Report a classifier or an autoencoder that cannot be built; no parts of it must fit each other."""
    try:
        build_model(cfg)
    except Exception:  # whatever constructors raise
        check_build(cfg, findings)


def _check_patches(cfg: Config, findings: Findings) -> None:
    """Report images of a masked autoencoder that do not divide into its patches."""
    patch = cfg.model.get('patch_size', 32)
    for split, data in datasets(cfg, (TRAINING,)):
        side = (data.get('transform') or {}).get('input_size')
        sides = side[-2:] if isinstance(side, (list, tuple)) else [side]
        if isinstance(patch, int) and any(isinstance(n, int) and n % patch for n in sides):
            where = f'{split}.dataset.transform.input_size'
            text = f'got {side}, needs a multiple of {patch}, the side of a patch in pixels'
            findings.add('error', 'fit', where, text)


def _note(findings: Findings, error: Exception) -> None:
    text = ' '.join(message(error).split())
    findings.add('note', 'fit', 'model', f'its parts could not be compared: {type(error).__name__}: {text}')


class _Fit:
    """Holds what the checks of one model share."""

    def __init__(self, cfg: Config, findings: Findings, measured: Measured):
        self.cfg, self.findings, self.measured = cfg, findings, measured

    def check(self) -> None:
        """Look at every backbone of the model and what reads it."""
        for network in self.measured.networks:
            if not network.maps:
                continue
            self._image_channels(network)
            if self._neck_is_missing(network):
                continue
            for place in network.failures:
                if not place.startswith('roi_head.'):
                    self._channels(network, place)
            self._region_channels(network)
            self._region_sizes(network)
            self._levels_of_neck(network)
            self._levels_of_transformer(network)
            for reader in network.readers:
                self._head_strides(network, reader)
            self._roi_strides(network)

    def _error(self, where: str, text: str) -> None:
        if not any(f.where == where and f.kind == 'fit' for f in self.findings):  # student and teacher
            self.findings.add('error', 'fit', where, text)

    def _emits(self, network: Network, part: str) -> str:
        """Say what the backbone or the neck of a network emits."""
        key, _ = settings(self.cfg, network.name(part))
        maps = network.maps if part == network.backbone else network.levels
        if len(maps) == 1:
            return f'{key} emits one map, of {maps[0].channels} channels at stride {_number(maps[0])}'
        same = len({m.channels for m in maps}) == 1
        channels = maps[0].channels if same else _listed([m.channels for m in maps])
        strides = _listed([_number(m) for m in maps])
        return f'{key} emits {len(maps)} maps, of {channels} channels at strides {strides}'

    def _source(self, network: Network, place: str) -> tuple[str, tuple[Map, ...]]:
        """Return the part that a part reads, and its maps."""
        if place == network.neck or not network.neck:
            return network.backbone, network.maps
        return network.neck, network.levels

    # channels

    def _image_channels(self, network: Network) -> None:
        number = network.in_channels
        _, holder = settings(self.cfg, network.place)
        for place, node in _preprocessors(self.cfg.model, 'model'):
            mean = node.get('mean')
            if isinstance(mean, (list, tuple)) and len(mean) not in (1, number) and holder is not None:
                key, _ = settings(self.cfg, network.name(network.backbone))
                self._error(
                    f'{place}.mean',
                    f'got {len(mean)} numbers, needs {number}: {key} takes images of {number} channels; give '
                    f'{number} numbers in mean and std, or set {key}.in_channels={len(mean)}',
                )

    def _neck_is_missing(self, network: Network) -> bool:
        """Report a head that takes maps of one number of channels, and receives those of the backbone."""
        if network.neck or len({m.channels for m in network.maps}) < 2:
            return False
        for place in network.failures:
            found = owner(self.cfg, network.name(place), 'in_channels')
            if place not in PREDICTORS or found is None or 'in_index' in found[1]:
                continue
            key, given = f'{found[0]}.in_channels', found[1]['in_channels']
            if isinstance(given, int) and any(m.channels != given for m in network.maps):
                emits = self._emits(network, network.backbone)
                self._error(
                    settings(self.cfg, network.name('neck'))[0],
                    f'is missing: {emits}, and {key} is {given} for all of them; a neck such as FPN makes '
                    'maps of one number of channels',
                )
                return True
        return False

    def _channels(self, network: Network, place: str) -> None:
        """Report the ``in_channels`` or ``in_index`` by which a part failed."""
        full = network.name(place)
        inside = [
            m
            for m in network.misfits
            if place == 'forward_transformer' or m.place == full or m.place.startswith(f'{full}.')
        ]
        misfit = inside[0] if inside else None
        source, maps = self._source(network, place)
        found = owner(self.cfg, misfit.place if misfit else full, 'in_channels')
        if found is None or (misfit is None and network.needs_values(place)):
            return
        key, node = found
        given, index = node['in_channels'], node.get('in_index')
        channels = [m.channels for m in maps]
        emits = self._emits(network, source)
        module = self._module(full)
        if index is None and hasattr(module, 'input_transform'):
            index = -1
        if index is not None:
            wanted = index if isinstance(index, (list, tuple)) else [index]
            if beyond := [i for i in wanted if not -len(maps) <= i < len(maps)]:
                self._error(
                    f'{key}.in_index',
                    f'got {bracketed(index)}, needs numbers from 0 to {len(maps) - 1}: {emits}, and '
                    f'{beyond[0]} is none of them',
                )
                return
            chosen = [channels[i] for i in wanted]
            fitting = chosen if isinstance(given, (list, tuple)) else chosen[0]
        elif isinstance(given, (list, tuple)):
            fitting = _in_order_of(given, channels)
        else:
            fits = misfit is not None and misfit.built_for == given and misfit.received in channels
            fitting = misfit.received if fits else given
        if bracketed(fitting) == bracketed(given):
            return
        other = ''
        if isinstance(index, int) and given in channels:
            other = f', or {key}.in_index={channels.index(given)}'
        at = '' if index is None else f' (in_index={bracketed(index)})'
        self._error(
            f'{key}.in_channels', f'got {bracketed(given)}, needs {bracketed(fitting)}{other}: {emits}{at}'
        )

    def _region_channels(self, network: Network) -> None:
        """Report channels of what cuts regions out of maps, and of the heads that read these regions."""
        if network.neck in network.failures or not network.levels:
            return
        number = network.levels[0].channels
        for place, _, cuts, extractor in regions(network):
            found = owner(self.cfg, network.name(cuts), 'out_channels')
            given = extractor.out_channels
            if type(extractor).__name__ == 'SingleRoIExtractor' and given != number and found:
                emits = self._emits(network, network.neck or network.backbone)
                self._error(f'{found[0]}.out_channels', f'got {given}, needs {number}: {emits}')
                continue
            found = owner(self.cfg, network.name(place), 'in_channels')
            if place not in network.failures or found is None:
                continue
            key, node = found
            if isinstance(node['in_channels'], int) and node['in_channels'] != extractor.out_channels:
                cut = settings(self.cfg, network.name(cuts))[0]
                self._error(
                    f'{key}.in_channels',
                    f'got {node["in_channels"]}, needs {extractor.out_channels}, the out_channels of {cut}',
                )

    def _region_sizes(self, network: Network) -> None:
        """Report a head that was built for regions of another size than those that are cut out."""
        if network.neck in network.failures:
            return
        wrong: dict[str, list[tuple]] = {}
        for place, head, cuts, extractor in regions(network):
            built_for, cut = getattr(head, 'roi_feat_size', None), size_of_regions(extractor)
            built_for = (built_for, built_for) if isinstance(built_for, int) else built_for
            if place in network.failures and isinstance(built_for, tuple) and cut not in (None, built_for):
                key = f'{settings(self.cfg, network.name(cuts))[0]}.roi_layer.output_size'
                head_key = f'{settings(self.cfg, network.name(place))[0]}.roi_feat_size'
                wrong.setdefault(key, []).append((head_key, _side(built_for), _side(cut)))
        for key, heads in wrong.items():
            names, sizes, (cut, *_) = zip(*heads)
            if len(heads) > 1 and len(set(sizes)) == 1:  # a cascade's: more likely the one than all of them
                self._error(key, f'got {cut}, needs {sizes[0]}, or set {cut} as {", ".join(names)}')
                continue
            for name, size in zip(names, sizes):
                self._error(name, f'got {size}, needs {cut}, or set {key}={size}')

    def _module(self, place: str) -> nn.Module | None:
        try:
            return self.measured.model.get_submodule(place)
        except AttributeError:  # no such part, or no model
            return None

    # levels

    def _levels_of_neck(self, network: Network) -> None:
        """Report a ``num_outs`` with which a neck cannot be built, by building it with others."""
        error = network.failures.get('neck')
        found = owner(self.cfg, network.name('neck'), 'num_outs')
        if self.measured.model is not None or error is None or found is None:
            return
        key, node = found
        given, fitting = node['num_outs'], {}
        for number in range(1, MOST_LEVELS + 1):
            with building(self.cfg.get('default_scope'), 'meta'):
                try:
                    network.module.neck = MODELS.build(dict(node, num_outs=number))
                except Exception:  # it does not fit
                    continue
            again = Network(network.place, network.backbone, 'neck', network.module)
            with building(self.cfg.get('default_scope'), 'meta'):
                run(again, torch.zeros(1, network.in_channels, 512, 512))
            if not again.failures:
                fitting[number] = again.levels
        if not fitting or given in fitting:
            return
        _, holder = settings(self.cfg, network.place)
        heads = [value for _, value in _stride_values(holder or {})]
        best = next((n for n in fitting if any(n == len(value) for value in heads)), min(fitting))
        self._error(
            f'{key}.num_outs',
            f'got {given}, needs {best}, or another number of at least {min(fitting)}: '
            f'{self._emits(network, network.backbone)}'
            + (f'; the strides of the heads are {len(heads[0])}' if heads else ''),
        )

    def _levels_of_transformer(self, network: Network) -> None:
        """Report a ``num_levels`` of deformable attention that is not the number of maps."""
        if 'forward_transformer' not in network.failures:
            return
        place, node = settings(self.cfg, network.place)
        number = len(network.levels)
        for part in ('encoder', 'decoder'):
            for key, attention in walk((node or {}).get(part), f'{place}.{part}'):
                if attention.get('num_levels', number) != number:
                    self._error(
                        f'{key}.num_levels',
                        f'got {attention["num_levels"]}, needs {number}: '
                        f'{self._emits(network, network.neck or network.backbone)}',
                    )

    # strides

    def _head_strides(self, network: Network, reader: Reader) -> None:
        """Compare the strides that a head has in its settings with those of the maps that it received."""
        if not reader.maps or hasattr(self._module(reader.place), 'num_grids'):  # SOLO resizes the maps
            return
        key, node = settings(self.cfg, reader.place)
        levels = network.maps if reader.source == network.backbone else network.levels
        received = [levels[i] for i in reader.maps]
        for name, value in _stride_values(node or {}, own=True):
            self._compare(network, f'{key}.{name}', value, received, reader.source)

    def _roi_strides(self, network: Network) -> None:
        """Compare the strides by which regions are cut out of the maps with those of the maps."""
        head = getattr(network.module, 'roi_head', None)
        if not isinstance(head, nn.Module) or network.neck in network.failures:
            return
        for place, module in head.named_modules():
            value = getattr(module, 'featmap_strides', None)
            if not isinstance(value, (list, tuple)) or 'semantic' in place:  # reads what its head made
                continue
            found = owner(self.cfg, network.name(f'roi_head.{place}'), 'featmap_strides')
            if found is None:
                continue
            source = network.neck or network.backbone
            received = list(network.levels[: len(value)])
            self._compare(network, f'{found[0]}.featmap_strides', value, received, source)

    def _compare(self, network: Network, key: str, given, received: list[Map], source: str) -> None:
        values = [v if isinstance(v, (list, tuple)) else (v, v) for v in given]
        if any(not isinstance(part, (int, float)) for pair in values for part in pair):
            return
        real = [m.stride for m in received]
        same = len(values) == len(real) and all(
            _near(height, down) and _near(width, across)
            for (width, height), (down, across) in zip(values, real)
        )
        if same:
            return
        fitting = [_number(m) for m in received]
        number = f' ({len(values)} numbers)' if len(values) != len(real) else ''
        self._error(key, f'got {bracketed(given)}{number}, needs {fitting}: {self._emits(network, source)}')


def _preprocessors(node, place: str) -> Iterator[tuple[str, dict]]:
    for key, part in walk(node, place):
        if key.endswith('.data_preprocessor'):
            yield key, part


def _stride_values(node: dict, own: bool = False) -> Iterator[tuple[str, list]]:
    """Yield key and value of the strides in the settings of a head, or of all heads of a model."""
    for part in [node] if own else dicts(node):
        for name in STRIDES:
            value = part
            for key in name.split('.'):
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, (list, tuple)) and value:
                yield name, value


def _in_order_of(given, channels: list[int]) -> list[int]:
    """Return channels in the order in which a neck lists them: YOLOv3's begins with the coarsest."""
    descends = len(given) > 1 and list(given) == sorted(given, reverse=True) and given[0] != given[-1]
    return channels[::-1] if descends and channels == sorted(channels) else channels


def _side(size: tuple) -> int | tuple:
    """Return height and width as a config writes them: one number if they are the same."""
    return size[0] if size[0] == size[1] else size


def _near(a: float, b: float) -> bool:
    return max(a, b) < NEAR * min(a, b)


def _number(level: Map) -> float | int | tuple:
    """Return the stride of a map as a config writes it: one number, or (across, down) where they differ."""
    down, across = (int(s) if s == int(s) else round(s, 1) for s in level.stride)
    return down if down == across else (across, down)


def _listed(values: list) -> str:
    return ', '.join(map(str, values[:-1])) + f' and {values[-1]}'
