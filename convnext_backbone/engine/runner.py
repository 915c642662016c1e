"""Extends mmengine's Runner with checkpoints that are read safely, fit completely and continue exactly."""

import contextlib
import copy
import errno
import functools
import inspect
import logging
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import (
    broadcast_object_list,
    is_main_process,
)
from mmengine.hooks import EMAHook, LoggerHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.runner import Runner as MMEngineRunner

from ..checkpoint.formats import dataset_meta
from ..checkpoint.load import load_trained
from ..checkpoint.networks import tensors_of
from ..checkpoint.read import (
    close_unsafe_reader,
    local_file,
    read_checkpoint,
)
from ..checkpoint.sharding import is_sharded
from ..checkpoint.write import read_metadata, write_checkpoint
from ..config import check_classes, datasets, dicts, use_stand_ins
from ..config.text import format_once
from ..datasets import InOnePiece, forget_annotations, improve
from ..errors import SKIPPED, Stopped, UserError, report_build_errors
from ..heads import save_work
from ..mmcv_ops import log_choice
from ..registry import class_of, type_name
from ..tiles.model import TiledModel
from . import launch, state
from .checkpoint_hook import CheckpointHook
from .resume_settings import ResumedSettings
from .sampler import ResumableBatchSampler, fetch_seeded

LOOPS = ('convnext_backbone.EpochLoop', 'convnext_backbone.IterLoop')


def _classes(loop) -> list[str]:
    """Return the classes of a loop's dataset, empty if it names none."""
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
        self._resumed, self.stop_request, self.stop_at, self._least_batches = None, None, None, 0
        self.new_lr, self.report = False, None
        self._validated = self._loaded = False
        self._trained_classes = []
        given = inspect.signature(MMEngineRunner).bind(*args, **kwargs).arguments
        self._train_data, self._source = given.get('train_dataloader'), given.get('load_from')
        self._resuming = given.get('resume', False)
        super().__init__(*args, **kwargs)
        log_choice(self.logger)

    @classmethod
    @report_build_errors
    def from_cfg(cls, cfg) -> 'Runner':
        """Build from a config, with our classes in the place of mmengine's, see config/stand_ins.py.

        Raises:
            UserError: a part of it cannot be built; with the key.
        """
        cfg = format_once(cfg) if isinstance(cfg, Config) else copy.deepcopy(cfg)
        notes = use_stand_ins(cfg)
        return super().from_cfg(cfg).log_notes(notes)

    def build_model(self, model):
        """Build as in mmengine; heads of mmdet and mmseg compute the same with less work."""
        model = super().build_model(model)
        if not self.cfg.get('efficient_conv_bn_eval'):  # traces heads as they are
            for line in save_work(model, get_device()):
                self.logger.info(f'stand-ins: {line}')
        return model

    build_optim_wrapper = report_build_errors(MMEngineRunner.build_optim_wrapper)
    build_param_scheduler = report_build_errors(MMEngineRunner.build_param_scheduler)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the environment as in mmengine; then compare the processes.

        Raises:
            UserError: a process has other code or another config than the first one.
        """
        super().setup_env(env_cfg)
        device = torch.cuda.get_device_name() if get_device() == 'cuda' else get_device()
        told = dict(host=socket.gethostname(), device=device)
        code = launch.environment()
        launch.compare_processes('code', {key: code[key] for key in code if key not in ('gpu', 'cuda')})
        self._processes = launch.compare_processes('config', launch.settings(self.cfg), told)

    def set_randomness(self, seed, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """Set the seed as in mmengine, and keep the options for a training that is resumed with its own."""
        self._randomness = dict(diff_rank_seed=diff_rank_seed, deterministic=deterministic)
        super().set_randomness(seed, **self._randomness)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call hooks as in mmengine; a row of the log that does not fit on the disk ends no training."""
        for hook in self.hooks:
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
        """Return the hook that writes checkpoints, ``None`` if there is none."""
        return next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        """Build as in mmengine, from datasets and steps with ours mixed in; an image brings its seed along.

        Its processes hand batches over :class:`~convnext_backbone.datasets.InOnePiece`. ``dataloader`` is a
        config, which stays as it is, or a ready data loader.
        """
        if isinstance(dataloader, dict):
            dataloader = copy.deepcopy(dataloader)
            for _, dataset in datasets({'': dataloader}, ('',)):
                _improve(dataset, DATASETS)
                for step in dicts(dataset.get('pipeline')):
                    _improve(step, TRANSFORMS)
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        if hasattr(loader.dataset, 'set_loader'):
            loader.dataset.set_loader(loader.num_workers, loader.batch_size)
        if loader.num_workers:
            loader.collate_fn = InOnePiece(loader.collate_fn)
        if isinstance(loader.batch_sampler, ResumableBatchSampler):
            loader.dataset.__getitems__ = functools.partial(
                fetch_seeded, loader.dataset
            )  # torch looks for it
        return loader

    def build_evaluator(self, evaluator):
        """Build as in mmengine, from metrics with ours mixed in, and add the report, if there is to be one.

        A config stays as it is.
        """
        if isinstance(evaluator, (dict, list)):
            evaluator = copy.deepcopy(evaluator)
            for metric in evaluator if isinstance(evaluator, list) else [evaluator]:
                _improve(metric, METRICS)
        built = super().build_evaluator(evaluator)
        if self.report is not None:
            built.metrics.append(self.report)
        return built

    @report_build_errors
    def build_train_loop(self, loop):
        """Build as in mmengine; data that can be resumed gets a sampler that can.

        Raises:
            UserError: the data has less than a batch, its classes are not those of the heads, or another
                process has other data.
        """
        if isinstance(loop, dict) and (kind := type_name(loop)) in LOOPS:
            data = resumable(self._train_data, kind.endswith('IterLoop'), self.seed)
            loop = {**loop, 'dataloader': data} if isinstance(data, dict) else loop
        loop = super().build_train_loop(loop)
        size = len(loop.dataloader.dataset)
        if not len(loop.dataloader):
            raise UserError(
                f'the training data has {size} images, fewer than a batch, and '
                'drop_last leaves them out: choose a smaller train_dataloader.batch_size'
            )
        if classes := _classes(loop):
            check_classes(self.cfg, classes)
        self._trained_classes = classes
        equal = dict(images=size, batches=len(loop.dataloader), classes=classes)
        launch.compare_processes('training data', equal, seconds=600)
        self.logger.info(launch.processes_in_words(self._processes))
        return loop

    @report_build_errors
    def build_val_loop(self, loop):
        """Build as in mmengine, and compare the classes with those of the training data.

        Raises:
            UserError: they differ.
        """
        loop = super().build_val_loop(loop)
        forget_annotations()  # dataset and metric have what they need
        batches = launch.compare_processes('validation data', {}, len(loop.dataloader), seconds=600)
        self._least_batches = min(batches)  # of a process; a sampler need not give all the same
        trained, tested = self._trained_classes, _classes(loop)
        if trained and tested and trained != tested:
            other = sorted(set(trained) ^ set(tested)) or [f'{trained[0]} ... in another order']
            raise UserError(
                f'the training data has {len(trained)} classes, the validation data {len(tested)}; not in '
                f'both: {", ".join(other[:8])}'
            )
        return loop

    @report_build_errors
    def build_test_loop(self, loop):
        """Build as in mmengine, and keep the classes, with which those of the checkpoint are compared."""
        loop = super().build_test_loop(loop)
        forget_annotations()
        self._test_classes = _classes(loop)
        return loop

    def log_notes(self, notes: Iterable[str]) -> 'Runner':
        """Put what was changed about the config into the log, once.

        Args:
            notes: lines; one that begins with ``warning: `` becomes a warning.
        """
        for note in notes:
            level = logging.WARNING if note.startswith('warning: ') else logging.INFO
            self.logger.log(level, note.removeprefix('warning: '))
        return self

    def train(self):
        """Train as in mmengine.

        Raises:
            Stopped: SIGTERM or SIGUSR1 came: there is a checkpoint of the last step.
            UserError: nothing to resume is whole; see the hooks for what ends a training.
        """
        stack = contextlib.ExitStack()
        self.stop_request = launch.StopRequest()
        try:
            if is_main_process():
                stack.enter_context(launch.alone_in(self.work_dir))
            if self._resuming:
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
            for closing in [self.stop_request, *self.hooks]:
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
        if self.stop_request is None or validated > self._least_batches:
            return
        reached = self.stop_at is not None and self.iter >= self.stop_at and not validated
        signal = '' if reached else self.stop_request.agreed(validated or self.iter, bool(validated))
        if not (reached or signal):
            return
        for hook in self.hooks if validated else ():
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(self)  # validation has the moving average in the model
        why = f'stopped after step {self.iter} ({f"{signal} came" if signal else "--stop-at"})'
        if self.checkpoint_hook is None:
            raise Stopped(f'{why}; without a CheckpointHook nothing was written', signal)
        file = self.checkpoint_hook.save_now(self, self.epoch, self.iter)
        raise Stopped(f'{why}: --resume goes on from {file}', signal)

    def _read_what_is_resumed(self) -> None:
        """Choose the checkpoint, in one process for all, and take its seed before anything is shuffled."""
        chosen = [None, '', False]
        if is_main_process():
            file, problem = state.choose_checkpoint(self._source, self.work_dir, self.logger)
            chosen = [file, problem, bool(file) and read_metadata(Path(file)).get('validated', False)]
        broadcast_object_list(chosen)
        file, problem, self._validated = chosen
        if problem:
            raise UserError(problem)
        self._source = file
        self._resumed = read_checkpoint(local_file(file))
        self._take_seed(self._resumed)

    def _take_seed(self, checkpoint: dict) -> None:
        seed = (checkpoint.get('meta') or {}).get('seed')
        if seed is not None and seed != self.seed:
            self.set_randomness(seed, **self._randomness)

    @property
    def unwrapped_model(self):
        """Return the model itself, without what is wrapped around it for several processes or views."""
        model = self.model
        while is_model_wrapper(model) or isinstance(model, (BaseTTAModel, TiledModel)):
            model = model.module
        return model

    @property
    def _sharded(self) -> bool:
        return self.cfg.get('fsdp', False)

    def wrap_model(self, model_wrapper_cfg, model):
        """Wrap as in mmengine; a model that will be sharded is moved to its device only."""
        if self._sharded:
            return model.to(get_device())
        return super().wrap_model(model_wrapper_cfg, model)

    def _init_model_weights(self) -> None:
        if not any(map(is_sharded, self.model.parameters())):
            super()._init_model_weights()

    def load_or_resume(self) -> None:
        """Load or resume as in mmengine, once; the checkpoint to resume from is the newest that is whole.

        Raises:
            UserError: nothing to resume is whole; see :meth:`load_checkpoint` and :meth:`resume`.
        """
        if self._loaded:
            return
        if self._resuming:
            if self._resumed is None:
                self._read_what_is_resumed()
            self.resume(self._source)
        elif self._source is not None:
            self.load_checkpoint(self._source)
        self._loaded = True

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
        if 'checkpoint' not in asked or set(asked) - {'checkpoint', 'skip', 'fresh', 'prefix'}:
            known = 'checkpoint, skip, fresh and prefix'
            raise UserError(f'load_from knows {known}, got {", ".join(sorted(asked))}')
        file = local_file(asked.pop('checkpoint'))
        checkpoint = self._resumed or read_checkpoint(file, map_location)
        if self._resuming:
            state.check_resumable(file, checkpoint)
        self._compare_classes(file, checkpoint)
        if 'state_dict' not in checkpoint:
            checkpoint['state_dict'] = tensors_of(checkpoint, str(file))  # where hooks look for it
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        report = load_trained(self.unwrapped_model, checkpoint, file, **asked)
        if self._resuming:
            report.left_out = []  # the hook took the moving average
        self._loaded = True
        self.logger.info(f'{"resumed" if self._resuming else "loaded"} weights\n{report}')
        return checkpoint

    def resume(
        self, filename, resume_optimizer=True, resume_param_scheduler=True, map_location='cpu'
    ) -> None:
        """Resume as in mmengine; random numbers and half-accumulated gradients are restored, too.

        Raises:
            UnreadableCheckpoint: the file is damaged, or holds weights and no state of a training.
            UserError: the config asks for another optimizer or other schedules than the checkpoint has.
        """
        checkpoint = self._resumed or read_checkpoint(local_file(filename))
        self._resumed = checkpoint
        if self._sharded and 'optimizer' in checkpoint:
            state.shard_optimizer_state(self, checkpoint['optimizer'])
        state.check_resumable(filename, checkpoint)
        settings = ResumedSettings(self, checkpoint, self.new_lr)
        settings.report()
        self._take_seed(checkpoint)
        checkpoint['meta'].pop('seed', None)  # or mmengine would set it, too
        super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        settings.apply()
        self._resumed = None
        self.train_loop.validated = self._validated
        state.restore(self, checkpoint)
        if checkpoint_hook := self.checkpoint_hook:
            checkpoint_hook.last_ckpt, checkpoint_hook.last_step = str(filename), self.iter

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

        See :func:`convnext_backbone.engine.state.collect` for what that is.

        Args:
            out_dir, filename: folder of this machine, name of the file.
            save_optimizer, save_param_scheduler: without them the file holds weights only.
            meta: overrides the numbers of epochs and steps that are done.
            by_epoch: whether an epoch or a step has just ended, when ``meta`` has no such entry.

        Raises:
            OSError: in the first process, if it could not be written.
        """
        writes = is_main_process()
        done = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        meta = {**done, **(meta or {})}
        content = state.collect(self, meta, save_optimizer, save_param_scheduler, writes)
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

    def _compare_classes(self, file, checkpoint: dict) -> None:
        """Raise :class:`UserError` for a model trained for other classes: its metrics mean nothing."""
        tested = getattr(self, '_test_classes', None)
        trained = dataset_meta(checkpoint).get('classes')
        if tested and trained and list(tested) != list(trained):
            raise UserError(
                f'{file} was trained for {len(trained)} classes ({", ".join(trained[:5])} ...), the config '
                f'tests {len(tested)} ({", ".join(tested[:5])} ...): use the config of the training'
            )


def _improve(node, registry) -> None:
    """Put a class with ours mixed in, see datasets.improve, in the place of the ``type`` of ``node``."""
    if not isinstance(node, dict) or 'type' not in node:
        return
    if isinstance(cls := class_of(node, registry), type):
        node['type'] = improve(cls)


def resumable(loader, endless: bool, seed: int):
    """Return the config of a data loader whose batches can be left out without being read.

    Streams, and what is no config, come back as they are.

    Args:
        endless: one pass over the data after the other.
        seed: of the random augmentations.
    """
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
