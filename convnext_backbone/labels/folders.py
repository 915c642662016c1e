"""Reads folders of images whose names are the classes (ImageFolder)."""

from collections import defaultdict
from pathlib import PurePosixPath

from timm.data.readers.img_extensions import IMG_EXTENSIONS

from ..errors import UserError
from .reading import Draft, Reading
from .stated import split_of


def find(reading: Reading) -> list[str]:
    """Return the folders of classes, if each image lies in one, below that of a split or not."""
    places = {PurePosixPath(name).parent.parts for name in reading.images}
    splits = _are_splits(places)
    places -= {place for place in places if splits and _is_without_classes(place)}
    if not places or () in places:
        return []
    return [] if {len(place) for place in places} != {1 + splits} else sorted({'/'.join(p) for p in places})


def _are_splits(places: set[tuple[str, ...]]) -> bool:
    named = () not in places and all(split_of(place[0]) for place in places)
    return named and any(len(place) > 1 for place in places)


def _is_without_classes(place: tuple[str, ...]) -> bool:
    """Return whether this is a folder of pictures to predict, ``test/1.jpg``."""
    return len(place) == 1 and split_of(place[0]) == 'test'


def read(reading: Reading) -> list[Draft]:
    """Read the names of folders.

    Raises:
        UserError: images lie elsewhere than in a folder of a class, or a file is none that is read.
    """
    places = {PurePosixPath(name).parent.parts for name in reading.images}
    splits = _are_splits(places)
    drafts, inside, unlabelled = [], defaultdict(set), []
    for name in reading.images:
        folders = PurePosixPath(name).parent.parts
        if splits and _is_without_classes(folders):
            unlabelled.append(name)
            continue
        if len(folders) != 1 + splits:
            expected = 'SPLIT/CLASS/image.jpg' if splits else 'CLASS/image.jpg'
            reading.bad(name, f'the image lies in no folder of a class, expected {expected}')
            continue
        if not name.lower().endswith(tuple(IMG_EXTENSIONS)):
            reading.bad(name, f'classifiers read {", ".join(IMG_EXTENSIONS)}: save it as one of these')
            continue
        split = split_of(folders[0]) if splits else ''
        inside[split].add(folders[-1])
        drafts.append(Draft(name, split=split, name=folders[-1]))
    if unlabelled:
        reading.note(
            f'{len(unlabelled)} images of test have no class and are left out (first: {unlabelled[0]})'
        )
    images = set(reading.images)
    others = [n for n in reading.files if n not in images and PurePosixPath(n).parent.parts]
    if others:
        reading.note(f'{len(others)} files are no images and are left out (first: {others[0]})')
    for split in inside:
        missing = sorted(inside['train'] - inside[split]) if 'train' in inside else []
        if missing:
            reading.note(f'{split} has no images of {len(missing)} classes of train (first: {missing[0]})')
        if unknown := sorted(inside[split] - inside.get('train', inside[split])):
            raise UserError(
                f'{reading.root}: {split} has the class {unknown[0]}, which train does not have: add images '
                'of it there, or remove the folder'
            )
    return drafts
