"""Writes predictions as CVAT and Label Studio import them, so that a model labels the next images."""

import contextlib
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np

from .predictions import Image, Writer, image_size, json_list, replacing
from .tiles.masks import placed

LEAST = 3  # corners of a polygon


class CvatXml(Writer):
    """Writes ``annotations.xml``, CVAT for images 1.1: masks, or boxes of objects without.

    Args:
        classes: names of the model's classes.
        out: folder of the result.
        min_score: least score of an object.
    """

    def __init__(self, classes, out: Path, min_score: float):
        self.classes, self.out, self.min_score = list(classes), out, min_score

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open the file, which appears under its name when ``stack`` ends without an error."""
        self._add = stack.enter_context(replacing(self.out / 'annotations.xml'))
        labels = ''.join(f'<label><name>{escape(name)}</name></label>' for name in self.classes)
        head = f'<version>1.1</version>\n<meta><task><labels>{labels}</labels></task></meta>\n'
        self._add(f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{head}'.encode())
        stack.callback(lambda: self._add(b'</annotations>\n'))

    def encode(self, image: Image, sample) -> bytes:
        """Return the element of an image."""
        height, width = image_size(sample)
        found = sample.pred_instances
        found = found[found.scores >= self.min_score]
        lines = [
            f'<image id="{image.number - 1}" name={quoteattr(image.name)} width="{width}" height="{height}">'
        ]
        for i, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
            name = quoteattr(self.classes[int(found.labels[i])])
            kind = f'label={name} source="auto" occluded="0" z_order="0"'
            window = None  # of a mask without pixels, too
            if 'masks' in found:
                window = _window(found.masks[i])
            if window is not None:
                lines.append(f'  <mask {kind} {window}/>')
            else:
                corners = f'xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" ybr="{y2:.2f}"'
                lines.append(f'  <box {kind} {corners}/>')
        return '\n'.join([*lines, '</image>\n']).encode()

    def write(self, encoded: bytes) -> None:
        """Append an image."""
        self._add(encoded)


def _window(mask) -> str | None:
    """Return a mask as CVAT's attributes: runs within its window, row by row, of no pixels first."""
    mask = placed(mask)
    height, width = mask.pixels.shape
    if not mask.pixels.size:
        return None
    values = mask.pixels.astype(np.int8).ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(values)]])).tolist()
    runs = [0, *runs] if values[0] else runs
    text = ', '.join(map(str, runs))
    return f'rle="{text}" left="{mask.left}" top="{mask.top}" width="{width}" height="{height}"'


class LabelStudio(Writer):
    """Writes ``tasks.json`` with predictions, and ``labeling_config.xml``, as Label Studio imports them.

    Masks become polygons, one for each outline: holes are lost; where there is none the box is written.
    Images are named as files of Label Studio's local storage (``/data/local-files/?d=NAME``).

    Args:
        classes, out, min_score: see :class:`CvatXml`.
        model: what predicted, as ``model_version``.
    """

    def __init__(self, classes, out: Path, min_score: float, model: str):
        self.classes, self.out, self.min_score, self.model = list(classes), out, min_score, model

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open ``tasks.json``, which appears under its name when ``stack`` ends without an error."""
        labels = ''.join(f'<Label value={quoteattr(name)}/>' for name in self.classes)
        kinds = ''.join(
            f'<{kind} name="{name}" toName="image">{labels}</{kind}>'
            for kind, name in (('RectangleLabels', 'box'), ('PolygonLabels', 'polygon'))
        )
        config = f'<View><Image name="image" value="$image"/>{kinds}</View>\n'
        with replacing(self.out / 'labeling_config.xml') as write:
            write(config.encode())
        self._add = stack.enter_context(json_list(self.out / 'tasks.json'))

    def encode(self, image: Image, sample) -> dict:
        """Return the task of an image; places in percent of its size."""
        height, width = image_size(sample)
        found = sample.pred_instances
        found = found[found.scores >= self.min_score]
        results = []
        for i, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
            name, score = self.classes[int(found.labels[i])], round(float(found.scores[i]), 4)
            outlines = _outlines(found.masks[i], width, height) if 'masks' in found else []
            for points in outlines:
                value = dict(points=points, polygonlabels=[name], closed=True)
                results.append(_result(len(results), 'polygon', value, score, width, height))
            if not outlines:  # of a mask that is only a line, too
                place = dict(x=x1 / width, y=y1 / height, width=(x2 - x1) / width, height=(y2 - y1) / height)
                value = {key: round(100 * share, 4) for key, share in place.items()}
                value.update(rotation=0, rectanglelabels=[name])
                results.append(_result(len(results), 'box', value, score, width, height))
        scores = [result['score'] for result in results]
        prediction = dict(model_version=self.model, result=results)
        prediction['score'] = round(sum(scores) / len(scores), 4) if scores else 0.0
        data = dict(image=f'/data/local-files/?d={quote(image.name)}')
        return dict(data=data, predictions=[prediction])

    def write(self, encoded: dict) -> None:
        """Append a task."""
        self._add(encoded)


def _result(number: int, kind: str, value: dict, score: float, width: int, height: int) -> dict:
    return dict(
        id=f'r{number}',
        type=dict(box='rectanglelabels', polygon='polygonlabels')[kind],
        from_name=kind,
        to_name='image',
        original_width=width,
        original_height=height,
        image_rotation=0,
        value=value,
        score=score,
    )


def _outlines(mask, width: int, height: int) -> list[list[list[float]]]:
    """Return the outlines of a mask as points x y, in percent."""
    mask = placed(mask)
    contours, _ = cv2.findContours(
        mask.pixels.astype(np.uint8),
        cv2.RETR_EXTERNAL,
        cv2.CHAIN_APPROX_SIMPLE,
        offset=(mask.left, mask.top),
    )
    scale = 100 / np.array([width, height])
    return [
        np.round((contour[:, 0] + 0.5) * scale, 4).tolist() for contour in contours if len(contour) >= LEAST
    ]
