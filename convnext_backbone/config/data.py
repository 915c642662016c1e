"""Reads what a config says about its data: where it lies, which classes its heads predict."""

import os
import re
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from ..errors import UserError, some
from ..registry import SCOPE, type_name
from .keys import walk

LOADS_ANNOTATIONS = re.compile(rf'Load\w*Annotation|^{SCOPE}\.LoadMask$')  # types of OpenMMLab's, and ours
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


def without_annotations(pipeline: Sequence) -> list:
    """Return the steps of a pipeline, but for those that load boxes, masks or depth."""
    return [step for step in pipeline if not LOADS_ANNOTATIONS.search(type_name(step))]


def transform_of(cfg: Config) -> dict | None:
    """Return the transform of a classifier's test data, else of its validation data."""
    found = (data.get('transform') for _, data in datasets(cfg, ('test_dataloader', 'val_dataloader')))
    return next(filter(None, found), None)


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


def check_classes(cfg: Config, classes) -> None:
    """Check that the heads that predict the dataset's classes count as many as it has.

    Raises:
        UserError: naming the head and both numbers.
    """
    for path, number in class_counts(cfg.model):
        if number != len(classes):
            divided = any(_things_and_stuff(cfg.model))
            advice = (
                'set num_things_classes and num_stuff_classes to those of the data, num_classes of the heads '
                'for things to num_things_classes'
                if divided
                else f'set every num_classes of the model to {len(classes)}'
            )
            raise UserError(
                f'{path} is {number}, but the training data has {len(classes)} classes '
                f'({some(classes)}): {advice}'
            )


def class_counts(model: dict) -> Iterator[tuple[str, int]]:
    """Yield the path and number of classes of whatever predicts all classes of the data.

    Of a panoptic model that is things and stuff together; a head for its things alone is left out.
    """
    things = set()
    for path, (number, stuff) in _things_and_stuff(model):
        things.add(number)
        yield f'{path}.num_things_classes + num_stuff_classes', number + stuff
    for path, number in num_classes(model, 'model'):
        if number not in things:
            yield path, number


def _things_and_stuff(model: dict) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path and both numbers of each part of a panoptic model that says them."""
    for path, node in walk(model, 'model'):
        numbers = node.get('num_things_classes'), node.get('num_stuff_classes')
        if all(isinstance(number, int) for number in numbers):
            yield path, numbers


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
