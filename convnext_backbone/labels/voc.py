"""Reads Pascal VOC: an XML file for each image."""

import re
from pathlib import PurePosixPath
from xml.etree import ElementTree

from .geometry import Broken, NoImage, make_box, number, upright
from .reading import FEW, Draft, Reading
from .stated import lists_of, split_of_folders

ROOT = re.compile(rb'<annotation[\s>]')
FOLDERS = ('annotations', 'annotation', 'xml', 'xmls', 'labels', 'jpegimages', 'images')
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def find(reading: Reading) -> list[str]:
    """Return a few of the XML files whose content is VOC's."""
    return [n for n in starts(reading, ('.xml',)) if ROOT.search(start_of(reading, n))]


def starts(reading: Reading, suffixes: tuple[str, ...]) -> list[str]:
    """Return a few files with one of the suffixes, from all over the folder."""
    names = reading.with_suffix(*suffixes)
    return names[:: max(1, len(names) // FEW)]


def start_of(reading: Reading, name: str) -> bytes:
    """Return the beginning of a file; nothing of one that cannot be read."""
    try:
        with reading.path(name).open('rb') as stream:
            return stream.read(4096)
    except OSError:
        return b''


def parse(reading: Reading, name: str) -> ElementTree.Element:
    """Parse an XML file, which may lack the encoding it has.

    Raises:
        Broken: it is no XML; with the line.
    """
    try:
        return ElementTree.fromstring(reading.path(name).read_bytes().strip())
    except OSError as error:
        raise Broken(f'it cannot be read ({error.strerror})') from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Broken(f'it is no XML, or cut off ({error})') from error


def read(reading: Reading) -> list[Draft]:
    """Read the XML files.

    Raises:
        UserError: an image is meant by two files, or what :meth:`Reading.bad` reports.
    """
    lists = lists_of(reading, 'Main', reading.with_suffix('.xml'))
    drafts, seen, unlisted, alone = [], {}, [], []
    for name in reading.with_suffix('.xml'):
        try:
            root = parse(reading, name)
            if root.tag != 'annotation':
                raise Broken(f'it begins with <{root.tag}>, expected <annotation>')
            image = reading.image_of(name, root.findtext('filename') or '', FOLDERS)
            if image in seen:
                raise Broken(f'its image {image} is that of {seen[image]}, too')
            size = _size(root)
        except NoImage:
            alone.append(name)
            continue
        except Broken as error:
            reading.bad(name, str(error))
            continue
        seen[image] = name
        stem = PurePosixPath(name).stem
        if lists and stem not in lists:
            unlisted.append(name)
            continue
        draft = Draft(image, size, split=lists.get(stem) or split_of_folders(name) or split_of_folders(image))
        for count, node in enumerate(root.findall('object'), 1):
            _read_object(reading, node, draft, f'{name}: object {count}')
        drafts.append(draft)
    reading.without_image(alone)
    if unlisted:
        reading.note(
            f'{len(unlisted)} images are in no list of ImageSets/Main (first: {unlisted[0]}): left out'
        )
    stems = {PurePosixPath(name).stem for name in reading.with_suffix('.xml')}
    if absent := [stem for stem in lists if stem not in stems]:
        reading.bad(
            'ImageSets/Main', f'{len(absent)} listed images have no labels (first: {absent[0]})', len(absent)
        )
    note_without(reading, [name for name in reading.images if name not in seen])
    return reading.complete_sizes(drafts)


def note_without(reading: Reading, images: list[str]) -> None:
    """Tell of images that no file of labels belongs to: they are left out."""
    if images:
        reading.note(f'{len(images)} images have no labels and are left out (first: {images[0]})')


def _size(root: ElementTree.Element) -> tuple[int, int]:
    size = root.find('size')
    if size is None:
        return 0, 0
    width, height = (int(number(size.findtext(key) or 0)) for key in ('width', 'height'))
    return (width, height) if width > 0 and height > 0 else (0, 0)


def _read_object(reading: Reading, node: ElementTree.Element, draft: Draft, place: str) -> None:
    name = (node.findtext('name') or '').strip()
    try:
        if not name:
            raise Broken('it has no name')
        corners, turned = node.find('bndbox'), node.find('robndbox')
        if corners is not None:
            box = make_box([(corners.findtext(key) or '').strip() for key in CORNERS])
        elif turned is not None:
            reading.lose('rotated', place)
            box = upright(*(number(turned.findtext(key)) for key in ('cx', 'cy', 'w', 'h', 'angle')))
        else:
            raise Broken('it has no bndbox')
    except Broken as error:
        reading.bad(place, str(error))
        return
    if node.find('part') is not None:
        reading.lose('parts', place)
    if node.find('polygon') is not None:
        reading.lose('masks', place)
    crowd = (node.findtext('difficult') or '0').strip() not in ('0', '', 'false', 'False')
    if crowd:
        reading.note("objects marked as 'difficult' are neither learned nor counted (iscrowd)")
    draft.objects.append((name, box, None, crowd, place))
