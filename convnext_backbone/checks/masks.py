"""Checks a segmenter's data: images, masks, and whether the labels in them are those of the classes."""

import os
from collections import Counter

import numpy as np
from mmengine.registry import DATASETS

from ..datasets import improve
from ..datasets.images import SUFFIXES
from ..datasets.masks import beyond, read_mask, to_labels
from ..errors import UserError, message, some
from ..registry import type_name
from .files import DatasetCheck, sampled

BACKGROUND = ('background', 'bg', '_background_', 'unlabeled', 'unlabelled', 'void')


class MaskCheck(DatasetCheck):
    """Checks the images and masks of a segmentation dataset."""

    def check(self) -> None:
        """Add to the findings what is wrong with the images and masks.

        Raises:
            UserError: the dataset cannot be built.
        """
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
        for image, file in sampled(pairs, self.amount):
            read += 1
            try:
                mask = read_mask(file)
            except UserError as error:
                unreadable.append(str(error))
                continue
            try:
                size = self.header(image).upright
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
        self.add('note', 'used', f'{len(pairs)} images with their masks are used; {share}')
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
