"""Looks at the files of a dataset: which are there, and what the images hold."""

import difflib
import os
import random
import time
from collections.abc import Callable, Iterator

from mmengine.config import Config

from ..config import dicts
from ..datasets.images import TURNED, Header, header
from ..errors import UserError
from ..findings import Findings
from ..transforms import LoadImage

SECONDS = 4  # for reading a sample of the files of one dataset
SEED = 0  # of the choice of that sample


class Folders:
    """Answers which files are there; each folder is listed once."""

    def __init__(self):
        self._names: dict[str, set[str] | None] = {}

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder; none if it cannot be listed."""
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or '.'))
            except OSError:
                self._names[folder] = set()
        return self._names[folder]

    def has(self, path: str) -> bool:
        """Return whether there is a file at ``path``."""
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


def sampled(items: list, amount: str) -> Iterator:
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


class DatasetCheck:
    """Holds what the checks of both kinds of datasets share."""

    def __init__(self, cfg: Config, dataset: dict, kind: type, split: str, findings: Findings, amount: str):
        self.cfg, self.dataset, self.kind, self.split = cfg, dataset, kind, split
        self.findings, self.amount = findings, amount
        self.root = dataset.get('data_root') or ''
        self.trains = split == 'train_dataloader'
        self.steps = list(dicts(dataset.get('pipeline') or []))
        self.skips = self.trains and any(step.get('skip_corrupt') for step in self.steps)
        self.folders = Folders()
        self._headers: dict[str, Header] = {}

    def add(self, level: str, kind: str, text: str, examples=None, count: int = 0, where: str = '') -> None:
        """Add a finding about this dataset; see :meth:`Findings.add`."""
        self.findings.add(level, kind, where or f'{self.split}', text, examples, count)

    def path(self, name: str | None) -> str:
        """Return a name from the config below the data root of the dataset."""
        return os.path.join(self.root, name or '')

    @property
    def remote(self) -> bool:
        """Return whether the files lie in a storage that cannot be looked into here."""
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

    def header(self, file: str) -> Header:
        """Return the header of an image, which is read once.

        Raises:
            OSError: the file is no image.
        """
        if file not in self._headers:
            self._headers[file] = header(file)
        return self._headers[file]

    def check_images(self, files: list[str], sizes: Callable[[str], tuple | None]) -> None:
        """Read the headers of a sample of the images: size, orientation, depth.

        Args:
            sizes: gives the width and height that the annotations name for a file, ``None`` if they do not.
        """
        ignores = any('ignore_orientation' in str(step.get('color_type')) for step in self.steps)
        raw = any(step.get('color_type') == 'unchanged' for step in self.steps)
        other_size, stored, unreadable, same_size, turned, read = [], [], [], [], [], 0
        deep = {}
        for file in sampled(files, self.amount):
            read += 1
            try:
                found = self.header(file)
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
                f'{len(unreadable)} images cannot be read as an image ({share}): replace them, take them '
                'out of the annotations, or train without them by --skip-corrupt',
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
