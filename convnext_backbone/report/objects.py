"""Analyses boxes and masks against a COCO file: what was found, missed, confused, and how sure the model is.

The analysis is hotcoco's, whose figures are compared with pycocotools' in the tests. Kinds of errors: TIDE
(arXiv:2008.08115).
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..html import bar, escape, table
from .compare import difference_of_ap
from .figures import colour_of, curve, folded, matrix, percent, read_image, reduced, side_by_side

WORST = 10  # images that are shown
SHOWN = 0.3  # least score of a box that is drawn, unless the best threshold of its class is lower
ERRORS = dict(
    Cls='right place, wrong class',
    Loc='right class, wrong place',
    Both='wrong class and place',
    Dupe='a second time',
    Bkg='nothing there',
    Miss='not found',
)
SIZES = dict(APs='small', APm='medium', APl='large')


def collect(sample: dict) -> dict:
    """Keep the predictions of an image: boxes x1 y1 x2 y2 in pixels of the file, scores, labels, masks."""
    found = sample['pred_instances']
    record = dict(
        kind='objects',
        image=sample['img_id'],
        file=sample.get('img_path', ''),
        boxes=found['bboxes'].cpu().float().numpy(),
        scores=found['scores'].cpu().float().numpy(),
        labels=found['labels'].cpu().numpy(),
    )
    if 'masks' in found:
        from pycocotools import mask as rle

        masks = found['masks']
        if not isinstance(masks, list):
            masks = masks.cpu().numpy() if hasattr(masks, 'cpu') else np.asarray(masks)
            masks = [rle.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
        record['masks'] = [
            dict(
                size=m['size'], counts=m['counts'].decode() if isinstance(m['counts'], bytes) else m['counts']
            )
            for m in masks
        ]
    return record


def truth_of(ann_file: str, images: set) -> dict:
    """Return the content of a COCO file for some images, its annotations numbered from 1.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = json.loads(Path(ann_file).read_text(encoding='utf-8-sig'))
    except (OSError, ValueError) as error:
        raise UserError(f'{ann_file} cannot be read: {error}') from error
    annotations = [dict(a) for a in content.get('annotations', ()) if a['image_id'] in images]
    for number, annotation in enumerate(annotations, 1):  # an id of 0 is taken for none
        annotation['id'] = number
        annotation.setdefault('iscrowd', 0)
        x, y, w, h = annotation['bbox']
        annotation.setdefault('area', w * h)
    return dict(
        images=[image for image in content['images'] if image['id'] in images],
        annotations=annotations,
        categories=content['categories'],
    )


def detections_of(results: list[dict], truth: dict, classes: tuple[str, ...], masks: bool) -> list[dict]:
    """Return predictions as COCO results; labels are numbers in ``classes``, categories those of the file."""
    numbers = {category['name']: category['id'] for category in truth['categories']}
    found = []
    for record in results:
        for i, (x1, y1, x2, y2) in enumerate(record['boxes'].tolist()):
            entry = dict(
                image_id=record['image'],
                category_id=numbers[classes[int(record['labels'][i])]],
                score=float(record['scores'][i]),
                bbox=[x1, y1, x2 - x1, y2 - y1],
            )
            if masks:
                entry['segmentation'] = record['masks'][i]
            found.append(entry)
    return found


def evaluate(truth: dict, detections: list[dict], kind: str):
    """Return hotcoco's evaluation of ``bbox`` or ``segm``."""
    import hotcoco

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder, 'truth.json')
        file.write_text(json.dumps(truth))
        ground = hotcoco.COCO(str(file))
        evaluation = hotcoco.COCOeval(ground, ground.load_res(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def best_thresholds(evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Return, of each class, from which score on F1 is largest at IoU 0.5, and that F1; NaN without truth."""
    precision = np.asarray(evaluation.eval['precision'])[0, :, :, 0, -1]  # (recalls, classes)
    scores = np.asarray(evaluation.eval['scores'])[0, :, :, 0, -1]
    recall = np.linspace(0, 1, precision.shape[0])[:, None]
    f1 = np.where(precision >= 0, 2 * precision * recall / np.maximum(precision + recall, 1e-9), np.nan)
    empty = np.isnan(f1).all(0)
    best = np.where(empty, 0, np.nan_to_num(f1, nan=-1).argmax(0))
    columns = np.arange(f1.shape[1])
    return np.where(empty, np.nan, scores[best, columns]), np.where(empty, np.nan, f1[best, columns])


def difference(first: list[dict], second: list[dict], classes: tuple[str, ...], report) -> dict[str, tuple]:
    """Return what two models' results differ in, see :mod:`.compare`."""
    truth = truth_of(report.ann_file, {record['image'] for record in second})
    found = [detections_of(results, truth, classes, False) for results in (first, second)]
    if not all(found):
        return {}
    return difference_of_ap(*(evaluate(truth, own, 'bbox') for own in found))


def parts(results: list[dict], classes: tuple[str, ...], report) -> list[str]:
    """Return the page's parts: for boxes, and for masks where there are some."""
    truth = truth_of(report.ann_file, {record['image'] for record in results})
    outlines = all('masks' in record for record in results)
    detections = detections_of(results, truth, classes, outlines)
    if not detections:
        return ['<p class="wrong">The model found nothing at all.</p>']
    boxes = evaluate(truth, detections_of(results, truth, classes, False), 'bbox')
    text = ['<h2>Boxes</h2>', *_analysis(boxes, truth)]
    if outlines:
        text += ['<h2>Masks</h2>', *_analysis(evaluate(truth, detections, 'segm'), truth)]
    return [*text, *_worst(boxes, truth, results, classes)]


def _analysis(evaluation, truth: dict) -> list[str]:
    found = evaluation.results(per_class=True)
    metrics, names = found['metrics'], [c['name'] for c in sorted(truth['categories'], key=lambda c: c['id'])]
    text = [
        table(
            ['', 'AP', 'AP50', 'AP75', *(f'AP {size}' for size in SIZES.values())],
            [['all classes', *(percent(metrics[key]) for key in ('AP', 'AP50', 'AP75', *SIZES))]],
            range(1, 7),
        )
    ]
    thresholds, f1 = best_thresholds(evaluation)
    counts = {c['id']: 0 for c in truth['categories']}
    for annotation in truth['annotations']:
        counts[annotation['category_id']] += not annotation['iscrowd']
    rows = []
    precision = np.asarray(evaluation.eval['precision'])
    for number, category in enumerate(sorted(truth['categories'], key=lambda c: c['id'])):
        if not counts[category['id']]:
            continue
        sized = [_mean(precision[:, :, number, size, -1]) for size in range(4)]
        cells = [percent(value) for value in sized]
        rows.append(
            [
                escape(category['name']),
                str(counts[category['id']]),
                bar(max(0.0, sized[0]), cells[0]),
                *cells[1:],
                percent(f1[number]),
                '-' if np.isnan(thresholds[number]) else f'{thresholds[number]:.2f}',
            ]
        )
    head = ['class', 'objects', 'AP', *SIZES.values(), 'best F1', 'from score']
    text.append(folded('By class', table(head, rows, (1, 3, 4, 5, 6, 7)), len(rows)))
    text.append('<div class="curves">')
    recall = np.linspace(0, 1, precision.shape[1])
    lines = {}
    for place, name in ((0, 'IoU 0.5'), (5, 'IoU 0.75'), (8, 'IoU 0.9')):
        values = np.where(precision[place, :, :, 0, -1] >= 0, precision[place, :, :, 0, -1], np.nan)
        if not np.isnan(values).all():
            lines[name] = recall.tolist(), np.nanmean(values, 1).tolist()
    text.append(curve('Precision and recall', lines, 'recall', 'precision'))
    calibration = evaluation.calibration()
    bins = [b for b in calibration['bins'] if b['count']]
    line = [b['avg_confidence'] for b in bins], [b['avg_accuracy'] for b in bins]
    title = f'Calibration: error {calibration["ece"]:.3f}'
    text += [curve(title, {'right': line}, 'score', 'share that is right', diagonal=True), '</div>']
    tide = evaluation.tide_errors()
    most = max([*tide['delta_ap'].values(), 1e-9])
    rows = [
        [
            why,
            str(tide['counts'][name]),
            bar(max(0.0, tide['delta_ap'][name]) / most, percent(tide['delta_ap'][name])),
        ]
        for name, why in ERRORS.items()
    ]
    text += ['<h3>Kinds of errors</h3>', table(['', 'objects', 'AP50 that it costs'], rows, (1,))]
    confused = evaluation.confusion_matrix(min_score=SHOWN)
    names = [*names, 'background']
    text += [f'<h3>Taken for (IoU 0.5, score {SHOWN})</h3>', matrix(confused['matrix'], names)]
    return text


def _worst(evaluation, truth: dict, results: list[dict], classes: tuple[str, ...]) -> list[str]:
    """Return the images with the most wrong and missed objects, truth and prediction side by side."""
    summary = evaluation.image_diagnostics(score_thr=SHOWN)['img_summary']
    by_image = {record['image']: record for record in results}
    order = sorted(summary, key=lambda i: (summary[i]['f1'], -summary[i]['fn'] - summary[i]['fp']))
    names = {c['id']: c['name'] for c in truth['categories']}
    objects = {}
    for annotation in truth['annotations']:
        objects.setdefault(annotation['image_id'], []).append(annotation)
    text = ['<h2>The worst images</h2>']
    for number in order[:WORST]:
        record = by_image.get(number)
        image = read_image(record['file']) if record else None
        if image is None:
            continue
        image, factor = reduced(image)
        right, found = image.copy(), image.copy()
        for annotation in objects.get(number, ()):
            x, y, w, h = annotation['bbox']
            name = names[annotation['category_id']]
            label = classes.index(name) if name in classes else 0
            _draw(right, np.array([x, y, x + w, y + h]) * factor, label, name)
        for box, score, label in zip(record['boxes'], record['scores'], record['labels']):
            if score >= SHOWN:
                _draw(found, box * factor, int(label), f'{classes[int(label)]} {score:.2f}')
        counts = summary[number]
        caption = (
            f'{Path(record["file"]).name}: {counts["tp"]} right, {counts["fp"]} wrong, {counts["fn"]} missed'
        )
        text.append(side_by_side({'truth': right, f'found, score {SHOWN} and more': found}, caption))
    return text if len(text) > 1 else []


def _draw(image: np.ndarray, box: np.ndarray, label: int, name: str) -> None:
    import cv2

    colour = colour_of(label)
    x1, y1, x2, y2 = (int(round(v)) for v in box)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2)
    text = name.encode('ascii', 'replace').decode()
    cv2.putText(
        image, text, (x1 + 2, max(10, y1 - 3)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3, cv2.LINE_AA
    )
    cv2.putText(image, text, (x1 + 2, max(10, y1 - 3)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else float('nan')
