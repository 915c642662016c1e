"""Tells which split a file belongs to: by names of folders and files, and by lists."""

from pathlib import PurePosixPath

from ..errors import UserError
from .reading import Reading

SPLITS = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'dev': 'val',
    'test': 'test',
    'testing': 'test',
}


def split_of(word: str) -> str:
    """Return the split that the name of a folder or file stands for; empty for none."""
    return SPLITS.get(word.lower().rstrip('0123456789'), '')


def split_of_folders(name: str) -> str:
    """Return the split that one of the folders of a file stands for; empty for none."""
    return next(filter(None, map(split_of, PurePosixPath(name).parent.parts)), '')


def lists_of(reading: Reading, kind: str, labels: list[str]) -> dict[str, str]:
    """Return stem -> split by the lists of ``ImageSets/KIND`` (VOC's), without those of single classes.

    Args:
        labels: files of labels, whose stems may have spaces.

    Raises:
        UserError: two lists have the same stem.
    """
    found: dict[str, dict[str, None]] = {}
    stems = {PurePosixPath(name).stem for name in labels}
    for name in reading.with_suffix('.txt'):
        path = PurePosixPath(name)
        if path.parent.parts[-2:] == ('ImageSets', kind):
            split = 'trainval' if path.stem.lower() == 'trainval' else split_of(path.stem)
            lines = reading.needed_text(name).splitlines() if split else []
            own = [line if line in stems else line.strip() for line in lines if line.strip()]
            own = [name if name in stems else name.split()[0] for name in own]  # perhaps with a 1 behind
            found.setdefault(split, {}).update(dict.fromkeys(own))
    found.pop('', None)
    both = found.pop('trainval', {})
    if 'train' not in found and both:
        found['train'] = {stem: None for stem in both if stem not in found.get('val', {})}
    splits: dict[str, str] = {}
    for split, stems in found.items():
        for stem in stems:
            if splits.setdefault(stem, split) != split:
                raise UserError(
                    f'{reading.root}: {stem} is in the lists {splits[stem]} and {split}: an image that is '
                    'trained on cannot test the training'
                )
    return splits
