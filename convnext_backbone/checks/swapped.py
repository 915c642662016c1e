"""Warns of what goes wrong in silence in a config whose backbone was replaced by ours, or its weights."""

import inspect
import os
from collections.abc import Iterator, Sequence

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from ..backbones import ConvNeXt, DenseBackbone, IsotropicConvNeXt
from ..backbones.layers import GlobalResponseNorm
from ..checkpoint.zoo import MEAN, RELEASED, STD, normalisation, released_as
from ..config import datasets, dicts, task_of
from ..config.keys import walk
from ..errors import some, suggest
from ..findings import Findings
from ..measure import BATCH_NORMS, Measured, Network, settings
from ..registry import SCOPE, class_of, type_name

FOREIGN_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
OWN_DECAY = f'{SCOPE}.LayerDecayConstructor'
RATE_OF_SGD = 0.01  # at and above this no AdamW recipe of a detector or segmenter has its rate
LARGE_SCALE = 0.1  # of layer scale: from here on float16 may overflow
ROUNDED = 0.6  # of a mean of pixels: below this two are the same; CLIP's differs from ImageNet's by 0.9
FEW = 2  # images, of which batch norm knows too little
# Heads that mmseg ships on dilated networks (but for three PSPNets at stride 32): the stride of their map.
DILATED = dict.fromkeys(
    ('ANNHead', 'APCHead', 'ASPPHead', 'CCHead', 'DAHead', 'DMHead', 'DNLHead', 'DepthwiseSeparableASPPHead')
    + ('EMAHead', 'EncHead', 'GCHead', 'ISAHead', 'NLHead', 'OCRHead', 'PSAHead', 'PSPHead'),
    8,
)
PADS = ('Pad', 'BatchFixedSizePad')  # steps after which the size of an image is chosen


def check_swapped(cfg: Config, findings: Findings, measured: Measured, trains: bool) -> None:
    """Report settings that were made for another backbone than the ConvNeXt of this package that is there.

    Args:
        cfg: of a run.
        findings: gets a warning (kind ``swapped``) for each, with the value to set; an error for arguments
            that the backbone does not take.
        measured: what :func:`~convnext_backbone.measure.measure` found.
        trains: whether a training is checked; else nothing is said of its settings.
    """
    for place, node in _backbones(cfg.model):
        _check_arguments(place, node, findings)
    networks = [
        network
        for network in measured.networks
        if isinstance(getattr(network.module, network.backbone), (ConvNeXt, IsotropicConvNeXt))
    ]
    if networks and task_of(cfg.model) not in ('classification', 'pretraining'):
        _Swapped(cfg, findings, measured, networks).check(trains)


def check_images(cfg: Config, findings: Findings, splits) -> None:
    """Report images of a classifier or an autoencoder that are not normalised as those of released weights.

    Args:
        cfg: of a run.
        findings: gets a warning (kind ``swapped``) for each place that normalises, with the value to set.
        splits: keys of the data loaders that will be used.
    """
    weights = next((n['checkpoint'] for n in dicts(cfg.model) if released_as(n.get('checkpoint'))), None)
    if weights is None:
        return
    known, wrong = RELEASED[released_as(weights)], {}
    for split, data in datasets(cfg, splits):
        place, node = f'{split}.dataset.transform', data.get('transform')
        if not isinstance(node, dict):
            continue
        given, right = (node.get('mean', MEAN), node.get('std', STD)), (known.mean, known.std)
        tolerance = ROUNDED / 255
        if not node.get('normalize', True):  # the model does it, of pixels from 0 to 255
            place, node = 'model.data_preprocessor', cfg.model.get('data_preprocessor') or {}
            given, right = (node.get('mean'), node.get('std')), normalisation(weights)
            tolerance = ROUNDED
        for key, own, values in zip(('mean', 'std'), given, right):
            if not is_near(own, values, tolerance):
                mean, std = map(bracketed, right)
                text = f'{weights} was trained on images with mean={mean}, std={std}: set these'
                wrong[f'{place}.{key}'] = f'got {bracketed(own)}, but {text}'
                break
    for where, text in wrong.items():
        findings.add('warning', 'swapped', where, text)


def _backbones(model: dict) -> Iterator[tuple[str, dict]]:
    """Yield key and settings of each backbone of this package."""
    for place, node in walk(model, 'model'):
        kind = class_of(node, MODELS) if type_name(node).startswith(f'{SCOPE}.') else None
        if isinstance(kind, type) and issubclass(kind, DenseBackbone):
            yield place, node


def _check_arguments(place: str, node: dict, findings: Findings) -> None:
    kind = class_of(node, MODELS)
    known = inspect.signature(kind.__init__).parameters
    other = [key for key in node if key not in known and key not in ('type', '_scope_', '_delete_')]
    if not other or 'kwargs' in known:
        return
    text = f'{kind.__name__} does not take {some(other)}'
    near = suggest(other[0], known) if len(other) == 1 else ''
    if not near:
        stays = [f'{key}={node[key]!r}' for key in ('frozen_stages', 'with_cp') if node.get(key)]
        near = (
            f': if a base config has them for another backbone, write {place.rpartition(".")[2]}='
            'dict(_delete_=True, type=...)' + (f'; {", ".join(stays)} would go on to hold' if stays else '')
        )
    findings.add('error', 'swapped', place, text + near)


class _Swapped:
    """Holds what the checks of one config share."""

    def __init__(self, cfg: Config, findings: Findings, measured: Measured, networks: list[Network]):
        self.cfg, self.findings, self.measured, self.networks = cfg, findings, measured, networks
        self.wrapper = cfg.get('optim_wrapper') if isinstance(cfg.get('optim_wrapper'), dict) else {}
        self.backbone = getattr(networks[0].module, networks[0].backbone)

    def check(self, trains: bool) -> None:
        """Look at weights, images, optimizer, precision, batch norm and the maps that heads read."""
        for network in self.networks:
            key, node = settings(self.cfg, network.name(network.backbone))
            if node is not None:
                self._weights(key, node)
            self._coarse_map(network)
            if node is not None and node.get('frozen_stages') == 0:
                text = '0 freezes the stem, as in mmdet; in mmpretrain it freezes nothing: -1 does so here'
                self.findings.add('note', 'swapped', f'{key}.frozen_stages', text)
        self._padding()
        if trains and self.wrapper and self.cfg.get('train_dataloader'):
            self._optimizer()
            self._parameters()
            self._precision()
            self._batch_norm()

    def _warn(self, where: str, text: str) -> None:
        if not any(f.where == where and f.kind == 'swapped' for f in self.findings):
            self.findings.add('warning', 'swapped', where, text)

    # weights and images

    def _weights(self, key: str, node: dict) -> None:
        given = node.get('init_cfg') or []
        inits = [given] if isinstance(given, dict) else list(given)
        for init in inits:
            if type_name(init) == 'Pretrained':
                self._warn(
                    f'{key}.init_cfg.type',
                    "got mmengine's 'Pretrained', which leaves out in silence whatever does not fit: write "
                    f"'{SCOPE}.Pretrained', which loads every tensor or stops",
                )
            if released_as(init.get('checkpoint')):
                self._normalisation(str(init['checkpoint']))
        old = self.cfg.model.get('pretrained')
        if isinstance(old, str) and 'decode_head' in self.cfg.model:
            self.findings.add(
                'error',
                'swapped',
                'model.pretrained',
                f'got {old!r}, needs None: {key} names its weights in init_cfg',
            )

    def _normalisation(self, weights: str) -> None:
        """Compare mean and std of the images with those of the released weights."""
        steps = [s for _, d in datasets(self.cfg, ('train_dataloader',)) for s in dicts(d.get('pipeline'))]
        if any(type_name(step) == 'Normalize' for step in steps):
            return
        mean, std = normalisation(weights)
        right = f'mean={mean}, std={std}, bgr_to_rgb=True'
        place, node = 'model.data_preprocessor', self.cfg.model.get('data_preprocessor') or {}
        while isinstance(node.get('data_preprocessor'), dict):
            place, node = f'{place}.data_preprocessor', node['data_preprocessor']
        for key, values in (('mean', mean), ('std', std)):
            given = node.get(key)
            many = isinstance(given, (list, tuple)) and len(given) not in (1, 3)  # other images than these
            if not is_near(given, values) and not many:
                self._warn(
                    f'{place}.{key}',
                    f'got {bracketed(given)}, but {weights} was trained on images with {right}: set these',
                )
                return
        if not node.get('bgr_to_rgb') and len(node['mean']) == 3:
            self._warn(
                f'{place}.bgr_to_rgb',
                f'got {node.get("bgr_to_rgb", False)}, but {weights} was trained on RGB: set {right}',
            )

    def _padding(self) -> None:
        """Warn where the border of an image does not reach the last map: our stem does not pad."""
        node = self.cfg.model.get('data_preprocessor') or {}
        while isinstance(node.get('data_preprocessor'), dict):
            node = node['data_preprocessor']
        stride = int(max(self.backbone.out_strides))
        divisor = node.get('pad_size_divisor', 1)
        kinds = {type_name(step) for step in [*dicts(self.cfg.get('train_dataloader')), *dicts(node)]}
        if task_of(self.cfg.model) == 'segmentation' or kinds & set(PADS) or not isinstance(divisor, int):
            return
        if divisor % stride:
            self._warn(
                'model.data_preprocessor.pad_size_divisor',
                f'got {divisor}, needs a multiple of {stride}, the stride of the last map: up to '
                f'{stride - 1} pixels at the right and lower border would not reach it',
            )

    def _coarse_map(self, network: Network) -> None:
        """Warn where a head made for dilated networks reads a map that is coarser."""
        if isinstance(self.backbone, IsotropicConvNeXt):
            return
        for reader in network.readers:
            key, node = settings(self.cfg, reader.place)
            made_for = DILATED.get(type_name(node or {}))
            if made_for is None or reader.source != network.backbone:
                continue
            index = node.get('in_index', -1)
            level = network.maps[index[-1] if isinstance(index, (list, tuple)) else index]
            if min(level.stride) > 2 * made_for:
                self._warn(
                    f'{settings(self.cfg, network.name(network.backbone))[0]}.output_stride',
                    f'got {int(level.stride[0])}, but {type_name(node)} ({key}) was made for a map at stride '
                    f'{made_for}: set output_stride={made_for}, or {2 * made_for} to save memory',
                )

    # optimizer

    def _optimizer(self) -> None:
        optimizer = self.wrapper.get('optimizer')
        kind = type_name(optimizer or {})
        rate = (optimizer or {}).get('lr')
        recipe = "type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05 (for 16 images)"
        if kind == 'SGD':
            self._warn(
                'optim_wrapper.optimizer.type',
                f"got 'SGD' (lr={rate}), of a recipe for ResNet: ConvNeXt is trained by {recipe}",
            )
        elif kind in ('AdamW', 'Adam') and isinstance(rate, (int, float)) and rate >= RATE_OF_SGD:
            self._warn(
                'optim_wrapper.optimizer.lr',
                f'got {rate} with {kind}, a rate for SGD: ConvNeXt is trained by {recipe}',
            )

    def _parameters(self) -> None:
        """Check what a recipe says about single parameters: depth, names, norms."""
        given = self.wrapper.get('paramwise_cfg') or {}
        constructor = type_name(self.wrapper.get('constructor') or '')
        custom = given.get('custom_keys') or {}
        where = 'optim_wrapper.paramwise_cfg'
        groups = self.backbone.num_groups
        if constructor in FOREIGN_DECAY:
            number = given.get('num_layers')
            if number != groups:
                self._warn(
                    f'{where}.num_layers',
                    f'got {number}, needs {groups}, the depth groups of '
                    f'{type(self.backbone).__name__} {getattr(self.backbone, "arch", "")}; or set '
                    f"optim_wrapper.constructor='{OWN_DECAY}', which asks the backbone",
                )
            if custom:
                self._warn(
                    f'{where}.custom_keys',
                    f'{constructor} does not read it ({some(custom)}): take it out',
                )
        if constructor not in ('', 'DefaultOptimWrapperConstructor') or self.measured.model is None:
            return
        names = [name for name, _ in self.measured.model.named_parameters()]
        if unused := [key for key in custom if not any(key in name for name in names)]:
            self._warn(
                f'{where}.custom_keys',
                f'{some(unused)}: no parameter has such a name, they were made for another backbone: take '
                'them out',
            )
        self._norms(given, custom)

    def _norms(self, given: dict, custom: dict) -> None:
        """Warn where weight decay is taken from norms, and stays on layer scale and response norm."""
        if 'norm_decay_mult' not in given or not (self.wrapper.get('optimizer') or {}).get('weight_decay'):
            return
        number = given['norm_decay_mult']
        scaled = any(name.endswith('.gamma') and p.ndim == 1 for name, p in self.backbone.named_parameters())
        response = any(isinstance(m, GlobalResponseNorm) for m in self.backbone.modules())
        missed = []
        if scaled and given.get('flat_decay_mult') != number and 'gamma' not in custom:
            missed.append(f'layer scale (flat_decay_mult={number})')
        if response and not any(key in ('grn', '.grn', 'gamma') for key in custom):
            missed.append(f"the response norm (custom_keys={{'grn': dict(decay_mult={number})}})")
        if missed:
            self._warn(
                'optim_wrapper.paramwise_cfg.norm_decay_mult',
                f"got {number}, which holds for torch's own norms, not for {' and '.join(missed)}; "
                f"or set optim_wrapper.constructor='{OWN_DECAY}', which knows both",
            )

    def _precision(self) -> None:
        half = self.wrapper.get('dtype') in ('float16', torch.float16)
        if type_name(self.wrapper) != 'AmpOptimWrapper' or not half:
            return
        node = settings(self.cfg, self.networks[0].name(self.networks[0].backbone))[1] or {}
        scale = node.get('layer_scale_init_value') or 0
        response = any(isinstance(m, GlobalResponseNorm) for m in self.backbone.modules())
        if response or scale >= LARGE_SCALE:
            why = 'the response norm' if response else f'layer_scale_init_value={scale}'
            self._warn(
                'optim_wrapper.dtype',
                f"got 'float16', in which a sum above 65504 is infinite, as {why} can make it: set "
                "'bfloat16' where the device has it",
            )

    def _batch_norm(self) -> None:
        """Warn where batch norm of the heads sees too few images, unless it is said that it fails."""
        if any(f.where == 'train_dataloader.batch_size' and f.kind == 'batch_norm' for f in self.findings):
            return
        batch = self.cfg.train_dataloader.get('batch_size', 1)
        alone = int(os.environ.get('WORLD_SIZE', 1)) == 1
        kinds = {
            type_name(node['norm_cfg']): key
            for key in ('neck', 'decode_head', 'auxiliary_head', 'bbox_head', 'rpn_head', 'roi_head')
            for node in dicts(self.cfg.model.get(key))
            if isinstance(node.get('norm_cfg'), dict)
        }
        learns = self.measured.model is not None and any(
            isinstance(m, BATCH_NORMS) for m in self.measured.model.modules()
        )
        if 'BN' in kinds and learns and isinstance(batch, int) and batch <= FEW and alone:
            self._warn(
                'train_dataloader.batch_size',
                f'got {batch}, of which batch norm (model.{kinds["BN"]}) makes poor statistics: set 4 or '
                "more, or norm_cfg=dict(type='GN', num_groups=32) there",
            )


def is_near(given, values: Sequence[float], tolerance: float = ROUNDED) -> bool:
    """Return whether a mean or standard deviation of pixels is the other, up to its rounding."""
    several = isinstance(given, (list, tuple)) and len(given) == len(values)
    return several and all(abs(a - b) < tolerance for a, b in zip(given, values))


def bracketed(value) -> str:
    """Return a value as text, tuples as lists."""
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value)
