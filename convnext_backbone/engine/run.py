"""Trains and tests a config: what the commands ``train`` and ``test`` do, as functions."""

import copy
import os
from pathlib import Path

from mmengine.config import Config
from torch import nn

from .. import config as configs
from ..checks import AMOUNTS, check_config
from ..errors import UserError, check_choice
from ..report import make_report
from ..tiles import Tiling
from . import launch
from .runner import Runner

DEVICES = ('cpu', 'cuda')
LAUNCHERS = ('none', 'pytorch', 'slurm')


def train(
    config: str | os.PathLike | Config,
    *,
    pretrained: str | os.PathLike | None = None,
    pretrained_weights: str | None = None,
    pretrained_prefix: str | None = None,
    amp: bool = False,
    resume: str | os.PathLike | bool | None = None,
    new_lr: bool = False,
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
        pretrained_prefix: what is in front of the names of the network to take, of a file with several.
        amp: mixed precision, if the config has none.
        resume: path of a checkpoint to go on from, or ``True`` for the newest whole one in the work dir.
        new_lr: the learning rate of the config takes the place of the checkpoint's when resuming; the rest of
            the schedule changes in proportion. Of several optimizers each takes its own.
        stop_at: end after so many steps in all, with a checkpoint.
        fsdp: divide parameters, gradients and optimizer states among the processes.
        auto_scale_lr: learning rate in proportion to the batch, where that differs from the recipe's.
        seed, deterministic: of all random numbers; repeatable algorithms only.
        skip_corrupt: leave unreadable or missing images and masks out, name and count them.
        options: ``work_dir``, ``data_root``, ``device``, ``launcher``, ``check_data`` and ``cfg_options``,
            see :func:`run_config`.

    Returns:
        The trained model. Checkpoints and logs are in the work dir, by default ``work_dirs/NAME_OF_CONFIG``.

    Raises:
        UserError: wrong input, in one line.
        Stopped: SIGTERM or SIGUSR1 came; there is a checkpoint.
    """
    resume = 'auto' if resume is True else _text(resume)
    pretrained = _text(pretrained)
    splits = ('train_dataloader', 'val_dataloader')
    weights = dict(resume=resume, pretrained=pretrained, weights=pretrained_weights, prefix=pretrained_prefix)
    cfg, device, notes = run_config(config, splits, start=weights, skip_corrupt=skip_corrupt, **options)
    if new_lr and resume is None and not cfg.get('resume'):
        raise UserError('--new-lr is for --resume: a new training has the learning rate of its config anyway')
    notes += configs.set_batch(cfg, auto_scale_lr)
    notes += configs.choose_precision(cfg, amp, device)
    if fsdp:
        configs.divide_model(cfg, options.get('launcher', 'none'))
    if stop_at is not None and stop_at < 1:
        raise UserError(f'--stop-at is a number of steps, got {stop_at}')
    given = dict(seed=seed, deterministic=deterministic or None)
    randomness = {key: value for key, value in given.items() if value is not None}
    cfg.randomness = {'seed': None, **cfg.get('randomness', {}), **randomness}
    runner = Runner.from_cfg(cfg).log_notes(notes)
    runner.stop_at, runner.new_lr = stop_at, new_lr
    title = f'{Path(cfg.filename or "training").stem} at its end'
    runner.report = make_report(cfg, Path(cfg.work_dir, 'report.html'), title, at_end=True)
    return runner.train()


def test(
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    *,
    tta: bool = False,
    prefix: str | None = None,
    report: str | os.PathLike | None = None,
    against: str | os.PathLike | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
    **options,
) -> dict:
    """Evaluate a checkpoint on the test data of a config.

    Args:
        config: see :func:`train`.
        checkpoint: path, URL or released name; it must fit completely.
        tta: test-time augmentation: the config's ``tta_model`` and ``tta_pipeline``.
        prefix: what is in front of the names of the network to take, of a file with several.
        report: file of a page about what was predicted.
        against: another checkpoint of the same config, with which the report compares.
        tile, overlap: predict by tiles, see :class:`~convnext_backbone.tiles.Tiling`.
        options: see :func:`train`.

    Returns:
        The metrics, as they stand in the log and in the JSON file of the work dir.

    Raises:
        UserError: wrong input, in one line.
    """
    cfg, _, notes = run_config(config, ('test_dataloader',), **options)
    if tile is not None:
        tiling = Tiling(tile, overlap).checked()
        if tta:
            raise UserError('--tile and --tta are two ways to test: give one of them')
    notes += configs.choose_views(cfg, tta)
    if tile is not None:
        notes += configs.choose_tiles(cfg, tiling.size, tiling.overlap)
    configs.write_details(cfg)
    if against and not report:
        raise UserError('--against belongs to --report: give a file for the page')
    made = None
    if report:
        configs.check_work_dir(Path(report).absolute().parent, '--report')
        if against:
            other = copy.deepcopy(cfg)
            configs.for_testing(other, _text(against), prefix)
            runner = Runner.from_cfg(other)
            runner.report = make_report(cfg, report, '', keep=True)
            runner.test()
        title = f'{_text(checkpoint)} on {Path(cfg.filename or "the config").name}'
        made = make_report(cfg, report, title, other=_text(against) or '')
    configs.for_testing(cfg, _text(checkpoint), prefix)
    runner = Runner.from_cfg(cfg).log_notes(notes)
    runner.report = made
    return runner.test()


def _text(path: str | os.PathLike | None) -> str | None:
    """Return a path, URL or name as text."""
    return None if path is None else os.fspath(path)


def run_config(
    config: str | os.PathLike | Config,
    splits: tuple[str, ...],
    *,
    start: dict | None = None,
    work_dir: str | os.PathLike | None = None,
    data_root: str | os.PathLike | None = None,
    device: str | None = None,
    launcher: str = 'none',
    check_data: str = 'sample',
    skip_corrupt: bool = False,
    cfg_options: dict | None = None,
) -> tuple[Config, str, list[str]]:
    """Read the config of a run, with its work dir, data, device and processes.

    Args:
        config: see :func:`read_config`.
        splits: the data loaders that will be used; their files must exist.
        start: of a training, where its weights come from, known to the checks: arguments of ``start_from``.
        work_dir, data_root, device, launcher, cfg_options: the options of every run, see ``convnext train
            --help``.
        check_data: how many images and masks are read before the run: ``'sample'``, ``'all'`` or ``'none'``.
        skip_corrupt: leave unreadable or missing images and masks out of the training.

    Returns:
        The config, the device (``cpu`` or ``cuda``), and a line for each thing that was changed.

    Raises:
        UserError: the config lacks one of ``splits``, an option does not fit, or the checks found errors: one
            line for each.
    """
    if device is not None:
        check_choice('device', device, DEVICES)
    check_choice('check_data', check_data, AMOUNTS)
    if check_choice('launcher', launcher, LAUNCHERS) == 'slurm':
        launch.slurm_environment()
    device = configs.choose_device(device)
    cfg = configs.read_config(config, cfg_options)
    name = cfg.filename or 'the config'
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename or "run").stem}')
    configs.check_work_dir(cfg.work_dir)
    needed = [*splits, *(['train_cfg', 'optim_wrapper'] if 'train_dataloader' in splits else ['test_cfg'])]
    if absent := [key for key in needed if not cfg.get(key) and key != 'val_dataloader']:
        raise UserError(f'{name} has no {", ".join(absent)}, which this needs')
    if data_root:
        configs.set_data_root(cfg, str(data_root))
    if skip_corrupt:
        configs.skip_corrupt_images(cfg)
    alone = device == 'cpu' or launcher == 'none'
    notes = configs.use_plain_batch_norm(cfg) if alone else []
    notes += configs.start_from(cfg, **start) if start is not None else []
    first = int(os.environ.get('RANK', 0)) == 0  # of several processes one reads images
    findings = check_config(cfg, splits, check_data if first else 'none')
    findings.raise_errors()
    notes += findings.lines()
    launch.start_processes(cfg, launcher, device)
    return cfg, device, notes
