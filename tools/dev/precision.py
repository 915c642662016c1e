"""Measure what a detector loses as an ONNX file in fp32, fp16 and int8: AP on the config's test data.

    python -m tools.dev.precision CONFIG CHECKPOINT --data-root DIR --calibrate FOLDER

The checkpoint is exported in each precision; all images of the test data are predicted by tools/predict.py
and, for comparison, by the Predictor; pycocotools computes box and mask AP of both on the same images. int8
is calibrated on images of FOLDER, which should not be those that are evaluated.
"""

import contextlib
import io
import tempfile
from pathlib import Path

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_backbone.cli import Parser, run
from convnext_backbone.commands import export
from convnext_backbone.config import read_config, set_data_root
from convnext_backbone.errors import UserError
from convnext_backbone.export import PRECISIONS
from convnext_backbone.inference import Predictor

from ..predict import Model, detect, read


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--data-root', metavar='DIR', help="folder of the dataset, in place of the config's")
    parser.add_argument('--calibrate', required=True, metavar='FOLDER', help='images for int8')
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Export in each precision, predict, and print a table."""
    args = parse_args(argv)
    cfg = read_config(args.config)
    if args.data_root:
        set_data_root(cfg, args.data_root)
    dataset = cfg.test_dataloader.dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(Path(dataset.data_root, dataset.ann_file)))
    folder = Path(dataset.data_root, dataset.data_prefix['img'])
    files = {number: folder / image['file_name'] for number, image in coco.imgs.items()}
    predictor = Predictor(args.config, args.checkpoint, 'cpu')
    eager = {n: predictor.to_json(predictor.predict(file), 0.0)['objects'] for n, file in files.items()}
    print(f'{"eager":6s} {"":6s}      {scores_of(coco, eager)}')
    with tempfile.TemporaryDirectory() as drafts:
        for precision in PRECISIONS:
            out = Path(drafts, f'{precision}.onnx')
            words = [args.config, args.checkpoint, '--format', 'onnx', '--precision', precision]
            with contextlib.redirect_stdout(io.StringIO()):
                export.main([*words, '--images', args.calibrate, '--out', str(out)])
            model = Model(str(out))
            found = {n: detect(model, read(file), 0.0)[0]['objects'] for n, file in files.items()}
            print(f'{precision:6s} {out.stat().st_size / 2**20:6.1f} MiB  {scores_of(coco, found)}')


def scores_of(coco: COCO, found: dict[int, list[dict]]) -> str:
    """Return AP and AP50 of boxes, and of masks if there are any.

    Args:
        found: the objects in each image by its number, as the Predictor writes them.
    """
    numbers = {category['name']: number for number, category in coco.cats.items()}
    results = []
    for image, objects in found.items():
        for entry in objects:
            x1, y1, x2, y2 = entry['bbox']
            result = dict(image_id=image, category_id=numbers[entry['label']], score=entry['score'])
            results.append(dict(**result, bbox=[x1, y1, x2 - x1, y2 - y1]))
            if 'mask' in entry:
                results[-1]['segmentation'] = _compressed(entry['mask'])
    if not results:
        raise UserError('the checkpoint finds nothing in the test data: there is nothing to compare')
    kinds = ['bbox', 'segm'] if 'segmentation' in results[0] else ['bbox']
    used = sorted({result['category_id'] for result in results})
    with contextlib.redirect_stdout(io.StringIO()):
        own = coco.loadRes(results)
    return '  '.join(f'{kind} {_score(coco, own, kind, used)}' for kind in kinds)


def _compressed(mask: dict) -> dict:
    return coco_mask.frPyObjects(mask, *mask['size']) if isinstance(mask['counts'], list) else mask


def _score(coco: COCO, own: COCO, kind: str, categories: list[int]) -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, own, kind)
        evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return f'AP {evaluation.stats[0]:.4f} AP50 {evaluation.stats[1]:.4f}'


if __name__ == '__main__':
    run(main)
