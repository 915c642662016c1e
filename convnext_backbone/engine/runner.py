"""mmengine's Runner, with checkpoints that are read safely and fit completely."""

import copy
import functools
import logging
import os
from collections.abc import Iterable

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner

from ..checkpoint.formats import tensors_of
from ..checkpoint.load import load_trained
from ..checkpoint.read import (
    UnreadableCheckpoint,
    close_unsafe_reader,
    local_file,
    read_checkpoint,
)
from ..cli import message
from ..errors import SKIPPED, UserError
from .prepare import check_classes


def config_errors_in_words(build):
    """What goes wrong while something is built from the config is the config's fault: say it in a line."""

    @functools.wraps(build)
    def wrapped(*args, **kwargs):
        try:
            return build(*args, **kwargs)
        except UserError:
            raise
        except (TypeError, KeyError, ValueError, AssertionError, AttributeError, OSError) as error:
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
        super().__init__(*args, **kwargs)

    @classmethod
    @config_errors_in_words
    def from_cfg(cls, cfg) -> 'Runner':
        return super().from_cfg(cfg)

    build_optim_wrapper = config_errors_in_words(MMEngineRunner.build_optim_wrapper)
    build_param_scheduler = config_errors_in_words(MMEngineRunner.build_param_scheduler)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        if hasattr(loader.dataset, 'set_loader'):
            loader.dataset.set_loader(loader.num_workers, loader.batch_size)
        return loader

    @config_errors_in_words
    def build_train_loop(self, loop):
        if isinstance(loop, dict) and loop.get('type') == 'EpochBasedTrainLoop' and 'by_epoch' not in loop:
            loop = dict(loop, type='convnext_backbone.EpochLoop')
            self._train_dataloader = _resumable(self._train_dataloader)
        loop = super().build_train_loop(loop)
        if not len(loop.dataloader):
            raise UserError(
                f'the training data has {len(loop.dataloader.dataset)} images, fewer than a batch, and '
                'drop_last leaves them out: choose a smaller train_dataloader.batch_size'
            )
        if classes := _classes(loop):
            check_classes(self.cfg, classes)
        return loop

    @config_errors_in_words
    def build_val_loop(self, loop):
        loop = super().build_val_loop(loop)
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
        model = super().train()
        if SKIPPED.count:
            self.logger.warning(f'{SKIPPED.count} times an unreadable image was skipped, see the names above')
        return model

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
        checkpoint = read_checkpoint(file, map_location)
        if self._resume:
            _check_resumable(file, checkpoint)
            self.train_loop.steps_before = checkpoint['meta'].get('steps_per_epoch')
        self._compare_classes(file, checkpoint)
        if 'state_dict' not in checkpoint:
            checkpoint['state_dict'] = tensors_of(checkpoint, str(file))  # where hooks look for it
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        report = load_trained(model, checkpoint, file, **asked)
        self._has_loaded = True
        self.logger.info(f'{"resumed" if self._resume else "loaded"} weights\n{report}')
        return checkpoint

    def save_checkpoint(self, *args, meta: dict | None = None, **kwargs) -> None:
        """As in mmengine; the length of an epoch is noted, for a resume within it."""
        meta = {**(meta or {}), 'steps_per_epoch': len(self.train_dataloader)}
        super().save_checkpoint(*args, meta=meta, **kwargs)

    def _compare_classes(self, file, checkpoint: dict) -> None:
        """Metrics of a model that was trained for other classes mean nothing."""
        tested = getattr(self, '_test_classes', None)
        meta = checkpoint.get('meta') or {}
        trained = (meta.get('dataset_meta') or {}).get('classes')
        if tested and trained and list(tested) != list(trained):
            raise UserError(
                f'{file} was trained for {len(trained)} classes ({", ".join(trained[:5])} ...), the config '
                f'tests {len(tested)} ({", ".join(tested[:5])} ...): use the config of the training'
            )


def _resumable(loader):
    """The config of a data loader whose batches can be left out without being read; streams cannot."""
    if not isinstance(loader, dict) or not loader.get('sampler'):
        return loader
    loader = copy.deepcopy(loader)
    drop_last, inner = loader.pop('drop_last', False), loader.pop('batch_sampler', None)
    loader['batch_sampler'] = dict(
        type='convnext_backbone.ResumableBatchSampler', inner=inner, drop_last=drop_last
    )
    return loader


def _check_resumable(file: os.PathLike, checkpoint: dict) -> None:
    needed = ('meta', 'state_dict', 'optimizer', 'message_hub')
    if absent := [key for key in needed if key not in checkpoint]:
        raise UnreadableCheckpoint(
            f'{file} has no {", ".join(absent)}: it holds weights, not the state of a training. '
            'Start from it with load_from in the config, or with --pretrained'
        )
    # mmengine would execute this text as Python; its own checkpoints say 'cfg', which is never run
    checkpoint['meta'].pop('config', None)
