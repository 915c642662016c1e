"""Defines the hooks of every training: data, gradients that are not finite, processes that hang, progress."""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from pathlib import Path

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..checkpoint.sharding import full_state
from ..errors import UserError
from ..registry import HOOKS
from .randomness import get_states, set_states


@HOOKS.register_module()
class DataHook(Hook):
    """Sets the epoch of streams, counts images per second, and warns when the data loader is too slow.

    The share of time spent waiting for data is measured once, over the steps after the first ones of this
    process.

    Args:
        skip: steps before the measurement, while workers and caches start.
        steps: steps that are measured.
        share: warn when more than this fraction of the time is spent waiting for data.
    """

    priority = 'HIGH'  # what other hooks do is not waiting; before the logger, which prints images_per_second

    def __init__(self, skip: int = 20, steps: int = 100, share: float = 0.1):
        self.skip, self.steps, self.share = skip, steps, share
        self._step, self._images, self._waited, self._ready = 0, 0, 0.0, None
        self._ended = None

    def before_train_epoch(self, runner) -> None:
        """Set the epoch of a stream; the pause before an epoch is no waiting for data."""
        dataset = runner.train_loop.dataloader.dataset
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(runner.epoch)
        self._ready = self._ended = None

    def before_val_epoch(self, runner) -> None:
        """Leave the time of a validation out of what is measured."""
        self._ready = self._ended = None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Add the seconds since the last step ended to those of waiting, while these are measured."""
        now = time.perf_counter()
        if self._step == self.skip:
            self._start = now
        elif self.skip < self._step < self.skip + self.steps and self._ready is not None:
            self._waited += now - self._ready  # since the last step ended

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log ``images_per_second`` of all processes; after the last measured step judge the data loader."""
        now = time.perf_counter()
        images = len(data_batch.get('inputs', ())) if isinstance(data_batch, dict) else 0
        if images and self._ended is not None:
            speed = images * get_world_size() / (now - self._ended)
            runner.message_hub.update_scalar('train/images_per_second', speed)
        self._ready = self._ended = now
        self._step += 1
        if self.skip < self._step <= self.skip + self.steps:
            self._images += images
        if self._step == self.skip + self.steps:
            self._report(runner)

    def _report(self, runner) -> None:
        spent = time.perf_counter() - self._start
        if self._waited < self.share * spent:
            return
        workers = runner.train_loop.dataloader.num_workers
        runner.logger.warning(
            f'the data loader gives {self._images / spent:.1f} images/s, the model could take '
            f'{self._images / (spent - self._waited):.1f} ({self._waited / spent:.0%} of the time is spent '
            f'waiting): raise train_dataloader.num_workers, now {workers}; convnext plan CONFIG '
            '--loading says where the time goes'
        )


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Leaves out updates whose gradients are not finite, and stops when several come in a row.

    Such an update would turn every weight into NaN. When it stops, it names the first layer whose output
    is not finite and the images of the batch. The decision is the same in every process, since the
    gradients are. With loss scaling, whose scaler leaves such updates out, losses that are not finite are
    counted.

    Args:
        patience: updates in a row that are left out before the training stops.

    Raises:
        UserError: ``patience`` updates in a row were not finite.
    """

    priority = 'VERY_HIGH'

    def __init__(self, patience: int = 3):
        self.patience = patience
        self._row, self._left_out, self._broken = 0, False, None

    def before_train(self, runner) -> None:
        """Watch the optimizer's steps, and find the buffers that a step may spoil.

        With loss scaling, or with several optimizers, the losses are watched instead.
        """
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        self._by_loss = optimizer is None or hasattr(runner.optim_wrapper, 'loss_scaler')
        if not self._by_loss:
            optimizer.register_step_pre_hook(self._check)
        self._buffers = [buffer for buffer in runner.model.buffers() if buffer.is_floating_point()]

    def _check(self, optimizer, args, kwargs) -> None:
        """Drop gradients that are not finite before the optimizer's step, which has nothing to do then."""
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if full_state(nn.utils.get_total_norm([p.grad for p in parameters]), True).isfinite():
            self._row = 0
            return
        self._row, self._left_out = self._row + 1, True
        for parameter in parameters:
            parameter.grad = None  # the optimizer passes over parameters without a gradient

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Keep the random numbers and the buffers, so that the step can be computed anew or undone."""
        self._begin = getattr(getattr(runner.train_loop, 'random', None), 'states', None)
        if self._buffers:  # together, which is one operation
            self._kept = torch.cat([buffer.flatten() for buffer in self._buffers])

    def _restore_buffers(self) -> None:
        """Set the buffers to what they were before this step."""
        if self._buffers:
            kept = self._kept.split([buffer.numel() for buffer in self._buffers])
            for buffer, numbers in zip(self._buffers, kept):
                buffer.copy_(numbers.view_as(buffer))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Restore the buffers after a step that is not finite, and log or raise what is known about it.

        Raises:
            UserError: it is the last of ``patience`` updates in a row.
        """
        losses = {
            n: v.item() if isinstance(v, Tensor) else v for n, v in (outputs or {}).items() if _is_number(v)
        }
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        if broken and self._broken is None:  # of several accumulated steps the first
            images = ', '.join(self._images(runner, data_batch))
            words = (
                f'rank {get_rank()}, step {runner.iter + 1}: {", ".join(broken)} not finite; images {images}'
            )
            self._broken = words, data_batch, self._begin
        if self._by_loss:
            self._row, self._left_out = (self._row + 1 if broken else 0), bool(broken)
        if broken or self._left_out:
            self._restore_buffers()  # running statistics would stay NaN for ever
        if not self._left_out:
            return
        words, batch, begin = self._broken or (
            f'rank {get_rank()}: its losses are finite',
            data_batch,
            self._begin,
        )
        # With _by_loss the processes do not come here together, and a forward pass may wait for the others.
        if begin is not None and not (self._by_loss and get_world_size() > 1):
            words += f'; {self._layer(runner, batch, begin)}'
        self._left_out, self._broken = False, None
        runner.logger.warning(
            f'the gradients are not finite, this update is left out ({self._row} in a row, the training '
            f'stops at {self.patience}): {words}'
        )
        if self._row >= self.patience:
            last = getattr(runner.checkpoint_hook, 'last_ckpt', None) or 'none yet'
            raise UserError(
                f'{self._row} updates in a row were not finite and were left out; {words}. The last '
                f'checkpoint is {last}. Look at these images and their labels; a lower learning rate, '
                'clip_grad, or bf16 in place of fp16 are the usual cures'
            )

    def _layer(self, runner, batch, begin: tuple) -> str:
        """Return the first layer whose output is not finite, in a step computed anew; by all processes."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                return f'the weight {name} itself is not finite'
        found, handles = [], []
        for name, module in model.named_modules():
            if not list(module.children()):
                handles.append(
                    module.register_forward_hook(
                        lambda module, args, output, name=name: (
                            found.append((name, _finite(args))) if not _finite(output) else None
                        )
                    )
                )
        outside = get_states()
        set_states(begin)
        try:
            with torch.no_grad():
                data = model.data_preprocessor(batch, training=True)
                images_are = _finite(data)
                found.clear()  # the preprocessor is no layer
                model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
        finally:
            set_states(outside)
            for handle in handles:
                handle.remove()
            self._restore_buffers()
        if not images_are:
            return 'the images themselves are not finite, or what mean and std make of them'
        if not found:
            return 'the output of every layer is finite, so the loss itself or its gradient is not'
        name, from_finite = found[0]
        how = 'from finite input' if from_finite else 'its input is not, either'
        return f'first layer with a non-finite output: {name or "the model"} ({how})'

    def _images(self, runner, batch) -> list[str]:
        samples = batch.get('data_samples') if isinstance(batch, dict) else None
        if samples:
            return [str(s.get('img_path') or s.get('img_id')) for s in samples]
        sampler = getattr(runner.train_loop, 'resumable', None)
        indices = sampler.recent.get(runner.iter, []) if sampler else []
        dataset = runner.train_dataloader.dataset
        named = hasattr(dataset, 'filename')
        return [dataset.filename(index) if named else f'number {index}' for index in indices]


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _finite(value) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, (list, tuple)) or all(map(_finite, value))


@HOOKS.register_module()
class HangHook(Hook):
    """Ends a process that has finished no step for too long, with the stack of each of its threads.

    The stacks go to stderr and to ``stacks_rankN.txt`` in the work dir. Every process watches itself, so
    all that wait for each other tell where.

    Args:
        timeout: seconds; the default lies below the ten minutes after which NCCL ends a process
            without a word about the Python code. Six times as much for what may take long: the first step
            (torch.compile), the metrics of a validation, writing a checkpoint.
    """

    PATIENCE = 6

    priority = 'LOWEST'

    def __init__(self, timeout: float = 540):
        self.timeout = timeout
        self._seen, self._patience = time.monotonic(), 1
        self._over = threading.Event()

    def before_train(self, runner) -> None:
        """Start the thread that watches this process."""
        self._progress('before the first step', self.PATIENCE)
        self._first = True
        self._over.clear()
        file = Path(runner.work_dir, f'stacks_rank{get_rank()}.txt')
        threading.Thread(target=self._watch, args=(file,), daemon=True, name='HangHook').start()

    def _watch(self, file: Path) -> None:
        while not self._over.wait(min(self.timeout / 4, 10)):
            if (waited := time.monotonic() - self._seen) < self.timeout * self._patience:
                continue
            with contextlib.suppress(OSError), file.open('w') as stream:
                faulthandler.dump_traceback(stream)
            faulthandler.dump_traceback(sys.__stderr__)
            print(
                f'[rank {get_rank()}] error: no step was finished for {waited:.0f} s ({self._place}); the '
                f'stacks of all threads stand above and in {file}: the first that does not wait for others '
                'is the cause. --resume goes on from the last checkpoint',
                file=sys.__stderr__,
                flush=True,
            )
            os._exit(1)

    def _progress(self, place: str, patience: int = 1) -> None:
        self._seen, self._place, self._patience = time.monotonic(), place, patience

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Note that a batch is there; the first step of the process may take longer."""
        self._progress(f'in training step {runner.iter + 1}', self.PATIENCE if self._first else 1)
        self._first = False

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Note that a checkpoint is being written, which may take longer."""
        self._progress('writing a checkpoint', self.PATIENCE)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Note that a training step is done."""
        self._progress(f'after training step {runner.iter + 1}')

    def before_val_epoch(self, runner) -> None:
        """Note that a validation begins."""
        self._progress('at the beginning of a validation')

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Note that a validation step is done; after the last one come the metrics, which may take longer."""
        last = batch_idx + 1 >= len(runner.val_dataloader)
        self._progress(f'after validation step {batch_idx + 1}', self.PATIENCE if last else 1)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Note that a validation is done."""
        self._progress('after a validation')

    def close(self) -> None:
        """End the watch; called by our Runner when the training has ended, in whatever way."""
        self._over.set()


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows, on a terminal, a bar with the time that is left; the log's lines are written above it."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Make the bar, visible in the first process and on a terminal only."""
        self._stack = contextlib.ExitStack()
        shown = is_main_process() and sys.stderr.isatty()
        self._bar = tqdm(
            total=runner.max_iters,
            initial=runner.iter,
            unit='step',
            desc='training',
            disable=not shown,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        if shown:
            self._stack.enter_context(logging_redirect_tqdm([runner.logger]))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Move the bar on by a step, with the loss beside it."""
        self._bar.update()
        loss = (outputs or {}).get('loss')
        if loss is not None and not self._bar.disable:
            self._bar.set_postfix(loss=f'{loss.item():.4g}', refresh=False)

    def close(self) -> None:
        """Remove the bar; called by our Runner when the training has ended, in whatever way."""
        if hasattr(self, '_bar'):
            self._bar.close()
            self._stack.close()
