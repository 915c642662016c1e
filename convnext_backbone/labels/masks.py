"""Reads folders of masks: a picture for each image whose pixels are class numbers or colours."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..datasets.images import each
from ..datasets.masks import read_mask
from ..errors import UserError, some, suggest
from .reading import Draft, Reading
from .stated import lists_of, split_of, split_of_folders
from .structure import IGNORED, MaskValues
from .tables import read_table

OF_MASKS = re.compile(
    r'(?:.*[_\- ]|train|val|valid|test|)(masks?|annotations?|annots?|labels?|gt|groundtruth|ground_truth|'
    r'segmentations?|segmentationclass|seg|semantic|gtfine|targets?|ann_dir|lbl)$',
    re.IGNORECASE,
)
OF_IMAGES = (
    'images',
    'image',
    'imgs',
    'img',
    'jpegimages',
    'img_dir',
    'leftimg8bit',
    'input',
    'inputs',
    'rgb',
)
OF_INSTANCES = ('segmentationobject', 'instances', 'instance_masks')  # which are numbers of objects
ENDING = re.compile(r'[_\-.](masks?|labels?|seg|segmentation|gt|L|gtFine_labelIds|labelIds|leftImg8bit)$')
SUFFIXES = ('.png', '.tif', '.tiff', '.bmp', '.jpg', '.jpeg')
MOST_COLOURS = 32  # that become classes where no table names them


def find(reading: Reading) -> list[str]:
    """Return the masks that images belong to, by folder or ending of the name."""
    return list(_pairs(reading).values())


def _keys(name: str) -> tuple[list[tuple], bool]:
    """Return what an image and its mask have in common, the likeliest first, and whether this is the mask."""
    path = PurePosixPath(name)
    is_mask, parts, shorter = False, [], []
    for part in path.parent.parts:
        rest = part
        if found := OF_MASKS.fullmatch(part):
            is_mask, rest = True, part[: found.start(1)].rstrip('_- ')
        if rest and rest.lower() not in OF_IMAGES:
            parts.append(rest)
            shorter += [rest] if rest == part else []
    ending = ENDING.search(path.stem)
    stem = path.stem[: ending.start()] if ending else path.stem
    is_mask |= bool(ending) and ending[1] != 'leftImg8bit'
    return [(*parts, stem), (*shorter, stem)], is_mask


def _candidates(reading: Reading) -> list[str]:
    return [n for n in reading.images if not set(n.lower().split('/')[:-1]) & set(OF_INSTANCES)]


def _pairs(reading: Reading) -> dict[str, str]:
    """Return image -> mask."""
    images, masks = {}, []
    for name in _candidates(reading):
        keys, is_mask = _keys(name)
        if is_mask and name.lower().endswith(SUFFIXES):
            masks.append((name, keys))
        elif not is_mask:
            images.setdefault(keys[0], name)
    pairs = {}
    for name, keys in sorted(masks, key=lambda item: (len(item[0]), item[0])):
        if image := next((images[key] for key in keys if key in images), None):
            pairs.setdefault(image, name)
    return dict(sorted(pairs.items()))


def read(reading: Reading) -> tuple[list[Draft], tuple[str, ...], tuple, MaskValues]:
    """Read all masks.

    Returns:
        The images, names and colours of the classes, and what pixels stand for.

    Raises:
        UserError: a mask cannot be read, has another size than its image, or a value or colour that has no
            name.
    """
    pairs = _pairs(reading)
    _check_pairs(reading, pairs)
    drafts = [Draft(image, mask=mask, split=_split(image, mask)) for image, mask in pairs.items()]
    if lists := lists_of(reading, 'Segmentation', list(pairs.values())):
        listed = [draft for draft in drafts if PurePosixPath(draft.mask).stem in lists]
        for draft in listed:
            draft.split = lists[PurePosixPath(draft.mask).stem]
        if len(listed) < len(drafts):
            count = len(drafts) - len(listed)
            reading.note(f'{count} masks are in no list of ImageSets/Segmentation: left out')
        drafts = listed
    drafts = reading.complete_sizes(drafts)
    names, colours, values = read_table(reading)
    results = each(lambda draft: _look(reading.path(draft.mask)), drafts, 'masks')
    kept, gray, coloured, palette = [], Counter(), Counter(), set()
    for draft, found in zip(drafts, results):
        if isinstance(found, str):
            reading.bad(draft.mask, found)
            continue
        size, numbers, shades, entries = found
        if size != draft.size:
            reading.bad(draft.mask, f'the mask has {size} pixels, its image {draft.image} {draft.size}')
            continue
        draft.values = (numbers, shades)
        gray.update(numbers or ())
        coloured.update(shades or ())
        palette |= entries
        kept.append(draft)
    if not kept:
        raise UserError(f'{reading.root}: none of the {len(pairs)} masks can be read')
    by_colour = _are_colours(kept, names, colours, gray, coloured, palette)
    if by_colour and any(draft.values[1] is None for draft in kept):
        raise UserError(f'{reading.root}: some masks are in colour, others gray with 16 bits: give one kind')
    if by_colour:
        table = _by_colour(reading, names, colours, coloured)
    else:
        table = _by_number(reading, names, colours, values, gray)
    numbers, classes, palette_of_classes = table
    usable = not by_colour and all(value == number for value, number in numbers.items())
    for draft in kept:
        found = draft.values[by_colour]
        if unknown := sorted(value for value in found if value not in numbers):
            reading.bad(
                draft.mask, f'{"colour" if by_colour else "value"} {unknown[0]} has no name in the table'
            )
            usable = False
        draft.values = frozenset(numbers.get(value, IGNORED) for value in found) - {IGNORED}
    return kept, classes, palette_of_classes, MaskValues(MappingProxyType(numbers), by_colour, usable)


def _split(image: str, mask: str) -> str:
    folders = [part for name in (image, mask) for part in PurePosixPath(name).parent.parts]
    words = [word for folder in folders for word in re.split(r'[_\- ]', folder)]
    return split_of_folders(image) or next(filter(None, map(split_of, words)), '')


def _check_pairs(reading: Reading, pairs: dict[str, str]) -> None:
    if not pairs:
        raise UserError(
            f'{reading.root} has no image with a mask of the same name: put images into images/ and masks '
            'into masks/, or end the names of masks in _mask'
        )
    used = set(pairs.values())
    keys = [(name, _keys(name)[1]) for name in _candidates(reading)]
    images = [name for name, is_mask in keys if not is_mask and name not in pairs]
    masks = [name for name, is_mask in keys if is_mask and name not in used]
    if masks:
        reading.bad(masks[0], f'{len(masks)} masks have no image of their own, this is the first', len(masks))
    if images:
        reading.note(f'{len(images)} images have no mask and are left out (first: {images[0]})')


def _are_colours(
    drafts: list[Draft], names: list[str], colours: list, gray: Counter, coloured: Counter, palette: set
) -> bool:
    """Return whether the numbers in masks are ambiguous, or not those of the table."""
    if any(draft.values[0] is None for draft in drafts) or len({i for i, _ in palette}) < len(palette):
        return True
    if not colours or not set(coloured) <= set(colours):
        return False
    if palette:
        return not all(i < len(colours) and colours[i] == shade for i, shade in palette)
    return not all(value < len(names) for value in gray)


def _look(file: Path) -> tuple | str:
    """Return size, values, colours, and the entries of the palette that are used; or what is wrong.

    Values are ``None`` for a mask in colour, colours for one of 16 bits.
    """
    try:
        with Image.open(file) as image:
            mode = image.mode
        if mode in ('RGB', 'RGBA', 'CMYK', 'YCbCr'):
            shades = read_colours(file)
            flat = np.unique(shades)
            if len(flat) > MOST_COLOURS * 8:
                return f'a picture of {len(flat)} colours is no mask: save masks as PNG, from the originals'
            if not _is_gray(flat):
                return shades.shape[::-1], None, set(map(_rgb, flat)), set()
        mask = read_mask(file)
    except UnidentifiedImageError:
        return 'it is no image'
    except (UserError, OSError, ValueError, SyntaxError) as error:
        return str(error).removeprefix(f'the mask {file} ')
    numbers = {int(value) for value in np.unique(mask)}
    if mode != 'P':
        return mask.shape[::-1], numbers, {(n,) * 3 for n in numbers} if max(numbers) < 256 else None, set()
    with Image.open(file) as image:
        table = image.getpalette('RGB') or []
    entries = {(n, tuple(table[3 * n : 3 * n + 3])) for n in numbers if 3 * n + 3 <= len(table)}
    return mask.shape[::-1], numbers, {shade for _, shade in entries}, entries


def read_colours(file: Path) -> np.ndarray:
    """Read a mask in colour, or of a palette, as (H, W) of red * 65536 + green * 256 + blue."""
    with Image.open(file) as image:
        if image.format == 'JPEG':
            raise UserError('a JPEG changes colours at every edge: save masks as PNG, from the originals')
        pixels = np.asarray(ImageOps.exif_transpose(image).convert('RGB')).astype(np.uint32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def _rgb(value: int) -> tuple[int, int, int]:
    return int(value) >> 16, int(value) >> 8 & 255, int(value) & 255


def _is_gray(values: np.ndarray) -> bool:
    return bool((values >> 16 == values & 255).all() and (values >> 8 & 255 == values & 255).all())


# -- what values stand for -------------------------------------------------


def _by_number(
    reading: Reading, names: list[str], colours: list, values: list | None, found: Counter
) -> tuple:
    """Return value -> number, names, colours for gray masks."""
    if set(found) == {0, IGNORED} and len(names) <= 2:
        classes = ('background', 'foreground')
        if len(names) == 2:
            classes = tuple(names)
        elif names:
            classes = ('background', names[0])
        reading.note(f'masks of 0 and 255: 255 is taken for {classes[1]!r}, 0 for {classes[0]!r}')
        return {0: 0, IGNORED: 1}, classes, ()
    present = sorted(set(found) - {IGNORED})
    if names:
        values = values or list(range(len(names)))
        numbers = {value: i for i, value in enumerate(values)}
        beyond = [value for value in present if value not in numbers]
        if beyond and not reading.skip_corrupt:
            raise UserError(
                f'{reading.root}: the masks have the value {beyond[0]}, which no class of the table has '
                f'({len(names)} names, values {values[0]} to {values[-1]}): add the name, or correct the '
                'masks'
            )
        numbers.setdefault(IGNORED, IGNORED)
        return numbers, tuple(names), tuple(colours)
    if not present:
        raise UserError(
            f'{reading.root}: every pixel of the masks is 255, which is ignored: there is no class'
        )
    dense = present[-1] < IGNORED and len(present) * 2 >= present[-1] + 1
    values = list(range(present[-1] + 1)) if dense else present
    if len(values) > IGNORED:
        raise UserError(
            f'{reading.root}: the masks have {len(values)} values, more than the 255 that are possible'
        )
    reading.note(f'no file names the classes: they are called by their values {some(values)}')
    return {**{value: i for i, value in enumerate(values)}, IGNORED: IGNORED}, tuple(map(str, values)), ()


def _by_colour(reading: Reading, names: list[str], colours: list, found: Counter) -> tuple:
    """Return colour -> number, names, colours for masks in colour."""
    if names and colours:
        numbers = {shade: i for i, shade in enumerate(colours)}
        if unknown := sorted(shade for shade in found if shade not in numbers):
            text = f'the masks have the colour {unknown[0]}, which the table does not have'
            if not reading.skip_corrupt:
                raise UserError(f'{reading.root}: {text} (it has {some(colours)}): add it')
            reading.note(f'{text}: ignored, and {len(unknown) - 1} more')
            numbers.update((shade, IGNORED) for shade in unknown)
        return numbers, tuple(names), tuple(colours)
    shades = sorted(found)
    if len(shades) > MOST_COLOURS:
        raise UserError(
            f'{reading.root}: the masks have {len(shades)} colours and no table names them: add '
            'classes.json, class_dict.csv or labelmap.txt with name and colour of each class'
        )
    reading.note(
        f'no file names the colours of the masks: each of the {len(shades)} becomes a class ({some(shades)})'
    )
    classes = tuple('{:02x}{:02x}{:02x}'.format(*shade) for shade in shades)
    return {shade: i for i, shade in enumerate(shades)}, classes, tuple(shades)


def choose(
    classes: tuple, colours: tuple, values: MaskValues, wanted: tuple[str, ...]
) -> tuple[tuple, tuple, MaskValues, dict[int, int]]:
    """Return all of it for the wanted classes alone, in their order; what is not wanted is ignored."""
    for name in wanted:
        if name not in classes:
            raise UserError(
                f'the masks have no class {name!r} (they have {some(classes)}){suggest(name, classes)}'
            )
    new = {classes.index(name): i for i, name in enumerate(wanted)}
    numbers = {value: new.get(number, IGNORED) for value, number in values.numbers.items()}
    usable = not values.colour and all(value == number for value, number in numbers.items())
    shades = tuple(colours[classes.index(name)] for name in wanted) if colours else ()
    return wanted, shades, MaskValues(MappingProxyType(numbers), values.colour, usable), new
