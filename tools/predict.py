"""Predict on images with what `convnext export --format onnx` wrote; needs onnxruntime and Pillow only.

    python predict.py detector.onnx photo.jpg images/ --out predictions --draw

For each image it writes OUT/NAME.json: of a detector the objects with label, score, box (x1 y1 x2 y2 in
pixels of the photo) and mask (COCO's run lengths), of a segmenter the share of each class and
OUT/NAME.labels.png with the number of the class at each pixel, of a classifier the five best classes. How
an image is read stands in the file. This program needs nothing else of the package: copy it.
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

METADATA = 'convnext_backbone.json'
SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'}
COLOURS = np.random.default_rng(0).integers(110, 256, (1024, 3))


class InputError(Exception):
    """Reports wrong input in one line."""


class Model:
    """Predicts with an exported file.

    Args:
        file: of a detector, segmenter or classifier as a whole.
        providers: of onnxruntime; by default what is installed, a GPU first.

    Raises:
        InputError: it is no such file.
    """

    def __init__(self, file: str, providers: list[str] | None = None):
        if not Path(file).is_file():
            raise InputError(f'no file {file}')
        try:
            self.session = onnxruntime.InferenceSession(
                file, providers=providers or onnxruntime.get_available_providers()
            )
        except Exception as error:  # onnxruntime has no error of its own in common
            raise InputError(f'{file} cannot be read as ONNX: {str(error).splitlines()[0]}') from error
        facts = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if facts is None:
            raise InputError(
                f'{file} has no {METADATA} in it: export it with `convnext export --format onnx`'
            )
        self.facts = json.loads(facts)
        if self.facts.get('part') != 'whole' or self.facts.get('task') not in PREDICT:
            raise InputError(
                f'{file} is no whole detector, segmenter or classifier: export it with --part whole'
            )
        if self.facts.get('steps') is None:
            raise InputError(
                f'{file} does not say how images are read: its config does what predict.py cannot do'
            )
        self.names = [output.name for output in self.session.get_outputs()]

    def label(self, number: int) -> str:
        """Return the name of a class, its number if the file has no names."""
        classes = self.facts.get('classes')
        return classes[number] if classes else str(number)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for (H, W, 3) pixels that the steps have been done to, RGB."""
        facts = self.facts
        image = pixels.astype(np.float32) / (255 if facts['range'][1] == 1 else 1)
        image = image[..., ::-1] if facts['channels'] == 'BGR' else image
        mean, std = (np.float32(facts[key] or default) for key, default in (('mean', 0), ('std', 1)))
        image = ((image - mean) / std).transpose(2, 0, 1)[None]
        return dict(zip(self.names, self.session.run(None, {'images': np.ascontiguousarray(image)})))


def read(file: Path) -> Image.Image:
    """Return an image as viewers show it, RGB.

    Raises:
        InputError: it is no image.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(file))
        if image.mode.startswith(('I', 'F')):  # which Pillow would cut off at 255
            raise InputError(f'{file} has more than 8 bits ({image.mode}): save it with 8')
        return image.convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f'{file} cannot be read as an image: {error}') from error


def prepare(image: Image.Image, steps: list[dict]) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the pixels (H, W, 3) for the network, and how much larger they are than the image, (x, y)."""
    pixels, scale = np.asarray(image), (1.0, 1.0)
    for step in steps:
        height, width = pixels.shape[:2]
        if 'resize' in step:
            new = _size(width, height, step)
            pixels = resize(pixels, new[::-1])
            scale = (scale[0] * new[0] / width, scale[1] * new[1] / height)
        elif 'pad' in step:
            filled = np.full(
                (max(step['pad'][1], height), max(step['pad'][0], width), 3), step['value'], np.uint8
            )
            filled[:height, :width] = pixels
            pixels = filled
        elif 'resize_shorter' in step:
            short = step['resize_shorter']
            new = (short, short * height // width) if width <= height else (short * width // height, short)
            kind = Image.Resampling[step['interpolation'].upper()]
            pixels = np.asarray(Image.fromarray(pixels).resize(new, kind))
        elif 'crop' in step:
            pixels = _centre(pixels, *step['crop'])
    return pixels, scale


def _size(width: int, height: int, step: dict) -> tuple[int, int]:
    """Return the new width and height; to keep its ratio, an image is fitted into the size turned its way."""
    if not step['keep_ratio']:
        return tuple(step['resize'])
    long, short = max(step['resize']), min(step['resize'])
    factor = min(long / max(width, height), short / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def _centre(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle of an image, black where it is too small."""
    missing = [max(0, side - own) for side, own in zip((height, width), pixels.shape)]
    pixels = np.pad(pixels, [(n // 2, n - n // 2) for n in missing] + [(0, 0)])
    top, left = (round((own - side) / 2) for side, own in zip((height, width), pixels.shape))
    return pixels[top : top + height, left : left + width]


def places(new: int, old: int, align_corners: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for ``new`` places along an axis of ``old``, two neighbours and the share of the second."""
    if align_corners:
        at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        at = (np.arange(new) + 0.5) * (old / new) - 0.5
    at = at.clip(0, old - 1).astype(np.float32)
    low = np.floor(at).astype(int)
    return low, (low + 1).clip(max=old - 1), at - low


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8 in another (height, width), as OpenCV's INTER_LINEAR with its whole numbers.

    Pillow's BILINEAR would average over all pixels that a new one covers.
    """
    (up, down, y), (left, right, x) = (places(new, old) for new, old in zip(size, pixels.shape))
    pixels = pixels.astype(np.int32)
    (x0, x1), (y0, y1) = (
        np.rint(np.float32(2048) * np.stack([1 - share, share])).astype(np.int32) for share in (x, y)
    )
    rows = (pixels[:, left] * x0[:, None] + pixels[:, right] * x1[:, None]) >> 4
    total = ((rows[up] * y0[:, None, None]) >> 16) + ((rows[down] * y1[:, None, None]) >> 16)
    return ((total + 2) >> 2).clip(0, 255).astype(np.uint8)


def interpolate(values: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Return (H, W, C) values at the places of another (height, width), as PyTorch does it."""
    for axis, new in enumerate(size):
        low, high, share = places(new, values.shape[axis], align_corners)
        share = share.reshape(-1, *[1] * (2 - axis))
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    return values


def paste(mask: np.ndarray, box, height: int, width: int, threshold: float) -> np.ndarray:
    """Return the mask (S, S) of a box as (height, width), bool: bilinear between the centres."""
    weights = []
    for low, high, places, length in (
        (box[1], box[3], mask.shape[0], height),
        (box[0], box[2], mask.shape[1], width),
    ):
        at = (np.arange(length) + 0.5 - low) / max(high - low, 1e-6) * places - 0.5
        weights.append(np.maximum(0, 1 - abs(at[:, None] - np.arange(places))))
    return weights[0] @ mask @ weights[1].T >= threshold


def run_lengths(mask: np.ndarray) -> dict:
    """Return COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[0], mask.flatten('F'), [0]]).astype(np.int8)
    borders = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], borders, [mask.size]]))
    return dict(size=list(mask.shape), counts=counts.tolist())


def detect(model: Model, image: Image.Image, min_score: float) -> tuple[dict, list]:
    """Return the objects in an image, and their masks."""
    pixels, scale = prepare(image, model.facts['steps'])
    found = model.run(pixels)
    objects, masks = [], []
    for i in np.flatnonzero(found['scores'] >= min_score):
        box = (found['boxes'][i] / np.tile(np.float32(scale), 2)).tolist()
        objects.append(
            dict(
                label=model.label(int(found['labels'][i])),
                score=round(float(found['scores'][i]), 4),
                bbox=[round(value, 2) for value in box],
            )
        )
        if 'masks' in found:
            masks.append(
                paste(found['masks'][i], box, image.height, image.width, model.facts['mask_threshold'])
            )
            objects[-1]['mask'] = run_lengths(masks[-1])
    return dict(objects=objects), masks


def segment(model: Model, image: Image.Image, min_score: float) -> tuple[dict, np.ndarray]:
    """Return the share of each class in an image, and the number of the class at each pixel."""
    logits = model.run(prepare(image, model.facts['steps'])[0])['logits'][0].transpose(1, 2, 0)
    logits = interpolate(logits, (image.height, image.width), model.facts['align_corners'])
    numbers = logits.argmax(2) if logits.shape[2] > 1 else (logits[..., 0] > 0).astype(int)
    classes, counts = np.unique(numbers, return_counts=True)
    shares = {model.label(int(n)): round(count / numbers.size, 6) for n, count in zip(classes, counts)}
    return dict(share_of_pixels=shares), numbers


def classify(model: Model, image: Image.Image, min_score: float) -> tuple[dict, None]:
    """Return the best classes of an image with their probabilities."""
    logits = model.run(prepare(image, model.facts['steps'])[0])['logits'][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = shares.argsort()[::-1][:5]
    return dict(
        classes=[dict(label=model.label(int(n)), score=round(float(shares[n]), 4)) for n in best]
    ), None


PREDICT = {'detection': detect, 'segmentation': segment, 'classification': classify}


def draw(model: Model, image: Image.Image, result: dict, found) -> Image.Image:
    """Return the image with what was found drawn into it."""
    picture = np.array(image)
    colours = np.array(model.facts.get('palette') or COLOURS)
    if 'share_of_pixels' in result:
        return Image.fromarray((picture // 2 + colours[found % len(colours)] // 2).astype(np.uint8))
    for i, mask in enumerate(found or ()):
        picture[mask] = picture[mask] // 2 + COLOURS[i % len(COLOURS)] // 2
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for i, entry in enumerate(result.get('objects', ())):
        colour = tuple(int(value) for value in COLOURS[i % len(COLOURS)])
        pen.rectangle(entry['bbox'], outline=colour, width=2)
        pen.text(
            (entry['bbox'][0] + 3, entry['bbox'][1] + 2),
            f'{entry["label"]} {entry["score"]:.2f}',
            fill=colour,
        )
    for i, entry in enumerate(result.get('classes', ())):
        pen.text((4, 4 + 12 * i), f'{entry["label"]} {entry["score"]:.2f}', fill=(255, 0, 0))
    return image


def write(file: Path, save) -> None:
    """Write a file by ``save(path)`` under another name first, so that it is whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    draft = file.with_name(f'.{file.name}')
    try:
        save(draft)
        os.replace(draft, file)
    except OSError as error:
        raise OSError(f'{file} cannot be written: {error.strerror or error}') from error
    finally:
        draft.unlink(missing_ok=True)


def images_of(paths: list[str]) -> list[Path]:
    """Return the images that are named, and those in the folders that are named.

    Raises:
        InputError: there is none, or two have one name, by which results are named.
    """
    files = {}
    for path in map(Path, paths):
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [f for f in found if f.is_file() and (f is path or f.suffix.lower() in SUFFIXES)]
        if not found:
            raise InputError(f'no image at {path}')
        for file in found:
            other = files.setdefault(file.name, file)
            if not other.samefile(file):
                raise InputError(f'{other} and {file} have one name: predict them with two --out')
    return list(files.values())


def main(argv: list[str] | None = None) -> int:
    """Predict on all images and write the results; return how many images cannot be read.

    Raises:
        InputError: the file or an option is wrong.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='what `convnext export --format onnx` wrote')
    parser.add_argument('images', nargs='+', help='images, and folders of images')
    parser.add_argument('--out', type=Path, default=Path('predictions'), metavar='FOLDER')
    parser.add_argument('--min-score', type=float, default=0.3, help='least score of an object, default 0.3')
    parser.add_argument('--draw', action='store_true', help='write OUT/NAME.png, too')
    args = parser.parse_args(argv)
    if not 0 <= args.min_score <= 1:
        raise InputError(f'--min-score is a number from 0 to 1, got {args.min_score:g}')
    model, files, unread = Model(args.model), images_of(args.images), 0
    args.out.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            image = read(file)
        except InputError as error:
            print(f'error: {error}', file=sys.stderr)
            unread += 1
            continue
        result, found = PREDICT[model.facts['task']](model, image, args.min_score)
        result = dict(image=str(file), width=image.width, height=image.height, **result)
        text = json.dumps(result, indent=1)
        write(args.out / f'{file.name}.json', functools.partial(Path.write_text, data=text))
        if 'share_of_pixels' in result:
            labels = Image.fromarray(found.astype(np.uint8 if found.max() < 256 else np.uint16))
            write(args.out / f'{file.name}.labels.png', labels.save)
        if args.draw:
            write(args.out / f'{file.name}.png', draw(model, image, result, found).save)
        print(f'{file}: {summary(result)}')
    return unread


def summary(result: dict) -> str:
    """Return a result in a few words."""
    if 'objects' in result:
        return f'{len(result["objects"])} objects'
    best = result.get('share_of_pixels') or {entry['label']: entry['score'] for entry in result['classes']}
    name = max(best, key=best.get)
    return f'{name} {best[name]:.2f}'


if __name__ == '__main__':
    try:
        sys.exit(min(main(), 1))
    except (InputError, OSError) as error:
        sys.exit(f'error: {error}')
