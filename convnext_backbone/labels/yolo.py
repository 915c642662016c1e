"""Reads YOLO labels: a text file for each image, names in a YAML or text file."""

import math
import os
import re
from pathlib import Path, PurePosixPath

import yaml

from ..errors import UserError
from .geometry import Broken, around, make_box, make_polygon, number
from .reading import FEW, Draft, Reading
from .stated import split_of, split_of_folders

LINE = re.compile(rb'\s*\d+(\.0*)?(\s+-?[\d.]+([eE][-+]?\d+)?){4,}\s*$')
NAMES = ('classes.txt', 'obj.names', 'classes.names', 'names.txt', '_darknet.labels')
NOT_LABELS = {*NAMES, 'train.txt', 'val.txt', 'valid.txt', 'test.txt', 'requirements.txt', 'labels.txt'}
KEYS = ('train', 'val', 'valid', 'test')


def find(reading: Reading) -> list[str]:
    """Return the files that make a folder one of YOLO's: descriptions with names, or files of labels."""
    return _descriptions(reading) or [
        name for name in _evenly(_label_files(reading), FEW) if _is_label(reading.path(name))
    ]


def _descriptions(reading: Reading) -> list[str]:
    return [name for name in reading.with_suffix('.yaml', '.yml') if _described(reading, name)]


def _described(reading: Reading, name: str) -> dict | None:
    try:
        content = yaml.safe_load(reading.text(name))
    except Broken:
        return None
    except yaml.YAMLError as error:
        if PurePosixPath(name).name.lower() in ('data.yaml', 'data.yml'):
            line = getattr(getattr(error, 'problem_mark', None), 'line', 0) + 1
            why = ' '.join(str(getattr(error, 'problem', error)).split())
            raise UserError(f'{reading.path(name)}: line {line} is no YAML ({why}): correct it') from error
        return None
    known = isinstance(content, dict) and isinstance(content.get('names'), (list, dict))
    return content if known else None


def _label_files(reading: Reading) -> list[str]:
    return [n for n in reading.with_suffix('.txt') if PurePosixPath(n).name.lower() not in NOT_LABELS]


def _evenly(items: list, count: int) -> list:
    return items[:: max(1, len(items) // count)]


def _is_label(file: Path) -> bool:
    try:
        with file.open('rb') as stream:
            return bool(LINE.match(stream.readline(1 << 16).removeprefix(b'\xef\xbb\xbf')))
    except OSError:
        return False


def read(reading: Reading) -> list[Draft]:
    """Read the labels.

    Raises:
        UserError: no file names the classes, a list or folder is not there, or what
            :meth:`Reading.bad` reports.
    """
    names, splits, points = _description(reading)
    reading.declared.update(dict.fromkeys(names.values()))
    if splits is None:
        splits = {name: split_of_folders(name) for name in reading.images}
    if not splits:
        raise UserError(f'{reading.root} has YOLO labels, but no images: put the images beside them')
    labels = {name: label for name in splits if (label := _label_of(reading, name))}
    drafts = [Draft(name, split=split) for name, split in splits.items()]
    owners: dict[str, str] = {}
    for name, label in labels.items():
        if owners.setdefault(label, name) != name:
            reading.bad(label, f'it belongs to two images, {owners[label]} and {name}: rename one of them')
    if not labels:
        raise UserError(
            f'{reading.root}: none of the {len(splits)} images has a file of labels (the first is looked '
            f'for at {_beside(next(iter(splits)))[0]})'
        )
    if without := [name for name in splits if name not in labels]:
        reading.note(f'{len(without)} images have no file of labels and count as empty (first: {without[0]})')
    used = set(labels.values()) | {_label_of(reading, name) for name in reading.images if name not in splits}
    alone = [n for n in _label_files(reading) if n not in used and _is_label(reading.path(n))]
    reading.without_image(alone)
    drafts = reading.complete_sizes(drafts)
    quads = True
    for draft in drafts:
        if label := labels.get(draft.image):
            quads &= _read_file(reading, label, draft, names, points)
    if quads and any(mask for draft in drafts for _, _, mask, *_ in draft.objects):
        reading.note(
            'every outline has four corners: if these are rotated boxes (OBB), they are learned as outlines '
            'and the upright boxes around them'
        )
    return drafts


def _read_file(reading: Reading, label: str, draft: Draft, names: dict[int, str], points: int) -> bool:
    """Read the objects of an image; return whether none has an outline of other than four corners."""
    try:
        lines = reading.text(label).splitlines()
    except Broken as error:
        reading.bad(label, str(error))
        return True
    quads = True
    for count, line in enumerate(lines, 1):
        if not (words := line.split()):
            continue
        place = f'{label}, line {count}'
        try:
            kind = number(words[0])
            if kind not in names:
                raise Broken(
                    f'class {words[0]}, but {len(names)} classes are named ({min(names)} to {max(names)}): '
                    'add names, or correct the number'
                )
            box, mask, keypoints = _shape([number(word) for word in words[1:]], *draft.size, points)
        except Broken as error:
            reading.bad(place, str(error))
            continue
        if keypoints:
            reading.lose('keypoints', place)
        quads &= mask is None or len(mask[0]) == 8
        draft.objects.append((names[int(kind)], box, mask, False, place))
    return quads


def _shape(values: list[float], width: int, height: int, points: int) -> tuple:
    """Return box, outline and whether there are keypoints, of which ``points`` numbers are expected."""
    keypoints = points and len(values) == 4 + points
    outline = len(values) >= 6 and len(values) % 2 == 0 and not keypoints
    if not (len(values) == 4 or keypoints or outline):
        raise Broken(
            f'{len(values) + 1} numbers, expected 5 (class x y width height), or class and the x y of at '
            'least three corners; keypoints need kpt_shape in the YAML'
        )
    fractions = values if outline else values[:4]
    if max(map(abs, fractions)) > 1.5:
        raise Broken(f'{max(fractions, key=abs):g} is no fraction of the image (0 to 1)')
    if outline:
        mask = (make_polygon(v * (height if i % 2 else width) for i, v in enumerate(values)),)
        return around(mask), mask, False
    x, y, w, h = fractions
    box = make_box(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height))
    return box, None, keypoints


def _beside(image: str) -> list[str]:
    """Return where the labels of an image may lie: Ultralytics' rule first."""
    stem = str(PurePosixPath(image).with_suffix('.txt'))
    head, found, tail = f'/{stem}'.rpartition('/images/')
    return [f'{head}/labels/{tail}'[1:], stem] if found else [stem]


def _label_of(reading: Reading, image: str) -> str:
    places = _beside(image)
    if found := next((place for place in places if reading.has(place)), ''):
        return found
    parts = PurePosixPath(image).with_suffix('.txt').parts
    places += ['/'.join((*parts[:i], 'labels', *parts[i:])) for i in range(len(parts))]
    places += [place.removesuffix('.txt') + '.TXT' for place in places]
    return next((place for place in places if reading.has(place)), '')


# -- names and splits --------------------------------------------------


def _description(reading: Reading) -> tuple[dict[int, str], dict[str, str] | None, int]:
    """Return number -> name of the classes, image -> split if that is stated, and numbers of keypoints."""
    found = _descriptions(reading)
    if len(found) > 1:
        main = [name for name in found if PurePosixPath(name).name.lower() in ('data.yaml', 'data.yml')]
        if len(main) != 1:
            raise UserError(
                f'{reading.root} has {len(found)} YAML files with names of classes ({", ".join(found[:4])}): '
                'keep one, or call it data.yaml'
            )
        found = main
    if found:
        return _from_yaml(reading, found[0])
    if darknet := [name for name in reading.with_suffix('.data') if 'names' in _pairs(reading, name)]:
        pairs = _pairs(reading, darknet[0])
        wanted = PurePosixPath(pairs['names']).name
        lists = {key: pairs[key] for key in KEYS if key in pairs}
        names = next((n for n in reading.files if PurePosixPath(n).name == wanted), None)
        if names:
            return _names_in(reading, names), _images_of(reading, darknet[0], reading.root, lists) or None, 0
    for wanted in NAMES:
        named = [n for n in reading.files if PurePosixPath(n).name.lower() == wanted]
        if named:
            return _names_in(reading, named[0]), None, 0
    raise UserError(
        f'{reading.root} has YOLO labels, but no file that names the classes: add data.yaml with names, or '
        'classes.txt with one name per line, in the order of the numbers'
    )


def _pairs(reading: Reading, name: str) -> dict[str, str]:
    lines = [line.partition('=') for line in reading.needed_text(name).splitlines()]
    return {key.strip(): value.strip() for key, found, value in lines if found}


def _names_in(reading: Reading, name: str) -> dict[int, str]:
    names = [line.strip() for line in reading.needed_text(name).splitlines() if line.strip()]
    return _different(dict(enumerate(names)), reading.path(name))


def _different(names: dict, file: Path) -> dict[int, str]:
    if wrong := [key for key in names if not isinstance(key, int) or isinstance(key, bool) or key < 0]:
        raise UserError(f'{file}: the key {wrong[0]!r} of names is no number of a class')
    names = {key: str(name) for key, name in names.items()}
    given = list(names.values())
    if twice := [name for name in given if given.count(name) > 1]:
        raise UserError(f'{file} names {twice[0]!r} twice: give every class a name of its own')
    if not names:
        raise UserError(f'{file} names no classes: list them, in the order of the numbers')
    return names


def _from_yaml(reading: Reading, name: str) -> tuple[dict[int, str], dict[str, str] | None, int]:
    content, file = _described(reading, name), reading.path(name)
    names = content['names']
    names = _different(names if isinstance(names, dict) else dict(enumerate(names)), file)
    if (count := content.get('nc')) is not None and count != len(names):
        raise UserError(f'{file}: nc is {count}, but {len(names)} classes are named: make them agree')
    base = file.parent
    if given := content.get('path'):
        base = Path(os.path.expanduser(str(given)))
        base = base if base.is_absolute() else file.parent / base
        if not base.is_dir():
            reading.note(f'{name}: the folder {given} of path is not there, {file.parent} is taken for it')
            base = file.parent
    lists = {key: content[key] for key in KEYS if content.get(key)}
    points = content.get('kpt_shape') or (0,)
    return names, _images_of(reading, name, base, lists) or None, math.prod(points)


def _images_of(reading: Reading, name: str, base: Path, lists: dict) -> dict[str, str]:
    """Return image -> split for what a description names: folders, lists of folders, text files."""
    found: dict[str, str] = {}
    for key, given in lists.items():
        split, entries = split_of(key), given if isinstance(given, list) else [given]
        own = []
        for entry in entries:
            place = _place(reading, base, str(entry))
            if place is None:
                own = None
                break
            own += _listed(reading, place) if (reading.root / place).is_file() else _inside(reading, place)
        if own is None:
            if split == 'train' or not found:
                raise UserError(f'{reading.path(name)}: {key}: {given} is not there below {base}')
            reading.note(f'{name}: {key}: {given} is not there: the folder has no such split')
            continue
        if not own:
            reading.note(f'{name}: {key}: {given} holds no images')
        for image in own:
            if found.setdefault(image, split) != split:
                raise UserError(
                    f'{reading.path(name)}: {image} is in {found[image]} and in {split}: an image that is '
                    'trained on cannot test the training'
                )
    return found


def _place(reading: Reading, base: Path, entry: str) -> str | None:
    """Return a path of a description as a name below the folder; ``None`` if it is not there."""
    entry = entry.replace('\\', '/')
    parts = list(PurePosixPath(entry).parts)
    tries = [base / entry]
    while len(parts) > 1 and parts[0] in (
        '..',
        'data',
    ):  # Roboflow's ../train/images, darknet's data/train.txt
        del parts[0]
        tries.append(base / PurePosixPath(*parts))
    for place in tries:
        inside = os.path.relpath(os.path.normpath(place), reading.root).replace(os.sep, '/')
        if place.exists() and not inside.startswith('../') and inside != '..':
            return inside
    return None


def _inside(reading: Reading, folder: str) -> list[str]:
    prefix = '' if folder == '.' else f'{folder}/'
    return [name for name in reading.images if name.startswith(prefix)]


def _listed(reading: Reading, name: str) -> list[str]:
    """Return the images that a text file lists."""
    found = []
    for count, line in enumerate(reading.needed_text(name).splitlines(), 1):
        if not line.strip():
            continue
        beside = _place(reading, reading.path(name).parent, line.strip())
        place = beside or _place(reading, reading.root, line.strip())
        if place is None or not reading.has(place):
            reading.bad(f'{name}, line {count}', f'the image {line.strip()} is not there')
            continue
        found.append(place)
    return found
