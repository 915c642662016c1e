"""Collects what a reader of labels meets: files of the folder, broken ones, what a conversion would lose."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..datasets.images import SUFFIXES, each, header
from ..errors import UserError, some
from .geometry import Broken, NoImage
from .structure import Object, RunLengths

# What COCO files and ours cannot hold: what happens to it where --drop names it.
LOSSES = {
    'keypoints': 'the boxes are kept, without their keypoints',
    'rotated': 'rotated boxes become the upright boxes around them',
    'masks': 'outlines are left out, boxes are kept',
    'lines': 'lines are left out',
    'points': 'points are left out',
    'cuboids': 'cuboids are left out',
    'skeletons': 'skeletons are left out',
    'tracks': 'tracks of videos are left out',
    'tags': 'classes of whole images are left out',
    'parts': 'parts of objects are left out',
}
IGNORED_FOLDERS = ('__MACOSX', '__pycache__')
FEW = 50  # files that are looked into to recognise a format
SLACK = 2  # pixels by which a box may reach outside of its image without a word
SKIP = 'leave such out by --skip-corrupt'


@dataclass
class Draft:
    """Holds one image while its labels are read.

    Attributes:
        image: its name below the folder, with slashes.
        size: width and height as far as the labels state them, else zeros.
        objects: tuples of name of the class, box, mask, crowd, place.
        split: as the folder states it; empty if it does not.
        mask: name of the mask below the folder.
        values: what its mask holds.
        name: of the class of the whole image.
    """

    image: str
    size: tuple[int, int] = (0, 0)
    objects: list[tuple] = field(default_factory=list)
    split: str = ''
    mask: str = ''
    values: frozenset = frozenset()
    name: str = ''


class Reading:
    """Holds the files of a folder and what was met in them.

    Args:
        root: the folder.
        skip_corrupt: leave out and count what is broken.
        drop: kinds of :data:`LOSSES` that may be lost.

    Attributes:
        files: names below the folder, with slashes, in order.
        images: those of images.
        declared: classes that the labels name, used or not.
        changed: something was left out, so that the files are not what was read.

    Raises:
        UserError: there is no such folder, or it has no files.
    """

    def __init__(self, root: str | os.PathLike, skip_corrupt: bool = False, drop: Iterable[str] = ()):
        self.root = Path(root).absolute()
        self.skip_corrupt, self.drop = skip_corrupt, tuple(drop)
        self.files = list_files(self.root)
        self.images = [name for name in self.files if name.lower().endswith(SUFFIXES)]
        self._set = set(self.files)
        self._by_stem, self._by_name = defaultdict(list), defaultdict(list)
        for name in self.images:
            path = PurePosixPath(name)
            self._by_stem[path.stem].append(name)
            self._by_name[path.name].append(name)
        self.declared: dict[str, None] = {}
        self.notes: list[str] = []
        self.changed = False
        self._broken: list[str] = []
        self._lost: dict[str, list[str]] = defaultdict(list)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the files with one of the suffixes, in lower or upper case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name below the folder."""
        return name in self._set

    def path(self, name: str) -> Path:
        """Return where a file lies."""
        return self.root / name

    def text(self, name: str) -> str:
        """Read a text in UTF-8, with or without a byte order mark.

        Raises:
            Broken: it cannot be read, or is no text.
        """
        try:
            return self.path(name).read_bytes().decode('utf-8-sig')
        except OSError as error:
            raise Broken(f'it cannot be read ({error.strerror})') from error
        except UnicodeDecodeError as error:
            raise Broken(f'it is no text in UTF-8 ({error.reason} at byte {error.start})') from error

    def needed_text(self, name: str) -> str:
        """Read a text without which nothing can be read.

        Raises:
            UserError: it cannot be read, or is no text.
        """
        try:
            return self.text(name)
        except Broken as error:
            raise UserError(f'{self.path(name)}: {error}') from error

    # -- what is wrong -------------------------------------------------

    def bad(self, place: str, text: str, count: int = 1) -> None:
        """Report something broken, or the first of several such.

        Raises:
            UserError: unless it is to be left out, and then it is counted.
        """
        line = f'{place}: {" ".join(text.splitlines())}'
        if not self.skip_corrupt:
            raise UserError(f'{self.root / line}; correct it, or {SKIP}')
        self._broken += [line] * count
        self.changed = True

    def without_image(self, labels: list[str]) -> None:
        """Report files of labels that no image belongs to."""
        if labels:
            text = f'{len(labels)} files of labels have no image, this is the first'
            self.bad(labels[0], f'{text} ({PurePosixPath(labels[0]).stem}.jpg or the like)', len(labels))

    def lose(self, kind: str, place: str) -> None:
        """Count something that would be lost; :meth:`refuse_losses` refuses it unless it was named."""
        self._lost[kind].append(place)

    def note(self, text: str) -> None:
        """Keep a line that the user should be told."""
        if text not in self.notes:
            self.notes.append(text)

    def refuse_losses(self) -> None:
        """Tell what is lost.

        Raises:
            UserError: something that ``drop`` does not name.
        """
        for kind, places in self._lost.items():
            counted = f'{len(places)} {kind} ({places[0]}{", ..." * (len(places) > 1)})'
            if kind not in self.drop:
                raise UserError(
                    f'{self.root} has {counted}, which cannot be kept: with --drop {kind} {LOSSES[kind]}'
                )
            self.note(f'{counted}: {LOSSES[kind]}')
            self.changed = True

    def count_broken(self) -> None:
        """Tell how many broken labels are left out."""
        if self._broken:
            self.note(f'{len(self._broken)} broken labels are left out (first: {self._broken[0]})')

    # -- images --------------------------------------------------------

    def image_of(self, label: str, named: str = '', folders: Iterable[str] = ()) -> str:
        """Return the image that belongs to a file of labels.

        Its stem decides, and where that names none, what the file itself says.

        Args:
            label: the file of labels.
            named: name of the image in it.
            folders: names of folders that labels lie in and images do not.

        Raises:
            NoImage: there is none.
            Broken: there are several.
        """
        path = PurePosixPath(label)
        named = PurePosixPath(named.replace('\\', '/')).name
        found = self._by_stem.get(path.stem) or self._by_name.get(named) or []
        if not found:
            raise NoImage('no image belongs to it')
        exact = [name for name in found if PurePosixPath(name).name == named]
        for group in (exact, found):
            beside = [name for name in group if PurePosixPath(name).parent == path.parent]
            if len(beside) == 1:
                return beside[0]
        if len(found) == 1:
            return found[0]
        wanted = [part for part in path.parent.parts if part.lower() not in folders]
        close = [name for name in found if set(wanted) <= set(PurePosixPath(name).parent.parts)]
        for group in ([n for n in close if n in exact], close, exact):
            if len(group) == 1:
                return group[0]
        raise Broken(f'{len(found)} images have its name ({some(found[:3])}): rename all but one')

    def complete_sizes(self, drafts: list[Draft]) -> list[Draft]:
        """Read the sizes that labels do not state from the headers of the images, as they are seen upright.

        Returns:
            The drafts whose images can be read.
        """

        def size(draft: Draft):
            try:
                return header(self.path(draft.image)).upright
            except OSError as error:
                return error

        needed = [draft for draft in drafts if not all(draft.size)]
        wrong = set()
        for draft, found in zip(needed, each(size, needed, 'sizes of images')):
            if isinstance(found, OSError):
                self.bad(draft.image, f'it cannot be read as an image ({found.strerror or found})')
                wrong.add(id(draft))
            else:
                draft.size = found
        return [draft for draft in drafts if id(draft) not in wrong]


def list_files(root: Path) -> list[str]:
    """Return the names of all files below a folder, with slashes; hidden ones and links in a circle are not.

    Raises:
        UserError: there is no such folder, or it has no files.
    """
    if not root.is_dir():
        raise UserError(f'{root} is no folder: give the folder that holds images and labels')
    found, seen = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(n for n in inner if not n.startswith('.') and n not in IGNORED_FOLDERS)
        relative = os.path.relpath(folder, root)
        prefix = '' if relative == '.' else relative.replace(os.sep, '/') + '/'
        found += [prefix + name for name in names if not name.startswith('.')]
    if not found:
        raise UserError(f'{root} has no files: give the folder that holds images and labels')
    return sorted(found)


def finished_objects(
    reading: Reading, drafts: list[Draft], numbers: dict[str, int]
) -> tuple[list[tuple[Object, ...]], bool]:
    """Return the objects of each draft with class numbers, and whether all have masks.

    Raises:
        UserError: a box lies outside of its image, or some objects have outlines and others have none.
    """
    found, beyond, others, without, outlined = [], [], Counter(), [], 0
    for draft in drafts:
        width, height = draft.size
        objects = []
        for name, box, mask, crowd, place in draft.objects:
            if name not in numbers:
                others[name] += 1
                continue
            x1, y1, x2, y2 = box
            text = f'the box {x1:g} {y1:g} {x2:g} {y2:g}'
            if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
                reading.bad(place, f'{text} lies outside of its image of {width} x {height} pixels')
                continue
            if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
                beyond.append(f'{place}: {text}, image {width} x {height}')
            if isinstance(mask, RunLengths) and mask.size != (height, width):
                reading.bad(place, f'a mask of {mask.size[::-1]} pixels, the image has {width, height}')
                continue
            outlined += mask is not None
            if mask is None and not crowd:
                without.append(place)
            objects.append(Object(numbers[name], box, mask, crowd))
        found.append(tuple(objects))
    if beyond:
        reading.note(f'{len(beyond)} boxes reach outside of their image (first: {beyond[0]})')
    if others:
        text = ', '.join(f'{name} ({count})' for name, count in sorted(others.items()))
        reading.note(f'objects of other classes than the stated ones are left out: {text}')
    masked = bool(outlined) and 'masks' not in reading.drop
    if masked and without:
        raise UserError(
            f'{reading.root}: {outlined} objects have an outline, {len(without)} only a box (first: '
            f'{without[0]}): draw the outlines, or train on boxes alone by --drop masks'
        )
    if outlined and not masked:
        reading.note(f'{outlined} masks ({LOSSES["masks"]})')
        found = [tuple(Object(o.label, o.box, None, o.crowd) for o in objects) for objects in found]
        reading.changed = True
    return found, masked
