"""mmengine's Runner, with checkpoints that are read safely, fit completely and continue exactly."""

import contextlib
import copy
import errno
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import mmengine
import torch
from mmengine.device import get_device
from mmengine.dist import (
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import EarlyStoppingHook, EMAHook, LoggerHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner as MMEngineRunner

from ..checkpoint.divided import divided_as, is_divided, whole
from ..checkpoint.formats import dataset_meta, tensors_of
from ..checkpoint.load import load_trained
from ..checkpoint.read import (
    UnreadableCheckpoint,
    close_unsafe_reader,
    local_file,
    read_checkpoint,
)
from ..checkpoint.write import damage, facts_of, newest_checkpoint, write_checkpoint
from ..cli import message
from ..errors import SKIPPED, Stopped, UserError
from ..registry import type_name
from . import launch
from .hooks import CheckpointHook
from .loops import ResumableBatchSampler, read_batch
from .prepare import check_classes

LOOPS = dict(EpochBasedTrainLoop='EpochLoop', IterBasedTrainLoop='IterLoop')  # mmengine's -> ours
HOOKS = {
    name.lower(): dict(type=f'convnext_backbone.{name}Hook')
    for name in ('Data', 'Finite', 'Hang', 'Progress')
}


def config_errors_in_words(build):
    """What goes wrong while something is built from the config is the config's fault: say it in a line."""

    @functools.wraps(build)
    def wrapped(*args, **kwargs):
        try:
            return build(*args, **kwargs)
        except UserError:
            raise
        except (
            TypeError,
            KeyError,
            ValueError,
            AssertionError,
            AttributeError,
            OSError,
            ImportError,
        ) as error:
            raise UserError(f'{type(error).__name__}: {" ".join(message(error).split())}') from error

    return wrapped


def _classes(loop) -> list[str]:
    """The classes of a loop's dataset, empty if it does not say."""
    dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
    return list((getattr(dataset, 'metainfo', None) or {}).get('classes') or [])


class Runner(MMEngineRunner):
    """Drives training and evaluation for the three tasks.

    Unlike mmengine's: ``load_from`` and ``resume`` never execute code from the file, and every tensor
    of file and model must be accounted for. ``load_from`` may be a dict to start parts afresh::

        load_from = dict(checkpoint='coco.pth', fresh=['roi_head.*.fc_cls.*'], skip=['roi_head.*.fc_cls.*'])
    """

    def __init__(self, *args, **kwargs):
        close_unsafe_reader()
        torch.set_flush_denormal(True)  # on a CPU, numbers near zero make a step several times slower
        self._resumed, self._stop_request, self.stop_at, self._least_batches = None, None, None, 0
        self._validated = False
        super().__init__(*args, **kwargs)

    @classmethod
    @config_errors_in_words
    def from_cfg(cls, cfg) -> 'Runner':
        return super().from_cfg(cfg)

    build_optim_wrapper = config_errors_in_words(MMEngineRunner.build_optim_wrapper)
    build_param_scheduler = config_errors_in_words(MMEngineRunner.build_param_scheduler)

    def setup_env(self, env_cfg: dict) -> None:
        """As in mmengine; then all processes must have the same code and config."""
        super().setup_env(env_cfg)
        device = torch.cuda.get_device_name() if get_device() == 'cuda' else get_device()
        told = dict(host=socket.gethostname(), device=device)
        code = launch.environment()
        launch.compare_processes('code', {key: code[key] for key in code if key not in ('gpu', 'cuda')})
        self._processes = launch.compare_processes('config', launch.settings(self.cfg), told)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """mmengine's and ours; ``default_hooks=dict(hang=dict(timeout=60), progress=None)`` changes them."""
        given = dict(hooks or {})
        for name, ours in HOOKS.items():
            hook = given.setdefault(name, {})
            if hook is None:
                del given[name]
            elif isinstance(hook, dict):
                given[name] = {**ours, **hook}
        super().register_default_hooks(given)

    def register_hook(self, hook, priority=None) -> None:
        kind = type_name(hook) if isinstance(hook, dict) else ''
        if kind == 'CheckpointHook':
            hook = dict(hook, type='convnext_backbone.CheckpointHook')
        if kind == 'LoggerHook':
            by_step = 'max_iters' in (self.cfg.get('train_cfg') or {})
            hook = {'log_metric_by_epoch': not by_step, **hook}  # else every validation would be of epoch 0
        super().register_hook(hook, priority)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """As in mmengine; a row of the log that finds no room on the disk does not end a training."""
        for hook in self._hooks:
            if not hasattr(hook, fn_name):
                continue
            try:
                getattr(hook, fn_name)(self, **kwargs)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not isinstance(hook, LoggerHook):
                    raise
                print(f'warning: the log is not complete: {error}', file=sys.stderr)

    @property
    def checkpoint_hook(self) -> CheckpointHook | None:
        return next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        if hasattr(loader.dataset, 'set_loader'):
            loader.dataset.set_loader(loader.num_workers, loader.batch_size)
        if isinstance(loader.batch_sampler, ResumableBatchSampler):
            loader.dataset.__getitems__ = functools.partial(read_batch, loader.dataset)  # torch looks for it
        return loader

    @config_errors_in_words
    def build_train_loop(self, loop):
        if isinstance(loop, dict):
            by_epoch = 'EpochBasedTrainLoop' if loop.get('by_epoch', True) else 'IterBasedTrainLoop'
            kind = LOOPS.get(type_name(loop.get('type', by_epoch)))
            if kind:
                loop = dict(loop, type=f'convnext_backbone.{kind}')
                loop.pop('by_epoch', None)
                self._train_dataloader = _resumable(self._train_dataloader, kind == 'IterLoop', self.seed)
        loop = super().build_train_loop(loop)
        size = len(loop.dataloader.dataset)
        if not len(loop.dataloader):
            raise UserError(
                f'the training data has {size} images, fewer than a batch, and '
                'drop_last leaves them out: choose a smaller train_dataloader.batch_size'
            )
        if classes := _classes(loop):
            check_classes(self.cfg, classes)
        equal = dict(images=size, batches=len(loop.dataloader), classes=classes)
        launch.compare_processes('training data', equal, seconds=600)
        self.logger.info(launch.processes_in_words(self._processes))
        return loop

    @config_errors_in_words
    def build_val_loop(self, loop):
        loop = super().build_val_loop(loop)
        batches = launch.compare_processes('validation data', {}, len(loop.dataloader), seconds=600)
        self._least_batches = min(batches)  # of a process; a sampler need not give all the same
        trained, tested = _classes(self._train_loop), _classes(loop)
        if trained and tested and trained != tested:
            other = sorted(set(trained) ^ set(tested)) or [f'{trained[0]} ... in another order']
            raise UserError(
                f'the training data has {len(trained)} classes, the validation data {len(tested)}; not in '
                f'both: {", ".join(other[:8])}'
            )
        return loop

    @config_errors_in_words
    def build_test_loop(self, loop):
        loop = super().build_test_loop(loop)
        self._test_classes = _classes(loop)
        return loop

    def say(self, notes: Iterable[str]) -> 'Runner':
        """Put what was changed about the config into the log, once."""
        for note in notes:
            level = logging.WARNING if note.startswith('warning: ') else logging.INFO
            self.logger.log(level, note.removeprefix('warning: '))
        return self

    def train(self):
        """As in mmengine.

        Raises:
            Stopped: SIGTERM or SIGUSR1 came: there is a checkpoint of the last step.
            UserError: nothing to resume is whole; see the hooks for what ends a training.
        """
        stack = contextlib.ExitStack()
        self._stop_request = launch.StopRequest()
        try:
            if is_main_process():
                stack.enter_context(launch.alone_in(self.work_dir))
            if self._resume:
                self._read_what_is_resumed()
            if self._sharded:
                self._init_model_weights()
                launch.shard(self.model, get_device())
            model = super().train()
        except Stopped as stopped:
            self.call_hook('after_run')
            self.logger.info(str(stopped))
            if stopped.signal:
                raise
            model = self.model
        finally:
            for closing in [self._stop_request, *self.hooks]:
                if hasattr(closing, 'close'):
                    closing.close()
            stack.close()
        if SKIPPED.count:
            self.logger.warning(f'{SKIPPED.count} times an unreadable image was skipped, see the names above')
        return model

    def stop_if_asked(self, validated: int = 0) -> None:
        """Write a checkpoint and end the training if the cluster or ``stop_at`` asks for it.

        Called between two steps of training or validation, by all processes.

        Args:
            validated: batches that are done in the validation at hand; 0 in training.

        Raises:
            Stopped: naming the checkpoint.
        """
        if self._stop_request is None or validated > self._least_batches:
            return
        reached = self.stop_at is not None and self.iter >= self.stop_at and not validated
        signal = '' if reached else self._stop_request.agreed(validated or self.iter, bool(validated))
        if not (reached or signal):
            return
        for hook in self.hooks if validated else ():
            if isinstance(hook, EMAHook):
                hook._swap_ema_parameters()  # validation has the moving average in the model
        why = f'stopped after step {self.iter} ({f"{signal} came" if signal else "--stop-at"})'
        if self.checkpoint_hook is None:
            raise Stopped(f'{why}; without a CheckpointHook nothing was written', signal)
        file = self.checkpoint_hook.save_now(self, self.epoch, self.iter)
        raise Stopped(f'{why}: --resume goes on from {file}', signal)

    def _read_what_is_resumed(self) -> None:
        """Choose the checkpoint, in one process for all, and take its seed before anything is shuffled."""
        chosen = [None, '', False]
        if is_main_process():
            file, problem = self._choose_checkpoint()
            chosen = [file, problem, bool(file) and facts_of(Path(file)).get('validated', False)]
        broadcast_object_list(chosen)
        file, problem, self._validated = chosen
        if problem:
            raise UserError(problem)
        self._load_from = file
        self._resumed = read_checkpoint(local_file(file))
        seed = (self._resumed.get('meta') or {}).get('seed')
        if seed is not None and seed != self.seed:
            self._randomness_cfg = {**self._randomness_cfg, 'seed': seed}
            self.set_randomness(**self._randomness_cfg)

    def _choose_checkpoint(self) -> tuple[str | None, str]:
        if self._load_from is not None:
            why = damage(Path(self._load_from)) if facts_of(Path(self._load_from)) else ''
            return self._load_from, why and f'{self._load_from} is damaged: {why}; resume from an older one'
        file, passed_over = newest_checkpoint(Path(self.work_dir))
        for line in passed_over:
            self.logger.warning(line)
        if file is None:
            return None, f'no checkpoint in {self.work_dir} is whole: start anew with another --work-dir'
        return str(file), ''

    @property
    def _unwrapped(self):
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        return model

    @property
    def _sharded(self) -> bool:
        return self.cfg.get('fsdp', False)

    def wrap_model(self, model_wrapper_cfg, model):
        if self._sharded:
            return model.to(get_device())
        return super().wrap_model(model_wrapper_cfg, model)

    def _init_model_weights(self) -> None:
        if not any(map(is_divided, self.model.parameters())):
            super()._init_model_weights()

    def load_checkpoint(self, filename, map_location='cpu', strict=True, revise_keys=()) -> dict:
        """Load the model's weights and return the whole checkpoint.

        Args:
            filename: path, URL, or a dict as described at the class.
            strict, revise_keys: mmengine's; loading is always strict.

        Raises:
            CheckpointMismatch: a tensor is left over on either side.
            UnreadableCheckpoint: the file is damaged or holds code.
            UserError: the checkpoint was trained for other classes than those to be tested.
        """
        asked = dict(filename) if isinstance(filename, dict) else dict(checkpoint=filename)
        if 'checkpoint' not in asked or set(asked) - {'checkpoint', 'skip', 'fresh'}:
            raise UserError(f'load_from knows checkpoint, skip and fresh, got {", ".join(sorted(asked))}')
        file = local_file(asked.pop('checkpoint'))
        checkpoint = self._resumed or read_checkpoint(file, map_location)
        if self._resume:
            _check_resumable(file, checkpoint)
        self._compare_classes(file, checkpoint)
        if 'state_dict' not in checkpoint:
            checkpoint['state_dict'] = tensors_of(checkpoint, str(file))  # where hooks look for it
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        report = load_trained(self._unwrapped, checkpoint, file, **asked)
        self._has_loaded = True
        self.logger.info(f'{"resumed" if self._resume else "loaded"} weights\n{report}')
        return checkpoint

    def resume(
        self, filename, resume_optimizer=True, resume_param_scheduler=True, map_location='cpu'
    ) -> None:
        """As in mmengine; random numbers and half-accumulated gradients are taken up, too."""
        checkpoint = self._resumed or read_checkpoint(local_file(filename))
        self._resumed = checkpoint
        if 'optimizer' in checkpoint:
            self._divide_optimizer_state(checkpoint['optimizer'])
        super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        self._resumed = None
        loop, rank = self.train_loop, get_rank()
        loop.steps_before = checkpoint['meta'].get('steps_per_epoch')
        loop.validated = self._validated
        states = checkpoint.get('random') or []
        if rank < len(states) and hasattr(loop, 'random'):
            loop.random.load_state_dict(states[rank])
        else:
            self.logger.warning(
                f'the checkpoint has the random numbers of {len(states)} processes: those of the others, and '
                'with them the result, are not what an uninterrupted training would have had'
            )
        if (gradients := checkpoint.get('gradients')) and len(gradients) == get_world_size():
            self._take_up_gradients(gradients[rank])
        elif gradients:
            self.logger.warning(f'accumulated gradients of {len(gradients)} other processes are left out')
        said = checkpoint['meta'].get('environment') or {}
        now = launch.environment()
        if other := [f'{k} {v}, now {now.get(k)}' for k, v in said.items() if now.get(k) != v]:
            self.logger.warning(f'the training began in another environment: {"; ".join(other)}')
        if checkpoint_hook := self.checkpoint_hook:
            checkpoint_hook.last_ckpt, checkpoint_hook.last_step = str(filename), self.iter
        for hook in self.hooks:
            if isinstance(hook, EarlyStoppingHook):
                vars(hook).update(checkpoint.get('early_stopping') or {})

    def _divide_optimizer_state(self, content: dict) -> None:
        if not self._sharded:
            return
        groups = self.optim_wrapper.optimizer.param_groups
        for number, parameter in enumerate(p for group in groups for p in group['params']):
            for key, value in content['state'].get(number, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    content['state'][number][key] = divided_as(value, parameter)

    def _take_up_gradients(self, gradients: dict) -> None:
        for name, parameter in self._unwrapped.named_parameters():
            if name in gradients:
                gradient = divided_as(gradients[name], parameter)
                parameter.grad = gradient.to(parameter.device)
        self.logger.info(f'accumulated gradients of {len(gradients)} parameters are taken up')
        # mmengine would say that they are lost
        if not isinstance(self.optim_wrapper, OptimWrapperDict):
            self.optim_wrapper.initialize_count_status = functools.partial(_count_from, self.optim_wrapper)

    def save_checkpoint(
        self,
        out_dir,
        filename: str,
        file_client_args=None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args=None,
    ) -> None:
        """Write everything a training needs to go on as if it had not stopped; called by all processes.

        Beside what mmengine writes: ``random``, the states of the random numbers of each process;
        ``gradients`` of each process, if they are accumulated over several steps and no update has been made
        with them yet; in ``meta`` the environment and the steps per epoch.

        Args:
            out_dir, filename: folder of this machine, name of the file.
            save_optimizer, save_param_scheduler: without them the file holds weights only.
            meta: overrides the numbers of epochs and steps that are done.
            by_epoch: whether an epoch or a step has just ended, when ``meta`` does not say.

        Raises:
            OSError: in the first process, if it could not be written.
        """
        writes = is_main_process()
        done = (
            dict(epoch=self.epoch + 1, iter=self.iter)
            if by_epoch
            else dict(epoch=self.epoch, iter=self.iter + 1)
        )
        meta = {
            **done,
            **(meta or {}),
            **dict(cfg=self.cfg.pretty_text, seed=self.seed, experiment_name=self.experiment_name),
            **dict(time=time.strftime('%Y%m%d_%H%M%S'), mmengine_version=mmengine.__version__),
            **dict(steps_per_epoch=len(self.train_dataloader), environment=launch.environment()),
        }
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            meta['dataset_meta'] = self.train_dataloader.dataset.metainfo
        model = self._unwrapped
        content = dict(meta=meta, state_dict=whole(model.state_dict(), writes))
        content['message_hub'] = whole(self.message_hub.state_dict(), writes)
        if save_optimizer:
            content['optimizer'] = whole(self.optim_wrapper.state_dict(), writes)
            group = self._stop_request and self._stop_request.group
            if hasattr(self.train_loop, 'random'):
                content['random'] = launch.gather_on_cpu(self.train_loop.random.state_dict(), group)
            if self._gradients_wait:
                gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
                content['gradients'] = launch.gather_on_cpu(whole(gradients, True), group)
            for hook in self.hooks:
                if isinstance(hook, EarlyStoppingHook):
                    content['early_stopping'] = {
                        key: getattr(hook, key) for key in ('wait_count', 'best_score')
                    }
        if save_param_scheduler and self.param_schedulers is not None:
            content['param_schedulers'] = _states(self.param_schedulers)
        failed = ['']
        if writes:
            self.call_hook('before_save_checkpoint', checkpoint=content)
            place = {key: meta[key] for key in ('epoch', 'iter')} if save_optimizer else {}
            try:
                Path(out_dir).mkdir(parents=True, exist_ok=True)
                write_checkpoint(content, Path(out_dir, filename), **place)
            except OSError as error:
                failed = [error.strerror or str(error)]
        broadcast_object_list(failed)
        if failed[0]:
            raise OSError(failed[0])

    @property
    def _gradients_wait(self) -> bool:
        """Whether gradients of several steps are accumulated, with which no update has been made yet."""
        wrapper = self.optim_wrapper
        wrappers = wrapper.optim_wrappers.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        return any(each._accumulative_counts > 1 and not each.should_update() for each in wrappers)

    def _compare_classes(self, file, checkpoint: dict) -> None:
        """Metrics of a model that was trained for other classes mean nothing."""
        tested = getattr(self, '_test_classes', None)
        trained = dataset_meta(checkpoint).get('classes')
        if tested and trained and list(tested) != list(trained):
            raise UserError(
                f'{file} was trained for {len(trained)} classes ({", ".join(trained[:5])} ...), the config '
                f'tests {len(tested)} ({", ".join(tested[:5])} ...): use the config of the training'
            )


def _resumable(loader, endless: bool, seed: int):
    """The config of a data loader whose batches can be left out without being read; streams cannot."""
    if not isinstance(loader, dict) or not loader.get('sampler'):
        return loader
    loader = copy.deepcopy(loader)
    drop_last, inner = loader.pop('drop_last', False), loader.pop('batch_sampler', None)
    loader['batch_sampler'] = dict(
        type='convnext_backbone.ResumableBatchSampler',
        inner=inner,
        drop_last=drop_last,
        endless=endless,
        seed=seed,
    )
    return loader


def _states(schedulers) -> dict | list:
    if isinstance(schedulers, dict):
        return {name: _states(each) for name, each in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers]


def _count_from(wrapper, model, init_counts: int, max_counts: int) -> None:
    """mmengine's ``initialize_count_status`` without its warning about lost gradients."""
    wrapper._inner_count, wrapper._max_counts = init_counts, max_counts
    wrapper._remainder_counts = max_counts % wrapper._accumulative_counts


def _check_resumable(file: os.PathLike, checkpoint: dict) -> None:
    needed = ('meta', 'state_dict', 'optimizer', 'message_hub')
    if absent := [key for key in needed if key not in checkpoint]:
        raise UnreadableCheckpoint(
            f'{file} has no {", ".join(absent)}: it holds weights, not the state of a training. '
            'Start from it with load_from in the config, or with --pretrained'
        )
    # mmengine would execute this text as Python; its own checkpoints say 'cfg', which is never run
    checkpoint['meta'].pop('config', None)
