"""Reads a COCO annotation file once, finds what is wrong in it, and completes what exporters leave out.

Datasets, metrics and checks share what is read here, so that all of them see the same objects. ``area``
that is absent or 0 is computed from the mask or the box, ``iscrowd`` that is absent is 0, a polygon that is
not in a list is put into one, and objects get new ids from 1: pycocotools takes id 0 for "not matched".
"""

import contextlib
import functools
import gc
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
from pycocotools import mask as rle

from ..errors import UserError, some, suggest
from ..findings import EXAMPLES, Findings, Level

LEAST_COORDINATES = 6  # of a polygon: three points
CHUNK = 100_000  # polygons that are measured at once
FULLY_READ = 20_000  # compressed masks whose run lengths are added up

# Why an object cannot be used, whatever the task; numbers in Annotations.why.
REASONS = (
    '',
    'of an image that is not listed',
    'box with NaN, infinity or no number',
    'box without width or height',
    'box with negative width or height',
    'box outside the image',
    "marked as 'ignore'",
)
(USED, UNLISTED, NO_NUMBER, NO_SIZE, NEGATIVE, OUTSIDE, IGNORED) = range(len(REASONS))
# What is wrong with a mask; numbers in Annotations.mask.
MASKS = (
    '',
    'no mask',
    'polygon of fewer than three points',
    'mask without area',
    'mask outside the image',
    'mask with NaN or no number',
    'RLE mask that is damaged',
)
(WHOLE, ABSENT, SHORT, FLAT, MASK_OUTSIDE, MASK_NO_NUMBER, DAMAGED) = range(len(MASKS))


class Listing:
    """Holds the images and categories that a COCO annotation file lists.

    Args:
        file: path of the JSON file.
        content: what it holds, if that was read already.

    Attributes:
        categories: id -> name, in the order of the file.
        supercategories: id -> what the category belongs to, or ``None``.
        images: id -> record, in the order of the file; ``width`` and ``height`` may be absent.
        findings: what is wrong with the file, whoever uses it.

    Raises:
        UserError: the file is missing, no JSON, or not in the format.
    """

    def __init__(self, file: str | os.PathLike, content: dict | None = None):
        self.file = str(file)
        self.findings = Findings()
        content = _parse(self.file) if content is None else content
        self.supercategories = {}
        self.categories = self._categories(content)
        self.images = self._images(content)

    def _list(self, content: dict, key: str) -> list[dict]:
        values = content.get(key)
        if not isinstance(values, list):
            raise UserError(
                f'{self.file} is no COCO annotation file: {key!r} is {_kind(values)}, expected a list'
            )
        for number, value in enumerate(values):
            if not isinstance(value, dict):
                raise UserError(f'{self.file}: {key}[{number}] is {_kind(value)}, expected an object')
        return values

    def _check_id(self, given, place: str) -> None:
        if isinstance(given, (list, dict)):
            raise UserError(f'{self.file}: id of {place} is {_kind(given)}, expected a number or text')

    def _categories(self, content: dict) -> dict:
        if 'categories' not in content and content.get('annotations') is None and 'images' in content:
            return {}
        records, found = self._list(content, 'categories'), {}
        for number, record in enumerate(records):
            if absent := [key for key in ('id', 'name') if record.get(key) is None]:
                raise UserError(f'{self.file}: categories[{number}] has no {absent[0]!r}')
            self._check_id(record['id'], f'categories[{number}]')
            if record['id'] in found:
                raise UserError(
                    f'{self.file}: the categories {found[record["id"]]!r} and {record["name"]!r} have the '
                    f'same id {record["id"]}: give each its own'
                )
            if not isinstance(record['name'], str):
                raise UserError(
                    f'{self.file}: the name of category {record["id"]!r} is {_kind(record["name"])}, '
                    'expected text'
                )
            found[record['id']] = record['name']
            self.supercategories[record['id']] = record.get('supercategory')
        twice = [name for name, count in Counter(found.values()).items() if count > 1]
        if twice:
            ids = [str(i) for i, name in found.items() if name == twice[0]]
            raise UserError(
                f'{self.file}: {len(ids)} categories are called {twice[0]!r} (ids {", ".join(ids)}): names '
                'tell classes apart, so rename one, or merge them into one id'
            )
        return found

    def _images(self, content: dict) -> dict:
        found = {}
        for number, record in enumerate(self._list(content, 'images')):
            for key in ('id', 'file_name'):
                if record.get(key) is None:
                    raise UserError(
                        f'{self.file}: images[{number}] ({_short(record)}) has no {key!r}, which every image '
                        'needs'
                    )
            self._check_id(record['id'], f'images[{number}]')
            if not isinstance(record['file_name'], str):
                raise UserError(
                    f'{self.file}: file_name of images[{number}] is {_kind(record["file_name"])}, expected '
                    'text'
                )
            if record['id'] in found:
                raise UserError(
                    f'{self.file}: the images {found[record["id"]]["file_name"]} and {record["file_name"]} '
                    f'have the same id {record["id"]!r}: give each its own'
                )
            for key in ('width', 'height'):
                value = record.get(key)
                if value is None:
                    record.pop(key, None)  # taken from the image file
                elif isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                    raise UserError(
                        f'{self.file}: {key} of image {record["file_name"]} is {value!r}, expected a number '
                        'of pixels'
                    )
            found[record['id']] = record
        names = Counter(record['file_name'] for record in found.values())
        if twice := [name for name, count in names.items() if count > 1]:
            self.findings.add(
                'warning', 'image_twice', self.file, f'{len(twice)} files are listed more than once', twice
            )
        return found


class Annotations(Listing):
    """Holds the content of a COCO annotation file, checked and completed.

    Args:
        file: path of the JSON file.

    Attributes:
        records: the annotations, as they stand in the file but for what was completed.
        boxes: (N, 4) float64, x y width height in pixels.
        image_of: (N,) int, number of the image of each record, -1 if the file does not list it.
        category_of: (N,) int, number of the category of each record.
        why: (N,) uint8, why a record cannot be used, see :data:`REASONS`.
        mask: (N,) uint8, what is wrong with its mask, see :data:`MASKS`.
        crowd: (N,) bool.
        annotated: whether the file has annotations at all; lists of test images have none.

    The others are those of :class:`Listing`.

    Raises:
        UserError: the file is missing, no JSON, or not in the format.
    """

    def __init__(self, file: str | os.PathLike):
        content = _parse(str(file))
        super().__init__(file, content)
        self.annotated = content.get('annotations') is not None
        self.records = self._list(content, 'annotations') if self.annotated else []
        self._sizes = np.array(
            [(r.get('width', math.inf), r.get('height', math.inf)) for r in self.images.values()], float
        ).reshape(-1, 2)
        self._resolve_ids()
        self.why = np.zeros(len(self.records), np.uint8)
        self.mask = np.zeros(len(self.records), np.uint8)
        self._read_masks()
        self._read_boxes()
        self._read_flags()
        self._complete_areas()

    # -- structure ---------------------------------------------------

    def _resolve_ids(self) -> None:
        """Turn the ids of image and category of each record into numbers."""
        self.image_of = self._numbers('image_id', self.images)
        self.category_of = self._numbers('category_id', self.categories)
        if (unknown := np.flatnonzero(self.category_of < 0)).size:
            given = self.records[unknown[0]]['category_id']
            raise UserError(
                f'{self.file}: {len(unknown)} annotations have category_id {given!r}, which its "categories" '
                f'do not list (they list {some(self.categories)}){_other_type(given, self.categories)}'
            )
        if (unknown := np.flatnonzero(self.image_of < 0)).size:
            given = self.records[unknown[0]]['image_id']
            other = _other_type(given, self.images)
            self.findings.add(
                'error' if len(unknown) == len(self.records) or other else 'warning',
                'unlisted_image',
                self.file,
                f'{len(unknown)} of {len(self.records)} annotations belong to images that the file does not '
                f'list{other or ": they are left out"}',
                [f'image_id {self.records[i]["image_id"]!r}' for i in unknown[:3]],
                len(unknown),
            )

    def _numbers(self, key: str, known: dict) -> np.ndarray:
        index = {name: number for number, name in enumerate(known)}
        try:
            return np.fromiter((index.get(r[key], -1) for r in self.records), np.int64, len(self.records))
        except (KeyError, TypeError):
            wrong = next(r for r in self.records if not isinstance(r.get(key), (int, str, float)))
            raise UserError(
                f'{self.file}: annotation {wrong.get("id", "without id")!r} has '
                f'{f"{key} {wrong[key]!r}" if key in wrong else f"no {key!r}"}, expected one of the ids that '
                'the file lists'
            ) from None

    # -- boxes -------------------------------------------------------

    def _read_boxes(self) -> None:
        given = [record.get('bbox') for record in self.records]
        try:
            boxes = np.array(given)
            fits = boxes.dtype.kind in 'iuf' and boxes.shape == (len(given), 4)
        except ValueError:  # of different lengths
            fits = False
        if fits:
            self.boxes = boxes.astype(np.float64)
        else:
            self.boxes = np.full((len(given), 4), np.nan)
            for number, box in enumerate(given):
                numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_number, box))
                if numbers:
                    self.boxes[number] = box
                elif not box and self.mask[number] == WHOLE:  # a mask without a box
                    self.boxes[number] = self._extents[number]
                    self.records[number]['bbox'] = self.boxes[number].tolist()
        x, y, width, height = self.boxes.T
        if len(self.images):
            image_width, image_height = self._sizes[self.image_of].T
        else:
            image_width = image_height = np.full(len(x), np.inf)
        across = np.minimum(x + width, image_width) - np.maximum(x, 0)
        down = np.minimum(y + height, image_height) - np.maximum(y, 0)
        why = self.why
        with np.errstate(invalid='ignore'):
            why[(across <= 0) | (down <= 0)] = OUTSIDE
            why[(width == 0) | (height == 0)] = NO_SIZE
            why[(width < 0) | (height < 0)] = NEGATIVE
        why[~np.isfinite(self.boxes).all(1)] = NO_NUMBER
        why[self.image_of < 0] = UNLISTED
        ignored = np.fromiter((bool(r.get('ignore')) for r in self.records), bool, len(self.records))
        why[ignored & (why == USED)] = IGNORED
        self._judge_boxes(image_width, image_height)

    def _judge_boxes(self, image_width: np.ndarray, image_height: np.ndarray) -> None:
        """Find boxes in another format than x y width height in pixels."""
        finite = np.isfinite(self.boxes).all(1)
        x, y, width, height = self.boxes.T
        with np.errstate(invalid='ignore'):
            fractions = finite & (self.boxes >= -0.01).all(1) & (self.boxes <= 1.01).all(1)
            fractions &= (width > 0) & (height > 0) & (np.minimum(image_width, image_height) > 4)
            beyond = finite & ((x + width > image_width * 1.01 + 2) | (y + height > image_height * 1.01 + 2))
            corners = finite & (width > x) & (height > y)
        total = max(int(finite.sum()), 1)
        if fractions.sum() > total / 2:
            self._add(
                'error',
                'boxes_normalised',
                f'{fractions.sum()} of {total} boxes are fractions of the image (0 to 1), expected x y width '
                'height in pixels: multiply x and width by the width of the image, y and height by its '
                'height',
                fractions,
            )
            return
        known = finite & (self.mask == WHOLE)
        as_given = _overlap(self.boxes, self._extents)
        as_corners = _overlap(_from_corners(self.boxes), self._extents)
        like_corners = known & (as_corners > 0.8) & (as_given < 0.8)
        share_beyond, share_corners = beyond.sum() / total, (corners & finite).sum() / total
        by_mask = known.sum() >= 1 and like_corners.sum() > known.sum() / 2
        by_edges = share_corners > 0.9 and (share_beyond > 0.5 or (beyond.sum() > 1 and share_beyond > 0.2))
        if by_mask or by_edges:
            reason = 'their masks lie so' if by_mask else f'{share_beyond:.0%} reach outside the image'
            self._add(
                'error',
                'boxes_as_corners',
                f'the boxes look like x1 y1 x2 y2 ({reason}), expected x y width height: subtract x1 from x2 '
                'and y1 from y2',
                like_corners if by_mask else beyond,
                total,
            )
            return
        if share_beyond > 0.5:
            self._add(
                'error',
                'boxes_beyond',
                f'{beyond.sum()} of {total} boxes reach outside their image: are width and height of the '
                'images those of the files, and the boxes x y width height in pixels?',
                beyond,
            )
        elif beyond.any():
            text = f'{beyond.sum()} of {total} boxes reach more than two pixels outside their image'
            self._add('warning', 'boxes_beyond', text, beyond)
        contradict = known & (as_given < 0.5) & (self._extents[:, 2:] > 2).all(1) & (self.why == USED)
        if contradict.any():
            self._add(
                'error' if contradict.sum() > known.sum() / 2 else 'warning',
                'mask_beside_box',
                f'{contradict.sum()} of {known.sum()} masks lie elsewhere than their box (overlap of the '
                'extents below 0.5)',
                contradict,
            )

    def _add(self, level: Level, kind: str, text: str, which: np.ndarray, count: int = 0) -> None:
        """Report records, (N,) bool, with the first of them as examples; ``count``: if not all of them."""
        examples = self.describe(np.flatnonzero(which)[:EXAMPLES])
        self.findings.add(level, kind, self.file, text, examples, count or int(which.sum()))

    # -- masks -------------------------------------------------------

    def _read_masks(self) -> None:
        """Look at every mask; sets ``mask``, the extents of each, and leaves usable polygons only."""
        count = len(self.records)
        self._extents = np.full((count, 4), np.nan)  # x y width height of the mask
        self._mask_area = np.zeros(count)
        polygons, owners, encoded, state = [], [], [], self.mask
        wrong_size = []
        for number, record in enumerate(self.records):
            given = record.get('segmentation')
            if type(given) is list and given:
                if not isinstance(given[0], (list, tuple)):
                    given = record['segmentation'] = [given]
                usable = [p for p in given if len(p) >= LEAST_COORDINATES and not len(p) % 2]
                if len(usable) != len(given):
                    record['segmentation'] = usable
                    if not usable:
                        state[number] = SHORT if any(given) else ABSENT
                        continue
                polygons += usable
                owners += [number] * len(usable)
            elif isinstance(given, dict):
                state[number] = _rle_state(given)
                if state[number] == WHOLE:
                    height_width = self._height_width(number)
                    if height_width and list(given['size']) != height_width:
                        wrong_size.append(number)
                    encoded.append(number)
                else:
                    record['segmentation'] = []
            else:
                state[number] = ABSENT
                if given:  # text, a number: it is no mask
                    state[number] = DAMAGED
                    record['segmentation'] = []
        self._measure_polygons(polygons, np.array(owners, np.int64))
        self._measure_rle(encoded)
        if wrong_size:
            first = self.records[wrong_size[0]]
            self.findings.add(
                'error',
                'rle_size',
                self.file,
                f'{len(wrong_size)} RLE masks have another size than their image: '
                f'{first["segmentation"]["size"]} (height, width) against '
                f'{self._height_width(wrong_size[0])}',
                self.describe(wrong_size[:3]),
                len(wrong_size),
            )
        for number in np.flatnonzero(state != WHOLE):
            if self.records[number].get('segmentation'):
                self.records[number]['segmentation'] = []

    def _height_width(self, number: int) -> list | None:
        if (image := int(self.image_of[number])) < 0:
            return None
        width, height = self._sizes[image]
        return [int(height), int(width)] if math.isfinite(width + height) else None

    def _measure_polygons(self, polygons: list, owners: np.ndarray) -> None:
        """Set extents and area of the masks that are polygons, and what is wrong with them."""
        low, high = np.full((len(polygons), 2), np.nan), np.full((len(polygons), 2), np.nan)
        area = np.zeros(len(polygons))
        for begin in range(0, len(polygons), CHUNK):
            part = polygons[begin : begin + CHUNK]
            lengths = np.fromiter(map(len, part), np.int64, len(part))
            points = _points(part, int(lengths.sum()))
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) // 2
            rows = slice(begin, begin + len(part))
            low[rows] = np.minimum.reduceat(points, starts)
            high[rows] = np.maximum.reduceat(points, starts)
            following = np.roll(points, -1, 0)
            following[np.concatenate([starts[1:], [len(points)]]) - 1] = points[starts]
            cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
            area[rows] = np.abs(np.add.reduceat(cross, starts)) / 2
        if not len(polygons):
            return
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        whose = owners[first]
        lowest, highest = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
        total = np.add.reduceat(area, first)
        self._extents[whose] = np.hstack([lowest, highest - lowest])
        self._mask_area[whose] = total
        width_height = self._sizes[self.image_of[whose]] if len(self.images) else np.inf
        with np.errstate(invalid='ignore'):
            outside = ((highest <= 0) | (lowest >= width_height)).any(1)
            self.mask[whose[total <= 1e-6]] = FLAT
            self.mask[whose[outside & (total > 1e-6)]] = MASK_OUTSIDE
        self.mask[whose[~np.isfinite(total)]] = MASK_NO_NUMBER

    def _measure_rle(self, numbers: list[int]) -> None:
        """Set extents and area of the masks that are run lengths; of many, every n-th is read in full."""
        every = 1 + len(numbers) // FULLY_READ
        for place, number in enumerate(numbers):
            given = self.records[number]['segmentation']
            if place % every == 0 and isinstance(given['counts'], (str, bytes)):
                height, width = given['size']
                if _compressed_length(given['counts']) != height * width:
                    self.mask[number] = DAMAGED
                    continue
            try:
                one = rle.frPyObjects(given, *given['size']) if isinstance(given['counts'], list) else given
                self._extents[number], self._mask_area[number] = rle.toBbox(one), rle.area(one)
            except (TypeError, ValueError, AttributeError):
                self.mask[number] = DAMAGED
                continue
            if not self._mask_area[number]:
                self.mask[number] = FLAT

    # -- flags -------------------------------------------------------

    def _read_flags(self) -> None:
        self.crowd = np.zeros(len(self.records), bool)
        for number, record in enumerate(self.records):
            flag = record.get('iscrowd')
            self.crowd[number] = bool(flag) and flag not in ('0', 'false', 'False')
            if type(flag) is not int or flag not in (0, 1):
                record['iscrowd'] = int(self.crowd[number])

    def _complete_areas(self) -> None:
        needed = [
            number
            for number, record in enumerate(self.records)
            if not _is_number(area := record.get('area')) or not 0 < area < math.inf
        ]
        for number in needed:
            _, _, width, height = self.boxes[number]
            area = self._mask_area[number] if self.mask[number] == WHOLE else width * height
            self.records[number]['area'] = float(area) if math.isfinite(area) else 0.0
        if filled := [n for n in needed if self.why[n] == USED]:
            self.findings.add(
                'note',
                'area',
                self.file,
                f'{len(filled)} of {len(self.records)} objects have no area, or 0: computed from their mask '
                'or box',
                self.describe(filled[:3]),
                len(filled),
            )

    # -- what others ask ---------------------------------------------

    def describe(self, numbers: Iterable[int]) -> list[str]:
        """Name records: id, file of the image, box."""
        found = []
        for number in numbers:
            record, image = self.records[number], int(self.image_of[number])
            file = self._listed[image]['file_name'] if image >= 0 else f'image {record.get("image_id")}'
            found.append(f'annotation {record.get("id")} of {file}, box {record.get("bbox")}')
        return found

    @functools.cached_property
    def _listed(self) -> list[dict]:
        """Return the images in the order of the file; once, for sets of a million objects."""
        return list(self.images.values())

    def category_ids(self, classes: Iterable[str]) -> list:
        """Return the id of each class, by name and in the order of ``classes``.

        Raises:
            UserError: the file has no category of that name.
        """
        ids = {name: number for number, name in self.categories.items()}
        if absent := [name for name in classes if name not in ids]:
            wanted = list(classes)
            raise UserError(
                f'{self.file} has no category {absent[0]!r}, a class of the config ({len(absent)} of '
                f'{len(wanted)} classes are not in the file, which lists {some(ids)})'
                f'{suggest(absent[0], ids, 0.6)}: set metainfo=dict(classes=...) in every dataset of the '
                'config'
            )
        return [ids[name] for name in classes]

    def of_images(self, usable: np.ndarray) -> dict:
        """Return the records of each image, as id of the image -> list, in the order of the file.

        Args:
            usable: (N,) bool, which records.
        """
        found = {name: [] for name in self.images}
        for number in np.flatnonzero(usable):
            record = self.records[number]
            found[record['image_id']].append(record)
        return found

    def coco(self, api_class, with_masks: bool):
        """Return the content as pycocotools reads it, for evaluation.

        Objects that no prediction can meet are left out: see :data:`REASONS`; with masks also those
        without one.

        Args:
            api_class: ``pycocotools.coco.COCO`` or a subclass.
            with_masks: masks are evaluated.
        """
        usable = self.why == USED
        if with_masks:
            usable &= (self.mask == WHOLE) | self.crowd
        records = [
            {**self.records[number], 'id': new_id} for new_id, number in enumerate(np.flatnonzero(usable), 1)
        ]
        api = api_class()
        api.dataset = dict(
            images=list(self.images.values()),
            categories=[dict(id=i, name=name) for i, name in self.categories.items()],
            annotations=records,
        )
        api.createIndex()
        return api


_READ: dict[tuple, Annotations] = {}


def read_annotations(file: str | os.PathLike, keep: bool = True) -> Annotations:
    """Return the content of a COCO file; it is kept until :func:`forget_annotations`.

    Args:
        keep: ``False``: only the caller has it then, who may use it up.

    Raises:
        UserError: see :class:`Annotations`.
    """
    path = os.path.realpath(file)
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f'{file} cannot be read: {error.strerror}') from error
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _READ:
        gc.collect()
        with without_collecting():
            _READ[key] = Annotations(file)
            gc.freeze()
    return _READ[key] if keep else _READ.pop(key)


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Make millions of lists and dicts without searching them for circles, which costs more than the rest."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def forget_annotations() -> None:
    """Release what was read: datasets and metrics have what they need."""
    _READ.clear()


def _parse(file: str) -> dict:
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f'{file} cannot be read: {error.strerror}') from error
    try:
        content = msgspec.json.decode(text)  # half the time of json, and less memory than others
    except (msgspec.MsgspecError, UnicodeDecodeError):
        try:
            content = json.loads(text)  # NaN, and other encodings than UTF-8
        except ValueError as error:
            ended = ': it ends too early, copy or export it again' if _cut_off(text) else ''
            raise UserError(f'{file} is no COCO annotation file: no valid JSON, {error}{ended}') from error
    if not isinstance(content, dict):
        raise UserError(
            f'{file} is no COCO annotation file: it holds {_kind(content)}, expected an object with images, '
            'annotations and categories'
        )
    return content


def _cut_off(text: bytes) -> bool:
    return not text.rstrip().endswith((b'}', b']'))


def _points(polygons: list, count: int) -> np.ndarray:
    """Return all points of polygons, (count / 2, 2); NaN where one holds something else than numbers."""
    try:
        return np.fromiter(chain.from_iterable(polygons), np.float64, count).reshape(-1, 2)
    except (TypeError, ValueError):
        numbers = ([v if _is_number(v) else math.nan for v in polygon] for polygon in polygons)
        return np.fromiter(chain.from_iterable(numbers), np.float64, count).reshape(-1, 2)


def _rle_state(given: dict) -> int:
    """Return whether run lengths are whole: pycocotools would write outside its memory where they are not."""
    size, counts = given.get('size'), given.get('counts')
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(v, int) and v > 0 for v in size)):
        return DAMAGED
    if isinstance(counts, list):
        whole = all(isinstance(v, int) and v >= 0 for v in counts) and sum(counts) == size[0] * size[1]
        return WHOLE if whole else DAMAGED
    return WHOLE if isinstance(counts, (str, bytes)) and counts else DAMAGED


def _compressed_length(counts: str | bytes) -> int:
    """Return how many pixels compressed run lengths stand for, -1 if they are damaged (COCO's maskApi.c)."""
    runs, place, value, shift = [], 0, 0, 0
    for byte in counts.encode('latin-1', 'replace') if isinstance(counts, str) else counts:
        bits = byte - 48
        if not 0 <= bits < 64:
            return -1
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 40:
                return -1
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return -1
        runs.append(value)
        place, value, shift = place + value, 0, 0
    return place if not shift else -1


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of pairs of boxes x y width height; 0 where one is not finite."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        shared = np.clip(high - low, 0, None).prod(1)
        union = boxes[:, 2:].prod(1) + others[:, 2:].prod(1) - shared
        return np.nan_to_num(np.where(union > 0, shared / union, 0))


def _from_corners(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value) -> str:
    names = {dict: 'an object', list: 'a list', str: 'text', type(None): 'absent', bool: 'a truth value'}
    return names.get(type(value), 'a number')


def _other_type(given, known: dict) -> str:
    """Say that an id is text where the listed ones are numbers, or the reverse."""
    same = [name for name in known if str(name) == str(given)]
    if not same:
        return ''
    return f': {given!r} is {_kind(given)}, the listed {same[0]!r} {_kind(same[0])}; write both the same way'


def _short(record: dict) -> str:
    text = json.dumps(record, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + '...'
