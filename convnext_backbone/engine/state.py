"""Collects and restores the state of a training: what a checkpoint holds beside the weights."""

import os
import time
from pathlib import Path

import mmengine
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict

from ..checkpoint.read import UnreadableCheckpoint
from ..checkpoint.sharding import full_state, shard_like
from ..checkpoint.write import newest_checkpoint, read_metadata, why_damaged
from . import launch

NEEDED = ('meta', 'state_dict', 'optimizer', 'message_hub')  # to resume from


def collect(runner, meta: dict, with_optimizer: bool, with_schedulers: bool, keep: bool) -> dict:
    """Return the content of a checkpoint; all processes must call it.

    Beside what mmengine writes: ``random``, the states of the random numbers of each process; ``gradients``
    of each process, if they are accumulated over several steps and no update has been made with them yet;
    ``early_stopping``; in ``meta`` the environment and the steps per epoch.

    Args:
        meta: numbers of the epochs and steps that are done, ``epoch`` and ``iter``.
        with_optimizer, with_schedulers: without them weights only.
        keep: whether this process wants the result.
    """
    meta = {
        **meta,
        **dict(cfg=runner.cfg.pretty_text, seed=runner.seed, experiment_name=runner.experiment_name),
        **dict(time=time.strftime('%Y%m%d_%H%M%S'), mmengine_version=mmengine.__version__),
        **dict(steps_per_epoch=len(runner.train_dataloader), environment=launch.environment()),
    }
    if hasattr(runner.train_dataloader.dataset, 'metainfo'):
        meta['dataset_meta'] = runner.train_dataloader.dataset.metainfo
    model = runner.unwrapped_model
    content = dict(meta=meta, state_dict=full_state(model.state_dict(), keep))
    content['message_hub'] = full_state(runner.message_hub.state_dict(), keep)
    if with_optimizer:
        content['optimizer'] = full_state(runner.optim_wrapper.state_dict(), keep)
        group = runner.stop_request and runner.stop_request.group
        if hasattr(runner.train_loop, 'random'):
            content['random'] = launch.gather_on_cpu(runner.train_loop.random.state_dict(), group)
        if _gradients_wait(runner.optim_wrapper):
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            content['gradients'] = launch.gather_on_cpu(full_state(gradients, True), group)
        for hook in runner.hooks:
            if isinstance(hook, EarlyStoppingHook):
                content['early_stopping'] = {k: getattr(hook, k) for k in ('wait_count', 'best_score')}
    if with_schedulers and runner.param_schedulers is not None:
        content['param_schedulers'] = _states(runner.param_schedulers)
    return content


def restore(runner, checkpoint: dict) -> None:
    """Restore what mmengine leaves: random numbers, accumulated gradients, early stopping."""
    loop, rank = runner.train_loop, get_rank()
    loop.steps_before = checkpoint['meta'].get('steps_per_epoch')
    states = checkpoint.get('random') or []
    if rank < len(states) and hasattr(loop, 'random'):
        loop.random.load_state_dict(states[rank])
    else:
        runner.logger.warning(
            f'the checkpoint has the random numbers of {len(states)} processes: those of the others, and '
            'with them the result, are not what an uninterrupted training would have had'
        )
    if (gradients := checkpoint.get('gradients')) and len(gradients) == get_world_size():
        _restore_gradients(runner, gradients[rank])
    elif gradients:
        runner.logger.warning(f'accumulated gradients of {len(gradients)} other processes are left out')
    before, now = checkpoint['meta'].get('environment') or {}, launch.environment()
    if changed := [f'{k} {v}, now {now.get(k)}' for k, v in before.items() if k in now and now[k] != v]:
        runner.logger.warning(f'the training began in another environment: {"; ".join(changed)}')
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            for name, value in (checkpoint.get('early_stopping') or {}).items():
                setattr(hook, name, value)


def choose_checkpoint(load_from: str | None, work_dir: str, logger) -> tuple[str | None, str]:
    """Return the checkpoint to resume from, and why there is none (or it is damaged), empty if all is well.

    Args:
        load_from: the file that was asked for; ``None`` for the newest whole one of ``work_dir``.
    """
    if load_from is not None:
        why = why_damaged(Path(load_from)) if read_metadata(Path(load_from)) else ''
        return load_from, why and f'{load_from} is damaged: {why}; resume from an older one'
    file, passed_over = newest_checkpoint(Path(work_dir))
    for line in passed_over:
        logger.warning(line)
    if file is None:
        return None, f'no checkpoint in {work_dir} is whole: start anew with another --work-dir'
    return str(file), ''


def check_resumable(file: os.PathLike, checkpoint: dict) -> None:
    """Raise :class:`UnreadableCheckpoint` unless ``checkpoint`` holds the state of a training."""
    if absent := [key for key in NEEDED if key not in checkpoint]:
        raise UnreadableCheckpoint(
            f'{file} has no {", ".join(absent)}: it holds weights, not the state of a training. '
            'Start from it with load_from in the config, or with --pretrained'
        )
    # mmengine would execute this text as Python; its own checkpoints say 'cfg', which is never run
    checkpoint['meta'].pop('config', None)


def shard_optimizer_state(runner, content: dict) -> None:
    """Shard the optimizer's tensors in ``content`` as the parameters are, in place (FSDP)."""
    groups = runner.optim_wrapper.optimizer.param_groups
    for number, parameter in enumerate(p for group in groups for p in group['params']):
        for key, value in content['state'].get(number, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                content['state'][number][key] = shard_like(value, parameter)


def _restore_gradients(runner, gradients: dict) -> None:
    for name, parameter in runner.unwrapped_model.named_parameters():
        if name in gradients:
            parameter.grad = shard_like(gradients[name], parameter).to(parameter.device)
    runner.logger.info(f'accumulated gradients of {len(gradients)} parameters are taken up')
    if not isinstance(runner.optim_wrapper, OptimWrapperDict):
        _count_in_silence(runner.optim_wrapper)


def _count_in_silence(wrapper: OptimWrapper) -> None:
    """Keep mmengine from logging, when it sets the counter of steps, that accumulated gradients are lost."""
    count = wrapper.initialize_count_status

    def initialize_count_status(model, init_counts: int, max_counts: int) -> None:
        logger = MMLogger.get_current_instance()
        logger.addFilter(_nothing)
        try:
            count(model, init_counts, max_counts)
        finally:
            logger.removeFilter(_nothing)

    wrapper.initialize_count_status = initialize_count_status


def _nothing(record) -> bool:
    """Keep every record out of a log."""
    return False


def _gradients_wait(wrapper) -> bool:
    """Return whether gradients of several steps are accumulated and no update has been made with them."""
    wrappers = wrapper.optim_wrappers.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return not all(each.should_update() for each in wrappers)


def _states(schedulers) -> dict | list:
    if isinstance(schedulers, dict):
        return {name: _states(each) for name, each in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers]
