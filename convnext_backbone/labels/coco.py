"""Reads COCO JSON files, by whomever written: the official layout, Roboflow's, CVAT's, any names."""

import mmap
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from ..datasets.annotations import (
    ABSENT,
    IGNORED,
    MASKS,
    NEGATIVE,
    NO_NUMBER,
    NO_SIZE,
    OUTSIDE,
    REASONS,
    UNLISTED,
    WHOLE,
    Annotations,
)
from ..errors import UserError
from .geometry import Broken, make_box, make_polygon
from .reading import Draft, Reading
from .stated import split_of, split_of_folders
from .structure import RunLengths

LISTS = re.compile(rb'"images"\s*:\s*\[')
LABELLED = re.compile(rb'"(annotations|categories)"\s*:\s*\[')
OF_ANOTHER_KIND = re.compile(r'(captions|person_keypoints|stuff|panoptic|image_info)_')
UNUSABLE = (UNLISTED, NO_NUMBER, NO_SIZE, NEGATIVE, OUTSIDE)


def find(reading: Reading) -> list[str]:
    """Return the JSON files that are COCO's, by their content."""
    found = [name for name in reading.with_suffix('.json') if _is_coco(reading.path(name))]
    folders = {PurePosixPath(n).parent for n in found if PurePosixPath(n).name.startswith('instances_')}
    return [
        name
        for name in found
        if PurePosixPath(name).parent not in folders or not OF_ANOTHER_KIND.match(PurePosixPath(name).name)
    ]


def _is_coco(file: Path) -> bool:
    try:
        with file.open('rb') as stream:
            start = stream.read(1 << 16)
            if b'"shapes"' in start[:4096] or not start.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'{'):
                return False  # LabelMe's, with an image in it
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return bool(LISTS.search(content) and LABELLED.search(content))
    except (OSError, ValueError):
        return False


def read(reading: Reading, found: list[str]) -> tuple[list[Draft], dict[str, tuple[Path, Path, set[str]]]]:
    """Read COCO files.

    Args:
        found: what :func:`find` returned.

    Returns:
        The images, and for each split a file that can be used where it lies, the folder of its images and
        its categories.

    Raises:
        UserError: a file is no COCO file, or lists images that are not there.
    """
    drafts, files, times, owners = [], {}, Counter(), {}
    for name in found:
        try:
            annotations = Annotations(reading.path(name))
        except UserError as error:
            if not reading.skip_corrupt:
                raise
            reading.bad(name, str(error))
            continue
        annotations.findings = type(annotations.findings)(
            f for f in annotations.findings if f.level == 'error' and f.kind != 'unlisted_image'
        )
        annotations.findings.raise_errors()
        split = split_of_file(name)
        times[split] += 1
        changed, reading.changed = reading.changed, False
        own, prefix = _read_file(reading, name, annotations, split)
        if prefix is not None and not reading.changed and times[split] == 1:
            files[split] = (reading.path(name), reading.path(prefix), set(annotations.categories.values()))
        else:
            files.pop(split, None)
        reading.changed |= changed
        for draft in own:
            other = owners.setdefault(draft.image, name)
            if other == name:
                drafts.append(draft)
            elif split_of_file(other) != split:
                raise UserError(
                    f'{reading.path(name)}: {draft.image} is in {other}, too: an image that is trained on '
                    'cannot '
                    'test the training'
                )
            else:
                reading.bad(name, f'the image {draft.image} is listed by {other}, too')
    if not drafts:
        raise UserError(f'{reading.root}: the COCO files {", ".join(found[:3])} list no images')
    return drafts, files


def split_of_file(name: str) -> str:
    """Return the split of a COCO file, by a word of its name or by its folder; empty for none."""
    words = re.split(r'[^a-z0-9]+', PurePosixPath(name).stem.lower())
    return next(filter(None, map(split_of, words)), '') or split_of_folders(name)


def _read_file(
    reading: Reading, name: str, annotations: Annotations, split: str
) -> tuple[list[Draft], str | None]:
    """Return the images of a file, and their folder if a dataset would read from it the very same."""
    categories = _categories(reading, name, annotations)
    reading.declared.update(dict.fromkeys(categories.values()))
    prefix, where = _prefix(reading, name, annotations, split)
    drafts, order = {}, []
    missing = [record['file_name'] for image, record in annotations.images.items() if image not in where]
    if missing:
        text = f'{len(missing)} of {len(annotations.images)} images that it lists are not there'
        reading.bad(name, f'{text} (first: {missing[0]})', len(missing))
    seen = {}
    for image, record in annotations.images.items():
        if image not in where:
            continue
        file = where[image]
        if file in seen:
            reading.bad(name, f'it lists the image {record["file_name"]} twice')
            continue
        seen[file] = image
        size = (int(record.get('width', 0)), int(record.get('height', 0)))
        drafts[image] = Draft(file, size if all(size) else (0, 0), split=split)
        order.append(file)
    exact = [_read_object(reading, name, annotations, i, drafts) for i in range(len(annotations.records))]
    usable = prefix is not None and order == sorted(order) and annotations.annotated and all(exact)
    return list(drafts.values()), prefix if usable else None


def _categories(reading: Reading, name: str, annotations: Annotations) -> dict:
    """Return id -> name, without the entry that Roboflow writes for the set itself."""
    categories = dict(annotations.categories)
    records = annotations.supercategories
    used = {record['category_id'] for record in annotations.records}
    for number, category in annotations.categories.items():
        others = [above for other, above in records.items() if other != number]
        if number not in used and others and all(above == category for above in others):
            del categories[number]
            reading.note(f'{name}: the category {category} is the name of the set, not a class: left out')
            break
    return categories


def _prefix(
    reading: Reading, name: str, annotations: Annotations, split: str
) -> tuple[str | None, dict[int, str]]:
    """Find the images that a file lists.

    Returns:
        The folder below which all have the names that the file states (``None`` if there is none), and the
        name below the root of each image.
    """
    by_name = defaultdict(list)
    for image in reading.images:
        by_name[PurePosixPath(image).name].append(image)
    names = {number: r['file_name'].replace('\\', '/') for number, r in annotations.images.items()}
    names = {number: re.sub(r'^(\./)+', '', given) for number, given in names.items()}
    folder = str(PurePosixPath(name).parent)
    counts = Counter()
    for given in names.values():
        for image in by_name[PurePosixPath(given).name]:
            if image == given or image.endswith('/' + given):
                counts[image.removesuffix(given)] += 1

    def rank(prefix: str) -> tuple:
        own = split_of_folders(prefix + 'x')
        beside = '' if folder == '.' else folder + '/'
        return counts[prefix], own == split, prefix == beside, -len(prefix), prefix

    ranked = sorted(counts, key=rank, reverse=True)
    found = {}
    for number, given in names.items():
        places = [prefix + given for prefix in ranked if reading.has(prefix + given)]
        if not places:  # such as a path of another machine, or another folder
            places = by_name[PurePosixPath(given).name]
            places = places if len(places) == 1 else []
        if places:
            found[number] = places[0]
    one = ranked and all(found.get(number) == ranked[0] + given for number, given in names.items())
    return ranked[0] if one else None, found


def _read_object(
    reading: Reading, name: str, annotations: Annotations, number: int, drafts: dict[int, Draft]
) -> bool:
    """Read one object; return whether a dataset would read the same from the file itself."""
    record, why = annotations.records[number], annotations.why[number]
    place = f'{name}: {annotations.describe([number])[0]}'
    if record['image_id'] not in drafts and why != UNLISTED:
        return False  # its image has been reported
    if why == IGNORED:
        reading.note(f"{name}: objects marked as 'ignore' are left out")
        return True
    if why in UNUSABLE:
        reading.bad(place, REASONS[why])
        return False
    if record.get('num_keypoints') or record.get('keypoints'):
        reading.lose('keypoints', place)
    x, y, width, height = annotations.boxes[number].tolist()
    state, given = annotations.mask[number], record.get('segmentation')
    try:
        box = make_box((x, y, x + width, y + height))
        mask = None
        if state == WHOLE and isinstance(given, dict):
            counts = given['counts']
            counts = tuple(counts) if isinstance(counts, list) else counts
            mask = RunLengths(tuple(given['size']), counts)
        elif state == WHOLE:
            mask = tuple(make_polygon(polygon) for polygon in given)
        elif state != ABSENT:
            raise Broken(MASKS[state])
    except Broken as error:
        reading.bad(place, str(error))
        return False
    crowd = bool(annotations.crowd[number])
    category = annotations.categories[record['category_id']]
    drafts[record['image_id']].objects.append((category, box, mask, crowd, place))
    rounded = isinstance(mask, tuple) and not isinstance(mask, RunLengths) and mask != _tuples(given)
    return not rounded and max(abs(box[0] - x), abs(box[1] - y), abs(box[2] - x - width)) < 1e-6


def _tuples(polygons: list) -> tuple:
    return tuple(map(tuple, polygons))
