"""Checks ranges and choices of settings: one out of its range trains, for days, on the wrong thing.

Rules are tables: key -> :class:`Number` or :class:`Choice`. What a rule refuses, no config that mmdet or
mmseg ship has (tests/test_values.py looks at all of them).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from mmengine.config import Config

from ..config.data import DATALOADERS
from ..config.keys import walk
from ..errors import suggest
from ..findings import Findings
from ..registry import type_name

MISSING = object()


def _shown(value) -> str:
    """Return a value as an error shows it; text that is meant to be something else says so."""
    text = repr(value)
    text = text if len(text) <= 60 else f'{text[:57]}...'
    return f'the text {text}' if isinstance(value, str) else text


@dataclass(frozen=True)
class Number:
    """Is the rule of a setting that is a number, or several that each obey it.

    Attributes:
        low, high: the ends; ``above``, ``below``: the end itself is out.
        whole: integers only (12.0 is one where mmengine takes it: ``integral``).
        also: other values that are allowed.
        several: a list, tuple or list of lists of such numbers is allowed, too.
        infinite: infinity is allowed.
        off: what a negative number does, where each is allowed.
        advice: what to do about a value that is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    integral: bool = False
    also: tuple = ()
    several: bool = False
    infinite: bool = False
    off: str = ''
    advice: str = ''

    def __str__(self) -> str:
        kind = 'a whole number' if self.whole or self.integral else 'a number'
        if math.isfinite(self.high) and math.isfinite(self.low):
            left, right = '(' if self.above else '[', ')' if self.below else ']'
            text = f'{kind} in {left}{self.low:g}, {self.high:g}{right}'
        elif math.isfinite(self.low):
            text = f'{kind} {"above" if self.above else "of at least"} {self.low:g}'
        else:
            text = 'a finite number' if kind == 'a number' and not self.infinite else kind
        several = ' (or several)' if self.several else ''
        several += f' ({self.off})' if self.off else ''
        return text + several + ''.join(f' or {other!r}' for other in self.also)

    def refuses(self, value) -> bool:
        """Return whether the value is not allowed."""
        if any(value is other or (isinstance(other, str) and value == other) for other in self.also):
            return False
        if any(not isinstance(other, (str, type(None))) and _same(value, other) for other in self.also):
            return False
        if self.several and isinstance(value, (list, tuple)):
            return not value or any(self.refuses(item) for item in value)
        return not self._holds(value)

    def _holds(self, value) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            return False
        if math.isinf(value) and not self.infinite:
            return False
        if self.whole and not isinstance(value, Integral):
            return False
        if self.integral and value != int(value):
            return False
        if self.off and value < 0:
            return True
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def remark(self, value) -> str:
        """Return what to do about a value that is refused."""
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                return ''
            number = int(number) if number == int(number) and 'e' not in value.lower() else number
            return f': write {number} without quotes' if not self.refuses(number) else ''
        return f': {self.advice}' if self.advice else ''


@dataclass(frozen=True)
class Choice:
    """Is the rule of a setting that is one of a few values, or a list of them if ``several``.

    Attributes:
        values: the choices.
        several: a list or tuple of them is allowed, too.
        types: of other values that are allowed.
    """

    values: tuple
    several: bool = False
    types: tuple[type, ...] = ()

    def __str__(self) -> str:
        names = ', '.join(map(repr, self.values[:-1]))
        return f'{names} or {self.values[-1]!r}' if names else repr(self.values[-1])

    def refuses(self, value) -> bool:
        """Return whether the value is not allowed."""
        return self._wrong(value) is not MISSING

    def _wrong(self, value):
        """Return the first value that is not allowed, ``MISSING`` if all are."""
        if self.several and isinstance(value, (list, tuple)):
            return next((wrong for item in value if (wrong := self._wrong(item)) is not MISSING), MISSING)
        if self.types and isinstance(value, self.types) and not isinstance(value, bool):
            return MISSING
        same = any(value is other or (type(value) is type(other) and value == other) for other in self.values)
        return MISSING if same else value

    def remark(self, value) -> str:
        """Return the nearest choice, if one is near."""
        wrong = self._wrong(value)
        texts = [other for other in self.values if isinstance(other, str)]
        if not isinstance(wrong, str):
            return ''
        same = [text for text in texts if text.casefold() == wrong.casefold()]
        return f'; did you mean {same[0]!r}?' if same else suggest(wrong, texts, 0.5)


def _same(value, other) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and value == other


COUNT = Number(1, whole=True)
FROM_0 = Number(0, whole=True)
POSITIVE = Number(0, above=True)
NOT_NEGATIVE = Number(0)
SHARE = Number(0, 1)
PART = Number(0, 1, below=True)
ANY = Number()
FLAG = Choice((True, False))
SWITCH = Choice((True, False, None))
LENGTHS = Number(0, above=True, several=True)

TRAIN_CFG = {
    'max_epochs': Number(1, integral=True),
    'max_iters': Number(1, integral=True),
    'val_interval': Number(1, integral=True),
    'val_begin': Number(0, whole=True),
    'by_epoch': FLAG,
}
LOADER = {
    'batch_size': COUNT,
    'num_workers': FROM_0,
    'persistent_workers': FLAG,
    'pin_memory': FLAG,
    'drop_last': FLAG,
    'prefetch_factor': Number(1, whole=True, also=(None,)),
    'timeout': NOT_NEGATIVE,
    'num_batch_per_epoch': COUNT,
}
OPTIMIZER = {
    'lr': Number(0, above=True, advice='with a rate of 0 or below nothing is learnt'),
    'weight_decay': NOT_NEGATIVE,
    'momentum': PART,
    'eps': Number(0),
    'dampening': PART,
    'alpha': PART,
    'nesterov': FLAG,
    'amsgrad': FLAG,
}
WRAPPER = {
    'accumulative_counts': Number(1, whole=True, also=('auto',)),
    'dtype': Choice(('float16', 'bfloat16', 'float32', 'float64', None), types=(torch.dtype,)),
}
CLIP = {
    'max_norm': Number(0, above=True),
    'clip_value': Number(0, above=True),
    'norm_type': Number(0, above=True, infinite=True, also=('inf',)),
    'type': Choice(('norm', 'value')),
    'error_if_nonfinite': FLAG,
}
PARAMWISE = {
    **dict.fromkeys(
        ('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult'),
        NOT_NEGATIVE,
    ),
    'dcn_offset_lr_mult': NOT_NEGATIVE,
    'lr_mult': NOT_NEGATIVE,
    'decay_mult': NOT_NEGATIVE,
    'decay_rate': Number(
        0, 1, above=True, advice='above 1 the first layers would learn faster than the head'
    ),
    'decay_type': Choice(('layer_wise', 'stage_wise')),
    'num_layers': COUNT,
    'bypass_duplicate': FLAG,
}
SCHEDULER = {
    'begin': FROM_0,
    'end': Number(1, whole=True),
    'by_epoch': FLAG,
    'start_factor': SHARE,
    'end_factor': SHARE,
    'factor': SHARE,
    'gamma': POSITIVE,
    'T_max': COUNT,
    'power': NOT_NEGATIVE,
    'eta_min': NOT_NEGATIVE,
    'eta_min_ratio': SHARE,
    'step_size': COUNT,
    'eta_max': POSITIVE,
    'total_steps': COUNT,
    'pct_start': SHARE,
    'div_factor': POSITIVE,
    'final_div_factor': POSITIVE,
    'convert_to_iter_based': FLAG,
    'patience': FROM_0,
}
CHECKPOINT = {
    'interval': Number(1, whole=True, off='-1 writes none'),
    'max_keep_ckpts': Number(1, whole=True, off='-1 keeps all'),
    'save_begin': FROM_0,
    'by_epoch': FLAG,
    'save_last': FLAG,
    'save_optimizer': FLAG,
    'save_param_scheduler': FLAG,
    'rule': Choice(('greater', 'less', None), several=True),
}
HOOKS = {  # by the name of the hook
    'CheckpointHook': CHECKPOINT,
    'convnext_backbone.CheckpointHook': CHECKPOINT,
    'LoggerHook': {'interval': COUNT, 'interval_exp_name': COUNT, 'ignore_last': FLAG},
    'ParamSchedulerHook': {},
    'EMAHook': {
        'momentum': Number(
            0,
            1,
            above=True,
            below=True,
            advice='it is the share of the new weights: 0.0001 for a decay of 0.9999',
        ),
        'interval': COUNT,
        'begin_iter': FROM_0,
        'begin_epoch': FROM_0,
        'gamma': POSITIVE,
        'update_buffers': FLAG,
        'strict_load': FLAG,
    },
    'MeanTeacherHook': {'momentum': Number(0, 1, above=True, below=True), 'interval': COUNT},
    'EarlyStoppingHook': {
        'patience': FROM_0,
        'min_delta': NOT_NEGATIVE,
        'rule': Choice(('greater', 'less', None)),
        'stopping_threshold': Number(also=(None,)),
    },
    'DetVisualizationHook': {'interval': COUNT, 'score_thr': SHARE, 'wait_time': NOT_NEGATIVE, 'draw': FLAG},
    'SegVisualizationHook': {'interval': COUNT, 'wait_time': NOT_NEGATIVE, 'draw': FLAG},
    'convnext_backbone.HangHook': {'timeout': POSITIVE},
    'convnext_backbone.NonFiniteGuardHook': {'patience': COUNT},
    'convnext_backbone.DataHook': {'skip': FROM_0, 'steps': COUNT, 'share': Number(0, 1, above=True)},
}
PRIORITIES = (
    'HIGHEST',
    'VERY_HIGH',
    'HIGH',
    'ABOVE_NORMAL',
    'NORMAL',
    'BELOW_NORMAL',
    'LOW',
    'VERY_LOW',
    'LOWEST',
)
THRESHOLD = Number(0, 1, several=True)
MODEL = {  # any dict of the model that has the key
    **dict.fromkeys(('score_thr', 'iou_threshold', 'iou_thr', 'nms_thr', 'min_score'), THRESHOLD),
    **dict.fromkeys(('pos_iou_thr', 'neg_iou_thr', 'min_pos_iou', 'pos_fraction'), THRESHOLD),
    'mask_thr_binary': Number(0, 1, also=(-1,)),
    'neg_pos_ub': Number(-1),
    'max_per_img': Number(-1, whole=True),
    'nms_pre': Number(-1, whole=True),
    'drop_path_rate': PART,
    'layer_scale_init_value': Number(0, also=(None,)),
    'dropout_ratio': Number(-1, 1, advice='below 0 is none'),
    'label_smoothing': PART,
    'num_classes': COUNT,
    'loss_weight': ANY,
    'pad_size_divisor': COUNT,
    'featmap_strides': LENGTHS,
    'scales_per_octave': COUNT,
    'with_cp': FLAG,
}
LOSS = {'beta': POSITIVE, 'gamma': NOT_NEGATIVE}  # of a dict below a key that begins with ``loss``
ANCHORS = {'strides': LENGTHS, 'ratios': Number(0, above=True, several=True, also=(None,))}
SLIDE = {
    'mode': Choice(('whole', 'slide', 'slide_flip')),
    'crop_size': Number(1, whole=True, several=True, also=(None,)),
    'stride': Number(1, whole=True, several=True, also=(None,)),
}
MIXUP = {
    **dict.fromkeys(('mixup_alpha', 'cutmix_alpha'), NOT_NEGATIVE),
    **dict.fromkeys(('prob', 'switch_prob'), SHARE),
    'mode': Choice(('batch', 'pair', 'elem')),
}
STEP = {  # any step of a pipeline that has the key
    **dict.fromkeys(('prob', 'p', 'flip_ratio'), Number(0, 1, several=True)),
    **dict.fromkeys(('scale', 'scales', 'img_scale'), Number(0, above=True, several=True, also=(None,))),
    'scale_factor': Number(0, above=True, several=True, also=(None,)),
    'crop_size': Number(0, above=True, several=True, also=(None,)),
    'size': Number(0, above=True, several=True, also=(None,)),
    'size_divisor': Number(1, whole=True, also=(None,)),
    'ratio_range': Number(0, above=True, several=True, also=(None,)),
    'cat_max_ratio': Number(0, 1, above=True),
    'keep_ratio': FLAG,
    'reduce_zero_label': SWITCH,
    'interpolation': Choice(('nearest', 'bilinear', 'bicubic', 'area', 'lanczos'), types=(int,)),
    'color_type': Choice(
        ('color', 'grayscale', 'unchanged', 'color_ignore_orientation', 'grayscale_ignore_orientation')
    ),
    'imdecode_backend': Choice(('cv2', 'pillow', 'turbojpeg', 'tifffile', None)),
    'direction': Choice(('horizontal', 'vertical', 'diagonal'), several=True),
    'crop_type': Choice(('absolute', 'absolute_range', 'relative', 'relative_range')),
}
FREE = {  # steps whose arguments of these names mean something else
    'RandomCrop': {'scale'},
    'GenerateEdge': {'scale'},
    'ShearX': {'interpolation'},
    'RandomErasing': {'ratio'},
}
TRANSFORM = {  # ``transform`` of our image datasets, timm's names
    'input_size': Number(1, whole=True, several=True),
    **dict.fromkeys(('re_prob', 'hflip', 'vflip', 'color_jitter_prob'), Number(0, 1, also=(None,))),
    'crop_pct': Number(0, 1, above=True, also=(None,)),
    'color_jitter': Number(0, several=True, also=(None,)),
    'scale': Number(0, above=True, several=True, also=(None,)),
    'ratio': Number(0, above=True, several=True, also=(None,)),
    'interpolation': Choice(('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random')),
    'crop_mode': Choice(('center', 'squash', 'border', None)),
    'is_training': FLAG,
}
METRICS = {
    'CocoMetric': {
        'metric': Choice(('bbox', 'segm', 'proposal', 'proposal_fast'), several=True),
        'iou_thrs': Number(0, 1, several=True, also=(None,)),
        'proposal_nums': Number(1, whole=True, several=True),
        'classwise': FLAG,
        'format_only': FLAG,
    },
    'IoUMetric': {
        'iou_metrics': Choice(('mIoU', 'mDice', 'mFscore'), several=True),
        'ignore_index': Number(whole=True),
        'beta': POSITIVE,
        'format_only': FLAG,
    },
    'VOCMetric': {'iou_thrs': THRESHOLD, 'eval_mode': Choice(('area', '11points'))},
}
RANDOMNESS = {
    'seed': Number(0, 2**32 - 1, whole=True, also=(None,)),
    'deterministic': FLAG,
    'diff_rank_seed': FLAG,
}
TOP = {
    'log_level': Choice(tuple(logging.getLevelNamesMapping()), types=(int,)),
    'resume': FLAG,
    'find_unused_parameters': FLAG,
    'launcher': Choice(('none', 'pytorch', 'slurm', 'mpi')),
    'sync_bn': Choice(('torch', 'mmcv', None)),
}
ENV = {
    'cudnn_benchmark': FLAG,
    'mp_start_method': Choice(('fork', 'spawn', 'forkserver', None)),
    'opencv_num_threads': FROM_0,
    'backend': Choice(('nccl', 'gloo', 'mpi', 'ucc', 'hccl', 'cncl', 'mccl')),
}
SHAPED = ('CosineAnnealingLR', 'PolyLR', 'LinearLR', 'ConstantLR')  # whose end shapes them
ITER_LOOPS = ('IterBasedTrainLoop', 'convnext_backbone.IterLoop')
EPOCH_LOOPS = ('EpochBasedTrainLoop', 'convnext_backbone.EpochLoop')
FOREVER = 10**9  # mmengine's end of a schedule that has none


def check_values(cfg: Config, findings: Findings) -> None:
    """Report every setting that is out of its range or none of its choices.

    Args:
        cfg: of a run, as :func:`~convnext_backbone.config.read_config` returns it.
        findings: gets an error (kind ``value``) for each setting that cannot be meant, a warning (kind
            ``schedule`` or ``value``) for one that is possible and unlikely.
    """
    _Values(cfg, findings).check()


class _Values:
    """Holds what the checks of one config share."""

    def __init__(self, cfg: Config, findings: Findings):
        self.cfg, self.findings = cfg, findings

    def check(self) -> None:
        cfg = self.cfg
        self._table(cfg, '', TOP)
        self._everywhere()
        self._table(cfg.get('randomness'), 'randomness', RANDOMNESS)
        for place, node in walk(cfg.get('env_cfg'), 'env_cfg'):
            self._table(node, place, ENV)
        scaling = cfg.get('auto_scale_lr')
        self._table(scaling, 'auto_scale_lr', {'base_batch_size': COUNT, 'enable': FLAG})
        self._table(cfg.get('log_processor'), 'log_processor', {'window_size': COUNT, 'by_epoch': FLAG})
        self._loop()
        self._schedule()
        self._optim_wrapper()
        for key in DATALOADERS:
            self._loader(key)
        for place, node in walk(cfg.get('tta_pipeline'), 'tta_pipeline'):
            self._step(place, node)
        self._hooks()
        self._model()
        for key in ('val_evaluator', 'test_evaluator'):
            for place, node in walk(cfg.get(key), key):
                self._table(node, place, METRICS.get(type_name(node), {}))

    # what the checks are made of

    def _error(self, where: str, text: str) -> None:
        self.findings.add('error', 'value', where, text)

    def _rule(self, where: str, value, rule: Number | Choice) -> bool:
        """Report a value that its rule refuses, and return whether it is allowed."""
        refused = rule.refuses(value)
        if refused:
            self._error(where, f'got {_shown(value)}, needs {rule}{rule.remark(value)}')
        return not refused

    def _table(self, node, place: str, table: dict, free=()) -> None:
        """Report what is wrong in a dict, by its keys."""
        if not isinstance(node, (dict, Config)):
            return
        for key, rule in table.items():
            if key in node and key not in free:
                self._rule(f'{place}.{key}' if place else key, node[key], rule)

    def _everywhere(self) -> None:
        """Report NaN, and text that is meant to be a truth value: ``'False'`` counts as true."""
        for place, value in _leaves(dict(self.cfg.items()), ''):
            if isinstance(value, float) and math.isnan(value):
                self._error(place, 'got nan, needs a number')
            elif isinstance(value, str) and value in ('True', 'False', 'None', 'true', 'false'):
                name = value.capitalize()
                self._error(
                    place, f'got the text {value!r}, which counts as true: write {name} without quotes'
                )

    # the parts of a config

    def _loop(self) -> None:
        loop = self.cfg.get('train_cfg')
        if not isinstance(loop, dict):
            return
        self._table(loop, 'train_cfg', TRAIN_CFG)
        needed, other = self._unit(loop)
        if needed and other in loop:
            kind = 'epochs' if needed == 'max_epochs' else 'iterations'
            name = 'EpochBasedTrainLoop' if other == 'max_epochs' else 'IterBasedTrainLoop'
            have = f', {needed} is {loop[needed]}' if needed in loop else ''
            self._error(
                f'train_cfg.{other}',
                f'got {_shown(loop[other])}, but this loop counts {kind}{have}: set {needed}, or '
                f"train_cfg=dict(_delete_=True, type='{name}', {other}={loop[other]!r})",
            )
        elif needed and needed not in loop:
            self._error(f'train_cfg.{needed}', 'is missing, needs a whole number of at least 1')
        total = self._total()[0]
        begin = loop.get('val_begin')
        if total and isinstance(begin, int) and begin > total and self.cfg.get('val_dataloader'):
            self.findings.add(
                'warning',
                'schedule',
                'train_cfg.val_begin',
                f'{begin} lies beyond {needed}={total:g}: no validation',
            )
        pairs = loop.get('dynamic_intervals')
        if pairs is not None:
            wrong = not isinstance(pairs, (list, tuple)) or not all(
                isinstance(pair, (list, tuple)) and len(pair) == 2 and not COUNT.refuses(pair[1])
                for pair in pairs
            )
            if wrong:
                self._error(
                    'train_cfg.dynamic_intervals', f'got {_shown(pairs)}, needs [(from, interval), ...]'
                )

    @staticmethod
    def _unit(loop: dict) -> tuple[str, str]:
        """Return the key that says how long a loop trains, and that of the other kind; empty if unknown."""
        kind = type_name(loop)
        if kind in ITER_LOOPS or (not kind and loop.get('by_epoch', True) is False):
            return 'max_iters', 'max_epochs'
        if kind in EPOCH_LOOPS or not kind:
            return 'max_epochs', 'max_iters'
        return '', ''

    def _total(self) -> tuple[float, bool]:
        """Return how long the training is (0 if that is not known), and whether in epochs."""
        loop = self.cfg.get('train_cfg')
        loop = loop if isinstance(loop, dict) else {}
        needed, _ = self._unit(loop)
        value = loop.get(needed)
        return (0 if TRAIN_CFG['max_iters'].refuses(value) else value), needed == 'max_epochs'

    def _schedule(self) -> None:
        given = self.cfg.get('param_scheduler')
        listed = isinstance(given, (list, tuple))
        entries = given if listed else [given]
        # by unit: the last end; units that have a schedule without end; those that have one that falls
        last, endless, falling = {}, set(), set()
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                continue
            if isinstance(given, dict) and 'type' not in given:  # one list for each optimizer
                continue
            place = f'param_scheduler.{index}' if listed else 'param_scheduler'
            self._table(entry, place, SCHEDULER)
            self._entry(place, entry, last, endless, falling)
        total, by_epoch = self._total()
        if not total or by_epoch in endless or by_epoch not in falling:
            return
        end, place = last[by_epoch]
        unit = 'epochs' if by_epoch else 'iterations'
        if end < 0.9 * total:
            self.findings.add(
                'warning',
                'schedule',
                f'{place}.end',
                f'{end}: the schedule ends there, the training goes on to {total:g} {unit} at the last rate; '
                f'set {total:g}, or a shorter training',
            )
        elif end > 1.1 * total:
            self.findings.add(
                'warning',
                'schedule',
                f'{place}.end',
                f'{end}: the training ends at {total:g} {unit}, before the schedule does; set {total:g}, or '
                'a longer training',
            )

    def _entry(self, place: str, entry: dict, last: dict, endless: set, falling: set) -> None:
        """Check one schedule: its span, its milestones, against the length of the training."""
        kind = type_name(entry)
        begin, end = entry.get('begin', 0), entry.get('end', FOREVER)
        by_epoch = entry.get('by_epoch', True) is not False
        total, trained_by_epoch = self._total()
        proper = not SCHEDULER['begin'].refuses(begin) and not SCHEDULER['end'].refuses(end)
        if proper and end <= begin:
            self._error(f'{place}.end', f'got {end}, needs a number above {place}.begin={begin}')
            return
        if entry.get('eta_min') is not None and entry.get('eta_min_ratio') is not None:
            self._error(f'{place}.eta_min_ratio', 'got eta_min as well, needs one of both: leave one out')
        converted = entry.get('convert_to_iter_based', False)
        if converted and not by_epoch:
            self._error(f'{place}.convert_to_iter_based', 'got True with by_epoch=False, needs by_epoch=True')
        if by_epoch and not trained_by_epoch and total and not converted:
            default = '' if 'by_epoch' in entry else ' (by_epoch is True where it is not given)'
            self.findings.add(
                'warning',
                'schedule',
                f'{place}.by_epoch',
                f'{kind} counts epochs{default}, this training counts iterations: the schedule would never '
                'move; set by_epoch=False',
            )
        same_unit = total and by_epoch == trained_by_epoch and proper
        if same_unit and begin >= total:
            unit = 'epochs' if by_epoch else 'iterations'
            self.findings.add(
                'warning',
                'schedule',
                f'{place}.begin',
                f'{begin}: the training ends at {total:g} {unit}, so this {kind} never holds; set a number '
                'below',
            )
        if 'milestones' in entry:
            self._milestones(f'{place}.milestones', entry['milestones'], total if same_unit else 0, begin)
        if not proper:
            return
        if kind in SHAPED and 'end' in entry:
            if end > last.get(by_epoch, (0, ''))[0]:
                last[by_epoch] = end, place
            ends = entry.get('start_factor', 0), entry.get('end_factor', 1)
            warms_up = kind == 'LinearLR' and (any(map(SHARE.refuses, ends)) or ends[0] <= ends[1])
            if kind != 'ConstantLR' and not warms_up:
                falling.add(by_epoch)
        else:
            endless.add(by_epoch)

    def _milestones(self, where: str, value, total: float, begin: int) -> None:
        fine = isinstance(value, (list, tuple)) and value and not any(COUNT.refuses(step) for step in value)
        if not fine or list(value) != sorted(value):
            self._error(where, f'got {_shown(value)}, needs whole numbers of at least 1, in ascending order')
        elif total and min(value) >= total:
            self.findings.add(
                'warning',
                'schedule',
                where,
                f'{list(value)} all lie at or beyond the end of the training ({total:g}): the learning rate '
                'never falls; set numbers below',
            )

    def _optim_wrapper(self) -> None:
        for place, node in walk(self.cfg.get('optim_wrapper'), 'optim_wrapper'):
            name = place.rpartition('.')[2]
            if 'optimizer' in node:
                self._table(node, place, WRAPPER)
                scale = node.get('loss_scale', 'dynamic')
                if not isinstance(scale, dict):
                    self._rule(f'{place}.loss_scale', scale, Number(0, above=True, also=('dynamic',)))
            if name == 'optimizer':
                self._optimizer(place, node)
            elif name == 'clip_grad':
                self._clip(place, node)
            elif 'paramwise_cfg' in place and not place.endswith('custom_keys'):
                self._table(node, place, PARAMWISE)

    def _optimizer(self, place: str, node: dict) -> None:
        self._table(node, place, OPTIMIZER)
        if 'betas' in node:
            betas = node['betas']
            right = (
                isinstance(betas, (list, tuple))
                and len(betas) in (2, 3)
                and not any(map(PART.refuses, betas))
            )
            if not right:
                self._error(f'{place}.betas', f'got {_shown(betas)}, needs two numbers in [0, 1)')
        if node.get('nesterov') is True and not node.get('momentum'):
            self._error(f'{place}.nesterov', 'got True without momentum, needs momentum above 0')

    def _clip(self, place: str, node: dict) -> None:
        self._table(node, place, CLIP)
        needed = 'clip_value' if node.get('type') == 'value' else 'max_norm'
        if needed not in node and node.get('type', 'norm') in ('norm', 'value'):
            self._error(
                f'{place}.{needed}', f'is missing, needs {CLIP[needed]}; for no clipping set clip_grad=None'
            )

    def _loader(self, key: str) -> None:
        loader = self.cfg.get(key)
        if not isinstance(loader, dict):
            return
        self._table(loader, key, LOADER)
        workers = loader.get('num_workers', 0)
        if workers == 0 and workers is not False:
            if loader.get('persistent_workers') is True:
                self._error(
                    f'{key}.persistent_workers',
                    f'got True with {key}.num_workers=0, needs False, or num_workers >= 1',
                )
            if isinstance(loader.get('prefetch_factor'), int):
                self._error(
                    f'{key}.prefetch_factor',
                    f'got {loader["prefetch_factor"]} with {key}.num_workers=0, needs None, or num_workers '
                    'of at least 1',
                )
        for place, node in walk(loader.get('dataset'), f'{key}.dataset'):
            name = place.rpartition('.')[2]
            if 'pipeline' in place or 'transforms' in place:
                self._step(place, node)
            elif name == 'transform':
                self._table(node, place, TRANSFORM)
                self._mean_and_std(place, node)
            elif name == 'filter_cfg':
                self._table(node, place, {'min_size': NOT_NEGATIVE, 'filter_empty_gt': FLAG})
            else:
                self._table(node, place, {'times': COUNT, 'oversample_thr': NOT_NEGATIVE, 'test_mode': FLAG})

    def _step(self, place: str, node: dict) -> None:
        """Check one step of a pipeline."""
        kind = type_name(node)
        self._table(node, place, STEP, FREE.get(kind, ()))
        if kind == 'Normalize':
            self._mean_and_std(place, node)
        prob = node.get('prob')
        if kind == 'RandomFlip' and isinstance(prob, (list, tuple)) and not STEP['prob'].refuses(prob):
            if sum(prob) > 1 + 1e-9:
                self._error(f'{place}.prob', f'got {_shown(prob)}, needs numbers whose sum is at most 1')
            direction = node.get('direction')
            if isinstance(direction, (list, tuple)) and len(direction) != len(prob):
                self._error(
                    f'{place}.prob',
                    f'got {len(prob)} numbers, needs as many as direction has ({len(direction)})',
                )
        if kind == 'RandomCrop' and str(node.get('crop_type', '')).startswith('relative'):
            self._table(node, place, {'crop_size': Number(0, 1, above=True, several=True)})
        for key in ('ratio_range', 'size', 'scale'):
            value = node.get(key)
            pair = isinstance(value, (list, tuple)) and not STEP[key].refuses(value)
            if pair and len(value) != 2 and not any(isinstance(item, (list, tuple)) for item in value):
                self._error(f'{place}.{key}', f'got {_shown(value)}, needs two numbers')
            elif pair and key == 'ratio_range' and value[0] > value[1]:
                self._error(f'{place}.{key}', f'got {_shown(value)}, needs the smaller number first')

    def _mean_and_std(self, place: str, node: dict) -> None:
        mean, std = node.get('mean'), node.get('std')
        if (mean is None) != (std is None):
            key, other = ('std', 'mean') if std is None else ('mean', 'std')
            self._error(
                f'{place}.{key}',
                f'is missing, needs as many numbers as {other}, which is {_shown(node[other])}',
            )
            return
        if mean is None:
            return
        fine = self._rule(f'{place}.mean', mean, Number(several=True))
        fine &= self._rule(f'{place}.std', std, Number(0, above=True, several=True))
        lengths = [len(part) if isinstance(part, (list, tuple)) else 1 for part in (mean, std)]
        if fine and lengths[0] != lengths[1]:
            self._error(f'{place}.std', f'got {lengths[1]} numbers, needs as many as mean has ({lengths[0]})')

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
            self._table(hook, place, HOOKS.get(kind, {}))
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
                self._rule(f'{place}.priority', priority.upper(), Choice(PRIORITIES))
            elif priority is not None:
                self._rule(f'{place}.priority', priority, Number(0, 100, whole=True))
            for inner, node in walk(hook.get('switch_pipeline'), f'{place}.switch_pipeline'):
                self._step(inner, node)

    def _model(self) -> None:
        model = self.cfg.get('model')
        for key in ('model', 'tta_model'):
            for place, node in walk(self.cfg.get(key), key):
                self._model_dict(place, node)
        if isinstance(model, dict) and 'decode_head' in model:
            how = model.get('test_cfg')
            self._table(how, 'model.test_cfg', SLIDE)
            if isinstance(how, dict) and how.get('mode') == 'slide':
                self._slide('model.test_cfg', how)

    def _model_dict(self, place: str, node: dict) -> None:
        name = place.rpartition('.')[2]
        names = place.split('.')
        self._table(node, place, MODEL)
        if name.startswith('loss') or (len(names) > 1 and names[-2].startswith('loss')):
            self._table(node, place, LOSS)
        if name.endswith(('anchor_generator', 'prior_generator')):
            self._table(node, place, ANCHORS)
        if name == 'mixup':
            self._table(node, place, MIXUP)
        if name == 'data_preprocessor':
            self._mean_and_std(place, node)
            self._table(node, place, {'size': STEP['size'], 'bgr_to_rgb': SWITCH, 'rgb_to_bgr': SWITCH})
            if node.get('bgr_to_rgb') is True and node.get('rgb_to_bgr') is True:
                self._error(f'{place}.rgb_to_bgr', 'got True with bgr_to_rgb=True, needs one of both')
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
        self._rule(f'{place}.class_weight', weights, Number(0, several=True))

    def _slide(self, place: str, how: dict) -> None:
        """Check the windows of a segmenter: without gaps between them."""
        crop, stride = how.get('crop_size'), how.get('stride')
        if missing := [key for key in ('crop_size', 'stride') if how.get(key) is None]:
            self._error(
                f'{place}.{missing[0]}', "is missing, needs two whole numbers of at least 1 with mode='slide'"
            )
            return
        if SLIDE['crop_size'].refuses(crop) or SLIDE['stride'].refuses(stride):
            return
        pairs = [[value, value] if isinstance(value, int) else list(value) for value in (crop, stride)]
        if any(step > size for size, step in zip(*pairs)):
            self._error(
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
