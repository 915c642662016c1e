"""Compares what a config says about its data with the files: folders, annotations, images and masks."""

import os
from collections import Counter
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..config import check_classes, datasets
from ..datasets import improve, read_annotations
from ..datasets.coco import LabelsByName
from ..datasets.masks import ListsImages
from ..errors import UserError
from ..findings import Findings
from ..registry import class_of, type_name
from .coco import CocoCheck, classes_of, evaluators
from .masks import MaskCheck


def check_data(cfg: Config, splits, findings: Findings, amount: str = 'sample') -> None:
    """Check the data that a run will read.

    Args:
        splits: keys of the data loaders that will be used.
        findings: gets what is found.
        amount: ``'sample'``: images and masks are read for some seconds for each dataset; ``'all'``: every
            one; ``'none'``: none of them. Annotation files are always read in full.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    seen = set()
    for split, dataset in datasets(cfg, splits):
        kind = class_of(dataset, DATASETS)
        mixed = improve(kind) if isinstance(kind, type) else object
        key = (split == 'train_dataloader', type_name(dataset), *map(str, map(dataset.get, _WHERE)))
        if key in seen:
            continue
        seen.add(key)
        found = Findings()
        try:
            check_metainfo(dataset, kind, split, found)
            if found.of('error'):
                continue
            if cfg.get('model') and (classes := classes_of(dataset, kind)):
                _check_heads(cfg, classes, found)
            _check_paths(dataset, split)
            if issubclass(mixed, LabelsByName):
                CocoCheck(cfg, dataset, kind, split, found, amount).check()
            elif issubclass(mixed, ListsImages):
                MaskCheck(cfg, dataset, kind, split, found, amount).check()
        except UserError as error:
            found.add('error', 'data', split, str(error))
        finally:  # what is the same for the data of training and validation is said once
            known, places = {finding.text for finding in findings}, (*splits, '')
            findings += [f for f in found if not (f.where in places and f.text in known)]
    for split, key in (('val_dataloader', 'val_evaluator'), ('test_dataloader', 'test_evaluator')):
        if split in splits and cfg.get(split) and cfg.get(key):
            _check_evaluator(cfg, split, key, findings)


_WHERE = ('data_root', 'ann_file', 'data_prefix', 'metainfo', 'filter_cfg', 'img_suffix', 'reduce_zero_label')


def check_metainfo(dataset: dict, kind: type | None, split: str, findings: Findings) -> None:
    """Check ``metainfo.classes`` and ``palette`` of a dataset: types, repeated names, numbers."""
    meta = dataset.get('metainfo') or {}
    where = f'{split}.dataset.metainfo.classes'
    classes = meta.get('classes')
    if isinstance(classes, str):
        if Path(classes).is_file():
            return
        findings.add(
            'error',
            'classes',
            where,
            f'classes is the text {classes!r}, a tuple of names is needed: ({classes!r},)',
        )
        return
    if classes is not None:
        if not isinstance(classes, (list, tuple)) or not len(classes):
            findings.add('error', 'classes', where, f'classes is {classes!r}, expected a tuple of names')
            return
        if wrong := [name for name in classes if not isinstance(name, str)]:
            findings.add(
                'error', 'classes', where, f'the class {wrong[0]!r} is no text: every class is a name'
            )
            return
        if twice := [name for name, count in Counter(classes).items() if count > 1]:
            findings.add('error', 'classes', where, f'{twice[0]!r} stands more than once among the classes')
    palette = meta.get('palette')
    own = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if classes is None or palette is None or not isinstance(palette, (list, tuple)) or own is not None:
        return
    if len(palette) and len(palette) != len(classes):
        findings.add(
            'error',
            'palette',
            f'{split}.dataset.metainfo.palette',
            f'{len(palette)} colours for {len(classes)} classes: the palette comes from the config or its '
            '_base_; give a colour for each class, or metainfo=dict(_delete_=True, classes=...)',
        )


def _check_heads(cfg: Config, classes, findings: Findings) -> None:
    """Compare the number of classes of each head with that of the dataset."""
    try:
        check_classes(cfg, list(classes))
    except UserError as error:
        findings.add('error', 'num_classes', '', str(error))


def _check_paths(dataset: dict, split: str) -> None:
    """Raise :class:`UserError` for a folder or file that is not there."""
    root = dataset.get('data_root') or ''
    if root and '://' not in root and not os.path.isdir(root):
        raise UserError(f'no data at {root}: give the folder with --data-root DIR, or put a link to it there')
    for path in filter(None, [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]):
        if not isinstance(path, str) or '://' in root + path:
            continue
        if not os.path.exists(os.path.join(root, path)):
            raise UserError(f'{os.path.join(root, path)} does not exist (data root {root!r})')


def _check_evaluator(cfg: Config, split: str, key: str, findings: Findings) -> None:
    """Compare the file of a COCO metric with those that its data loader reads."""
    read = [
        os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
        for _, dataset in datasets(cfg, (split,))
        if dataset.get('ann_file') and 'Coco' in type_name(dataset)
    ]
    for evaluator in evaluators(cfg, key):
        file = evaluator.get('ann_file')
        if not file or not read or 'Coco' not in type_name(evaluator) or '://' in file:
            continue
        if not all(map(os.path.isfile, read)):
            continue
        if not os.path.isfile(file):
            findings.add('error', 'evaluator', f'{key}.ann_file', f'{file} does not exist')
            continue
        if len(read) == 1:
            same = os.path.samefile(file, read[0]) or _same_content(file, read[0])
        else:
            same = _same_images(file, read)
        if not same:
            findings.add(
                'error',
                'evaluator',
                f'{key}.ann_file',
                f'the metric reads {file}, {split} reads {", ".join(read)}: both must be the same file',
            )


def _same_content(file: str, other: str) -> bool:
    same = os.path.getsize(file) == os.path.getsize(other)
    return same and Path(file).read_bytes() == Path(other).read_bytes()


def _same_images(file: str, parts: list[str]) -> bool:
    """Return whether a file lists just the images of several others, none of them twice."""
    listed = [(i, r['file_name']) for part in parts for i, r in read_annotations(part).images.items()]
    own = {(i, record['file_name']) for i, record in read_annotations(file).images.items()}
    return set(listed) == own and len({i for i, _ in listed}) == len(listed)
