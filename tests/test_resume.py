"""Checkpoints that are whole or not there, trainings that go on exactly, faults that end in words."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, begin, command, convnext, last_line, log_of, tool, train_in_processes
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt, Roadmap
from convnext_backbone.checkpoint.write import (
    checkpoints_in,
    newest_checkpoint,
    read_metadata,
    side_file,
    why_damaged,
    write_checkpoint,
)
from convnext_backbone.cli import run
from convnext_backbone.config import divide_model
from convnext_backbone.engine import ResumableBatchSampler, checkpoint_hook, hooks, launch
from convnext_backbone.engine.randomness import RandomStream
from convnext_backbone.engine.sampler import fetch_seeded, read_batches
from convnext_backbone.errors import Stopped, UserError

CONFIG = f"""
_base_ = '{ROOT}/configs/demo/classifier_shapes.py'
model = dict(backbone=dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=0.3))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=10, num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=40, val_interval=20)
optim_wrapper = dict(accumulative_counts=3)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4, max_keep_ckpts=3))
"""


def write_config(folder: Path, more: str = '') -> str:
    """Its name is part of the log's."""
    file = folder / f'{folder.name}.py'
    file.write_text(CONFIG + more)
    return str(file)


def arguments(config: str, shapes: Path, work_dir: Path, *options) -> list[str]:
    given = [config, '--data-root', f'{shapes}/classification', '--work-dir', str(work_dir)]
    return [*given, '--device', 'cpu', '--seed', '0', '--deterministic', *map(str, options)]


# Checkpoints on the disk


def content(size: int = 1000) -> dict:
    return dict(state_dict=dict(weight=torch.arange(size, dtype=torch.float32)))


def test_a_written_checkpoint_has_the_size_and_hash_that_other_programs_find(tmp_path):
    file = tmp_path / 'iter_1.pth'
    write_checkpoint(content(), file, epoch=0, iter=1)
    facts = json.loads(side_file(file).read_text())
    found = subprocess.run(
        ['sha256sum', str(file)], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert facts['sha256'] == found
    assert facts['size'] == file.stat().st_size
    assert facts['iter'] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['iter_1.pth', 'iter_1.pth.json']
    assert why_damaged(file) == ''


def truncated(whole: bytes, draw: random.Random) -> bytes:
    return whole[: draw.randrange(len(whole))]


def emptied(whole: bytes, draw: random.Random) -> bytes:
    return b''


def bit_flipped(whole: bytes, draw: random.Random, first: int = 0, number: int | None = None) -> bytes:
    """Flip a bit anywhere, or in ``number`` bytes from ``first`` on."""
    broken = bytearray(whole)
    broken[first + draw.randrange(number or len(whole))] ^= 1 << draw.randrange(8)
    return bytes(broken)


def bit_of_the_data_flipped(whole: bytes, draw: random.Random) -> bytes:
    data = content()['state_dict']['weight'].numpy().tobytes()
    return bit_flipped(whole, draw, whole.index(data), len(data))


def two_checkpoints(folder: Path) -> tuple[Path, Path]:
    """An older and a newer one."""
    for step in (1, 2):
        write_checkpoint(content(), folder / f'iter_{step}.pth', iter=step)
        time.sleep(0.01)
    return folder / 'iter_1.pth', folder / 'iter_2.pth'


def words_about_damage(damage, old: Path, new: Path) -> list[str]:
    """Damage the newer one in 20 ways; what is said of it, while the older one is taken."""
    draw, whole, words = random.Random(damage.__name__), new.read_bytes(), []
    assert newest_checkpoint(new.parent) == (new, [])
    for _ in range(20):
        new.write_bytes(damage(whole, draw))
        found, passed_over = newest_checkpoint(new.parent)
        assert found == old
        assert len(passed_over) == 1
        assert str(new) in passed_over[0]
        words += passed_over
    return words


@pytest.mark.parametrize(
    ('damage', 'word'), [(truncated, 'bytes'), (emptied, 'bytes'), (bit_flipped, 'SHA-256')]
)
def test_every_damage_is_found_and_the_checkpoint_before_is_taken(tmp_path, damage, word):
    found = words_about_damage(damage, *two_checkpoints(tmp_path))
    assert [words for words in found if word not in words] == []


@pytest.mark.parametrize('damage', [truncated, emptied, bit_of_the_data_flipped])
def test_without_its_side_file_damage_is_found_in_what_the_checksums_cover(tmp_path, damage):
    old, new = two_checkpoints(tmp_path)
    side_file(new).unlink()
    os.utime(new)
    words_about_damage(damage, old, new)


def write_again_and_again(file: Path) -> None:
    print('ready', flush=True)
    for number in range(10**6):
        write_checkpoint(dict(t=torch.full((300_000,), float(number % 50))), file, iter=1)


@pytest.mark.xdist_group('distributed')
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """The same name again and again, which is the hardest: there is no older one to fall back to."""
    draw = random.Random(0)
    for number in range(6):
        log = tmp_path / f'{number}.log'
        writer = begin(write_again_and_again, tmp_path / 'iter_1.pth', log=log)
        while not (log.is_file() and log.read_text()):
            assert writer.is_alive()
            time.sleep(0.01)
        time.sleep(0.2 + draw.uniform(0, 0.1))
        writer.kill()
        writer.join()
        assert log.read_text() == 'ready\n'
        file, passed_over = newest_checkpoint(tmp_path)
        assert file is not None
        assert passed_over == []
        tensor = torch.load(file)['t']
        assert len(tensor.unique()) == 1


def write_small_and_large(file: Path) -> None:
    """No file of this process may be larger than 100 kB."""
    write_checkpoint(dict(t=torch.ones(10)), file, iter=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        write_checkpoint(dict(t=torch.ones(100_000)), file, iter=1)
    except OSError as error:
        print('refused', error)


@pytest.mark.xdist_group('distributed')
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """A real refusal of the operating system."""
    folder = tmp_path / 'full'
    folder.mkdir()
    process = begin(write_small_and_large, folder / 'iter_1.pth', log=tmp_path / 'log')
    process.join()
    assert process.exitcode == 0
    assert 'refused' in (tmp_path / 'log').read_text()
    assert why_damaged(folder / 'iter_1.pth') == ''
    assert torch.load(folder / 'iter_1.pth')['t'].sum() == 10
    assert sorted(path.name for path in folder.iterdir()) == ['iter_1.pth', 'iter_1.pth.json']


# Random numbers and samplers


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_the_random_numbers_of_steps_notice_nothing_of_what_is_drawn_between():
    streams, found = [RandomStream(0, rank) for rank in (0, 0, 1)], [[], [], []]
    for step in range(4):
        for number, stream in enumerate(streams):
            with stream:
                found[number].append(draws())
            for _ in range(number * step):
                draws()
            if step == 1:  # as a checkpoint keeps it
                again = RandomStream(7)
                again.load_state_dict(torch.load(io_of(stream.state_dict()), weights_only=True))
                streams[number] = again
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2]))
    values = [value for draw in found[0] for value in draw]
    assert len(set(values)) == len(values)


def io_of(state: dict):
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


class Numbers(Dataset):
    """Items that say their index and three random numbers; only those in ``allowed`` may be read."""

    def __init__(self, size: int, allowed=None):
        self.size, self.allowed = size, allowed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> list[float]:
        assert self.allowed is None or index in self.allowed, f'{index} was read'
        return [index, *draws()]


def loader(sampler: ResumableBatchSampler, data: Numbers, workers: int = 0) -> DataLoader:
    data.__getitems__ = lambda batch: fetch_seeded(data, batch)
    return DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=list)


def batches(
    count: int, left_out: int = 0, workers: int = 0, sampler=InfiniteSampler, size: int = 10, **kwargs
):
    data = Numbers(size)
    batch_sampler = ResumableBatchSampler(sampler(data, seed=3), 4, endless=True, seed=5, **kwargs)
    batch_sampler.begin(left_out, left_out)
    return list(itertools.islice(loader(batch_sampler, data, workers), count))


def test_augmentations_do_not_depend_on_the_number_of_processes_or_on_a_resume():
    straight = batches(9)
    assert straight == batches(9, workers=2) == batches(9, workers=3)
    for start in (1, 4, 8):
        assert batches(9 - start, start) == straight[start:] == batches(9 - start, start, workers=2)
    numbers = [item[1] for batch in straight for item in batch]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(('drop_last', 'per_pass', 'images'), [(True, 2, 8), (False, 3, 10)])
def test_a_sampler_with_an_end_is_taken_up_in_the_right_pass(drop_last, per_pass, images):
    """Ten images in batches of four: three or two batches a pass, each pass in another order."""
    options = dict(sampler=lambda data, seed: DefaultSampler(data, seed=seed), drop_last=drop_last)
    straight = [[item[0] for item in batch] for batch in batches(12, **options)]
    one, other = straight[:per_pass], straight[per_pass : 2 * per_pass]
    assert len({index for batch in one for index in batch}) == images
    assert one != other
    for start in range(12):
        rest = [[item[0] for item in batch] for batch in batches(12 - start, start, **options)]
        assert rest == straight[start:]


def test_iteration_100000_reads_nothing_of_what_came_before():
    """Against mmengine's own stream of indices; the data raises if another image is touched."""
    size, batch, start = 118_287, 16, 100_000
    expected = list(itertools.islice(InfiniteSampler(range(size), seed=3), start * batch, start * batch + 32))
    data = Numbers(size, allowed=set(expected))
    sampler = ResumableBatchSampler(InfiniteSampler(data, seed=3), batch, endless=True)
    sampler.begin(start, start)
    found = list(itertools.islice(loader(sampler, data), 2))
    assert [item[0] for items in found for item in items] == expected


class Shapes(Numbers):
    """Every third is a portrait; as mmdet's batch sampler asks for it."""

    def get_data_info(self, index: int) -> dict:
        return dict(width=1, height=2) if index % 3 == 0 else dict(width=2, height=1)


@pytest.mark.parametrize(('kind', 'endless'), [(InfiniteSampler, True), (DefaultSampler, False)])
def test_batches_by_aspect_ratio_start_anew_whatever_was_left_unfinished(kind, endless):
    """mmdet's sampler keeps half-filled batches of a pass that was broken off."""
    import mmdet.datasets  # noqa: F401

    data = Shapes(16)
    sampler = kind(data, seed=3)
    inner = dict(type='mmdet.AspectRatioBatchSampler')
    batches = ResumableBatchSampler(sampler, 4, inner=inner, endless=endless)
    straight = [list(batch) for batch in itertools.islice(batches, 4)]
    assert all(len({index % 3 == 0 for index in batch}) == 1 for batch in straight[:3])
    for start in (2, 0, 3, 1):
        batches.begin(start, start)
        assert [list(batch) for batch in itertools.islice(batches, 4 - start)] == straight[start:]


def test_a_sampler_that_cannot_start_anew_is_known():
    data = Numbers(8)
    sources = SimpleNamespace(source2inds=dict(a=iter([1]), b=iter([2])))
    assert ResumableBatchSampler(InfiniteSampler(data, seed=1), 2, endless=True).restartable
    assert ResumableBatchSampler(DefaultSampler(data, seed=1), 2).restartable
    assert not ResumableBatchSampler(sources, 2).restartable


# Whole trainings


@pytest.fixture(scope='module')
def straight(shapes, tmp_path_factory) -> Path:
    """A training that nothing happened to: 22 steps, accumulated by threes, validated after 20."""
    folder = tmp_path_factory.mktemp('straight')
    tool('train').main(arguments(write_config(folder), shapes, folder / 'w', '--stop-at', 22))
    return folder / 'w'


def equal_to_straight(straight: Path, work_dir: Path) -> None:
    assert tool('verify_resume').compare(straight, work_dir, 22) == []


@pytest.mark.matrix
@pytest.mark.xdist_group('resume')
def test_a_training_stopped_twice_is_the_one_that_was_not(straight, shapes, tmp_path):
    """At step 7 in the middle of accumulated gradients, at step 20 before the validation that is due."""
    config = write_config(tmp_path)
    for stop in (7, 20, 22):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume', '--stop-at', stop))
        time.sleep(1)  # another log
    equal_to_straight(straight, tmp_path / 'w')
    rows = tool('verify_resume').scalars(tmp_path / 'w')
    assert [row['step'] for row in rows if 'top1' in row] == [20]


@pytest.mark.matrix
@pytest.mark.xdist_group('resume')
def test_what_follows_from_a_validation_is_taken_up(shapes, tmp_path, monkeypatch):
    """Early stopping counts at 20, after the checkpoint of 20 was written."""
    more = """
train_cfg.update(val_interval=4)
default_hooks['checkpoint']['save_best'] = 'top1'
custom_hooks = [dict(type='EarlyStoppingHook', monitor='top1', patience=9)]
"""
    config = write_config(tmp_path, more)
    tool('train').main(arguments(config, shapes, tmp_path / 'straight', '--stop-at', 22))
    original = checkpoint_hook.CheckpointHook.after_val_epoch

    def die(self, runner, metrics):
        original(self, runner, metrics)
        if runner.iter == 20:
            raise RuntimeError('killed after the validation')

    monkeypatch.setattr(checkpoint_hook.CheckpointHook, 'after_val_epoch', die)
    time.sleep(1)
    with pytest.raises(RuntimeError, match='killed'):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', '--stop-at', 22))
    monkeypatch.undo()
    time.sleep(1)
    tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume', '--stop-at', 22))
    equal_to_straight(tmp_path / 'straight', tmp_path / 'w')
    kept = torch.load(tmp_path / 'w/iter_22.pth', weights_only=False)
    assert kept['early_stopping']['wait_count'] >= 1
    best = [[file.name for file in (tmp_path / name).glob('best_*.pth')] for name in ('straight', 'w')]
    assert best[0] == best[1]
    assert len(best[0]) == 1


@pytest.mark.xdist_group('resume')
def test_a_stop_within_a_validation_keeps_final_weights_and_average_apart(shapes, tmp_path, monkeypatch):
    """In validation the model has the moving average; the checkpoint must not take it for the weights."""
    config = write_config(tmp_path, "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n")
    tool('train').main(arguments(config, shapes, tmp_path / 'straight', '--stop-at', 22))
    original = checkpoint_hook.CheckpointHook.after_val_iter

    def ask(self, runner, **kwargs):
        runner.stop_request.signal = 'SIGTERM'
        original(self, runner, **kwargs)

    monkeypatch.setattr(checkpoint_hook.CheckpointHook, 'after_val_iter', ask)
    more = ['--cfg-options', 'default_hooks.checkpoint.interval=100']
    time.sleep(1)
    with pytest.raises(Stopped, match=r'stopped after step 20 \(SIGTERM came\): .* from .*iter_20.pth'):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', *more))
    monkeypatch.undo()
    time.sleep(1)
    tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume', '--stop-at', 22))
    equal_to_straight(tmp_path / 'straight', tmp_path / 'w')


@pytest.mark.matrix
@pytest.mark.xdist_group('resume')
def test_sigterm_gives_a_checkpoint_and_status_75(straight, shapes, tmp_path):
    config, log = write_config(tmp_path), tmp_path / 'log'
    words = ['train', *arguments(config, shapes, tmp_path / 'w', '--stop-at', 22)]
    process = begin(convnext, *words, log=log)
    while not (log.is_file() and 'Iter(train) [ 5/40]' in log.read_text()):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75
    output = log.read_text()
    assert 'SIGTERM came' in output
    (stopped,) = re.findall(r'stopped after step (\d+)', output)
    assert read_metadata(tmp_path / f'w/iter_{stopped}.pth')['iter'] == int(stopped) < 22
    time.sleep(1)  # another log
    tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume', '--stop-at', 22))
    equal_to_straight(straight, tmp_path / 'w')


@pytest.mark.matrix
@pytest.mark.xdist_group('resume')
def test_a_killed_data_loader_process_is_replaced(straight, shapes, tmp_path, monkeypatch):
    """The results do not depend on the number of processes either: the untouched one had none."""
    config = write_config(tmp_path, 'train_dataloader.update(num_workers=2, persistent_workers=True)\n')
    killed, original = [], hooks.DataHook.after_train_iter
    before = set(multiprocessing.active_children())  # of trainings of other tests

    def kill_one(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if runner.iter == 6:
            worker, *_ = set(multiprocessing.active_children()) - before
            worker.kill()
            killed.append(worker.pid)

    monkeypatch.setattr(hooks.DataHook, 'after_train_iter', kill_one)
    tool('train').main(arguments(config, shapes, tmp_path / 'w', '--stop-at', 22))
    assert killed
    assert re.search(r'a data loader process died .*new ones read on at batch', log_of(tmp_path / 'w'))
    equal_to_straight(straight, tmp_path / 'w')


@pytest.mark.xdist_group('resume')
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(straight, shapes, tmp_path):
    config = write_config(tmp_path)
    tool('train').main(arguments(config, shapes, tmp_path / 'w', '--stop-at', 13))
    newest = checkpoints_in(tmp_path / 'w')
    assert [file.name for file in newest] == ['iter_13.pth', 'iter_12.pth', 'iter_8.pth']
    os.truncate(newest[0], 1000)
    time.sleep(1)
    with pytest.raises(UserError, match='is damaged: it has 1000 bytes'):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume', newest[0]))
    tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume', '--stop-at', 22))
    log = log_of(tmp_path / 'w')
    assert 'iter_13.pth is passed over: it has 1000 bytes' in log
    assert 'resumed epoch: 0, iter: 12' in log
    equal_to_straight(straight, tmp_path / 'w')
    for file in checkpoints_in(tmp_path / 'w'):
        os.truncate(file, 10)
    with pytest.raises(UserError, match='no checkpoint in .* is whole'):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', '--resume'))


@pytest.mark.parametrize(
    ('error', 'dies'),
    [
        (ConnectionResetError(104, 'Connection reset by peer'), True),
        (EOFError(), True),
        (RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly'), True),
        (
            ConnectionResetError('Caught ConnectionResetError in DataLoader worker process 0.\nOriginal'),
            False,
        ),
        (RuntimeError('of a dataset'), False),
    ],
)
def test_a_data_loader_process_that_dies_while_it_hands_a_batch_over_is_replaced(error, dies):
    """The connection may break before torch sees the process dead; what a dataset raises is no death."""
    sampler = ResumableBatchSampler(DefaultSampler(range(8), shuffle=False), 2)

    class Loader:
        batch_sampler, num_workers, errors = sampler, 1, [error]

        def __iter__(self):
            for number, batch in enumerate(self.batch_sampler):
                if number == 1 and self.errors:
                    raise self.errors.pop()
                yield list(batch)

    batches = read_batches(Loader(), 0, 0, 4, logging.getLogger('test'))
    if dies:
        assert list(batches) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    else:
        with pytest.raises(type(error)):
            list(batches)


@pytest.mark.xdist_group('resume')
def test_a_folder_with_a_training_is_not_overwritten_and_not_shared(straight, shapes, tmp_path):
    config = write_config(tmp_path)
    with pytest.raises(UserError, match='has checkpoints of a training, which this one would replace'):
        tool('train').main(arguments(config, shapes, straight))
    with (
        launch.alone_in(tmp_path),
        pytest.raises(UserError, match='another training is running'),
        launch.alone_in(tmp_path, seconds=0.1),
    ):
        pass


@pytest.mark.xdist_group('resume')
@pytest.mark.parametrize(
    ('on_error', 'last', 'newest', 'first_is_kept'),
    [('continue', 'iter_22.pth', 'iter_20.pth', False), ('stop', 'iter_8.pth', 'iter_4.pth', True)],
    ids=['continue', 'stop'],
)
def test_a_checkpoint_that_cannot_be_written(
    straight, shapes, tmp_path, monkeypatch, on_error, last, newest, first_is_kept
):
    """The second and the last one: the training goes on, keeps the first, and does not end as a success."""
    original, calls = write_checkpoint, []

    def refuse(content, file, **facts):
        calls.append(file.name)
        if file.name in ('iter_8.pth', 'iter_22.pth'):
            raise OSError(28, 'No space left on device')
        original(content, file, **facts)

    monkeypatch.setattr('convnext_backbone.engine.runner.write_checkpoint', refuse)
    more = f"default_hooks['checkpoint']['on_error'] = '{on_error}'\n"
    config = write_config(tmp_path, more)
    with pytest.raises(UserError, match=r'could not be written to .*No space left.*make room there'):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', '--stop-at', 22))
    assert calls[-1] == last
    assert (tmp_path / 'w/iter_4.pth').is_file() == first_is_kept
    assert 'iter_8.pth could not be written' in log_of(tmp_path / 'w')
    file, _ = newest_checkpoint(tmp_path / 'w')
    assert file.name == newest


@pytest.mark.xdist_group('resume')
def test_a_training_whose_last_checkpoint_could_not_be_written_has_failed(shapes, tmp_path, monkeypatch):
    def refuse(content, file, **facts):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('convnext_backbone.engine.runner.write_checkpoint', refuse)
    config = write_config(tmp_path, 'train_cfg.update(max_iters=4)\nparam_scheduler = []\n')
    with pytest.raises(
        UserError, match='iter_4.pth could not be written .* the last whole checkpoint is none'
    ):
        tool('train').main(arguments(config, shapes, tmp_path / 'w'))


@pytest.mark.xdist_group('resume')
def test_updates_that_are_not_finite_are_left_out_and_then_stop_the_training(shapes, tmp_path, monkeypatch):
    """Images with infinite pixels; a layer as the cause is in the next test."""
    from convnext_backbone.classification import ImageDataset

    original, broken = ImageDataset.__getitem__, []

    def item(self, index):
        found = original(self, index)
        if self._images.transform.transforms and index in broken:
            found['inputs'] = torch.full_like(found['inputs'], float('inf'))
        return found

    monkeypatch.setattr(ImageDataset, '__getitem__', item)
    more = 'optim_wrapper.update(accumulative_counts=1)\n'
    config = write_config(tmp_path, more)
    weights = []
    original_check = hooks.NonFiniteGuardHook.after_train_iter

    def look(self, runner, *args, **kwargs):
        weights.append(runner.model.head.weight.detach().clone())
        if runner.iter == 4:
            broken.extend(range(200))
        original_check(self, runner, *args, **kwargs)

    monkeypatch.setattr(hooks.NonFiniteGuardHook, 'after_train_iter', look)
    with pytest.raises(UserError) as error:
        tool('train').main(arguments(config, shapes, tmp_path / 'w'))
    words = str(error.value)
    assert words.startswith('3 updates in a row were not finite and were left out; rank 0, step 8: loss')
    assert 'loss not finite; images ' in words
    assert '; the images themselves are not finite' in words
    assert len(re.findall(r'\.png', words)) == 4
    assert f'{shapes}/classification/train' in words
    assert 'The last checkpoint is' in words
    assert 'iter_4.pth' in words
    assert len(weights) == 8
    assert torch.equal(weights[4], weights[7])
    assert not torch.equal(weights[3], weights[4])
    assert log_of(tmp_path / 'w').count('this update is left out') == 3


@pytest.mark.parametrize('named', [True, False])
def test_the_layer_that_makes_infinity_is_named(named):
    class Model(torch.nn.Sequential):
        def forward(self, x, mode):
            return super().forward(x)

    model = Model(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    model.data_preprocessor = lambda data, training: data
    with torch.no_grad():
        model[1][0].weight.fill_(3e38)
        model[0].weight.fill_(10)
    hook = hooks.NonFiniteGuardHook()
    hook._buffers = []
    data = dict(x=torch.ones(1, 2)) if named else [torch.ones(1, 2)]
    found = hook._layer(SimpleNamespace(model=model), data, RandomStream(0).states)
    assert found == 'first layer with a non-finite output: 1.0 (from finite input)'
    with torch.no_grad():
        model[0].bias[0] = float('nan')
    found = hook._layer(SimpleNamespace(model=model), data, RandomStream(0).states)
    assert found == 'the weight 0.bias itself is not finite'


@pytest.mark.slow
@pytest.mark.xdist_group('distributed')
def test_a_bar_with_the_time_left_is_shown_on_a_terminal_and_not_in_a_file(shapes, tmp_path):
    config = write_config(tmp_path)
    line = [sys.executable, 'tools/train.py', *arguments(config, shapes, tmp_path / 'w', '--stop-at', 6)]
    terminal = f"""
import os, pty, sys
status = pty.spawn(['sh', '-c', 'stty cols 120 rows 40; exec "$0" "$@"', *{line!r}])
sys.exit(os.waitstatus_to_exitcode(status))
"""
    result = command('-c', terminal)
    assert result.returncode == 0, result.stdout[-2000:]
    assert re.search(r'training: +\d+%\|.*6/40 \[\d\d:\d\d<\d\d:\d\d.*loss=', result.stdout)
    log = log_of(tmp_path / 'w')
    assert '%|' not in log
    assert 'Iter(train) [ 6/40]' in log
    other = begin(
        convnext,
        *('train', *arguments(config, shapes, tmp_path / 'x', '--stop-at', 2)),
        log=tmp_path / 'log',
    )
    other.join()
    assert other.exitcode == 0
    assert 'Iter(train) [ 2/40]' in (tmp_path / 'log').read_text()
    assert '%|' not in (tmp_path / 'log').read_text()


# Several processes


def distributed(config: str, shapes: Path, work_dir: Path, *options, **environment):
    log = work_dir.with_name(f'{work_dir.name}.{len(options)}.log')
    return train_in_processes(arguments(config, shapes, work_dir, *options), log, **environment)


def by_torchrun(config: str, shapes: Path, work_dir: Path, *options, **environment):
    given = arguments(config, shapes, work_dir, *options)
    port = 20000 + os.getpid() % 9000 + (zlib_of(str(work_dir)) % 1000)
    return subprocess.run(
        ['tools/dist_train.sh', given[0], '2', *given[1:]],
        env={
            **os.environ,
            'MASTER_PORT': str(port),
            'OMP_NUM_THREADS': '1',
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            **environment,
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def zlib_of(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


@pytest.mark.xdist_group('distributed')
def test_processes_with_different_configs_end_in_words(shapes, tmp_path):
    more = "import os\noptim_wrapper.update(optimizer=dict(type='AdamW', lr=0.1 + int(os.environ['RANK'])))\n"
    result = distributed(write_config(tmp_path, more), shapes, tmp_path / 'w')
    assert result.returncode != 0
    assert re.search(
        r'error: rank 1 \(\S+\) has another config than rank 0 \(\S+\): '
        'optim_wrapper.optimizer.lr is 1.1, there 0.1',
        result.stdout,
    ), result.stdout[-3000:]


def test_every_file_of_the_package_counts_for_the_comparison_of_code(tmp_path):
    """Whatever git has in the package, the C++ source too; what Python puts beside it does not."""
    package = Path(launch.__file__).parents[1]
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=package, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('no git repository here')
    names = list(filter(None, listed.stdout.split('\0')))
    assert any(name.endswith('.cpp') for name in names)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((package / name).read_bytes())
    hashes = {launch.code_of(tmp_path)}
    (tmp_path / '__pycache__').mkdir()
    for left in ('__pycache__/cli.cpython-311.pyc', '.cli.py.swp'):
        (tmp_path / left).write_bytes(b'x')
    assert {launch.code_of(tmp_path)} == hashes
    assert launch.environment()['code'] == launch.code_of(package)
    for name in names:
        with (tmp_path / name).open('ab') as stream:
            stream.write(b'\n')
        hashes.add(launch.code_of(tmp_path))
    assert len(hashes) == 1 + len(names)


@pytest.mark.xdist_group('distributed')
def test_a_process_that_hangs_ends_the_training_with_the_stack_of_each(shapes, tmp_path):
    """Rank 1 sleeps in its fifth step; rank 0 waits for its gradients. Both say where."""
    more = """
custom_imports = dict(imports=['hanging'])
custom_hooks = [dict(type='SleepHook')]
default_hooks['hang'] = dict(timeout=6)
"""
    (tmp_path / 'hanging.py').write_text(
        'import time\nfrom mmengine.dist import get_rank\nfrom mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n\n\n@HOOKS.register_module()\nclass SleepHook(Hook):\n'
        '    def before_train_iter(self, runner, batch_idx, data_batch=None):\n'
        '        if runner.iter == 4 and get_rank() == 1:\n            time.sleep(1000)\n'
    )
    config = write_config(tmp_path, more)
    result = distributed(config, shapes, tmp_path / 'w', PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert result.returncode != 0, result.stdout[-3000:]
    assert 'error: no step was finished for' in result.stdout, result.stdout[-3000:]
    stacks = [(tmp_path / f'w/stacks_rank{rank}.txt').read_text() for rank in (0, 1)]
    assert 'before_train_iter' in stacks[1]
    assert 'hanging.py' in stacks[1]
    # for the gradients of the other one, or for its answer whether to stop, which is asked by time
    assert 'train_step' in stacks[0] or 'in agreed' in stacks[0]
    assert 'hanging.py' not in stacks[0]


@pytest.mark.xdist_group('distributed')
def test_torchrun_starts_a_killed_process_again_and_the_result_is_the_same(shapes, tmp_path):
    """Rank 1 kills itself once, in step 10."""
    (tmp_path / 'killing.py').write_text(
        'import os\nfrom mmengine.dist import get_rank\nfrom mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n\n\n@HOOKS.register_module()\nclass KillHook(Hook):\n'
        '    def before_train_iter(self, runner, batch_idx, data_batch=None):\n'
        "        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        '        if first and runner.iter == 9 and get_rank() == 1:\n'
        '            os.kill(os.getpid(), 9)\n'
    )
    config = write_config(tmp_path)
    straight = distributed(config, shapes, tmp_path / 'straight', '--stop-at', '22')
    assert straight.returncode == 0, straight.stdout[-3000:]
    killed = write_config(
        tmp_path, "custom_imports = dict(imports=['killing'])\ncustom_hooks = [dict(type='KillHook')]\n"
    )
    path = dict(PYTHONPATH=f'{tmp_path}:{ROOT}')
    result = by_torchrun(killed, shapes, tmp_path / 'w', '--stop-at', '22', '--max-restarts', '1', **path)
    assert result.returncode == 0, result.stdout[-3000:]
    assert 'resumed epoch: 0, iter: 8' in result.stdout
    equal_to_straight(tmp_path / 'straight', tmp_path / 'w')


@pytest.fixture(scope='module')
def whole_and_divided(shapes, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of nine steps of the same training, by DDP and by FSDP."""
    folder = tmp_path_factory.mktemp('divided')
    config = write_config(folder)
    for name, options in dict(ddp=[], fsdp=['--fsdp']).items():
        result = distributed(config, shapes, folder / name, '--stop-at', '9', *options)
        assert result.returncode == 0, result.stdout[-3000:]
    return folder / 'ddp', folder / 'fsdp'


def contents_at(step: int, *folders: Path) -> list[dict]:
    return [torch.load(folder / f'iter_{step}.pth', weights_only=False) for folder in folders]


@pytest.mark.xdist_group('distributed')
def test_a_model_divided_among_processes_trains_as_a_whole_one(whole_and_divided):
    """FSDP against DDP: the same weights, the same state of the optimizer."""
    one, other = contents_at(9, *whole_and_divided)
    for key, value in one['state_dict'].items():
        torch.testing.assert_close(other['state_dict'][key], value, rtol=1e-4, atol=1e-5)
    for number, state in one['optimizer']['state'].items():
        for key, value in state.items():
            torch.testing.assert_close(other['optimizer']['state'][number][key], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.xdist_group('distributed')
def test_a_divided_training_is_resumed_by_a_whole_one_and_the_other_way_round(
    whole_and_divided, shapes, tmp_path
):
    config = write_config(tmp_path)
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in whole_and_divided]
    for folder, options in zip(folders, (['--fsdp'], [])):
        result = distributed(config, shapes, folder, '--stop-at', '20', '--resume', *options)
        assert result.returncode == 0, result.stdout[-3000:]
        assert 'resumed epoch: 0, iter: 9' in result.stdout
    one, other = contents_at(20, *folders)
    for key, value in one['state_dict'].items():
        torch.testing.assert_close(other['state_dict'][key], value, rtol=1e-3, atol=1e-4)


def test_blocks_of_every_backbone_are_known():
    """As many as the papers say: 16 in ResNet-50, 18 in ConvNeXt-T and the isotropic ones, 12 in Swin-T."""
    from mmdet.models.backbones import HRNet, ResNet, SwinTransformer
    from torchvision.models import mobilenet_v2, resnet50

    branches = dict(num_branches=1, block='BOTTLENECK', num_blocks=(4,), num_channels=(64,))
    stages = dict(stage1=dict(num_modules=1, **branches))
    for stage in (2, 3, 4):
        widths = tuple(18 << i for i in range(stage))
        branches = dict(num_branches=stage, block='BASIC', num_blocks=(4,) * stage, num_channels=widths)
        stages[f'stage{stage}'] = dict(num_modules=1, **branches)
    swin = SwinTransformer()  # reads numbers while it is built
    with torch.device('meta'):
        found = {
            (16, 'RoadmapBlock'): Roadmap('resnet50', 'resnet'),
            (18, 'RoadmapBlock'): Roadmap('resnet50', 'separate_downsampling'),
            (18, 'Block '): IsotropicConvNeXt('small'),
            (18, 'Block  '): ConvNeXt('tiny'),
            (16, 'Bottleneck'): resnet50(),
            (16, 'Bottleneck '): ResNet(50),
            (17, 'InvertedResidual'): mobilenet_v2(),
            (12, 'SwinBlock'): swin,
            (4 + 4 * (2 + 3 + 4), 'Bottleneck or BasicBlock'): HRNet(stages),
        }
        for (number, kinds), backbone in found.items():
            head = torch.nn.ModuleList([resnet50().layer1[0]])  # not a backbone's
            within = torch.nn.ModuleDict(dict(backbone=backbone))
            blocks = launch.blocks_of(torch.nn.ModuleDict(dict(backbone=within, head=head)))
            assert len({id(block) for block in blocks}) == len(blocks) == number, kinds
            assert {type(block).__name__ for block in blocks} == set(kinds.strip().split(' or '))


SHARDED = """
import sys, torch
from collections import OrderedDict
from pathlib import Path
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from torchvision.models import resnet18
from convnext_backbone.backbones import IsotropicConvNeXt, Roadmap
from convnext_backbone.engine import launch

def train(rank, store):
    distributed.init_process_group('gloo', rank=rank, world_size=2, store=distributed.FileStore(store, 2))
    for make in (
        lambda: IsotropicConvNeXt(depth=3, dim=16),
        lambda: Roadmap('resnet50', 'resnet', out_indices=(1,)),
        lambda: Roadmap('resnet50', 'separate_downsampling', out_indices=(1,)),
        lambda: nn.Sequential(OrderedDict(backbone=resnet18())),
    ):
        torch.manual_seed(0)
        whole = make()
        part = make()
        part.load_state_dict(whole.state_dict())
        launch.shard(part, 'cpu')
        images = torch.randn(2, 3, 64, 64)
        for model in (whole, part):
            sum(map.square().mean() for map in model(images)).backward()
        for (name, one), other in zip(whole.named_parameters(), part.parameters()):
            torch.testing.assert_close(other.grad.full_tensor(), one.grad, msg=name)
        units = sum(isinstance(module, FSDPModule) for module in part.modules())
        Path(f'{store}.{rank}').open('a').write(f'{units}\\n')

if __name__ == '__main__':
    torch.multiprocessing.spawn(train, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
@pytest.mark.xdist_group('distributed')
def test_backbones_are_divided_block_by_block(tmp_path):
    """The gradients are those of the whole network; a unit more than the blocks: what is around them."""
    (tmp_path / 'sharded.py').write_text(SHARDED)
    result = command(tmp_path / 'sharded.py', tmp_path / 'store', PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stdout[-3000:]
    for rank in (0, 1):
        units = (tmp_path / f'store.{rank}').read_text().split()
        assert units == ['4', '8', '7', '9']  # of 3, 3 + 4, 3 + 3 and 2 + 2 + 2 + 2 blocks


def test_fsdp_needs_several_processes_and_no_moving_average(shapes, tmp_path):
    config = write_config(tmp_path)
    with pytest.raises(UserError, match='--fsdp divides the model among several processes'):
        tool('train').main(arguments(config, shapes, tmp_path / 'w', '--fsdp'))
    for name in ('EMAHook', 'mmengine.EMAHook'):
        with pytest.raises(UserError, match='keeps a moving average of the weights'):
            divide_model(Config(dict(custom_hooks=[dict(type=name)])), 'pytorch')


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--nnodes', '4:x'], '--nnodes is a number of machines'),
        (['--max-restarts', 'often'], '--max-restarts is a number'),
        (['--nnodes'], '--nnodes needs a value'),
    ],
)
def test_dist_train_says_what_is_wrong_with_its_own_options(options, words):
    result = subprocess.run(
        ['tools/dist_train.sh', 'c.py', '2', *options], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert f'error: {words}' in result.stderr


# The tool that a user runs, on all three tasks


@pytest.mark.parametrize(
    ('config', 'data', 'options'),
    [
        pytest.param('classifier', 'classification', ['--workers', '2'], marks=pytest.mark.slow),
        pytest.param('upernet', '.', ['--processes', '2'], marks=pytest.mark.slow),
        pytest.param('mask_rcnn', '.', ['--signal', 'TERM'], marks=pytest.mark.slow),
    ],
)
def test_verify_resume(config, data, options, shapes, tmp_path):
    small = ['train_dataloader.batch_size=2', 'train_cfg.val_interval=4']
    result = command(
        *(
            '-m',
            'tools.dev.verify_resume',
            f'configs/demo/{config}_shapes.py',
            '--steps',
            '6',
            '--every',
            '2',
            *options,
        ),
        *(
            '--out',
            tmp_path,
            '--',
            '--data-root',
            shapes / data,
            '--pretrained',
            'none',
            '--cfg-options',
            *small,
        ),
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert 'bit-identical' in last_line(result), result.stdout[-3000:]


def test_verify_resume_counts_no_kill_that_came_after_the_end(tmp_path, monkeypatch):
    verify = tool('verify_resume')
    monkeypatch.setattr(verify, 'done', lambda work_dir: time.sleep(0.5) or 9)
    for seconds, killed in ((0.1, False), (100, True)):
        process = subprocess.Popen(['sleep', str(seconds)], start_new_session=True)
        assert verify.kill_after(process, tmp_path, 5, signal.SIGTERM) is killed


def test_verify_resume_finds_a_single_bit(tmp_path):
    verify = tool('verify_resume')
    a = dict(state_dict=dict(w=torch.ones(3)), random=[dict(torch=torch.arange(4))], x=[1, dict(y=2.0)])
    b = torch.load(io_of(a))
    assert verify.differences(a, b) == []
    b['state_dict']['w'][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    b['x'][1]['y'] = 3.0
    del b['random'][0]['torch']
    assert verify.differences(a, b) == ['.state_dict.w', '.random.0.torch', '.x.1.y']


@pytest.fixture
def torture(monkeypatch):
    """The campaign's module, with a second of patience."""
    monkeypatch.syspath_prepend(ROOT / 'tools')
    module = tool('torture')
    monkeypatch.setattr(module, 'TIMEOUT', 1)
    return module


def job_of(torture, folder: Path, script: str):
    """A job whose training is a shell script, with checkpoints of the last step and of one before."""
    job = torture.Job(folder, None, folder / 'data', 1, random.Random(0))
    job.work_dir.mkdir()
    for step in (torture.STEPS - 4, torture.STEPS):
        write_checkpoint(content(), job.work_dir / f'iter_{step}.pth', iter=step)
    job.process = shell(script)
    return job


def shell(script: str) -> psutil.Process:
    """A child that nothing but psutil waits for."""
    return psutil.Process(os.posix_spawnp('sh', ['sh', '-c', script], os.environ))


def test_a_training_that_is_over_before_the_fault_is_not_struck_nor_touched(torture, tmp_path):
    """It ended regularly between the campaign's look at it and the fault; its checkpoint is the result."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, fault in (torture.FAULTS | torture.FAULTS_OF_SEVERAL).items():
        job = job_of(torture, tmp_path / name, 'exit 0')
        while job.process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        before = {file: file.read_bytes() for file in job.work_dir.iterdir()}
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, unlimited[1]))  # the disk is full soon
        try:
            struck = fault(job)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert not struck, name
        assert job.ended() == 0, name
        assert {file: file.read_bytes() for file in job.work_dir.iterdir()} == before, name


def test_a_hanging_data_loader_strikes_only_what_still_needs_it(torture, tmp_path):
    """A training may have read what it needs up to its last step; it ends itself, or regularly, or not."""
    training = 'import os, subprocess, time; child = subprocess.Popen(["sleep", "100"]); '
    ends = {
        name: f'time.sleep(0.5); child.kill(); os._exit({status})'
        for name, status in {'regularly': 0, 'by itself': 1}.items()
    }
    struck = {}
    for name, end in dict(**ends, never='time.sleep(100)').items():
        job = job_of(torture, tmp_path / name, f"exec {sys.executable} -c '{training}{end}'")
        while not job.workers():
            time.sleep(0.01)
        if name == 'never':
            with pytest.raises(UserError, match='whose data loader hangs did not end itself'):
                torture.worker_hangs(job)
            job.kill()
        else:
            struck[name] = torture.worker_hangs(job)
    assert struck == {'regularly': False, 'by itself': True}


def test_a_rank_that_hangs_after_the_last_step_is_let_go(torture, tmp_path):
    """The others wait for it with nobody to watch them any more."""
    job = job_of(torture, tmp_path / 'over', 'sleep 0.5; exit 0')
    while not job.workers():
        time.sleep(0.01)
    assert not torture.rank_hangs(job)
    assert job.ended(10) == 0


def test_sigterm_after_the_last_step_loses_nothing(torture, tmp_path, monkeypatch):
    """Nobody waits for the signal any more: it ends the process, whose training is done."""
    fates = {}
    for name in ('done', 'not done'):
        scripts = iter(['exec sleep 100', 'exit 0'])
        monkeypatch.setattr(torture, 'mounted', lambda folder: False)
        monkeypatch.setattr(torture.Job, 'wait_until_training', lambda job: True)
        job = job_of(torture, tmp_path / name, 'exit 0')
        if name == 'not done':
            (job.work_dir / f'iter_{torture.STEPS}.pth').unlink()

        def start(job=job, scripts=scripts):
            job.process = shell(next(scripts))

        monkeypatch.setattr(job, 'start', start)
        struck, fates[name] = torture.suffer(job, ['asked to stop'])
        assert not +struck
    assert fates == {'done': 'survived', 'not done': 'lost (status -15)'}


def campaign(*words: str) -> None:
    """Be ``make torture``, in a process of its own."""
    run(lambda: tool('torture').main(list(words)))


@pytest.mark.xdist_group('distributed')
@pytest.mark.parametrize(
    ('kills', 'seed'), [('4', '8'), pytest.param('6', '3', marks=pytest.mark.slow)], ids=['four', 'six']
)
def test_a_short_campaign_of_faults(kills, seed, tmp_path):
    """Which kinds of faults come depends on the seed: in the longer one there are data loaders that hang."""
    log = tmp_path / 'log'
    process = begin(campaign, '--kills', kills, '--seed', seed, '--out', str(tmp_path / 't'), log=log)
    process.join(300)
    said = log.read_text()
    assert process.exitcode == 0, said[-3000:]
    rows = [line.split() for line in said.splitlines()]
    assert rows[-1][:2] == [kills, 'faults']
    assert sum(int(row[-3]) for row in rows[-10:-1] if row) >= 2
