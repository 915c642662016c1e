"""Train and test a config: what the commands ``train`` and ``test`` do, as functions."""

import os

from mmengine.config import Config
from torch import nn

from ..errors import UserError
from . import prepare
from .runner import Runner


def train(
    config: str | os.PathLike | Config,
    *,
    pretrained: str | None = None,
    pretrained_weights: str | None = None,
    amp: bool = False,
    resume: str | None = None,
    stop_at: int | None = None,
    fsdp: bool = False,
    auto_scale_lr: bool = False,
    seed: int | None = None,
    deterministic: bool = False,
    skip_corrupt: bool = False,
    **options,
) -> nn.Module:
    """Train a classifier, a detector or a segmenter.

    Args:
        config: path of a config, the name of one that comes along (``cascade_convnext_t``), or a Config.
        pretrained: weights by path, URL or released name, loaded strictly; ``'none'``: from scratch.
        pretrained_weights: ``'final'`` or ``'ema'``, of a training that kept a moving average.
        amp: mixed precision, if the config has none.
        resume: path of a checkpoint to go on from, or ``'auto'`` for the newest whole one in the work dir.
        stop_at: end after so many steps in all, with a checkpoint.
        fsdp: divide parameters, gradients and optimizer states among the processes.
        auto_scale_lr: learning rate in proportion to the batch, where that differs from the recipe's.
        seed, deterministic: of all random numbers; repeatable algorithms only.
        skip_corrupt: leave unreadable images out, name and count them.
        options: ``work_dir``, ``data_root``, ``device``, ``launcher`` and ``cfg_options``, see
            :func:`convnext_backbone.engine.prepare.run_config`.

    Returns:
        The trained model. Checkpoints and logs are in the work dir, by default ``work_dirs/NAME_OF_CONFIG``.

    Raises:
        UserError: wrong input, in one line.
        Stopped: SIGTERM or SIGUSR1 came; there is a checkpoint.
    """
    cfg, device, notes = prepare.run_config(config, ('train_dataloader', 'val_dataloader'), **options)
    prepare.name_unreadable_images(cfg, skip_corrupt)
    notes += prepare.start_from(cfg, resume, pretrained, pretrained_weights)
    notes += prepare.set_batch(cfg, auto_scale_lr)
    notes += prepare.choose_precision(cfg, amp, device)
    if fsdp:
        prepare.divide_model(cfg, options.get('launcher', 'none'))
    if stop_at is not None and stop_at < 1:
        raise UserError(f'--stop-at is a number of steps, got {stop_at}')
    given = dict(seed=seed, deterministic=deterministic or None)
    randomness = {key: value for key, value in given.items() if value is not None}
    cfg.randomness = {'seed': None, **cfg.get('randomness', {}), **randomness}
    runner = Runner.from_cfg(cfg).say(notes)
    runner.stop_at = stop_at
    return runner.train()


def test(config: str | os.PathLike | Config, checkpoint: str, *, tta: bool = False, **options) -> dict:
    """Evaluate a checkpoint on the test data of a config.

    Args:
        config: see :func:`train`.
        checkpoint: path, URL or released name; it must fit completely.
        tta: test-time augmentation: the config's ``tta_model`` and ``tta_pipeline``.
        options: see :func:`train`.

    Returns:
        The metrics, as they stand in the log and in the JSON file of the work dir.

    Raises:
        UserError: wrong input, in one line.
    """
    cfg, _, notes = prepare.run_config(config, ('test_dataloader',), **options)
    notes += prepare.choose_views(cfg, tta)
    prepare.write_details(cfg)
    prepare.for_testing(cfg, checkpoint)
    return Runner.from_cfg(cfg).say(notes).test()
