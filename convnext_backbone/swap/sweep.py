"""Swaps every config that mmdet or mmseg installs, and writes a table of what came of each."""

import collections
import concurrent.futures as futures
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import mmengine
from tqdm import tqdm

from ..config import task_of
from ..config.foreign import OURS
from ..config.keys import walk
from ..errors import UserError, message
from ..measure import try_training
from ..registry import type_name
from .plan import Plan, Refused, plan_swap
from .proof import prove
from .source import Source, read_source, shipped_configs
from .text import config_text

INSTALLED = f'{Path(mmengine.__file__).parents[1]}{os.sep}'  # folder of all packages
SECONDS = 240  # for one config
AT_ONCE = 40  # configs of a process
OUTCOMES = ('swapped', 'unproven', 'refused', 'failed', 'unreadable')


def swapped(source: Source, arch: str, weights: str | None, recipe: str, proof: bool):
    """Return the plan of a swap and the training step that proves it, ``None`` without proof.

    Maps that nothing reads are found by the proof; the plan that is returned does not emit them.

    Raises:
        UserError: as :func:`plan_swap` and :func:`prove` do.
    """
    plan = plan_swap(source, arch, weights, recipe)
    if not proof:
        return plan, None
    found = prove(plan)
    if found.unused:
        plan = plan_swap(source, arch, weights, recipe, found.unused)
        found = prove(plan)
    for line in found.warnings:
        plan.notes.append(f'warning: {line}')
    return plan, found.trial


def sweep(packages: list[str], report: Path, arch: str, recipe: str) -> list[dict]:
    """Swap and prove every config of ``packages``, and write the table.

    Rows are kept beside the report in a file that ends in ``.jsonl``; what is in there is not done again.

    Raises:
        UserError: a package is not installed, or the report cannot be written.
    """
    rows_file = report.with_suffix('.jsonl')
    names = [f'{package}::{name}' for package in packages for name in shipped_configs(package)]
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        known = rows_file.read_text().splitlines() if rows_file.exists() else []
        rows = {row['config']: row for row in map(json.loads, known) if row.get('arch') == arch}
    except (OSError, ValueError) as error:
        raise UserError(f'{rows_file}: {error}; remove it to begin anew') from error
    left = [name for name in names if name not in rows]
    with rows_file.open('a') as file, tqdm(total=len(names), initial=len(names) - len(left)) as bar:
        for row in _rows(left, arch, recipe):
            rows[row['config']] = row
            file.write(json.dumps(row) + '\n')
            file.flush()
            bar.update()
    done = [rows[name] for name in names if name in rows]
    report.write_text(report_text(done, arch))
    counts = collections.Counter(row['outcome'] for row in done)
    print(', '.join(f'{counts[outcome]} {outcome}' for outcome in OUTCOMES) + f'; written: {report}')
    return done


def _rows(names: list[str], arch: str, recipe: str) -> Iterator[dict]:
    """Yield a row for each config, computed by as many processes as there are processors.

    They are new ones after every few configs, since what is built stays in their memory.
    """
    workers = max(1, os.cpu_count() or 1)
    for first in range(0, len(names), workers * AT_ONCE):
        left = set(names[first : first + workers * AT_ONCE])
        for row in _computed(sorted(left), arch, recipe, workers):
            left.discard(row['config'])
            yield row
        for name in sorted(left):  # a process ended: each by itself tells which
            yield next(_computed([name], arch, recipe, 1), _row(name, arch, 'failed', 'the process ended'))


def _computed(names: list[str], arch: str, recipe: str, workers: int) -> Iterator[dict]:
    """Yield the rows of configs until all are there or a process has ended."""
    context = multiprocessing.get_context('spawn')
    with futures.ProcessPoolExecutor(workers, context, _prepare) as pool:
        jobs = [pool.submit(row_of, name, arch, recipe) for name in names]
        try:
            for job in futures.as_completed(jobs):
                yield job.result()
        except futures.process.BrokenProcessPool:
            return


def _prepare() -> None:
    import torch

    torch.set_num_threads(1)


def _row(name: str, arch: str, outcome: str, reason: str = '', **more) -> dict:
    reason = ' '.join(reason.replace(INSTALLED, '').split())  # where packages lie is of this machine
    return dict(config=name, arch=arch, outcome=outcome, reason=reason[:400], **more)


def row_of(name: str, arch: str, recipe: str) -> dict:
    """Return what came of one config."""
    began = time.time()

    def ring(*_):
        raise TimeoutError(f'took more than {SECONDS} s')

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        row = _outcome(name, arch, recipe)
    finally:
        signal.alarm(0)
    return dict(row, seconds=round(time.time() - began, 1))


def _outcome(name: str, arch: str, recipe: str) -> dict:
    try:
        source = read_source(name)
    except Exception as error:
        return _row(name, arch, 'unreadable', message(error))
    kinds = kinds_of(source)
    try:
        plan, _ = swapped(source, arch, None, recipe, proof=True)
        lines = config_text(source, plan, arch, '.').count('\n')
        return _row(name, arch, 'swapped', lines=lines, backbones=_chosen(plan), **kinds)
    except Refused as error:
        return _row(name, arch, 'refused', message(error), **kinds)
    except Exception as error:
        reason = f'{type(error).__name__}: {message(error)}'
        original = original_error(source)
        if original:
            return _row(
                name,
                arch,
                'unproven',
                f'the original cannot be trained a step here, either: {original}',
                **kinds,
            )
        return _row(name, arch, 'failed', reason, **kinds)


def original_error(source: Source) -> str:
    """Return why the original cannot be trained a step on made-up data; empty if it can."""
    try:
        try_training(source.cfg)
    except Exception as error:
        return message(error)
    return ''


def kinds_of(source: Source) -> dict:
    """Return what a config is made of: task, model, backbone, neck and head by their types."""
    model = source.cfg.to_dict()['model']
    inner = model.get('detector') or model
    neck, head = inner.get('neck'), None
    for key in ('bbox_head', 'roi_head', 'panoptic_head', 'decode_head', 'mask_head', 'rpn_head'):
        head = head or inner.get(key)
    named = [
        '+'.join(
            type_name(part).rpartition('.')[2] for part in (value if isinstance(value, list) else [value])
        )
        for value in (model, inner.get('backbone'), neck, head)
        if value
    ]
    found = dict(zip(('model', 'backbone'), named), task=task_of(inner))
    return dict(found, neck=named[2] if neck else '', head=named[-1] if head else '')


def _chosen(plan: Plan) -> list:
    found = []
    for place, node in walk(plan.cfg.model, 'model'):
        if type_name(node) == OURS:
            found.append([place, list(node.get('out_indices', (0, 1, 2, 3))), node.get('output_stride', 32)])
    return found


def report_text(rows: list[dict], arch: str) -> str:
    """Return the report as Markdown: counts, counts by kind, and one row for each config."""
    counts = collections.Counter(row['outcome'] for row in rows)
    lines = [row['lines'] for row in rows if 'lines' in row]
    seconds = sum(row.get('seconds', 0) for row in rows)
    written = ''
    if lines:
        median = statistics.median(lines)
        written = f'Lines of what is written: median {median:g}, at most {max(lines)}. '
    text = [
        '# Every config of mmdet and mmseg, swapped',
        '',
        f'Written by `convnext swap --all mmdet mmseg --report docs/swap.md`, arch {arch}. A swapped config '
        'was built and trained one step on made-up data: all losses and gradients finite, a gradient for '
        'every parameter of the backbone, strides of anchors and regions those of the maps.',
        '',
        f'{len(rows)} configs: {", ".join(f"{counts[o]} {o}" for o in OUTCOMES)}. {written}'
        f'{seconds / 3600:.1f} hours of one core.',
        '',
        '| task | backbone | neck | swapped | unproven | refused | failed |',
        '|---|---|---|---|---|---|---|',
    ]
    groups = collections.defaultdict(collections.Counter)
    for row in rows:
        if 'task' in row:
            groups[row['task'], row.get('backbone', ''), row.get('neck', '')][row['outcome']] += 1
    for kind, found in sorted(groups.items(), key=lambda item: -sum(item[1].values())):
        numbers = [str(found[outcome]) for outcome in OUTCOMES[:-1]]
        text.append(f'| {" | ".join([*kind, *numbers])} |')
    text += ['', '## Why not', '', '| configs | reason |', '|---|---|']
    reasons = collections.Counter(row['reason'] for row in rows if row['reason'])
    text += [f'| {number} | {reason.replace("|", "/")} |' for reason, number in reasons.most_common()]
    text += ['', '## One by one', '', '| config | outcome | maps | lines |', '|---|---|---|---|']
    for row in rows:
        maps = '; '.join(f'{indices} stride {stride}' for _, indices, stride in row.get('backbones', ()))
        text.append(f'| {row["config"]} | {row["outcome"]} | {maps} | {row.get("lines", "")} |')
    return '\n'.join(text) + '\n'
