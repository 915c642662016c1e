"""Checks a detector's data: the COCO file, against classes, images and what is trained."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..datasets import read_annotations
from ..datasets.annotations import MASKS, REASONS, SHORT, WHOLE, Annotations
from ..datasets.coco import file_in
from ..datasets.images import SUFFIXES
from ..errors import UserError, some
from .files import DatasetCheck


class CocoCheck(DatasetCheck):
    """Checks a COCO file and its images."""

    def check(self) -> None:
        """Add to the findings what is wrong with the COCO file and its images.

        Raises:
            UserError: the file is missing or not in the format.
        """
        file = self.path(self.dataset.get('ann_file'))
        if self.remote or not self.dataset.get('ann_file'):
            return
        annotations = read_annotations(file)
        self.findings += annotations.findings
        if not self._has_what_is_needed(annotations):
            return
        self.classes = list(classes_of(self.dataset, self.kind) or ())
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
            evaluator.get('format_only') for evaluator in evaluators(self.cfg, 'test_evaluator')
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

    def _count(self, annotations: Annotations) -> None:
        """Say how many images and objects are used, and why the others are not."""
        masks = any(step.get('with_mask') for step in self.steps) or (
            not self.trains and 'segm' in metrics(self.cfg, self.split)
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
                f'{without} of {total} annotations have no mask ({shown}), by which this model is '
                f'{"trained" if self.trains else "evaluated"}: they fit a detector for boxes alone (Faster '
                'R-CNN in place of Mask R-CNN: no mask head, with_mask=False, metric="bbox")',
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


def classes_of(dataset: dict, kind: type) -> list[str] | None:
    """Return the names that mmengine finds for a dataset."""
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str) and Path(given).is_file():
        return Path(given).read_text().splitlines()
    return given or (getattr(kind, 'METAINFO', None) or {}).get('classes')


def evaluators(cfg: Config, key: str) -> list[dict]:
    """Return the metrics of ``val_evaluator`` or ``test_evaluator``, which may be one or a list."""
    given = cfg.get(key)
    given = given if isinstance(given, (list, tuple)) else [given]
    return [node for node in given if isinstance(node, dict)]


def metrics(cfg: Config, split: str) -> set[str]:
    """Return what is evaluated on the data of ``split``, such as ``bbox`` and ``segm``."""
    found = set()
    for evaluator in evaluators(cfg, split.replace('dataloader', 'evaluator')):
        metric = evaluator.get('metric') or ()
        found |= {metric} if isinstance(metric, str) else set(metric)
    return found
