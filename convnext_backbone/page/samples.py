"""Draws samples as the network sees them, with their labels: small pictures, outlines above them as SVG."""

import random
from collections import Counter
from itertools import islice

import cv2
import numpy as np
from mmengine.config import Config
from torch.utils.data import IterableDataset

from ..config.keys import dicts
from ..errors import message
from ..html import colour, escape, picture
from ..registry import type_name
from .statistics import parts, seeded

LONG, SHORT = 480, 120  # pixels of the longer side: larger images are reduced, smaller ones enlarged
QUALITY = 80  # of the JPEGs
NAMED = 8  # objects whose names stand beside them; of more the colours tell
LEAST = 6  # pixels of the area of an outline that is drawn
STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
  gap: 1rem; }
.pictures.small { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.4; padding-top: .2rem; }
.pic { position: relative; overflow: hidden; } .pic img { display: block; width: 100%; }
.pic svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.pic path, .pic rect { fill: none; stroke: currentColor; stroke-width: 2; vector-effect: non-scaling-stroke; }
.pic path { fill: currentColor; fill-opacity: .3; stroke-width: 1; }
.pic .area { fill-opacity: .5; }
.pic text { font: 600 15px system-ui, sans-serif; fill: #fff; stroke: #000; stroke-width: 3px;
  paint-order: stroke; }
.chip, figcaption small { display: inline-block; margin-right: .7em; }
.chip i { display: inline-block; width: .75em; height: .75em; margin-right: .3em; border-radius: 2px;
  background: currentColor; }
.chip span { color: CanvasText; }
:root { color-scheme: light dark; }
body:has(#labels:not(:checked)) .pic svg { display: none; }
"""


def chip(label: int, text: str) -> str:
    """Return a spot of a class's colour with a text (plain) beside it."""
    return f'<span class="chip" style="color:{colour(label)}"><i></i><span>{escape(text)}</span></span>'


def figures(cfg: Config, dataset, split: str, classes: tuple[str, ...], count: int, seed: int = 0) -> str:
    """Return pictures of samples of a split, drawn at random.

    Args:
        cfg: tells the order of the channels.
        dataset: as :func:`~convnext_backbone.page.statistics.build` returns it.
        split: key of its data loader.
        classes: names by label.
        count: how many pictures.
        seed: of the choice, and of what the pipeline draws.
    """
    rgb = any(step.get('channel_order') == 'rgb' for step in dicts(cfg[split]['dataset']))
    pipeline = getattr(parts(dataset)[0], 'pipeline', None)
    kinds = [type(step).__name__ for step in getattr(pipeline, 'transforms', ())]
    loads = kinds.index('LoadAnnotations') if 'LoadAnnotations' in kinds else 0
    unsized = any('Resize' in kind for kind in kinds[:loads])  # boxes are those of the file, as metrics want
    found, failed, small = [], [], True
    with seeded(seed):
        if not isinstance(dataset, IterableDataset):
            numbers = random.sample(range(len(dataset)), min(2 * count, len(dataset)))
            samples = ((number, dataset.__getitem__) for number in numbers)
        else:
            samples = ((sample, lambda sample: sample) for sample in islice(dataset, count))
        for number, get in samples:
            if len(found) == count:
                break
            try:
                sample = get(number)
                if sample is not None:
                    small &= max(sample['inputs'].shape[-2:]) <= 128
                    found.append(_figure(sample, dataset, classes, rgb, unsized))
            except Exception as error:  # whatever a pipeline raises
                failed.append(' '.join(message(error).split()) or type(error).__name__)
    text = [f'<p class="wrong">{escape(reason)}</p>' for reason in dict.fromkeys(failed)]
    text.append(f'<div class="pictures{" small" if small else ""}">{"".join(found)}</div>')
    return '\n'.join(text)


def thumbnail(file: str) -> str:
    """Return a small picture of an image file; a line in its place if it cannot be read."""
    image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return '<p>it cannot be shown</p>'
    scale = min(1, LONG / 2 / max(image.shape[:2]))
    reduced = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode('.jpg', reduced, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return picture(data, file)


def _figure(sample: dict, dataset, classes: tuple[str, ...], rgb: bool, unsized: bool) -> str:
    """Return one picture with its labels.

    Args:
        sample: of mmdet's or mmseg's datasets, or of our classifiers'.
        rgb: the order of the channels of mmdet's and mmseg's.
        unsized: boxes belong to the image before it was resized.
    """
    image, labels = sample['inputs'].numpy().transpose(1, 2, 0), sample.get('labels')
    if labels is not None:
        image, rgb = _without_normalising(image, dataset), True
    image = _eight_bits(image)
    height, width = image.shape[:2]
    scale = min(1, LONG / max(height, width)) if max(height, width) > SHORT else SHORT / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    reduced = np.ascontiguousarray(cv2.resize(image, size, interpolation=how)[..., :: -1 if rgb else 1])
    data = cv2.imencode('.jpg', reduced, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    if labels is not None:
        shown, drawn = [(int(labels), '')], ''
    elif 'gt_sem_seg' in (truth := sample['data_samples']):
        shown, drawn = _areas(truth.gt_sem_seg.data[0].numpy(), size, len(classes))
    else:
        height_width = truth.ori_shape if unsized else (height, width)
        shown, drawn = _objects(truth.gt_instances, size, height_width, classes)
    names = ' '.join(chip(label, f'{_name(classes, label)}{text}') for label, text in shown)
    above = f'<svg viewBox="0 0 {size[0]} {size[1]}">{drawn}</svg>' if drawn else ''
    what = escape(', '.join(_name(classes, label) for label, _ in shown) or 'nothing labelled')
    return (
        f'<figure><div class="pic">{picture(data, what)}{above}</div>'
        f'<figcaption>{names or "nothing labelled"} <small>{width} x {height}</small></figcaption></figure>'
    )


def _without_normalising(image: np.ndarray, dataset) -> np.ndarray:
    for step in getattr(getattr(dataset, 'transform', None), 'transforms', ()):
        if type_name(type(step)).endswith('Normalize'):
            image = image * np.asarray(step.std, np.float32) + np.asarray(step.mean, np.float32)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    """Return an image of three channels and 8 bits, for looking at."""
    if image.shape[2] != 3:
        image = image[..., [0, 1, 2] if image.shape[2] > 3 else [0, 0, 0]]
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        within = image.min() >= 0 and 1 < image.max() <= 255
        low, high = (0, 255) if within else (image.min(), image.max())
        image = ((image - low) * (255 / max(high - low, 1e-9))).clip(0, 255).astype(np.uint8)
    return image


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f'class {label}'


def _areas(labels: np.ndarray, size: tuple, number: int) -> tuple[list[tuple[int, str]], str]:
    """Return the classes of a label map with their shares of the pixels, the largest first, and outlines."""
    reduced = cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    drawn, shown = [], []
    for label, count in zip(*np.unique(labels, return_counts=True)):
        if label < number:
            shown.append((count, int(label)))
            drawn.append(_outline(reduced == label, int(label), 'area'))
    shares = [
        (label, ' ' + (f'{count / labels.size:.0%}' if 100 * count > labels.size else '< 1%'))
        for count, label in sorted(shown, reverse=True)
    ]
    return shares, ''.join(drawn)


def _objects(truth, size: tuple, shape: tuple, classes: tuple) -> tuple[list[tuple[int, str]], str]:
    """Return the classes of the objects with their number, and boxes and outlines.

    Args:
        truth: ``gt_instances``.
        size: width and height of the picture.
        shape: height and width of the image to which the boxes belong.
    """
    labels = truth.labels.tolist()
    boxes = truth.bboxes
    width, height = size
    scale = (width / shape[1], height / shape[0]) * 2
    boxes = getattr(boxes, 'tensor', boxes).numpy() * scale
    masks = truth.masks.to_ndarray() if 'masks' in truth else [None] * len(labels)
    outlines, frames, names = [], [], []
    for label, (x0, y0, x1, y1), mask in zip(labels, boxes, masks):
        if mask is not None:
            reduced = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines.append(_outline(reduced, label, ''))
        frames.append(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" '
            f'style="color:{colour(label)}"/>'
        )
        if len(labels) <= NAMED and max(size) > 2 * SHORT:
            place = f'x="{max(x0, 0) + 4:.1f}"'
            if x0 > 0.7 * width:
                place = f'x="{min(x1, width) - 4:.1f}" text-anchor="end"'
            place += f' y="{max(y0, 0) + 16:.1f}"'
            names.append(f'<text {place}>{escape(_name(classes, label))}</text>')
    shown = [(label, f' {n}' if n > 1 else '') for label, n in Counter(labels).most_common()]
    return shown, ''.join(outlines + frames + names)


def _outline(mask: np.ndarray, label: int, kind: str) -> str:
    contours, _ = cv2.findContours(np.uint8(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    path = ''
    for contour in contours:
        if cv2.contourArea(contour) >= LEAST:
            points = cv2.approxPolyDP(contour, 0.8, True).reshape(-1, 2)
            path += 'M' + 'L'.join(f'{x},{y}' for x, y in points.tolist()) + 'z'
    mark = f' class="{kind}"' if kind else ''
    return f'<path{mark} fill-rule="evenodd" style="color:{colour(label)}" d="{path}"/>' if path else ''
