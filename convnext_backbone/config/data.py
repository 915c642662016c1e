"""Reads what a config says about its data: where it lies, whether it is there, which classes it has."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError
from ..registry import type_name

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def datasets(cfg: Config, splits=DATALOADERS) -> Iterator[tuple[str, dict]]:
    """Yield (data loader, dataset) for each dataset in the config, those inside wrappers included."""
    for split in splits:
        stack = [(cfg.get(split) or {}).get('dataset')]
        while stack:
            dataset = stack.pop()
            if not isinstance(dataset, dict):
                continue
            inner = dataset.get('dataset') or dataset.get('datasets')
            if inner:
                stack += inner if isinstance(inner, (list, tuple)) else [inner]
            else:
                yield split, dataset


def set_data_root(cfg: Config, data_root: str) -> None:
    """Put ``data_root`` in the place of the config's, in datasets and evaluators alike.

    Raises:
        UserError: the config's datasets have no common root.
    """
    roots = {d['data_root'] for _, d in datasets(cfg) if d.get('data_root')}
    if len(roots) != 1:
        found = ', '.join(sorted(roots)) or 'none'
        raise UserError(f'--data-root: the datasets of the config have no single data_root ({found})')
    old = roots.pop()
    for key in (*DATALOADERS, 'val_evaluator', 'test_evaluator', 'data_root'):
        if cfg.get(key) is not None:
            cfg[key] = _replace_prefix(cfg[key], old, os.path.join(data_root, ''))


def _replace_prefix(value, old: str, new: str):
    if isinstance(value, dict):
        return type(value)({k: _replace_prefix(v, old, new) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_prefix(v, old, new) for v in value)
    if isinstance(value, str) and value.startswith(old):
        return new + value[len(old) :].lstrip('/')
    return value


def check_data(cfg: Config, splits) -> list[str]:
    """Check that folders and annotation files exist, and that annotations and config have the same classes.

    Raises:
        UserError: naming the path or the category.
    """
    notes = []
    for split, dataset in datasets(cfg, splits):
        root = dataset.get('data_root') or ''
        if root and '://' not in root and not os.path.isdir(root):
            raise UserError(
                f'no data at {root} ({split}): give the folder with --data-root DIR, '
                'or put a link to it there'
            )
        paths = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
        for path in filter(None, paths):
            if isinstance(path, str) and not os.path.exists(os.path.join(root, path)):
                raise UserError(f'{os.path.join(root, path)} does not exist ({split}, data root {root!r})')
        if type_name(dataset) == 'CocoDataset':
            notes += _check_coco(os.path.join(root, dataset['ann_file']), dataset)
    return notes


def _check_coco(file: str, dataset: dict) -> list[str]:
    from mmdet.datasets import CocoDataset

    try:
        content = json.loads(Path(file).read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        counts = dict.fromkeys(names, 0)
        for annotation in content['annotations']:
            counts[annotation['category_id']] = counts.get(annotation['category_id'], 0) + 1
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{file} is no COCO annotation file: {type(error).__name__} {error}') from error
    if unknown := sorted(set(counts) - set(names)):
        raise UserError(
            f'{file}: {counts[unknown[0]]} annotations have category_id {unknown[0]}, which its '
            f'"categories" do not list (they list {_some(names)})'
        )
    chosen = (dataset.get('metainfo') or {}).get('classes')
    classes = chosen or CocoDataset.METAINFO['classes']
    if isinstance(classes, str):  # the name of a file of names, as mmengine reads it
        classes = Path(classes).read_text().splitlines() if Path(classes).is_file() else [classes]
    if absent := [name for name in classes if name not in names.values()]:
        raise UserError(
            f'{file} has no category {absent[0]!r}, a class of the config '
            f'({len(absent)} of {len(classes)} classes are not in the file, which lists '
            f'{_some(names.values())}): set metainfo=dict(classes=...) in every dataset of the config'
        )
    if other := {name: counts[i] for i, name in names.items() if name not in classes}:
        text = ', '.join(f'{name} ({n} annotations)' for name, n in other.items())
        if not chosen:
            raise UserError(
                f'{file} has categories that the config does not name: {text}; set '
                'metainfo=dict(classes=...) in every dataset of the config, without them if they are to '
                'be left out'
            )
        return [f'{file}: left out, since metainfo.classes does not name them: {text}']
    return []


def _some(values) -> str:
    values = [str(v) for v in values]
    return ', '.join(values[:8]) + (f', ... ({len(values)})' if len(values) > 8 else '')


def check_classes(cfg: Config, classes) -> None:
    """Check that the heads that predict the dataset's classes count as many as it has.

    Raises:
        UserError: naming the head and both numbers.
    """
    for path, number in num_classes(cfg.model, 'model'):
        if number != len(classes):
            raise UserError(
                f'{path} is {number}, but the training data has {len(classes)} classes '
                f'({_some(classes)}): set every num_classes of the model to {len(classes)}'
            )


def num_classes(node, path: str) -> Iterator[tuple[str, int]]:
    """Yield the path and ``num_classes`` of each head.

    RPN is left out, and heads that predict something else beside.
    """
    if isinstance(node, dict):
        others = ('rpn_head', 'semantic_head', 'glbctx_head')
        boundary = type_name(node) == 'STDCHead'
        for key, value in node.items():
            if key == 'num_classes' and not boundary:
                yield f'{path}.{key}', value
            elif key not in others:
                yield from num_classes(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from num_classes(value, f'{path}.{index}')
