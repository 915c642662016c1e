"""Draws a small labelled dataset, for the demo and the tests: nothing is downloaded.

Textured shapes on textured grounds, overlapping, in the layouts of COCO (instances), of mmseg's
folders (semantic maps) and of ImageNet (one folder per class). Colour and texture say nothing about
the class: only the outline does.

    ROOT/annotations/instances_{train,val}.json    boxes and RLE masks of what is visible
    ROOT/images/{train,val}/*.png
    ROOT/semantic/{train,val}/*.png                0 background, 1 ... the class, in CLASSES' order
    ROOT/classification/{train,val}/CLASS/*.png    one shape each
"""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'cross', 'square', 'star', 'triangle')
PALETTE = ((230, 80, 60), (60, 130, 230), (245, 190, 40), (150, 80, 210), (60, 180, 90))
VISIBLE = 0.4  # of a shape's area must stay visible below the shapes drawn after it
GROUND_CONTRAST, SHAPE_CONTRAST = 0.1, 0.3  # between the two tones of a texture
TURN = 0.4  # radians, to either side


def make_shapes(
    root: str | Path,
    *,
    images: tuple[int, int] = (400, 100),
    crops: tuple[int, int] = (2000, 400),
    size: int = 128,
    crop_size: int = 64,
    seed: int = 0,
) -> Path:
    """Draw the dataset below ``root``; nothing is drawn again if it is there with the same numbers.

    Args:
        images: how many images of several shapes, for train and val.
        crops: how many images of one shape, for train and val.
        size, crop_size: width and height of both kinds, in pixels.

    Returns:
        ``root`` as a path.
    """
    root = Path(root)
    asked = dict(images=list(images), crops=list(crops), size=size, crop_size=crop_size, seed=seed)
    done = root / 'shapes.json'
    if done.is_file() and json.loads(done.read_text()) == asked:
        return root
    done.unlink(missing_ok=True)
    for folder in ('images', 'semantic', 'classification', 'annotations'):
        shutil.rmtree(root / folder, ignore_errors=True)
    for index, split in enumerate(('train', 'val')):
        _draw_scenes(root, split, images[index], size, np.random.default_rng([seed, index, 0]))
        _draw_crops(root, split, crops[index], crop_size, np.random.default_rng([seed, index, 1]))
    done.write_text(json.dumps(asked))
    return root


def _draw_scenes(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    from pycocotools import mask as rle

    for kind in ('images', 'semantic'):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    coco = dict(
        info=dict(description='drawn shapes'),
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        images=[],
        annotations=[],
    )
    for number in range(1, count + 1):
        image, shapes = draw_scene(size, rng)
        name = f'{number:06d}.png'
        semantic = np.zeros((size, size), np.uint8)
        for label, mask in shapes:
            semantic[mask] = label + 1
            ys, xs = np.nonzero(mask)
            x, y = int(xs.min()), int(ys.min())
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']) + 1,
                    image_id=number,
                    category_id=label + 1,
                    bbox=[x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
                    area=int(mask.sum()),
                    segmentation=dict(size=[size, size], counts=encoded['counts'].decode()),
                    iscrowd=0,
                )
            )
        coco['images'].append(dict(id=number, file_name=name, height=size, width=size))
        cv2.imwrite(str(root / 'images' / split / name), image)
        cv2.imwrite(str(root / 'semantic' / split / name), semantic)
    (root / 'annotations').mkdir(exist_ok=True)
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


def _draw_crops(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    for number in range(count):
        label = number % len(CLASSES)
        folder = root / 'classification' / split / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        image, ground = _texture(size, rng, GROUND_CONTRAST)
        radius = rng.uniform(0.25, 0.45) * size
        middle = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
        mask = outline(label, middle, radius, rng.uniform(-TURN, TURN), size)
        image[mask] = _texture(size, rng, SHAPE_CONTRAST, ground)[0][mask]
        cv2.imwrite(str(folder / f'{number:06d}.png'), _photograph(image, rng))


def draw_scene(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image with two to four shapes.

    Returns:
        The image, (size, size, 3) uint8 BGR, and (label, mask) of each shape, the mask bool
        (size, size) of what is visible.
    """
    image, ground = _texture(size, rng, GROUND_CONTRAST)
    shapes: list[tuple[int, np.ndarray, int]] = []  # label, visible mask, whole area
    for _ in range(rng.integers(2, 5)):
        for _ in range(20):  # tries to place it
            label = int(rng.integers(len(CLASSES)))
            radius = rng.uniform(0.14, 0.27) * size
            middle = rng.uniform(0.7 * radius, size - 0.7 * radius, 2)
            mask = outline(label, middle, radius, rng.uniform(-TURN, TURN), size)
            if all((old & ~mask).sum() >= VISIBLE * area for _, old, area in shapes):
                break
        else:
            continue
        shapes = [(other, old & ~mask, area) for other, old, area in shapes]
        shapes.append((label, mask, int(mask.sum())))
        image[mask] = _texture(size, rng, SHAPE_CONTRAST, ground)[0][mask]
    return _photograph(image, rng), [(label, mask) for label, mask, _ in shapes]


def outline(label: int, middle, radius: float, angle: float, size: int) -> np.ndarray:
    """Return the mask, bool (size, size), of a shape of ``CLASSES[label]``.

    It lies within ``radius`` of ``middle`` (x, y).
    """
    mask = np.zeros((size, size), np.uint8)
    name = CLASSES[label]
    if name == 'circle':
        points = _polygon(np.linspace(0, 2 * np.pi, 48, endpoint=False), np.full(48, 0.85))
    elif name == 'square':
        points = _polygon(np.arange(4) * np.pi / 2 + np.pi / 4, np.ones(4))
    elif name == 'triangle':
        points = _polygon(np.arange(3) * 2 * np.pi / 3 - np.pi / 2, np.ones(3))
    elif name == 'star':
        points = _polygon(np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.0))
    else:
        arm = np.array([(0.3, 0.3), (0.3, 0.95), (-0.3, 0.95)])
        quarter_turn = np.array([[0, -1], [1, 0]])
        points = np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = points @ rotation.T * radius + np.asarray(middle)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _polygon(angles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)


def _texture(size: int, rng: np.random.Generator, contrast: float, unlike=None) -> tuple:
    """Draw plain, gradient, stripes, checks or dots around a random colour.

    Args:
        contrast: difference of the two tones, 0 to 1 (black and white).
        unlike: a colour to keep away from.

    Returns:
        The texture, (size, size, 3) float in 0..255, and its middle colour.
    """
    colour = rng.uniform(40, 215, 3)
    while unlike is not None and np.linalg.norm(colour - unlike) < 90:
        colour = rng.uniform(40, 215, 3)
    y, x = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.2) * size
    u = (x * np.cos(angle) + y * np.sin(angle)) / period
    v = (y * np.cos(angle) - x * np.sin(angle)) / period
    pattern = (
        np.zeros((size, size)),
        (u - u.min()) / np.ptp(u),
        u % 1 > 0.5,
        (u % 1 > 0.5) ^ (v % 1 > 0.5),
        (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09,
    )[rng.integers(5)]
    tones = (pattern.astype(float) - 0.5)[..., None] * contrast * rng.uniform(0.3, 1) * 255
    return (colour + tones * rng.uniform(0.6, 1, 3)).clip(0, 255), colour


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise and uneven light."""
    size = image.shape[0]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    slope = rng.uniform(-0.2, 0.2, 2)
    light = 1 + slope[0] * x + slope[1] * y
    noisy = image * light[..., None] + rng.normal(0, 6, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)
