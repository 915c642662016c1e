"""Checks ranges and choices of settings: one out of its range trains, for days, on the wrong thing."""

import math
from collections.abc import Iterator
from numbers import Real

from mmengine.config import Config

from ..config.data import DATALOADERS
from ..config.keys import walk
from ..findings import Findings
from ..registry import type_name
from .ranges import (
    ANCHORS,
    CLIP,
    COUNT,
    ENV,
    FLAG,
    FREE,
    HOOKS,
    LOADER,
    LOSS,
    METRICS,
    MIXUP,
    MODEL,
    NOT_NEGATIVE,
    OPTIMIZER,
    PARAMWISE,
    PART,
    PRIORITIES,
    RANDOMNESS,
    SLIDE,
    STEP,
    SWITCH,
    TOP,
    TRANSFORM,
    WRAPPER,
)
from .rules import Choice, Number, SettingsCheck, shown
from .schedules import ScheduleCheck


def check_values(cfg: Config, findings: Findings) -> None:
    """Report every setting that is out of its range or none of its choices.

    Args:
        cfg: of a run, as :func:`~convnext_backbone.config.read_config` returns it.
        findings: gets an error (kind ``value``) for each setting that cannot be meant, a warning (kind
            ``schedule`` or ``value``) for one that is possible and unlikely.
    """
    ValuesCheck(cfg, findings).check()


class ValuesCheck(SettingsCheck):
    """Checks every setting of a config."""

    def check(self) -> None:
        """Add to the findings what :func:`check_values` says."""
        cfg = self.cfg
        self.table(cfg, '', TOP)
        self._everywhere()
        self.table(cfg.get('randomness'), 'randomness', RANDOMNESS)
        for place, node in walk(cfg.get('env_cfg'), 'env_cfg'):
            self.table(node, place, ENV)
        scaling = cfg.get('auto_scale_lr')
        self.table(scaling, 'auto_scale_lr', {'base_batch_size': COUNT, 'enable': FLAG})
        self.table(cfg.get('log_processor'), 'log_processor', {'window_size': COUNT, 'by_epoch': FLAG})
        ScheduleCheck(cfg, self.findings).check()
        self._optim_wrapper()
        for key in DATALOADERS:
            self._loader(key)
        for place, node in walk(cfg.get('tta_pipeline'), 'tta_pipeline'):
            self._step(place, node)
        self._hooks()
        self._model()
        for key in ('val_evaluator', 'test_evaluator'):
            for place, node in walk(cfg.get(key), key):
                self.table(node, place, METRICS.get(type_name(node), {}))

    def _everywhere(self) -> None:
        """Report NaN, and text that is meant to be a truth value: ``'False'`` counts as true."""
        for place, value in _leaves(dict(self.cfg.items()), ''):
            if isinstance(value, float) and math.isnan(value):
                self.error(place, 'got nan, needs a number')
            elif 'classes' in place.split('.'):
                continue  # a class may be called None
            elif isinstance(value, str) and value in ('True', 'False', 'None', 'true', 'false'):
                name = value.capitalize()
                self.error(
                    place, f'got the text {value!r}, which counts as true: write {name} without quotes'
                )

    # the parts of a config

    def _optim_wrapper(self) -> None:
        for place, node in walk(self.cfg.get('optim_wrapper'), 'optim_wrapper'):
            name = place.rpartition('.')[2]
            if 'optimizer' in node:
                self.table(node, place, WRAPPER)
                scale = node.get('loss_scale', 'dynamic')
                if not isinstance(scale, dict):
                    self.rule(f'{place}.loss_scale', scale, Number(0, above=True, also=('dynamic',)))
            if name == 'optimizer':
                self._optimizer(place, node)
            elif name == 'clip_grad':
                self._clip(place, node)
            elif 'paramwise_cfg' in place and not place.endswith('custom_keys'):
                self.table(node, place, PARAMWISE)

    def _optimizer(self, place: str, node: dict) -> None:
        self.table(node, place, OPTIMIZER)
        if 'betas' in node:
            betas = node['betas']
            right = (
                isinstance(betas, (list, tuple))
                and len(betas) in (2, 3)
                and not any(map(PART.refuses, betas))
            )
            if not right:
                self.error(f'{place}.betas', f'got {shown(betas)}, needs two numbers in [0, 1)')
        if node.get('nesterov') is True and not node.get('momentum'):
            self.error(f'{place}.nesterov', 'got True without momentum, needs momentum above 0')

    def _clip(self, place: str, node: dict) -> None:
        self.table(node, place, CLIP)
        needed = 'clip_value' if node.get('type') == 'value' else 'max_norm'
        if needed not in node and node.get('type', 'norm') in ('norm', 'value'):
            self.error(
                f'{place}.{needed}', f'is missing, needs {CLIP[needed]}; for no clipping set clip_grad=None'
            )

    def _loader(self, key: str) -> None:
        loader = self.cfg.get(key)
        if not isinstance(loader, dict):
            return
        self.table(loader, key, LOADER)
        workers = loader.get('num_workers', 0)
        if workers == 0 and workers is not False:
            if loader.get('persistent_workers') is True:
                self.error(
                    f'{key}.persistent_workers',
                    f'got True with {key}.num_workers=0, needs False, or num_workers >= 1',
                )
            if isinstance(loader.get('prefetch_factor'), int):
                self.error(
                    f'{key}.prefetch_factor',
                    f'got {loader["prefetch_factor"]} with {key}.num_workers=0, needs None, or num_workers '
                    'of at least 1',
                )
        for place, node in walk(loader.get('dataset'), f'{key}.dataset'):
            name = place.rpartition('.')[2]
            if 'pipeline' in place or 'transforms' in place:
                self._step(place, node)
            elif name == 'transform':
                self.table(node, place, TRANSFORM)
                self._mean_and_std(place, node)
            elif name == 'filter_cfg':
                self.table(node, place, {'min_size': NOT_NEGATIVE, 'filter_empty_gt': FLAG})
            else:
                self.table(node, place, {'times': COUNT, 'oversample_thr': NOT_NEGATIVE, 'test_mode': FLAG})

    def _step(self, place: str, node: dict) -> None:
        """Check one step of a pipeline."""
        kind = type_name(node)
        self.table(node, place, STEP, FREE.get(kind, ()))
        if kind == 'Normalize':
            self._mean_and_std(place, node)
        prob = node.get('prob')
        if kind == 'RandomFlip' and isinstance(prob, (list, tuple)) and not STEP['prob'].refuses(prob):
            if sum(prob) > 1 + 1e-9:
                self.error(f'{place}.prob', f'got {shown(prob)}, needs numbers whose sum is at most 1')
            direction = node.get('direction')
            if isinstance(direction, (list, tuple)) and len(direction) != len(prob):
                self.error(
                    f'{place}.prob',
                    f'got {len(prob)} numbers, needs as many as direction has ({len(direction)})',
                )
        if kind == 'RandomCrop' and str(node.get('crop_type', '')).startswith('relative'):
            self.table(node, place, {'crop_size': Number(0, 1, above=True, several=True)})
        for key in ('ratio_range', 'size', 'scale'):
            value = node.get(key)
            pair = isinstance(value, (list, tuple)) and not STEP[key].refuses(value)
            if pair and len(value) != 2 and not any(isinstance(item, (list, tuple)) for item in value):
                self.error(f'{place}.{key}', f'got {shown(value)}, needs two numbers')
            elif pair and key == 'ratio_range' and value[0] > value[1]:
                self.error(f'{place}.{key}', f'got {shown(value)}, needs the smaller number first')

    def _mean_and_std(self, place: str, node: dict) -> None:
        mean, std = node.get('mean'), node.get('std')
        if (mean is None) != (std is None):
            key, other = ('std', 'mean') if std is None else ('mean', 'std')
            self.error(
                f'{place}.{key}',
                f'is missing, needs as many numbers as {other}, which is {shown(node[other])}',
            )
            return
        if mean is None:
            return
        fine = self.rule(f'{place}.mean', mean, Number(several=True))
        fine &= self.rule(f'{place}.std', std, Number(0, above=True, several=True))
        lengths = [len(part) if isinstance(part, (list, tuple)) else 1 for part in (mean, std)]
        if fine and lengths[0] != lengths[1]:
            self.error(f'{place}.std', f'got {lengths[1]} numbers, needs as many as mean has ({lengths[0]})')

    def _hooks(self) -> None:
        named = self.cfg.get('default_hooks')
        custom = self.cfg.get('custom_hooks')
        places = [
            (f'default_hooks.{name}', hook)
            for name, hook in (named if isinstance(named, dict) else {}).items()
        ]
        places += [
            (f'custom_hooks.{i}', hook) for i, hook in enumerate(custom if isinstance(custom, list) else [])
        ]
        for place, hook in places:
            if not isinstance(hook, dict):
                continue
            kind = type_name(hook)
            self.table(hook, place, HOOKS.get(kind, {}))
            momentum = hook.get('momentum')
            if kind == 'EMAHook' and isinstance(momentum, float) and 0.5 < momentum < 1:
                self.findings.add(
                    'warning',
                    'value',
                    f'{place}.momentum',
                    f'{momentum} is the share of the new weights: for a decay of {momentum} write '
                    f'{1 - momentum:.6g}',
                )
            priority = hook.get('priority')
            if isinstance(priority, str):
                self.rule(f'{place}.priority', priority.upper(), Choice(PRIORITIES))
            elif priority is not None:
                self.rule(f'{place}.priority', priority, Number(0, 100, whole=True))
            for inner, node in walk(hook.get('switch_pipeline'), f'{place}.switch_pipeline'):
                self._step(inner, node)

    def _model(self) -> None:
        model = self.cfg.get('model')
        for key in ('model', 'tta_model'):
            for place, node in walk(self.cfg.get(key), key):
                self._model_dict(place, node)
        if isinstance(model, dict) and 'decode_head' in model:
            how = model.get('test_cfg')
            self.table(how, 'model.test_cfg', SLIDE)
            if isinstance(how, dict) and how.get('mode') == 'slide':
                self._slide('model.test_cfg', how)

    def _model_dict(self, place: str, node: dict) -> None:
        name = place.rpartition('.')[2]
        names = place.split('.')
        self.table(node, place, MODEL)
        if name.startswith('loss') or (len(names) > 1 and names[-2].startswith('loss')):
            self.table(node, place, LOSS)
        if name.endswith(('anchor_generator', 'prior_generator')):
            self.table(node, place, ANCHORS)
        if name == 'mixup':
            self.table(node, place, MIXUP)
        if name == 'data_preprocessor':
            self._mean_and_std(place, node)
            self.table(node, place, {'size': STEP['size'], 'bgr_to_rgb': SWITCH, 'rgb_to_bgr': SWITCH})
            if node.get('bgr_to_rgb') is True and node.get('rgb_to_bgr') is True:
                self.error(f'{place}.rgb_to_bgr', 'got True with bgr_to_rgb=True, needs one of both')
        weight = node.get('loss_weight')
        if isinstance(weight, Real) and weight < 0:
            self.findings.add(
                'warning',
                'value',
                f'{place}.loss_weight',
                f'{weight} is negative: the loss would be made larger',
            )
        classes = node.get('num_classes')
        if isinstance(classes, int):
            for key, loss in node.items():
                if str(key).startswith('loss'):
                    self._class_weight(f'{place}.{key}', loss, classes, node)

    def _class_weight(self, place: str, loss, classes: int, head: dict) -> None:
        """Check that a loss weights as many classes as its head predicts."""
        if isinstance(loss, (list, tuple)):
            for index, one in enumerate(loss):
                self._class_weight(f'{place}.{index}', one, classes, head)
            return
        weights = loss.get('class_weight') if isinstance(loss, dict) else None
        if not isinstance(weights, (list, tuple)):
            return
        of_masks = str(loss.get('loss_name', '')).startswith(
            'loss_cls'
        )  # of mask classification: "no object"
        dense = 'loss_decode' in place and not of_masks
        allowed = {classes} if dense else {classes, classes + 1}
        if isinstance(head.get('out_channels'), int):
            allowed.add(head['out_channels'])
        if len(weights) not in allowed:
            needed = f'{classes}' if dense else f'{classes}, or {classes + 1} with the background'
            self.findings.add(
                'warning' if of_masks else 'error',  # mmseg ships such ones, for testing
                'value',
                f'{place}.class_weight',
                f'got {len(weights)} numbers, needs {needed} (num_classes={classes})',
            )
        self.rule(f'{place}.class_weight', weights, Number(0, several=True))

    def _slide(self, place: str, how: dict) -> None:
        """Check the windows of a segmenter: without gaps between them."""
        crop, stride = how.get('crop_size'), how.get('stride')
        if missing := [key for key in ('crop_size', 'stride') if how.get(key) is None]:
            self.error(
                f'{place}.{missing[0]}', "is missing, needs two whole numbers of at least 1 with mode='slide'"
            )
            return
        if SLIDE['crop_size'].refuses(crop) or SLIDE['stride'].refuses(stride):
            return
        pairs = [[value, value] if isinstance(value, int) else list(value) for value in (crop, stride)]
        if any(step > size for size, step in zip(*pairs)):
            self.error(
                f'{place}.stride', f'got {stride}, needs at most crop_size={crop}: pixels would be left out'
            )


def _leaves(value, place: str) -> Iterator[tuple[str, object]]:
    """Yield every value that holds no others, with its dotted key."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f'{place}.{key}' if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from _leaves(child, f'{place}.{index}')
    else:
        yield place, value
