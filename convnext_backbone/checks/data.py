"""Compares what a config says about its data with the files: folders, annotations, images and masks."""

import difflib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..config import datasets, dicts
from ..datasets import improve, read_annotations
from ..datasets.annotations import MASKS, REASONS, SHORT, WHOLE, Annotations, some
from ..datasets.coco import file_in
from ..datasets.images import TURNED, header
from ..datasets.masks import beyond, read_mask, to_labels
from ..errors import UserError, message
from ..findings import Findings
from ..registry import type_name

SECONDS = 4  # for reading a sample of the files of one dataset
SEED = 0  # of the choice of that sample
BACKGROUND = ('background', 'bg', '_background_', 'unlabeled', 'unlabelled', 'void')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


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
        kind = _class(dataset)
        key = (split == 'train_dataloader', type_name(dataset), *map(str, map(dataset.get, _WHERE)))
        if key in seen:
            continue
        seen.add(key)
        found = Findings()
        try:
            check_metainfo(dataset, kind, split, found)
            if found.of('error'):
                continue
            _check_paths(dataset, split)
            if _inherits(kind, 'mmdet.datasets', 'CocoDataset'):
                _Coco(cfg, dataset, kind, split, found, amount).check()
            elif _inherits(kind, 'mmseg.datasets', 'BaseSegDataset'):
                _Masks(cfg, dataset, kind, split, found, amount).check()
        except UserError as error:
            found.add('error', 'data', split, str(error))
        finally:
            findings += found
    for split, key in (('val_dataloader', 'val_evaluator'), ('test_dataloader', 'test_evaluator')):
        if split in splits and cfg.get(split) and cfg.get(key):
            _check_evaluator(cfg, split, key, findings)


_WHERE = ('data_root', 'ann_file', 'data_prefix', 'metainfo', 'filter_cfg', 'img_suffix', 'reduce_zero_label')


def _class(dataset: dict) -> type | None:
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(dataset.get('_scope_')) as registry:
        return registry.get(kind)


def _inherits(kind, module: str, name: str) -> bool:
    base = getattr(sys.modules.get(module), name, None)
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


# -- what the config itself says -----------------------------------------------------------------------------


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


# -- shared by both kinds ------------------------------------------------------------------------------------


class _Folders:
    """Answers which files are there; each folder is listed once."""

    def __init__(self):
        self._names: dict[str, set[str] | None] = {}

    def names(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or '.'))
            except OSError:
                self._names[folder] = set()
        return self._names[folder]

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder)

    def near(self, path: str) -> str:
        """Say which file of a similar name is there."""
        folder, name = os.path.split(path)
        names = self.names(folder)
        if same := [other for other in names if other.lower() == name.lower()]:
            return f'; there is {same[0]}'
        stem = os.path.splitext(name)[0]
        if same := [other for other in names if os.path.splitext(other)[0] == stem]:
            return f'; there is {same[0]}'
        near = difflib.get_close_matches(name, names, 1, 0.9) if len(names) < 5000 else []
        return f'; there is {near[0]}' if near else ''


def _sampled(items: list, amount: str) -> Iterator:
    """Yield items in random order until the time for a sample is over."""
    if amount == 'none' or not items:
        return
    order = list(range(len(items)))
    if amount == 'sample':
        random.Random(SEED).shuffle(order)
    end = time.monotonic() + SECONDS
    for number in order:
        yield items[number]
        if amount == 'sample' and time.monotonic() > end:
            return


class _Dataset:
    """Holds what the checks of both kinds of datasets share."""

    def __init__(self, cfg: Config, dataset: dict, kind: type, split: str, findings: Findings, amount: str):
        self.cfg, self.dataset, self.kind, self.split = cfg, dataset, kind, split
        self.findings, self.amount = findings, amount
        self.root = dataset.get('data_root') or ''
        self.trains = split == 'train_dataloader'
        self.steps = list(dicts(dataset.get('pipeline') or []))
        self.skips = self.trains and any(step.get('skip_corrupt') for step in self.steps)
        self.folders = _Folders()

    def add(self, level: str, kind: str, text: str, examples=None, count: int = 0, where: str = '') -> None:
        self.findings.add(level, kind, where or f'{self.split}', text, examples, count)

    def path(self, name: str | None) -> str:
        return os.path.join(self.root, name or '')

    @property
    def remote(self) -> bool:
        return '://' in self.root or bool(self.dataset.get('backend_args'))

    def missing(self, what: str, files: list[str], total: int) -> None:
        """Report files that are not there."""
        if not files:
            return
        every = len(files) == total
        level = 'warning' if self.skips and not every else 'error'
        does = 'they are left out' if level == 'warning' else 'put them there, or take them out of the list'
        backslash = ': the names have backslashes, of Windows' if '\\' in files[0] else ''
        self.add(
            level,
            f'{what}_missing',
            f'{len(files)} of {total} {what}s do not exist{backslash}{self.folders.near(files[0])}: {does}',
            files,
        )

    def check_images(self, files: list[str], sizes: Callable[[str], tuple | None]) -> None:
        """Read the headers of a sample of the images: size, orientation, depth.

        Args:
            sizes: gives the width and height that the annotations name for a file, ``None`` if they do not.
        """
        ignores = any('ignore_orientation' in str(step.get('color_type')) for step in self.steps)
        raw = any(step.get('color_type') == 'unchanged' for step in self.steps)
        other_size, stored, unreadable, same_size, turned, read = [], [], [], [], [], 0
        deep = {}
        for file in _sampled(files, self.amount):
            read += 1
            try:
                found = header(file)
            except OSError as error:
                unreadable.append(f'{file} ({error})')
                continue
            stored_size = (found.width, found.height)
            size = stored_size if ignores or raw else found.upright
            given = sizes(file)
            if given and tuple(given) != size:
                text = f'{file}: {given[0]} x {given[1]} in the annotations, {size[0]} x {size[1]} as loaded'
                (stored if tuple(given) == stored_size else other_size).append(text)
            elif found.orientation not in (1, *TURNED) and given and not ignores:
                same_size.append(file)
            elif found.orientation in TURNED and raw:
                turned.append(file)
            if found.bits > 8:
                deep.setdefault((found.bits, found.mode), []).append(file)
        if not read:
            return
        share = f'{read} of {len(files)} images were looked at'
        if unreadable:
            self.add(
                'warning' if self.skips and len(unreadable) < read else 'error',
                'image_unreadable',
                f'{len(unreadable)} images cannot be read ({share})',
                unreadable,
            )
        if stored:
            self.add(
                'error',
                'orientation',
                f'{len(stored)} photos are annotated as they are stored, but loaded as their EXIF '
                f'orientation turns them ({share}): boxes and masks would lie elsewhere; set '
                "color_type='color_ignore_orientation' in LoadImageFromFile of every pipeline",
                stored,
            )
        if other_size:
            self.add(
                'error',
                'image_size',
                f'{len(other_size)} images have another size than their annotations say ({share}): width x '
                'height must be those of the file that is annotated',
                other_size,
            )
        if same_size:
            self.add(
                'note',
                'orientation',
                f'{len(same_size)} photos are turned or mirrored by EXIF without changing their size '
                f'({share}): they are loaded as seen, so they must be annotated as seen',
                same_size,
            )
        if turned:
            self.add(
                'warning',
                'orientation',
                f'{len(turned)} photos have an EXIF orientation, which color_type="unchanged" does not '
                f'follow ({share})',
                turned,
            )
        if not raw:
            self._check_depth(deep)

    def _check_depth(self, deep: dict) -> None:
        from ..transforms import LoadImage

        bits = next((step.get('bits') for step in self.steps if step.get('bits')), None)
        for examples in deep.values():
            wrong = []
            for file in examples[:20]:
                try:
                    LoadImage(bits=bits).transform(dict(img_path=file))
                except UserError as error:
                    wrong.append(str(error))
            if wrong:
                self.add('error', 'depth', f'{wrong[0]}', count=len(wrong))
            elif not bits:
                self.add(
                    'note',
                    'depth',
                    f'{len(examples)} images have 16 bits: they are reduced to 8 by dropping the lower half',
                    examples,
                )


# -- detection -----------------------------------------------------------------------------------------------


class _Coco(_Dataset):
    """Checks a COCO file and its images."""

    def check(self) -> None:
        file = self.path(self.dataset.get('ann_file'))
        if self.remote or not self.dataset.get('ann_file'):
            return
        annotations = read_annotations(file)
        self.findings += annotations.findings
        if not self._has_what_is_needed(annotations):
            return
        self.classes = list(_classes(self.dataset, self.kind) or ())
        if annotations.annotated or annotations.categories:
            self._check_categories(annotations)
        if annotations.annotated:
            self._count(annotations)
        folder = self.path((self.dataset.get('data_prefix') or {}).get('img'))
        names = {image['file_name']: image for image in annotations.images.values()}
        paths = {os.path.join(folder, file_in(folder, name)): image for name, image in names.items()}
        absent = [path for path in paths if not self.folders.has(path)]
        self.missing('image', absent, len(paths))
        gone = set(absent)

        def size(path: str) -> tuple | None:
            image = paths[path]
            return (image['width'], image['height']) if 'width' in image and 'height' in image else None

        self.check_images([path for path in paths if path not in gone], size)
        listed = {os.path.basename(path) for path in paths}
        others = [n for n in self.folders.names(folder) - listed if n.lower().endswith(SUFFIXES)]
        if others and not any('/' in name for name in names):
            text = f'{len(others)} images in {folder} are not listed in {file}'
            self.add('note', 'unlisted_file', text, others)

    def _has_what_is_needed(self, annotations: Annotations) -> bool:
        if not annotations.images:
            self.add('error', 'empty', f'{annotations.file} lists no images')
            return False
        if annotations.annotated:
            return True
        only_predicts = self.split == 'test_dataloader' and all(
            evaluator.get('format_only') for evaluator in _evaluators(self.cfg, 'test_evaluator')
        )
        if not only_predicts:
            self.add(
                'error',
                'no_annotations',
                f'{annotations.file} is no COCO annotation file: it has no "annotations"; a list of test '
                'images can be predicted with test_evaluator.format_only=True, but not trained or evaluated '
                'on',
            )
        return only_predicts

    def _check_categories(self, annotations: Annotations) -> None:
        annotations.category_ids(self.classes)
        counts = Counter(annotations.category_of.tolist())
        names = list(annotations.categories.values())
        other = {name: counts[i] for i, name in enumerate(names) if name not in self.classes}
        chosen = (self.dataset.get('metainfo') or {}).get('classes')
        if other:
            text = ', '.join(f'{name} ({n} annotations)' for name, n in list(other.items())[:8])
            if not chosen:
                raise UserError(
                    f'{annotations.file} has categories that the config does not name: {text}; set '
                    'metainfo=dict(classes=...) in every dataset of the config, without them if they are to '
                    'be left out'
                )
            self.add(
                'note',
                'category_left_out',
                f'left out, since metainfo.classes does not name them: {text}',
                where=annotations.file,
            )
        never = [name for name in self.classes if not counts[names.index(name)]]
        if never and annotations.records:
            effect = 'cannot be learned' if self.trains else 'are not in the mean of the metric'
            self.add(
                'warning',
                'class_absent',
                f'{len(never)} of {len(self.classes)} classes have no object and {effect}: {some(never)}',
                where=annotations.file,
            )
        same = improve(self.kind) is not self.kind
        order = [name for name in names if name in self.classes]
        if not same and order != self.classes and type_name(self.dataset) != 'LVISV1Dataset':
            self.add(
                'error',
                'class_order',
                f'{type_name(self.dataset)} numbers labels by the order of the file ({some(order)}), '
                f'metainfo.classes by its own ({some(self.classes)}): bring both into the same order',
                where=annotations.file,
            )

    def _count(self, annotations: Annotations) -> None:
        """Say how many images and objects are used, and why the others are not."""
        masks = any(step.get('with_mask') for step in self.steps) or (
            not self.trains and 'segm' in _metrics(self.cfg, self.split)
        )
        chosen = np.array([name in self.classes for name in annotations.categories.values()], bool)
        ours = chosen[annotations.category_of] if len(annotations.records) else np.zeros(0, bool)
        why = [REASONS[i] for i in annotations.why]
        reasons = np.array(why, object) if len(why) else np.zeros(0, object)
        reasons[(reasons == '') & ~ours] = 'of a class that is left out'
        if self.trains:
            small = (annotations.boxes[:, 2:] < 1).any(1)
            reasons[(reasons == '') & small] = 'smaller than a pixel'
            reasons[(reasons == '') & annotations.crowd] = 'crowd'
        if masks:
            for number, name in enumerate(MASKS):
                if number != WHOLE:
                    wrong = (annotations.mask == number) & ~annotations.crowd
                    reasons[(reasons == '') & wrong] = name
        counts = Counter(reasons.tolist())
        used, total = counts.pop('', 0), len(annotations.records)
        without = masks and sum(counts.get(name, 0) for name in MASKS[1:])
        left_out = ', '.join(f'{n} {name}' for name, n in counts.most_common())
        images, image_text = self._count_images(annotations)
        text = f'{images} of {len(annotations.images)} images{image_text}, {used} of {total} objects are used'
        text += f'; left out: {left_out}' if left_out else ''
        where = annotations.file
        if without and not used:
            shown = ', '.join(f'{counts[name]} {name}' for name in MASKS[1:] if counts.get(name))
            self.add(
                'error',
                'no_masks',
                f'{without} of {total} annotations have no mask ({shown}), which this model '
                f'{"trains" if self.trains else "is evaluated by"}: a detector for boxes alone fits them, '
                'e.g. faster_rcnn in place of mask_rcnn, or metric=["bbox"]'
                if not self.trains
                else f'{without} of {total} annotations have no mask ({shown}), which this model trains: a '
                'detector for boxes alone is what they fit (Faster R-CNN in place of Mask R-CNN: no mask '
                'head, '
                "with_mask=False, metric='bbox')",
                where=where,
            )
        elif not images or (total and not used):
            self.add('error', 'nothing_left', f'{text}: nothing is left to {self._verb}', where=where)
        elif not total:
            self.add(
                'error' if not self.trains else 'warning',
                'nothing_left',
                f'{text}: there is nothing to {self._verb}',
                where=where,
            )
        else:
            harmless = {'crowd', 'of a class that is left out', "marked as 'ignore'"}
            lost = sum(n for name, n in counts.items() if name not in harmless)
            bad = np.flatnonzero((reasons != '') & ~np.isin(reasons.astype(str), list(harmless)))
            level = 'warning' if lost else 'note'
            self.add(level, 'used', text, annotations.describe(bad[:3]), max(lost, 1), where)
        if masks and annotations.mask.size and (short := int((annotations.mask == SHORT).sum())) and used:
            self.add('note', 'mask_short', f'{short} polygons have fewer than three points', count=short)

    @property
    def _verb(self) -> str:
        return 'train on' if self.trains else 'evaluate'

    def _count_images(self, annotations: Annotations) -> tuple[int, str]:
        """Return how many images the dataset keeps, by mmdet's rules, and why not the others."""
        rules = self.dataset.get('filter_cfg') or {}
        if not self.trains or self.dataset.get('test_mode'):
            return len(annotations.images), ''
        wanted = {i for i, name in enumerate(annotations.categories.values()) if name in self.classes}
        with_objects = {
            int(image)
            for image, category in zip(annotations.image_of, annotations.category_of)
            if int(category) in wanted
        }
        least, kept, empty, small = rules.get('min_size', 0), 0, 0, 0
        for number, image in enumerate(annotations.images.values()):
            if number not in with_objects:
                empty += 1
                if rules.get('filter_empty_gt', False):
                    continue
            if min(image.get('width', least), image.get('height', least)) < least:
                small += 1
                continue
            kept += 1
        parts = []
        if empty and rules.get('filter_empty_gt', False):
            parts.append(f'{empty} have no object (filter_cfg=dict(filter_empty_gt=False) keeps them)')
        elif empty:
            parts.append(f'{empty} of them without an object')
        if small:
            parts.append(f'{small} are below filter_cfg.min_size={least} pixels')
        return kept, f' ({"; ".join(parts)})' if parts else ''


def _classes(dataset: dict, kind: type) -> list[str] | None:
    """Return the names that mmengine finds for a dataset."""
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str) and Path(given).is_file():
        return Path(given).read_text().splitlines()
    return given or (getattr(kind, 'METAINFO', None) or {}).get('classes')


def _evaluators(cfg: Config, key: str) -> list[dict]:
    given = cfg.get(key)
    given = given if isinstance(given, (list, tuple)) else [given]
    return [node for node in given if isinstance(node, dict)]


def _metrics(cfg: Config, split: str) -> set[str]:
    found = set()
    for evaluator in _evaluators(cfg, split.replace('dataloader', 'evaluator')):
        metric = evaluator.get('metric') or ()
        found |= {metric} if isinstance(metric, str) else set(metric)
    return found


def _check_evaluator(cfg: Config, split: str, key: str, findings: Findings) -> None:
    """Compare the file of a COCO metric with those that its data loader reads."""
    read = [
        os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
        for _, dataset in datasets(cfg, (split,))
        if dataset.get('ann_file') and 'Coco' in type_name(dataset)
    ]
    for evaluator in _evaluators(cfg, key):
        file = evaluator.get('ann_file')
        if not file or not read or 'Coco' not in type_name(evaluator) or '://' in file:
            continue
        if not os.path.isfile(file):
            findings.add('error', 'evaluator', f'{key}.ann_file', f'{file} does not exist')
            continue
        if any(not os.path.isfile(other) for other in read):
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


# -- segmentation --------------------------------------------------------------------------------------------


class _Masks(_Dataset):
    """Checks the images and masks of a segmentation dataset."""

    def check(self) -> None:
        if self.remote:
            return
        own = dict(self.dataset, pipeline=[], serialize_data=False, lazy_init=False)
        own['type'] = improve(self.kind)
        try:
            built = DATASETS.build(own)
        except (AssertionError, ValueError, TypeError, KeyError, OSError) as error:
            raise UserError(f'{type_name(self.dataset)} cannot be built: {message(error)}') from error
        listed = list(built.data_list)
        folder = (built.data_prefix or {}).get('img_path') or ''
        self._check_suffix(built, folder, len(listed))
        if not listed:
            return
        self._check_reduce(built)
        images = [info['img_path'] for info in listed]
        gone = {path for path in images if not self.folders.has(path)}
        self.missing('image', [path for path in images if path in gone], len(images))
        masks = [info.get('seg_map_path') for info in listed]
        needs = any(type_name(s).endswith(('LoadAnnotations', 'LoadMask')) for s in self.steps)
        if not needs or not all(masks):
            self.check_images([path for path in images if path not in gone], lambda file: None)
            return
        lost = {path for path in masks if not self.folders.has(path)}
        self.missing('mask', [path for path in masks if path in lost], len(masks))
        pairs = [(i, m) for i, m in zip(images, masks) if i not in gone and m not in lost]
        self.check_images([image for image, _ in pairs], lambda file: None)
        self._check_masks(built, pairs)

    def _check_suffix(self, built, folder: str, number: int) -> None:
        if built.ann_file and os.path.isfile(built.ann_file):
            if not number:
                self.add('error', 'empty', f'{built.ann_file} lists no images')
            return
        suffix = built.img_suffix
        files = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
        others = Counter(
            os.path.splitext(name)[1]
            for name in files
            if not name.endswith(suffix) and name.lower().endswith((*SUFFIXES, suffix.lower()))
        )
        seen = ', '.join(f'{count} *{ending}' for ending, count in others.most_common())
        if not number:
            has = f'it has {seen}: set img_suffix' if seen else 'it has no images'
            self.add('error', 'empty', f'no image with suffix {suffix} in {folder} ({has})')
        elif seen:
            self.add(
                'warning',
                'suffix',
                f'img_suffix is {suffix}: {seen} in {folder} are not used; rename them, or list them in '
                'ann_file',
                count=sum(others.values()),
            )

    def _check_reduce(self, built) -> None:
        for step in self.steps:
            given = step.get('reduce_zero_label')
            if 'LoadAnnotations' in type_name(step) and given not in (None, built.reduce_zero_label):
                raise UserError(
                    f'reduce_zero_label is {built.reduce_zero_label} in {self.split}.dataset, but {given} in '
                    'LoadAnnotations of its pipeline: set it in the dataset, and leave it out of the pipeline'
                )

    def _check_masks(self, built, pairs: list[tuple[str, str]]) -> None:
        """Read a sample of the masks: are their labels those of the classes?"""
        classes, ignore = built.metainfo.get('classes') or (), built.ignore_index
        number = len(classes)
        unreadable, other_size, wrong, wrong_values = [], [], [], Counter()
        areas, ignored, pixels, read, raw_values = np.zeros(max(number, 1), np.int64), 0, 0, 0, Counter()
        for image, file in _sampled(pairs, self.amount):
            read += 1
            try:
                mask = read_mask(file)
            except UserError as error:
                unreadable.append(str(error))
                continue
            try:
                size = header(image).upright
            except OSError:
                size = mask.shape[::-1]
            if tuple(size) != mask.shape[::-1]:
                other_size.append(
                    f'{file} {mask.shape[1]} x {mask.shape[0]}, {image} {size[0]} x {size[1]} (width x '
                    'height)'
                )
            values, counts = np.unique(mask, return_counts=True)
            raw_values.update(dict(zip(values.tolist(), counts.tolist())))
            labels = to_labels(values, built.reduce_zero_label, built.label_map, ignore)
            if number and (strange := beyond(labels, number, ignore)).size:
                stored = values[np.isin(labels, strange)]
                wrong.append(f'{file}: {", ".join(map(str, stored[:5]))}')
                wrong_values.update(stored.tolist())
            fits = (labels >= 0) & (labels < max(number, 1))
            np.add.at(areas, labels[fits], counts[fits])
            ignored += int(counts[labels == ignore].sum())
            pixels += mask.size
        if not read:
            return
        share = f'{read} of {len(pairs)} masks were read'
        every = read == len(pairs)
        if unreadable:
            level = 'warning' if self.skips and len(unreadable) < read else 'error'
            text = f'{len(unreadable)} masks cannot be used ({share})'
            self.add(level, 'mask_unreadable', text, unreadable)
        if other_size:
            self.add(
                'error',
                'mask_size',
                f'{len(other_size)} masks have another size than their image ({share})',
                other_size,
            )
        if not pixels or not number:
            return
        reduced = ' (0 is ignored: reduce_zero_label)' if built.reduce_zero_label else ''
        top = number if built.reduce_zero_label else number - 1
        known = set(raw_values)
        only_255 = known == {0, 255} or (known == {255} and ignore == 255)
        if wrong:
            seen = some(sorted(wrong_values))
            advice = _advice(sorted(known), wrong_values, number, built.reduce_zero_label, classes, ignore)
            self.add(
                'error',
                'label_beyond',
                f'{len(wrong)} masks have values that are no class: {seen}; {number} classes are 0 to {top}'
                f'{reduced}, {ignore} is ignored{advice} ({share})',
                wrong,
            )
        elif only_255 and ignore == 255 and number > 1:
            self.add(
                'error',
                'mask_0_255',
                f'the masks hold 0 and 255 only, and 255 is ignored ({ignored / pixels:.0%} of the pixels): '
                f'class {classes[1]!r} has no pixel; write class numbers, 1 in place of 255 ({share})',
            )
        elif absent := [classes[i] for i in range(number) if not areas[i]]:
            self._absent(absent, classes, built, areas, ignored / pixels, share, every)
        if ignored / pixels > 0.9 and not only_255:
            self.add('warning', 'ignored', f'{ignored / pixels:.0%} of the pixels are ignored ({share})')
        background = next((c for c in classes if c.lower() in BACKGROUND), None)
        if built.reduce_zero_label and background and classes[0] == background and not wrong:
            self.add(
                'error',
                'reduce_zero_label',
                f'reduce_zero_label=True ignores 0 and makes 1 the first class, but the first class is '
                f'{background!r}, which masks usually have as 0: set reduce_zero_label=False, or leave '
                f'{background!r} out of the classes',
            )

    def _absent(self, absent, classes, built, areas, ignored: float, share: str, every: bool) -> None:
        number = len(classes)
        if every and len(absent) == number:
            level, text = 'error', 'none of the classes has a pixel in the masks'
        else:
            level = 'warning'
            text = f'{len(absent)} of {number} classes have no pixel in the masks: {some(absent)}'
        if built.reduce_zero_label and absent[-1:] == [classes[-1]]:
            text += (
                f'; reduce_zero_label=True makes 0 ignored ({ignored:.0%} of the pixels) and 1 the first '
                f'class: if 0 is {classes[0]!r}, set it to False'
            )
        elif ignored:
            text += f'; {ignored:.0%} of the pixels are ignored'
        self.add(level, 'class_absent', f'{text} ({share})', count=len(absent))


def _advice(known, wrong: Counter, number: int, reduced: bool, classes, ignore: int) -> str:
    """Say what most often is behind values that are no class."""
    largest = max(wrong)
    if len(known) > 1 and len(known) <= number + 1 and largest > number + 1:
        step = min(b - a for a, b in zip(known, known[1:]))
        if step > 1 and all(value % step == 0 for value in known):
            return f'; the values are multiples of {step}: divide them'
    if not reduced and set(known) - {ignore} <= set(range(number + 1)) and largest == number:
        if not any(name.lower() in BACKGROUND for name in classes):
            return (
                f'; {number + 1} values for {number} classes: is 0 a background that the classes do not '
                'name? '
                "Add 'background' as first class (and to num_classes), or set reduce_zero_label=True"
            )
        return '; the values begin at 1: set reduce_zero_label=True in the dataset'
    if largest > 255:
        return '; the mask has 16 bits'
    return ''
