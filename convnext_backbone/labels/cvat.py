"""Reads CVAT's own XML (for images 1.1)."""

import math
import re
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np

from .geometry import Broken, around, ellipse, make_box, make_polygon, number, run_lengths, upright
from .reading import Draft, Reading
from .stated import split_of, split_of_folders
from .structure import Box, Polygons, RunLengths
from .voc import note_without, parse, start_of, starts

ROOT = re.compile(rb'<annotations[\s>]')
LOST = {'polyline': 'lines', 'points': 'points', 'cuboid': 'cuboids', 'skeleton': 'skeletons', 'tag': 'tags'}
SHAPES = ('box', 'polygon', 'ellipse', 'mask')


def find(reading: Reading) -> list[str]:
    """Return the XML files whose content is CVAT's."""
    return [name for name in starts(reading, ('.xml',)) if ROOT.search(start_of(reading, name))]


def read(reading: Reading) -> list[Draft]:
    """Read the XML files.

    Raises:
        UserError: see :meth:`Reading.bad`.
    """
    drafts, seen = [], {}
    for name in reading.with_suffix('.xml'):
        try:
            root = parse(reading, name)
            if root.tag != 'annotations':
                raise Broken(f'it begins with <{root.tag}>, expected <annotations>')
        except Broken as error:
            reading.bad(name, str(error))
            continue
        labels = root.iterfind('.//labels/label')
        reading.declared.update((label.findtext('name') or '', None) for label in labels if _is_class(label))
        for track in root.findall('track'):
            reading.lose('tracks', f'{name}: track {track.get("id")}')
        for node in root.findall('image'):
            place = f'{name}: image {node.get("name")}'
            try:
                draft = _image(reading, name, node)
                if draft.image in seen:
                    raise Broken(f'it is labelled twice, by {seen[draft.image]}, too')
            except Broken as error:
                reading.bad(place, str(error))
                continue
            seen[draft.image] = name
            for count, shape in enumerate(node, 1):
                _read_shape(
                    reading, shape, draft, f'{place}: shape {count} ({shape.tag} {shape.get("label")})'
                )
            drafts.append(draft)
    note_without(reading, [name for name in reading.images if name not in seen])
    return reading.complete_sizes(drafts)


def _is_class(label: ElementTree.Element) -> bool:
    return (label.findtext('type') or 'any') not in ('tag', 'points', 'polyline', 'cuboid') and not (
        label.findtext('parent')
    )


def _image(reading: Reading, name: str, node: ElementTree.Element) -> Draft:
    given = (node.get('name') or '').replace('\\', '/')
    subset = node.get('subset') or ''
    folder = PurePosixPath(name).parent
    places = (
        folder / given,
        folder / 'images' / given,
        folder / 'images' / subset / given,
        PurePosixPath(given),
    )
    image = next((str(place) for place in places if reading.has(str(place))), None)
    image = image or reading.image_of(str(folder / given), given)
    size = tuple(int(number(node.get(key) or 0)) for key in ('width', 'height'))
    return Draft(image, size, split=split_of(subset) or split_of_folders(image))


def _read_shape(reading: Reading, shape: ElementTree.Element, draft: Draft, place: str) -> None:
    if shape.tag in LOST:
        reading.lose(LOST[shape.tag], place)
        return
    try:
        if shape.tag not in SHAPES:
            raise Broken(f'shapes of the type {shape.tag} are not known: {", ".join(SHAPES)} are')
        if not shape.get('label'):
            raise Broken('it has no label')
        box, mask = _shape(shape, draft.size)
    except Broken as error:
        reading.bad(place, str(error))
        return
    if shape.tag == 'box' and number(shape.get('rotation') or 0) % 180:
        reading.lose('rotated', place)
    draft.objects.append((shape.get('label'), box, mask, False, place))


def _shape(shape: ElementTree.Element, size: tuple[int, int]) -> tuple[Box, Polygons | RunLengths | None]:
    def of(*keys: str) -> list[float]:
        return [number(shape.get(key)) for key in keys]

    angle = math.radians(number(shape.get('rotation') or 0))
    if shape.tag == 'box':
        x1, y1, x2, y2 = make_box(of('xtl', 'ytl', 'xbr', 'ybr'))
        if not math.sin(angle):
            return (x1, y1, x2, y2), None
        return upright((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, angle), None
    if shape.tag == 'polygon':
        points = re.split('[;,]', shape.get('points') or '')
        mask = (make_polygon(points),)
        return around(mask), mask
    if shape.tag == 'ellipse':
        x, y, across, down = of('cx', 'cy', 'rx', 'ry')
        flat = ellipse(0, 0, across, down)
        cosine, sine = math.cos(angle), math.sin(angle)
        pairs = list(zip(flat[::2], flat[1::2]))
        turned = [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in pairs]
        mask = (make_polygon(v for pair in turned for v in pair),)
        return around(mask), mask
    left, top, width, height = map(int, of('left', 'top', 'width', 'height'))
    runs = [int(number(v)) for v in (shape.get('rle') or '').split(',')]
    if sum(runs) != width * height or min(runs, default=0) < 0:
        raise Broken(f'its run lengths make {sum(runs)} pixels, expected {width} x {height}')
    if min(left, top) < 0 or left + width > size[0] or top + height > size[1]:
        raise Broken('its mask does not fit into the image')
    part = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(height, width)
    whole = np.zeros((size[1], size[0]), np.uint8)
    whole[top : top + height, left : left + width] = part
    return run_lengths(whole)
