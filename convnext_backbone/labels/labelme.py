"""Reads LabelMe: a JSON file of shapes for each image."""

import base64
import binascii
import io
import json
import math

import msgspec
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from .geometry import Broken, NoImage, around, ellipse, make_box, make_polygon, number, run_lengths
from .reading import Draft, Reading
from .stated import split_of_folders
from .structure import Box, Polygons, RunLengths
from .voc import note_without, start_of, starts

FOLDERS = ('annotations', 'annotation', 'json', 'jsons', 'labels', 'images')
LOST = {
    'line': 'lines',
    'linestrip': 'lines',
    'point': 'points',
    'points': 'points',
    'cuboid': 'cuboids',
    'cuboid2': 'cuboids',
}
ROTATED = ('rotation', 'oriented_rectangle')


def find(reading: Reading) -> list[str]:
    """Return a few of the JSON files whose content is LabelMe's."""
    return [name for name in starts(reading, ('.json',)) if b'"shapes"' in start_of(reading, name)]


def read(reading: Reading) -> list[Draft]:
    """Read the JSON files.

    Raises:
        UserError: see :meth:`Reading.bad`.
    """
    drafts, seen, alone = [], {}, []
    for name in reading.with_suffix('.json'):
        try:
            content = _parse(reading, name)
            if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
                if (
                    isinstance(content, dict)
                    and 'imagePath' in content
                    or b'"shapes"' in start_of(reading, name)
                ):
                    raise Broken('"shapes" is no list')
                reading.note(f'{name} is not one of LabelMe: left out')
                continue
            image = reading.image_of(name, str(content.get('imagePath') or ''), FOLDERS)
            if image in seen:
                raise Broken(f'its image {image} is that of {seen[image]}, too')
            size = tuple(int(number(content.get(key) or 0)) for key in ('imageWidth', 'imageHeight'))
        except NoImage:
            alone.append(name)
            continue
        except Broken as error:
            reading.bad(name, str(error))
            continue
        seen[image] = name
        draft = Draft(image, size, split=split_of_folders(name) or split_of_folders(image))
        drafts.append(draft)
        draft.objects = [(content['shapes'], name)]
    reading.without_image(alone)
    drafts = reading.complete_sizes(drafts)
    for draft in drafts:
        (shapes, name), draft.objects = draft.objects[0], []
        _read_shapes(reading, shapes, draft, name)
    note_without(reading, [name for name in reading.images if name not in seen])
    return drafts


def _parse(reading: Reading, name: str) -> object:
    text = reading.text(name)
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        try:
            return json.loads(text)  # which takes NaN, and names the line
        except ValueError as error:
            raise Broken(f'it is no JSON, or cut off ({error})') from error


def _read_shapes(reading: Reading, shapes: list, draft: Draft, name: str) -> None:
    """Add the objects of an image; shapes of one class and one group are one object."""
    groups: dict[tuple, int] = {}
    for count, shape in enumerate(shapes, 1):
        place = f'{name}: shape {count}'
        try:
            if not isinstance(shape, dict) or not isinstance(shape.get('label'), str):
                raise Broken('it has no label')
            kind = shape.get('shape_type') or 'polygon'
            place = f'{place} ({kind} {shape["label"]})'
            if kind in LOST:
                reading.lose(LOST[kind], place)
                continue
            box, mask = _shape(shape, kind, draft.size)
        except Broken as error:
            reading.bad(place, str(error))
            continue
        if kind in ROTATED:
            reading.lose('rotated', place)
        group = (shape['label'], shape.get('group_id'))
        if group[1] is not None and group in groups:
            earlier = draft.objects[groups[group]]
            low, high = earlier[1][:2] + box[:2], earlier[1][2:] + box[2:]
            box = (min(low[::2]), min(low[1::2]), max(high[::2]), max(high[1::2]))
            mask = _union(earlier[2], mask, draft.size)
            draft.objects[groups[group]] = (*earlier[:1], box, mask, *earlier[3:])
            continue
        groups[group] = len(draft.objects)
        draft.objects.append((shape['label'], box, mask, False, place))


def _shape(shape: dict, kind: str, size: tuple[int, int]) -> tuple[Box, Polygons | RunLengths | None]:
    points = shape.get('points')
    if not (isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)):
        raise Broken('its points are no pairs of numbers')
    values = [number(v) for point in points for v in point]
    if kind in ('polygon', *ROTATED):
        mask = (make_polygon(values),)
        return around(mask), None if kind in ROTATED else mask
    if kind not in ('rectangle', 'circle', 'mask'):
        raise Broken(f'shapes of the type {kind} are not known: polygon, rectangle, circle, mask are')
    if kind == 'rectangle' and len(points) == 4:  # of other programs that write the format
        return around((make_polygon(values),)), None
    if len(points) != 2:
        raise Broken(f'{len(points)} points, expected 2')
    if kind == 'rectangle':
        xs, ys = sorted(values[::2]), sorted(values[1::2])
        return make_box((xs[0], ys[0], xs[1], ys[1])), None
    if kind == 'circle':
        x, y, *_ = values
        radius = math.dist(values[:2], values[2:])
        return make_box((x - radius, y - radius, x + radius, y + radius)), (ellipse(x, y, radius, radius),)
    return _bitmap(shape, values, size)


def _bitmap(shape: dict, values: list[float], size: tuple[int, int]) -> tuple[Box, RunLengths]:
    """Read a mask that is stored as a PNG with its place."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape['mask']))) as image:
            part = np.array(image) > 0
    except (KeyError, TypeError, OSError, SyntaxError, binascii.Error) as error:
        raise Broken(f'its mask cannot be read ({error})') from error
    x, y = int(min(values[::2])), int(min(values[1::2]))
    whole = np.zeros((size[1], size[0]), np.uint8, order='F')
    if part.ndim != 2 or min(x, y) < 0 or x + part.shape[1] > size[0] or y + part.shape[0] > size[1]:
        raise Broken(f'its mask {part.shape[::-1]} at {x}, {y} does not fit into the image')
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return run_lengths(whole)


def _union(one, other, size: tuple[int, int]) -> Polygons | RunLengths | None:
    if one is None or other is None:
        return None
    if not isinstance(one, RunLengths) and not isinstance(other, RunLengths):
        return one + other
    return run_lengths(_pixels(one, size) | _pixels(other, size))[1]


def _pixels(mask: Polygons | RunLengths, size: tuple[int, int]) -> np.ndarray:
    if isinstance(mask, RunLengths):
        return rle.decode(dict(size=list(mask.size), counts=mask.counts))
    return rle.decode(rle.merge(rle.frPyObjects([list(p) for p in mask], size[1], size[0])))
