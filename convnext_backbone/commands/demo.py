"""Run everything on drawn shapes: dataset, pretraining, detector and segmenter, evaluation, pictures.

convnext demo --out work_dirs/demo        (or: make demo)

Everything runs through the tools a user would type. The detector and the segmenter are trained twice
at the same budget, from scratch and from the pretrained backbone, in two lanes beside each other, one
CPU thread (or GPU process) each. The page OUT/index.html shows pictures, curves and figures. The
status is non-zero if the results fall short of what the README promises.
"""

import base64
import html
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from .. import __version__
from ..cli import Parser
from ..config.files import CONFIGS
from ..errors import UserError
from ..shapes import CLASSES, PALETTE, make_shapes

CLASSIFIER, DETECTOR, SEGMENTER = (
    CONFIGS / 'demo' / f'{name}_shapes.py' for name in ('classifier', 'mask_rcnn', 'upernet')
)
GOALS = {
    'detector': ('coco/bbox_mAP_50', 0.5, 1),
    'segmenter': ('single_scale/mIoU', 0.6, 100),
}  # metric, least, unit
# of the table: label, task, metric, unit
ROWS = [
    ('box AP50', 'detector', 'coco/bbox_mAP_50', 1),
    ('box AP', 'detector', 'coco/bbox_mAP', 1),
    ('mask AP50', 'detector', 'coco/segm_mAP_50', 1),
    ('mask AP', 'detector', 'coco/segm_mAP', 1),
    ('mIoU', 'segmenter', 'single_scale/mIoU', 100),
    ('pixel accuracy', 'segmenter', 'single_scale/aAcc', 100),
]
PICTURES = 6
SCORE = 0.5  # least score of an object that is drawn


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), metavar='DIR')
    return parser.parse_args(argv)


class Lane:
    """Runs commands one after the other in the background, their output in log files.

    Args:
        commands: (what it does, command of ``convnext`` and its arguments, log file).
    """

    def __init__(self, commands: list[tuple[str, list[str], Path]], threads: int):
        self.waiting, self.threads = list(commands), threads
        self.process, self.what, self.log = None, '', None
        self.start_next()

    def start_next(self) -> bool:
        """Start the next command in the background; return whether there was one."""
        if not self.waiting:
            self.process = None
            return False
        self.what, arguments, self.log = self.waiting.pop(0)
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'convnext_backbone', *map(str, arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'OMP_NUM_THREADS': str(self.threads)},
            )
        return True

    def poll(self) -> bool:
        """Go on to the next command where one has ended; False when all have.

        Raises:
            UserError: a command failed; with the end of its log.
        """
        if self.process is None:
            return False
        status = self.process.poll()
        if status is None:
            return True
        if status != 0:
            tail = ''.join(self.log.read_text().splitlines(keepends=True)[-15:])
            raise UserError(f'{self.what} failed; the end of {self.log}:\n{tail}')
        return self.start_next()

    def progress(self) -> str:
        """Return the step that the running command has logged last."""
        found = [line for line in self.log.read_text().splitlines() if 'Iter(train)' in line]
        step = found[-1].partition('[')[2].partition(']')[0].replace(' ', '') if found else 'starting'
        return f'{self.what}: {step}'


def train(config: Path, work_dir: Path, *options) -> list:
    """Return command and arguments of a training."""
    return ['train', config, '--work-dir', work_dir, '--seed', '0', *options]


def test(config: Path, work_dir: Path, *options) -> list:
    """Return command and arguments of the evaluation of a finished training."""
    weights = checkpoint(config, work_dir)
    return ['test', config, weights, '--work-dir', work_dir / 'test', *options]


def checkpoint(config: Path, work_dir: Path) -> Path:
    """Return the last checkpoint that a training by ``config`` writes."""
    from mmengine.config import Config

    return work_dir / f'iter_{Config.fromfile(config).train_cfg.max_iters}.pth'


def run_lanes(out: Path) -> None:
    """Pretrain, then train and evaluate detector and segmenter, from scratch beside it."""
    logs = out / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
    for name in ('classifier', *(f'{task}_{start}' for task in GOALS for start in ('scratch', 'pretrained'))):
        shutil.rmtree(out / name, ignore_errors=True)  # of an earlier demo
    weights = checkpoint(CLASSIFIER, out / 'classifier')
    data = ['--data-root', out / 'shapes']

    def commands(start: str, pretrained) -> list:
        found = []
        for task, config in (('detector', DETECTOR), ('segmenter', SEGMENTER)):
            folder = out / f'{task}_{start}'
            training = train(config, folder, '--pretrained', pretrained, *data)
            found.append((f'{task}, {start}', training, logs / f'{task}_{start}.log'))
            found.append(('test of it', test(config, folder, *data), logs / f'{task}_{start}_test.log'))
        return found

    crops = ['--data-root', out / 'shapes/classification']
    pretraining = ('pretraining', train(CLASSIFIER, out / 'classifier', *crops), logs / 'classifier.log')
    threads = max(1, min(4, (os.cpu_count() or 2) // 2))
    lanes = [
        Lane([pretraining, *commands('pretrained', weights)], threads),
        Lane(commands('scratch', 'none'), threads),
    ]
    begin = said = time.time()
    try:
        while [lane for lane in lanes if lane.poll()]:
            time.sleep(0.5)
            if time.time() - said > 20:
                said = time.time()
                now = ' | '.join(lane.progress() for lane in lanes if lane.process)
                print(f'[demo] {said - begin:4.0f} s  {now}', flush=True)
    finally:
        for lane in lanes:
            if lane.process and lane.process.poll() is None:
                lane.process.terminate()


def metrics(out: Path, task: str, start: str) -> dict:
    """Return what ``convnext test`` wrote."""
    files = (out / f'{task}_{start}' / 'test').glob('*/*.json')
    return json.loads(max(files, key=lambda file: file.stat().st_mtime).read_text())


def curve(work_dir: Path, key: str) -> tuple[list, list]:
    """Return (iterations, values) of a logged scalar, of the newest run in ``work_dir``."""
    file = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda file: file.stat().st_mtime)
    rows = [row for row in map(json.loads, file.read_text().splitlines()) if key in row]
    return [row['step'] for row in rows], [row[key] for row in rows]


def draw_pictures(out: Path) -> list[list[np.ndarray]]:
    """Draw some held-out images: image, truth, detector and segmenter from scratch and pretrained (BGR)."""
    from pycocotools.coco import COCO

    from ..inference import Predictor

    coco = COCO(str(out / 'shapes/annotations/instances_val.json'))
    predictors = {
        (task, start): Predictor(str(config), str(checkpoint(config, out / f'{task}_{start}')))
        for task, config in (('detector', DETECTOR), ('segmenter', SEGMENTER))
        for start in ('scratch', 'pretrained')
    }
    rows = []
    for image_id in coco.getImgIds()[:PICTURES]:
        file = out / 'shapes/images/val' / coco.loadImgs(image_id)[0]['file_name']
        image = cv2.imread(str(file))
        objects = [
            (a['category_id'] - 1, 1.0, a['bbox'], coco.annToMask(a)) for a in coco.imgToAnns[image_id]
        ]
        semantic = cv2.imread(str(out / 'shapes/semantic/val' / file.name), cv2.IMREAD_GRAYSCALE)
        row = [image, with_objects(image, objects), with_classes(image, semantic)]
        for (task, _), predictor in predictors.items():
            sample = predictor.predict(file)
            if task == 'segmenter':
                row.append(with_classes(image, sample.pred_sem_seg.data[0].numpy()))
                continue
            found = sample.pred_instances
            found = found[found.scores >= SCORE]
            objects = []
            for label, score, (x0, y0, x1, y1), mask in zip(
                found.labels, found.scores, found.bboxes.numpy(), found.masks.numpy()
            ):
                objects.append((int(label), float(score), (x0, y0, x1 - x0, y1 - y0), mask))
            row.append(with_objects(image, objects))
        rows.append(row)
    return rows


ENLARGE = 2


def with_objects(image: np.ndarray, objects: list) -> np.ndarray:
    """Draw boxes (x, y, w, h) and masks over the image, enlarged, with class and score beside each box."""
    picture = cv2.resize(image, None, fx=ENLARGE, fy=ENLARGE, interpolation=cv2.INTER_NEAREST)
    for label, score, (x, y, w, h), mask in objects:
        colour = np.array(PALETTE[label][::-1], float)
        large = cv2.resize(np.uint8(mask), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        picture[large] = 0.45 * picture[large] + 0.55 * colour
        corners = [int(round(float(v) * ENLARGE)) for v in (x, y, x + w, y + h)]
        cv2.rectangle(picture, corners[:2], corners[2:], colour.tolist(), 2)
        text = CLASSES[label] + (f' {score:.2f}' if score < 1 else '')
        place = (corners[0] + 2, max(corners[1] - 4, 12))
        for thickness, tone in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, tone, thickness, cv2.LINE_AA)
    return picture


def with_classes(image: np.ndarray, semantic: np.ndarray) -> np.ndarray:
    """Draw the class of every pixel (0 = background) as a colour over the image, enlarged."""
    colours = np.array([(0, 0, 0), *(colour[::-1] for colour in PALETTE)], float)
    mixed = np.where(semantic[..., None] > 0, 0.35 * image + 0.65 * colours[semantic], 0.6 * image)
    return cv2.resize(mixed.astype(np.uint8), None, fx=ENLARGE, fy=ENLARGE, interpolation=cv2.INTER_NEAREST)


def draw_curves(out: Path) -> bytes:
    """Draw losses and validation results over the iterations, as PNG."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = [
        ('Pretraining: top-1 on held-out crops (%)', 'top1', {'classifier': 'classifier'}),
        ('Detector: training loss', 'loss', None),
        ('Detector: box AP50', 'coco/bbox_mAP_50', None),
        ('Segmenter: training loss', 'loss', None),
        ('Segmenter: mIoU (%)', 'mIoU', None),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(20, 3.4), layout='constrained')
    for axis, (title, key, folders) in zip(axes, panels):
        task = title.split(':')[0].lower()
        folders = folders or {start: f'{task}_{start}' for start in ('scratch', 'pretrained')}
        for label, folder in folders.items():
            steps, values = curve(out / folder, key)
            axis.plot(steps, values, 'o-' if len(steps) < 12 else '-', label=label)
        axis.set(title=title, xlabel='iteration', ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=90)
    plt.close(figure)
    return buffer.getvalue()


def load_report(out: Path) -> str:
    """Return what the strict loader logged when the detector took over the classifier's weights."""
    lines = (out / 'logs/detector_pretrained.log').read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if 'pretrained weights' in line)
    last = next(i for i in range(first, len(lines)) if 'missing' in lines[i])
    return '\n'.join(lines[first + 1 : last + 1])


def write_page(out: Path, results: dict, seconds: float) -> Path:
    """Write one HTML file with everything in it."""

    def picture(data: bytes) -> str:
        return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}">'

    def encoded(image: np.ndarray) -> str:
        return picture(cv2.imencode('.png', image)[1].tobytes())

    heads = ('image', 'truth: objects', 'truth: classes', 'detector, scratch', 'detector, pretrained')
    heads += ('segmenter, scratch', 'segmenter, pretrained')
    rows = ''.join(
        '<tr>' + ''.join(f'<td>{encoded(cell)}</td>' for cell in row) + '</tr>' for row in draw_pictures(out)
    )
    figures = ''.join(
        f'<tr><td>{label}</td><td>{scratch:.3f}</td><td><b>{pretrained:.3f}</b></td></tr>'
        for label, scratch, pretrained in results['table']
    )
    versions = ', '.join(f'{name} {number}' for name, number in _versions().items())
    page = out / 'index.html'
    page.write_text(f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>convnext_backbone demo</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2em;max-width:1900px}}
td,th{{padding:3px 10px;text-align:left}}
.pictures td{{padding:2px}} .pictures img{{width:210px;image-rendering:pixelated}} img{{max-width:100%}}
pre{{background:#f4f4f4;padding:1em;overflow:auto}}</style>
<h1>ConvNeXt on drawn shapes: from pretraining to detection and segmentation</h1>
<p>A ConvNeXt with 1.9 M parameters was pretrained as a classifier of single shapes (top-1
{results['top1']:.1f} % on held-out crops). Mask R-CNN and UPerNet were then trained on scenes of several
shapes, from scratch and from the pretrained backbone, at the same budget. All figures are on held-out
images. {seconds / 60:.1f} minutes in all.</p>
<table><tr><th>held-out shapes</th><th>from scratch</th><th>pretrained</th></tr>{figures}</table>
<h2>Predictions</h2><p>Objects with a score of {SCORE} and more.</p>
<table class="pictures"><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>{rows}</table>
<h2>Curves</h2>{picture(draw_curves(out))}
<h2>How the weights were handed over</h2><pre>{html.escape(load_report(out))}</pre>
<p>{versions}</p></html>""")
    return page


def _versions() -> dict:
    from ..engine.launch import environment

    return {'convnext_backbone': __version__, **environment()}


def main(argv=None) -> None:
    """Draw the dataset, train, evaluate, and write the page with the results."""
    out = parse_args(argv).out.resolve()
    begin = time.time()
    print('[demo] drawing the dataset', flush=True)
    make_shapes(out / 'shapes', images=(1000, 100), crops=(6000, 400))
    print('[demo] training in two lanes; logs in', out / 'logs', flush=True)
    run_lanes(out)
    found = {
        (task, start): metrics(out, task, start) for task in GOALS for start in ('scratch', 'pretrained')
    }
    table = [
        (label, found[task, 'scratch'][key] / unit, found[task, 'pretrained'][key] / unit)
        for label, task, key, unit in ROWS
    ]
    top1 = curve(out / 'classifier', 'top1')[1][-1]
    page = write_page(out, dict(table=table, top1=top1), time.time() - begin)
    print(f'[demo] pretraining: top-1 {top1:.1f} % on held-out crops')
    print(f'[demo] {"held-out shapes":16s} {"scratch":>10s} {"pretrained":>10s}')
    for label, scratch, pretrained in table:
        print(f'[demo] {label:16s} {scratch:10.3f} {pretrained:10.3f}')
    print(f'[demo] {time.time() - begin:.0f} s in all; pictures and curves: {page}')
    for task, (key, least, unit) in GOALS.items():
        scratch, pretrained = (found[task, start][key] / unit for start in ('scratch', 'pretrained'))
        if pretrained < least or pretrained <= scratch:
            raise UserError(
                f'{task}: {key} {pretrained:.3f} pretrained and {scratch:.3f} from scratch; expected at '
                f'least {least} and more than from scratch'
            )
