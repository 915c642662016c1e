"""Recognises what lies in a folder of labels and reads it into one structure."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from types import MappingProxyType

from ..datasets.annotations import without_collecting
from ..errors import UserError, check_choice, some, suggest
from . import coco, cvat, folders, labelme, masks, voc, yolo
from .reading import LOSSES, Draft, Reading, finished_objects
from .split import draw, note_leaks
from .structure import Labels, Sample

FORMATS = {  # each has find(), which returns the files that show it, and read()
    'coco': coco,
    'yolo': yolo,
    'voc': voc,
    'labelme': labelme,
    'cvat': cvat,
    'masks': masks,
    'folders': folders,
}
TITLES = {
    'coco': 'COCO JSON',
    'yolo': 'YOLO',
    'voc': 'Pascal VOC',
    'labelme': 'LabelMe',
    'cvat': 'CVAT XML',
    'masks': 'masks beside images',
    'folders': 'folders of classes',
}
FEW_EXAMPLES = 10  # of a class, below which the user is told
MOST_COMPARED = 300_000  # images of which near-identical ones are looked for in given splits
SPLITS = ('train', 'val', 'test')


def recognise(folder: str | os.PathLike) -> str:
    """Return the format of the labels in a folder, a key of :data:`FORMATS`.

    Raises:
        UserError: there is none, or more than one.
    """
    return _recognise(Reading(folder))[0]


def _recognise(reading: Reading) -> tuple[str, list[str]]:
    found = {
        name: files for name, kind in FORMATS.items() if kind != folders and (files := kind.find(reading))
    }
    if not found and (files := folders.find(reading)):
        found = {'folders': files}
    if len(found) > 1:
        kinds = ' and '.join(f'{TITLES[name]} ({files[0]})' for name, files in found.items())
        raise UserError(
            f'{reading.root} holds labels in {len(found)} formats, {kinds}: choose one by --format '
            f'{" or ".join(found)}'
        )
    if not found:
        raise UserError(
            f'{reading.root} holds {len(reading.images)} images and no labels that are known: expected '
            f'{", ".join(TITLES.values())}; docs/data.md shows where each has its files'
        )
    return next(iter(found.items()))


def read_labels(
    folder: str | os.PathLike,
    *,
    format: str | None = None,
    classes: Sequence[str] | None = None,
    split: float = 0.2,
    seed: int = 0,
    skip_corrupt: bool = False,
    drop: Iterable[str] = (),
) -> Labels:
    """Read the labels in a folder; nothing is written there.

    Args:
        folder: holds images and labels.
        format: a key of :data:`FORMATS`; by default it is recognised.
        classes: which classes, in this order; by default all in alphabetical order (of masks: by value).
        split: share of the images to validate on where the folder states no split; 0: all are one.
        seed: of that split.
        skip_corrupt: leave out what is broken, and count it.
        drop: kinds of :data:`LOSSES` that may be lost.

    Raises:
        UserError: what is there cannot be read whole; one line that says where, and what to do.
    """
    drop = tuple(drop)
    for kind in drop:
        check_choice('--drop', kind, LOSSES)
    if not 0 <= split < 1:
        raise UserError(f'the share of images to validate on must be at least 0 and below 1, got {split}')
    if classes is not None and (len(set(classes)) < len(classes) or not classes):
        raise UserError(f'classes must be different names, got {", ".join(classes) or "none"}')
    reading = Reading(folder, skip_corrupt, drop)
    if format is None:
        format, found = _recognise(reading)
    else:
        check_choice('--format', format, FORMATS)
        found = FORMATS[format].find(reading)
    if not found and format != 'folders':
        raise UserError(
            f'{reading.root} has no files of the format {TITLES[format]}: see docs/data.md for its layout'
        )
    if not reading.images:
        labels = f'labels ({found[0]}) but ' if found else ''
        raise UserError(f'{reading.root} has {labels}no images: put the images beside them')
    with without_collecting():
        return _Reader(reading, format, found, classes and tuple(classes)).read(split, seed)


class _Reader:
    """Makes the structure of what a format's own reader finds."""

    def __init__(self, reading: Reading, format: str, found: list[str], wanted: tuple[str, ...] | None):
        self.reading, self.format, self.found, self.wanted = reading, format, found, wanted
        self.colours, self.values, self.files = (), None, {}

    def read(self, share: float, seed: int) -> Labels:
        reading = self.reading
        if self.format == 'coco':
            drafts, self.files = coco.read(reading, self.found)
        elif self.format == 'masks':
            drafts, names, self.colours, self.values = masks.read(reading)
        else:
            drafts = FORMATS[self.format].read(reading)
        reading.refuse_losses()
        if not drafts:
            raise UserError(
                f'{reading.root}: no image with labels in the format {TITLES[self.format]} is left'
            )
        drafts = sorted(drafts, key=lambda draft: draft.image)
        if self.format == 'coco':
            drafts = reading.complete_sizes(drafts)
        if self.format == 'masks':
            task, classes, samples = self._of_masks(drafts, names)
        elif self.format == 'folders':
            task, classes, drafts, samples = self._of_classes(drafts)
        else:
            task, classes, samples = self._of_objects(drafts)
        splits, given = self._splits(drafts, samples, share, seed)
        self._note_classes(classes, splits.get('train', samples), task)
        reading.count_broken()
        usable = given and not reading.changed
        files = {split: own[:2] for split, own in self.files.items() if usable and own[2] >= set(classes)}
        return Labels(
            reading.root,
            self.format,
            task,
            classes,
            MappingProxyType(splits),
            given,
            tuple(reading.notes),
            self.colours,
            self.values,
            MappingProxyType(files),
        )

    # -- tasks ---------------------------------------------------------

    def _of_objects(self, drafts: list[Draft]) -> tuple:
        reading = self.reading
        names = {name for draft in drafts for name, *_ in draft.objects}
        classes = tuple(sorted({*names, *reading.declared}))
        if self.wanted:
            self._check_wanted(classes)
            classes = self.wanted
        objects, masked = finished_objects(reading, drafts, {name: i for i, name in enumerate(classes)})
        if not any(objects):
            raise UserError(f'{reading.root}: its {len(drafts)} images have no object that can be used')
        if empty := objects.count(()):
            reading.note(f'{empty} of {len(drafts)} images have no object: they show the background')
        samples = [
            Sample(reading.path(d.image), *d.size, own, labels=frozenset(o.label for o in own))
            for d, own in zip(drafts, objects)
        ]
        return 'segments' if masked else 'boxes', classes, samples

    def _of_masks(self, drafts: list[Draft], names: tuple[str, ...]) -> tuple:
        new = None
        if self.wanted:
            names, self.colours, self.values, new = masks.choose(
                names, self.colours, self.values, self.wanted
            )
            self.reading.note('pixels of other classes than the stated ones are ignored (255)')
        if len(names) < 2:
            raise UserError(
                f'{self.reading.root}: the masks have one class, {some(names)}: a segmenter tells classes '
                'apart, so give the background a number, too'
            )
        samples = []
        for draft in drafts:
            labels = draft.values if new is None else {new[v] for v in draft.values if v in new}
            place, mask = self.reading.path(draft.image), self.reading.path(draft.mask)
            samples.append(Sample(place, *draft.size, mask=mask, labels=frozenset(labels)))
        return 'masks', tuple(names), samples

    def _of_classes(self, drafts: list[Draft]) -> tuple:
        classes = tuple(sorted({draft.name for draft in drafts}))
        if self.wanted:
            self._check_wanted(classes)
            left_out = sum(draft.name not in self.wanted for draft in drafts)
            drafts = [draft for draft in drafts if draft.name in self.wanted]
            classes = self.wanted
            if left_out:
                self.reading.note(f'{left_out} images of other classes than the stated ones are left out')
        if len(classes) < 2:
            raise UserError(
                f'{self.reading.root} has images of one class, {some(classes)}: a classifier needs two at '
                'least'
            )
        numbers = {name: i for i, name in enumerate(classes)}
        samples = []
        for draft in drafts:
            label = numbers[draft.name]
            samples.append(Sample(self.reading.path(draft.image), label=label, labels=frozenset([label])))
        return 'classes', classes, drafts, samples

    def _check_wanted(self, classes: tuple[str, ...]) -> None:
        for name in self.wanted:
            if name not in classes:
                raise UserError(
                    f'{self.reading.root} has no class {name!r} (it has '
                    f'{some(classes)}){suggest(name, classes)}'
                )

    def _note_classes(self, classes: tuple[str, ...], samples: Sequence[Sample], task: str) -> None:
        """Tell of classes of which little or nothing is trained on."""
        alike = Counter(name.casefold().strip() for name in classes)
        if twice := [name for name in classes if alike[name.casefold().strip()] > 1]:
            self.reading.note(
                f'classes differ in upper and lower case alone, and count as different: {some(twice)}'
            )
        counts = Counter(label for sample in samples for label in sample.labels)
        if task in ('boxes', 'segments'):
            counts = Counter(o.label for sample in samples for o in sample.objects if not o.crowd)
        what = {'masks': 'pixel', 'classes': 'image'}.get(task, 'object')
        if never := [name for i, name in enumerate(classes) if not counts[i]]:
            self.reading.note(f'{len(never)} classes have no {what} to train on: {some(never)}')
        if few := [f'{name} ({counts[i]})' for i, name in enumerate(classes) if 0 < counts[i] < FEW_EXAMPLES]:
            examples = 'objects' if what == 'object' else 'images'
            self.reading.note(
                f'{len(few)} classes have fewer than {FEW_EXAMPLES} {examples} to train on: {some(few)}'
            )

    # -- splits --------------------------------------------------------

    def _splits(
        self, drafts: list[Draft], samples: list[Sample], share: float, seed: int
    ) -> tuple[dict, bool]:
        """Return split -> samples, and whether the folder states them."""
        reading = self.reading
        stated = {draft.split for draft in drafts} - {''}
        if stated and (outside := [draft for draft in drafts if not draft.split]):
            reading.bad(
                outside[0].image,
                f'{len(outside)} images belong to no split, others to {", ".join(sorted(stated))}; this is '
                'the first',
                len(outside),
            )
        if stated >= {'train', 'val'}:
            if len(drafts) <= MOST_COMPARED:
                note_leaks(reading, drafts)
            else:
                reading.note(f'{len(drafts)} images are too many to look for equal ones in train and val')
            return self._by_split([draft.split for draft in drafts], samples), True
        if stated and 'train' not in stated:
            reading.note(
                f'the folder states {", ".join(sorted(stated))} and no train: all images are split anew'
            )
            stated = set()
        pooled = [i for i, d in enumerate(drafts) if not stated or d.split == 'train']
        if stated:
            reading.note('the folder states no val: a part of train becomes val')
        sides = [draft.split for draft in drafts]
        if not share:
            for i in pooled:
                sides[i] = ''
            return self._by_split(sides, samples), False
        drawn = draw(reading, [drafts[i] for i in pooled], [samples[i].labels for i in pooled], share, seed)
        for i, side in zip(pooled, drawn):
            sides[i] = side
        count = drawn.count('val')
        reading.note(
            f'no split is stated: {len(drawn) - count} images to train, {count} to validate (seed {seed})'
        )
        return self._by_split(sides, samples), False

    def _by_split(self, sides: list[str], samples: list[Sample]) -> dict[str, tuple[Sample, ...]]:
        names = [name for name in ('', *SPLITS) if name in sides]
        if '' in names and len(names) > 1 and 'train' in names:
            names.remove('')  # reported
        return {name: tuple(s for s, side in zip(samples, sides) if side == name) for name in names}
