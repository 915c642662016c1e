"""Plans what changes in a config whose backbone becomes a ConvNeXt, from what is measured of the original."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from mmengine.config import Config

from ..backbones.base import STRIDES
from ..backbones.convnext import ARCHITECTURES
from ..checkpoint.zoo import RELEASED, normalisation
from ..checks.swapped import is_near
from ..config import task_of
from ..config.foreign import OURS, PRETRAINED, divided_imports
from ..config.keys import set_at, unread, value_at, walk
from ..config.legacy import TOP
from ..errors import UserError, check_choice, message, suggest
from ..measure import Map, Measured, Network, building, channel_keys, measure, settings
from ..measure.tracing import tensors
from ..registry import type_name
from .recipe import RECIPES, Recipe, optimizer_of, recipe_of, schedule_of
from .source import Source

OUTPUT_STRIDES = (32, 16, 8)
NEAR = 1.2  # strides of maps of odd sizes that differ by less are the same
REPAIRS = 4  # times that what still does not fit is looked for
LAYER_SCALE = 1.0  # of the published downstream recipes; the weights overwrite it
GONE = (  # settings of other backbones that someone may have meant
    *('frozen_stages', 'norm_eval', 'dcn', 'stage_with_dcn', 'plugins', 'deepen_factor', 'widen_factor'),
    *('contract_dilation', 'dilations', 'pretrained', 'init_cfg'),
)
# Why networks cannot be swapped by their config: type of the backbone, or of what holds its stages.
BY_KIND = {
    'TridentResNet': 'its branches are built into ResNet, and its head counts on them',
    'RFP': 'its neck holds a second ResNet that takes feedback maps',
    'ResLayer': 'its RoI head is the last stage of a ResNet',
    'NASFCOS_FPN': 'it counts maps from one that it takes no numbers of, whose norm would learn nothing',
}


class Refused(UserError):
    """Is raised for a config whose backbone cannot be replaced by changes of settings."""


@dataclass(frozen=True)
class Change:
    """Is one setting that changes.

    Attributes:
        key: dotted; numbers are places in lists.
        old, new: values; ``None`` where there was none. A ``new`` dict takes the place of the old one.
        why: in a few words.
    """

    key: str
    old: object
    new: object
    why: str


@dataclass
class Plan:
    """Holds a swapped config and how it came about.

    Attributes:
        cfg: the whole swapped config.
        changes: from the original, in the order of the config.
        notes: lines about what goes away, stays, or needs attention.
        backbones: names of the swapped backbones in the model.
        kept: for each backbone, which of the original's maps are still emitted.
    """

    cfg: Config
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backbones: list[str] = field(default_factory=list)
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)


def plan_swap(
    source: Source,
    arch: str = 'tiny',
    weights: str | None = None,
    recipe: str = 'paper',
    unused: dict[str, set[int]] | None = None,
) -> Plan:
    """Plan the changes by which a ConvNeXt takes the place of every trained backbone of a config.

    The original model is built, without its weights, and an image is sent through it: the new maps are those
    of the same strides, and what reads them gets their channels.

    Args:
        source: the config.
        arch: of :class:`~convnext_backbone.backbones.ConvNeXt`.
        weights: released name, file or URL; by default the ImageNet weights of the arch, if there are any.
        recipe: ``'paper'``: optimizer, rates, warm-up and stochastic depth of the published recipes, for the
            images of the config's step; the length of the schedule stays. ``'keep'``: all that as it is.
        unused: for backbones by name, maps of the original that nothing reads.

    Raises:
        Refused: the backbone cannot be replaced by settings; one line with the reason.
        UserError: an unknown arch or recipe.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f'--arch: no ConvNeXt is called {arch!r}{suggest(arch, ARCHITECTURES)}')
    check_choice('--recipe', recipe, RECIPES)
    return _Planner(source, arch, weights, recipe, unused or {}).plan()


def groups_of_halves(most: int, widths: Iterable[int]) -> int:
    """Return the most groups, a divisor of ``most``, into which half of each width can go (CSPNeXt)."""
    return math.gcd(most, *(width // 2 for width in widths))


def default_weights(arch: str) -> str | None:
    """Return the name of the released ImageNet weights of an arch for 224 pixels; ``None`` without any."""
    version, size = ('convnextv2', arch[3:]) if arch.startswith('v2_') else ('convnext', arch)
    names = [f'{version}_{size}_{data}_224{end}' for data in ('1k', '22k') for end in ('', '_ema')]
    return next((name for name in names if name in RELEASED), None)


def checked_weights(weights: str, arch: str) -> str:
    """Return weights that were asked for, if they are there and of the arch.

    Raises:
        UserError: neither a released name, a URL nor a file; or a released name of another arch.
    """
    if weights in RELEASED:
        if RELEASED[weights].arch != arch:
            own = [name for name, known in RELEASED.items() if known.arch == arch]
            raise UserError(
                f'--weights {weights} are of another network than --arch {arch}'
                + (f': choose {", ".join(own)}' if own else '')
            )
        return weights
    if '://' in weights or os.path.isfile(weights):
        return weights if '://' in weights else os.path.abspath(weights)
    raise UserError(
        f'--weights {weights} is no file, no URL and no released name{suggest(weights, RELEASED, 0.6)}; '
        '`convnext convert --list` lists the released ones'
    )


class _Planner:
    def __init__(self, source: Source, arch: str, weights: str | None, recipe: str, unused: dict):
        self.source, self.arch, self.unused = source, arch, unused
        self.weights = checked_weights(weights, arch) if weights else default_weights(arch)
        self.old, self.original = source.known, Config(source.cfg.to_dict())
        self.plan_ = Plan(Config(self.old.to_dict(), filename=source.cfg.filename))
        self.recipe = (
            recipe_of(self.old, arch, source.base, 8 if source.old else 1) if recipe == 'paper' else None
        )
        self.stride = 1  # of the coarsest map
        for line in source.notes:
            self._note(f'of the old config, {line}')

    def plan(self) -> Plan:
        task = task_of(self.old.model)
        if task in ('classification', 'pretraining'):
            kind = dict(classification='a classifier', pretraining='a pretraining without labels')[task]
            raise UserError(f'it is {kind}, whose network is chosen by model.backbone.arch: nothing to swap')
        self._refuse_by_kind()
        measured = self.source.measured
        done = set()
        for network in measured.networks:
            key, node = settings(self.old, network.name(network.backbone))
            if network.backbone != 'backbone' or network.place.startswith('teacher_model'):
                self._note(f'{key} stays: it is a teacher, with weights of its own')
            elif key not in done:
                done.add(key)
                self._swap(network, key, node)
        if not done:
            reason = measured.reason and ' '.join(message(measured.reason).split())
            raise Refused(
                f'its model has no backbone that could be measured{f": {reason}" if reason else ""}'
            )
        self._preprocessing()
        if isinstance(self.old.model.get('pretrained'), str):
            self._change('model.pretrained', None, 'the backbone names its weights itself')
        gone, kept = divided_imports(self.old.get('custom_imports'))
        if gone:
            self._change('custom_imports.imports', kept, 'not needed any more')
        if self.source.installed:
            self._note('the base is a file of the packages of this machine: elsewhere it has another path')
        swapped = self._repair()
        if self.recipe:
            self._recipe(self.recipe, swapped)
        else:
            self._kept_recipe()
        for key in {key for key, _, _ in unread(self.source.cfg)} & set(TOP):
            self._change(key, None, 'of older versions, nothing reads it')
        return self.plan_

    def _change(self, key: str, new, why: str) -> None:
        old = value_at(self.original, key)
        if _same(value_at(self.plan_.cfg, key), new):
            return
        value = {k: v for k, v in new.items() if k != '_delete_'} if isinstance(new, dict) else new
        set_at(self.plan_.cfg, key, value)
        self.plan_.changes = [c for c in self.plan_.changes if c.key != key]
        self.plan_.changes.append(Change(key, old, new, why))

    def _note(self, line: str) -> None:
        if line not in self.plan_.notes:
            self.plan_.notes.append(line)

    # refusals

    def _refuse_by_kind(self) -> None:
        for place, node in walk(self.old.model, 'model'):
            kind = type_name(node)
            if kind in BY_KIND and (kind != 'ResLayer' or 'shared_head' in place):
                raise Refused(f'{place} is {kind}: {BY_KIND[kind]}')

    # backbone and what reads it

    def _swap(self, network: Network, key: str, node: dict | None) -> None:
        if node is None:
            raise Refused(f'{key} is not a setting: the model makes its backbone by itself')
        before = value_at(self.original, key) or node
        kind = type_name(before)
        if error := network.failures.get(network.backbone):
            raise Refused(f'{key} ({kind}) could not be run: {" ".join(message(error).split())}')
        trained = len(network.maps) if self.unused else self._maps_in_training(network)
        if trained != len(network.maps):
            raise Refused(
                f'{key} ({kind}) emits {trained} maps in training and {len(network.maps)} in evaluation: its '
                'heads are made for it'
            )
        readers = [reader for reader in network.readers if reader.source == network.backbone]
        if not readers:
            failed = next(
                (message(e) for e in network.failures.values()),
                'nothing received its maps, as where a model calls the layers of a backbone one by one',
            )
            raise Refused(f'{key} ({kind}) was run, but not what reads it: {" ".join(failed.split())}')
        kept = self._kept(network, key)
        indices, output_stride = _stages(kept, network.maps, key, kind, node)
        self.stride = max(self.stride, min(STRIDES[indices[-1]], output_stride))
        stage = dict(zip(kept, indices))
        channels = {i: ARCHITECTURES[self.arch][1][stage[i]] for i in kept}
        self.plan_.backbones.append(network.name(network.backbone))
        self.plan_.kept[network.name(network.backbone)] = tuple(kept)
        read = channel_keys(self.old, network)
        if not read:
            raise Refused(
                f'{key} ({kind}): {readers[0].place} reads its maps, and no setting of it says their channels'
            )
        self._backbone(key, kind, node, before, indices, output_stride)
        for place in read:
            self._reader(network, place.rpartition('.')[0], value_at(self.old, place), kept, channels)
        self._follow({network.maps[i].channels: channels[i] for i in kept})

    def _maps_in_training(self, network: Network) -> int:
        """Return how many maps the original backbone emits in training."""
        backbone = getattr(network.module, network.backbone)
        device = next((p.device for p in backbone.parameters()), torch.device('cpu'))
        side = 512 if device.type == 'meta' else 128
        with building(self.old.get('default_scope'), str(device)), torch.no_grad():
            backbone.train(True)
            try:
                return len(tensors(backbone(torch.zeros(2, network.in_channels, side, side))))
            except Exception:  # what trains only with more than an image
                return len(network.maps)
            finally:
                backbone.train(False)

    def _kept(self, network: Network, key: str) -> list[int]:
        """Return which maps are emitted by the new backbone, too: those that something reads."""
        unused = set(self.unused.get(network.name(network.backbone), ()))
        readers = [r for r in network.readers if r.source == network.backbone]
        firsts = []
        for reader in readers:
            _, node = settings(self.old, reader.place)
            start = (node or {}).get('start_level', 0)
            firsts.append(start if isinstance(start, int) else 0)
        first = min(firsts)
        chosen = self._indexed(network)
        kept = [i for i in range(len(network.maps)) if i >= first and i in chosen and i not in unused]
        if not kept:
            raise Refused(f'{key}: nothing reads its maps')
        return kept

    def _indexed(self, network: Network) -> set[int]:
        """Return the maps that heads of mmseg name by ``in_index``; all of them where anything else reads."""
        number, found = len(network.maps), set()
        for reader in network.readers:
            if reader.source != network.backbone:
                continue
            _, node = settings(self.old, reader.place)
            others = [key for key in node or {} if 'in_channels' in key and key != 'in_channels']
            index = (node or {}).get('in_index')
            if others or not isinstance(index, int):
                return set(range(number))
            found.add(index % number)
        return found

    def _backbone(
        self, key: str, kind: str, node: dict, before: dict, indices: Sequence[int], output_stride: int
    ) -> None:
        new = dict(_delete_=True, type=OURS, arch=self.arch)
        if tuple(indices) != (0, 1, 2, 3):
            new['out_indices'] = tuple(indices)
        if output_stride != 32:
            new['output_stride'] = output_stride
        if isinstance(number := node.get('in_channels'), int) and number != 3:
            new['in_channels'] = number
        if self.recipe:
            new['drop_path_rate'] = self.recipe.drop_path
        if not self.arch.startswith('v2_'):
            new['layer_scale_init_value'] = LAYER_SCALE
        if node.get('with_cp'):
            new['with_cp'] = True
        if self.weights:
            new['init_cfg'] = dict(type=PRETRAINED, checkpoint=self.weights)
        else:
            self._note(f'no ImageNet weights of {self.arch} are released: training starts from random ones')
        self._change(key, new, f'in the place of {kind}, the maps at the same strides')
        gone = [f'{n}={_short(before[n])}' for n in GONE if before.get(n) not in (None, -1, False)]
        if gone:
            self._note(f'{key}: {", ".join(gone)} go away with {kind}; every stage of ConvNeXt is trained')

    def _reader(self, network: Network, place: str, given, kept: list[int], channels: dict) -> None:
        node, maps = value_at(self.old, place), network.maps
        old_channels = [m.channels for m in maps]
        index = node.get('in_index')
        if index is None and isinstance(given, int):
            index = _default_index(network, self.old, place)
        why = 'channels of the maps that it reads'
        if index is not None:
            several = isinstance(index, (list, tuple))
            indices = [i for i in (index if several else [index]) if i % len(maps) in channels]
            if not indices:
                raise Refused(f'{place} reads a map that nothing learns from')
            read = [channels[i % len(maps)] for i in indices]
            self._change(f'{place}.in_channels', type(given)(read) if several else read[0], why)
            moved = [_moved(i, len(maps), kept) for i in indices]
            if 'in_index' in node and moved != list(index if several else [index]):
                moved = type(index)(moved) if several else moved[0]
                self._change(f'{place}.in_index', moved, 'maps that nothing reads are gone')
            return
        if isinstance(given, int):
            chosen = max(i for i, c in enumerate(old_channels) if c == given)
            if chosen not in channels:
                raise Refused(f'{place} reads a map that nothing learns from')
            self._change(f'{place}.in_channels', channels[chosen], why)
            return
        values = [channels[i] for i in kept]
        if list(given) == old_channels[::-1] and old_channels != old_channels[::-1]:
            values = values[::-1]
        elif len(given) != len(maps):
            by_value = {old: channels[i] for i, old in enumerate(old_channels) if i in channels}
            values = [by_value[c] for c in given if c in by_value]
        self._change(f'{place}.in_channels', type(given)(values), why)
        passed = node.get('out_channels')  # of SSD's neck, which passes on the maps that it reads
        if isinstance(passed, (list, tuple)) and list(passed[: len(given)]) == list(given):
            passed = type(passed)([*values, *passed[len(given) :]])
            self._change(f'{place}.out_channels', passed, 'the first are the maps that it reads')
        dropped = len(maps) - len(kept)
        if dropped and node.get('start_level'):
            self._change(
                f'{place}.start_level', max(0, node['start_level'] - dropped), 'maps below it are gone'
            )
            for name in ('end_level', 'backbone_end_level'):
                if isinstance(end := node.get(name), int) and end > 0:
                    self._change(f'{place}.{name}', end - dropped, 'maps below it are gone')

    def _follow(self, channels: dict[int, int]) -> None:
        """Change what has to be as wide as a map though it reads none: regions, heads without layers, groups.

        Args:
            channels: of the old maps -> of the new ones.
        """
        roi_head = self.old.model.get('roi_head')
        if not self.old.model.get('neck') and isinstance(roi_head, dict):
            why = 'channels of the map that regions are cut from'
            for place, node in walk(roi_head, 'model.roi_head'):
                name = 'out_channels' if type_name(node).endswith('RoIExtractor') else 'in_channels'
                if node.get(name) in channels:
                    self._change(f'{place}.{name}', channels[node[name]], why)
        for place, node in walk(self.old.model, 'model'):
            kind, own = type_name(node), node.get('channels')
            if (
                kind == 'FCNHead'
                and node.get('num_convs') == 0
                and own in channels
                and own == node['in_channels']
            ):
                self._change(f'{place}.channels', channels[own], 'without layers as wide as its map')
            norm = node.get('norm_cfg')
            if kind == 'CSPNeXtPAFPN' and isinstance(norm, dict) and 'num_groups' in norm:
                groups = groups_of_halves(norm['num_groups'], channels.values())
                if groups != norm['num_groups']:
                    self._change(f'{place}.norm_cfg.num_groups', groups, 'which divides half of the channels')

    def _repair(self) -> Measured:
        """Change what still does not fit where the channels of a map stand under another name.

        Returns:
            What is measured of the swapped model.
        """
        for _ in range(REPAIRS):
            measured = measure(self.plan_.cfg)
            misfits = [misfit for network in measured.networks for misfit in network.misfits]
            if not any(self._repair_one(misfit) for misfit in misfits):
                break
        return measured

    def _repair_one(self, misfit) -> bool:
        parts = misfit.place.split('.')
        for length in range(len(parts), 0, -1):
            key, node = settings(self.plan_.cfg, '.'.join(parts[:length]))
            for name, value in (node or {}).items():
                if 'channels' not in name or name in ('channels', 'out_channels'):
                    continue
                if value == misfit.built_for and isinstance(value, int):
                    self._change(f'{key}.{name}', misfit.received, 'channels of the maps that it reads')
                    return True
                if isinstance(value, (list, tuple)) and misfit.built_for in value:
                    new = list(value)
                    new[new.index(misfit.built_for)] = misfit.received
                    self._change(f'{key}.{name}', new, 'channels of the maps that it reads')
                    return True
        return False

    # images, optimizer

    def _preprocessing(self) -> None:
        """Set mean and std of the weights, and an image size of which each position reaches the last map."""
        detection = task_of(self.old.model) != 'segmentation'
        for place, node in walk(self.old.model, 'model'):
            outer = isinstance(node.get('data_preprocessor'), dict)
            if place.rpartition('.')[2] != 'data_preprocessor' or outer:
                continue
            given = node.get('mean')
            if isinstance(given, (list, tuple)) and len(given) not in (1, 3):
                self._note(f'{place}: mean and std of {len(given)} channels stay')
            else:
                why = 'images as the released weights saw them'
                for name, value in zip(('mean', 'std'), normalisation(self.weights)):
                    if not is_near(node.get(name), value):
                        self._change(f'{place}.{name}', value, why)
                if not node.get('bgr_to_rgb'):
                    self._change(f'{place}.bgr_to_rgb', True, why)
                if node.get('rgb_to_bgr'):
                    self._change(f'{place}.rgb_to_bgr', False, why)
            divisor = node.get('pad_size_divisor', 1)
            if detection and isinstance(divisor, int) and divisor % self.stride:
                self._change(
                    f'{place}.pad_size_divisor',
                    self.stride,
                    'else the border of an image does not reach the last map',
                )

    def _recipe(self, recipe: Recipe, swapped: Measured) -> None:
        images = recipe.images
        optimizer = optimizer_of(self.old, recipe, swapped.model, self.plan_.backbones)
        if optimizer is None:
            if 'optim_wrapper' in self.old:
                self._note('optim_wrapper stays: it has several optimizers; give the backbone AdamW by hand')
            return
        old = (self.old.optim_wrapper.get('paramwise_cfg') or {}) if 'optim_wrapper' in self.old else {}
        given = dict(old.get('custom_keys') or {})
        dropped = [k for k in given if k not in (optimizer['paramwise_cfg'].get('custom_keys') or {})]
        dropped += [k for k in old if k not in ('custom_keys', 'decay_rate', 'decay_type', 'num_layers')]
        if dropped:
            self._note(
                f'optim_wrapper.paramwise_cfg without {", ".join(dropped)}: layer decay takes their place'
            )
        self._change(
            'optim_wrapper',
            optimizer,
            f"the paper's, learning rate for {images[0]} images an update ({images[1]})",
        )
        if 'base_batch_size' not in (self.old.get('auto_scale_lr') or {}):
            scale = dict(enable=False, base_batch_size=images[0])
            self._change('auto_scale_lr', scale, 'images of an update for which the learning rate is')
        if 'train_dataloader' in images[1]:
            self._note(
                f'the learning rate is for {images[0]} images an update ({images[1]}): multiply it with more'
            )
        if schedule := schedule_of(self.old, recipe):
            self._change('param_scheduler', schedule, "warm-up of the paper's recipe; the length stays")

    def _kept_recipe(self) -> None:
        optimizer = (self.old.get('optim_wrapper') or {}).get('optimizer') or {}
        kind, rate = type_name(optimizer), optimizer.get('lr')
        self._note(
            f'optimizer and schedule stay ({kind or "none"}, lr={rate}): ConvNeXt was published with AdamW, '
            'weight decay 0.05 and layer decay; with others it may train worse, or not at all'
        )


def _stages(kept: list[int], maps: Sequence[Map], key: str, kind: str, node: dict) -> tuple[list[int], int]:
    """Return the stages of a ConvNeXt whose maps have the strides of the kept ones, and its output stride."""
    strides = []
    for i in kept:
        down, across = maps[i].stride
        near = [s for s in STRIDES if max(s / down, down / s, s / across, across / s) < NEAR]
        strides.append(near[0] if near else None)
    shown = ', '.join(f'{s:g}' for s in sorted({round(maps[i].stride[0], 1) for i in kept}))
    if None in strides:
        raise Refused(f'{key} ({kind}) emits maps at strides {shown}; ConvNeXt has 4, 8, 16 and 32')
    dilated = any(d > 1 for d in node.get('dilations') or () if isinstance(d, int))
    for output_stride in sorted(OUTPUT_STRIDES, reverse=not dilated):
        if dilated and output_stride < max(strides):
            continue
        indices, last = [], len(STRIDES)
        for stride in reversed(strides):
            fits = [i for i in range(last) if min(STRIDES[i], output_stride) == stride]
            if not fits:
                break
            last = fits[-1]
            indices.insert(0, last)
        if len(indices) == len(strides):
            return indices, output_stride
    raise Refused(
        f'{key} ({kind}) emits {len(kept)} maps at strides {shown}, which no output stride of ConvNeXt has'
    )


def _default_index(network: Network, cfg: Config, place: str) -> int | None:
    """Return the map that a head of mmseg reads whose settings do not say it."""
    for reader in network.readers:
        if settings(cfg, reader.place)[0] == place:
            module = network.module
            for part in reader.place.removeprefix(f'{network.place}.').split('.'):
                module = getattr(module, part, None)
            index = getattr(module, 'in_index', None)
            return index if isinstance(index, int) else None
    return None


def _moved(index: int, number: int, kept: list[int]) -> int:
    """Return the place of a map among the kept ones, counted from the end if it was."""
    place = kept.index(index % number)
    return place - len(kept) if index < 0 else place


def _same(a, b) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _short(value) -> str:
    text = repr(dict(value) if isinstance(value, dict) else value)
    return text if len(text) <= 40 else f'{text[:37]}...'
