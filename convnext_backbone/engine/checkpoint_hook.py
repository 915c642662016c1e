"""Decides about checkpoints of a training: when they are written, which are kept, which is the best."""

import contextlib
from pathlib import Path

from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EarlyStoppingHook

from ..checkpoint.write import (
    POINTER,
    checkpoints_in,
    note_validation,
    side_file,
    write_text,
)
from ..errors import UserError, suggest
from ..registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """Writes checkpoints as mmengine's hook, but removes no old one before the new one is whole on the disk.

    Our Runner puts it in the place of ``CheckpointHook``. Order: the checkpoint (see
    :func:`convnext_backbone.checkpoint.write.write_checkpoint`), the file ``last_checkpoint`` that points to
    it, then the removal of the oldest beyond ``max_keep_ckpts``.

    Args:
        on_error: what happens when a checkpoint cannot be written: ``'continue'`` (logged; the
            training goes on, and fails at its end if the last one could not be written either) or ``'stop'``.
        kwargs: mmengine's (``interval``, ``by_epoch``, ``max_keep_ckpts``, ``save_best``, ...). ``out_dir``
            is a folder of this machine.

    Raises:
        UserError: an unknown ``on_error``, or an ``out_dir`` on a server; in training, see ``on_error``.
    """

    def __init__(self, *args, on_error: str = 'continue', **kwargs):
        super().__init__(*args, **kwargs)
        if on_error not in ('continue', 'stop'):
            raise UserError(f"on_error of CheckpointHook is 'continue' or 'stop', got {on_error!r}")
        if '://' in str(self.out_dir):
            raise UserError(f'out_dir of CheckpointHook is a folder of this machine, got {self.out_dir}')
        self.on_error = on_error
        self.last_step, self._unwritten = None, ''

    def before_train(self, runner) -> None:
        """Prepare the folder as mmengine does; remove what a killed process left half-written there."""
        super().before_train(runner)
        if is_main_process():
            for left in Path(self.out_dir).glob('.*.part'):  # of a process that was killed while writing
                left.unlink(missing_ok=True)

    def save_now(self, runner, epoch: int, step: int) -> Path:
        """Write a checkpoint between two regular ones, unless the last one is of this very step.

        Args:
            epoch, step: epochs and steps that are done.
        """
        if not self.last_ckpt or self.last_step != step:
            self._write(runner, f'iter_{step}.pth', dict(epoch=epoch, iter=step))
            self._raise_if_unwritten()
        return Path(self.last_ckpt)

    def after_train_epoch(self, runner) -> None:
        """Write the checkpoint that is due after an epoch, if they go by epochs."""
        due = self.every_n_epochs(runner, self.interval, self.save_begin)
        if self.by_epoch and (due or (self.save_last and self.is_last_train_epoch(runner))):
            runner.logger.info(f'Saving checkpoint at {runner.epoch + 1} epochs')
            self._write_regular(runner, runner.epoch + 1, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Write the checkpoint that is due after a step, if they go by steps."""
        due = self.every_n_train_iters(runner, self.interval, self.save_begin)
        if not self.by_epoch and (due or (self.save_last and self.is_last_train_iter(runner))):
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._write_regular(runner, runner.iter + 1, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def _write_regular(self, runner, number: int, meta: dict) -> None:
        self._write(runner, self.filename_tmpl.format(number), meta)

    def _write(self, runner, name: str, meta: dict) -> None:
        before, self.last_ckpt = self.last_ckpt, str(Path(self.out_dir, name))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
            )
            self.last_step, self._unwritten = meta['iter'], ''
        except OSError as error:  # the same in all processes
            self._unwritten = f'{name} could not be written to {self.out_dir} ({error.strerror or error})'
            self.last_ckpt = before
            kept = f'the last whole checkpoint is {before}' if before else 'there is no checkpoint yet'
            runner.logger.error(f'{self._unwritten}; {kept}')
            if self.on_error == 'stop':
                self._raise_if_unwritten()
            return
        if is_main_process():
            with _in_the_log(runner, f'{POINTER} could not be written'):  # --resume finds the newest without
                write_text(Path(runner.work_dir, POINTER), self.last_ckpt)
                self._remove_oldest(runner)

    def _raise_if_unwritten(self) -> None:
        if self._unwritten:
            raise UserError(
                f'{self._unwritten}; the last whole checkpoint is {self.last_ckpt or "none"}: make room '
                'there, then go on with --resume'
            )

    def _remove_oldest(self, runner) -> None:
        if self.max_keep_ckpts <= 0:
            return
        ours = [
            file
            for file in checkpoints_in(Path(self.out_dir))
            if file.parent == Path(self.out_dir).resolve() and side_file(file).is_file()
        ]
        for file in ours[self.max_keep_ckpts :]:
            _remove(file)

    def after_val_epoch(self, runner, metrics) -> None:
        """Write the best checkpoint, and note beside the last one that its validation is done.

        Raises:
            UserError: see :meth:`_keep_best`.
        """
        if metrics and self.save_best:
            self._keep_best(runner, metrics)
        schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
        used = any(isinstance(hook, EarlyStoppingHook) for hook in runner.hooks) or any(
            getattr(scheduler, 'need_val_args', False) for scheduler in schedulers
        )
        # A resumed training need not validate again, unless what follows from the result is not in the file.
        if self.last_ckpt and not used and is_main_process():
            with _in_the_log(runner, 'it could not be noted that the validation is done'):
                note_validation(Path(self.last_ckpt))

    def _keep_best(self, runner, metrics: dict) -> None:
        """Write ``best_METRIC_...pth`` where a metric of ``save_best`` is better than ever.

        The best so far is removed when the better one is on the disk. The scores are kept in the message hub,
        under mmengine's names, so that a resumed training knows them; hence the regular checkpoint is written
        again.

        Raises:
            UserError: the validation has no such metric.
        """
        if 'auto' in self.key_indicators:
            first = next(iter(metrics))
            keys = dict(greater_keys=self.greater_keys, less_keys=self.less_keys)
            try:
                named = MMEngineCheckpointHook(save_best=first, rule=self.rules[0], **keys)
            except ValueError as error:
                raise UserError(
                    f"save_best of CheckpointHook is 'auto', and it is not known whether a larger {first!r} "
                    "is better: set rule='greater' or rule='less'"
                ) from error
            self.key_indicators, self.rules = named.key_indicators, named.rules
            self.is_better_than = named.is_better_than
        done = runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        any_better = False
        for metric, rule in zip(self.key_indicators, self.rules):
            if metric not in metrics:
                raise UserError(
                    f'save_best of CheckpointHook is {metric!r}, and the validation has no such metric'
                    f'{suggest(metric, metrics, 0.5)}; it has {", ".join(metrics)}'
                )
            ending = f'_{metric}' if len(self.key_indicators) > 1 else ''
            known, score = runner.message_hub.runtime_info, metrics[metric]
            best = known.get(f'best_score{ending}', self.init_value_map[rule])
            if score is None or not self.is_better_than[metric](score, best):
                continue
            name = f'best_{metric}_{self.filename_tmpl.format(done)}'.replace('/', '_')
            before, noted = known.get(f'best_ckpt{ending}'), dict(known)
            runner.message_hub.update_info(f'best_score{ending}', score)
            runner.message_hub.update_info(f'best_ckpt{ending}', str(Path(self.out_dir, name)))
            weights = dict(save_optimizer=False, save_param_scheduler=False)
            try:
                runner.save_checkpoint(self.out_dir, name, **weights, meta=meta, by_epoch=False)
            except OSError as error:  # the same in all processes
                self._unwritten = f'the best checkpoint could not be written ({error.strerror or error})'
                runner.logger.error(self._unwritten)
                known.clear()
                known.update(noted)
                if self.on_error == 'stop':
                    self._raise_if_unwritten()
                continue
            any_better = True
            kind = 'epoch' if self.by_epoch else 'iter'
            runner.logger.info(
                f'The best checkpoint with {score:0.4f} {metric} at {done} {kind} is saved to {name}.'
            )
            if before and before != known[f'best_ckpt{ending}'] and is_main_process():
                _remove(Path(before))
        if any_better and self.last_ckpt is not None:
            self._write_regular(runner, done, meta)

    def after_train(self, runner) -> None:
        """Do what mmengine does at the end of a training.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        self._raise_if_unwritten()
        if self.save_best:  # what mmengine publishes by published_keys
            known = runner.message_hub.runtime_info
            self.best_ckpt_path = known.get('best_ckpt')
            best = {metric: known.get(f'best_ckpt_{metric}') for metric in self.key_indicators}
            self.best_ckpt_path_dict = {metric: file for metric, file in best.items() if file}
        super().after_train(runner)

    def before_val_epoch(self, runner) -> None:
        """Make all processes validate what the first one saves: running statistics differ without SyncBN."""
        for buffer in runner.model.buffers():
            broadcast(buffer)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Let a request to stop end the training between two steps of a validation."""
        runner.stop_if_asked(validated=batch_idx + 1)


@contextlib.contextmanager
def _in_the_log(runner, what: str):
    """Log a failure to write that does no harm; in one process, it must not change what the others expect."""
    try:
        yield
    except OSError as error:
        runner.logger.error(f'{what}: {error}')


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    side_file(file).unlink(missing_ok=True)
