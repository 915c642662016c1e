"""Checks how long a training is and the schedules of its learning rate against it."""

from ..registry import type_name
from .ranges import COUNT, SCHEDULER, SHARE, TRAIN_CFG
from .rules import SettingsCheck, shown

SHAPED = ('CosineAnnealingLR', 'PolyLR', 'LinearLR', 'ConstantLR')  # whose end shapes them
ITER_LOOPS = ('IterBasedTrainLoop', 'convnext_backbone.IterLoop')
EPOCH_LOOPS = ('EpochBasedTrainLoop', 'convnext_backbone.EpochLoop')
FOREVER = 10**9  # mmengine's end of a schedule that has none


class ScheduleCheck(SettingsCheck):
    """Checks ``train_cfg`` and ``param_scheduler``."""

    def check(self) -> None:
        """Add to the findings what cannot be meant, and schedules that end before or after the training."""
        self._loop()
        self._schedule()

    def _loop(self) -> None:
        loop = self.cfg.get('train_cfg')
        if not isinstance(loop, dict):
            return
        self.table(loop, 'train_cfg', TRAIN_CFG)
        needed, other = self._unit(loop)
        if needed and other in loop:
            kind = 'epochs' if needed == 'max_epochs' else 'iterations'
            name = 'EpochBasedTrainLoop' if other == 'max_epochs' else 'IterBasedTrainLoop'
            have = f', {needed} is {loop[needed]}' if needed in loop else ''
            self.error(
                f'train_cfg.{other}',
                f'got {shown(loop[other])}, but this loop counts {kind}{have}: set {needed}, or '
                f"train_cfg=dict(_delete_=True, type='{name}', {other}={loop[other]!r})",
            )
        elif needed and needed not in loop:
            self.error(f'train_cfg.{needed}', 'is missing, needs a whole number of at least 1')
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
                self.error(
                    'train_cfg.dynamic_intervals', f'got {shown(pairs)}, needs [(from, interval), ...]'
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
            self.table(entry, place, SCHEDULER)
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
            self.error(f'{place}.end', f'got {end}, needs a number above {place}.begin={begin}')
            return
        if entry.get('eta_min') is not None and entry.get('eta_min_ratio') is not None:
            self.error(f'{place}.eta_min_ratio', 'got eta_min as well, needs one of both: leave one out')
        converted = entry.get('convert_to_iter_based', False)
        if converted and not by_epoch:
            self.error(f'{place}.convert_to_iter_based', 'got True with by_epoch=False, needs by_epoch=True')
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
            self.error(where, f'got {shown(value)}, needs whole numbers of at least 1, in ascending order')
        elif total and min(value) >= total:
            self.findings.add(
                'warning',
                'schedule',
                where,
                f'{list(value)} all lie at or beyond the end of the training ({total:g}): the learning rate '
                'never falls; set numbers below',
            )
