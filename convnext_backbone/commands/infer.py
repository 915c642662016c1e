"""Predict on an image or a folder of images: pictures and JSON.

convnext infer CONFIG CHECKPOINT image_or_folder --out predictions
"""

import json
import sys
from pathlib import Path

import mmcv

from ..cli import Parser
from ..config import check_work_dir
from ..errors import UserError
from ..inference import Predictor, image_files


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('images', help='an image file, or a folder of them')
    parser.add_argument(
        '--out', required=True, metavar='DIR', help='gets FILE.png and FILE.json for each FILE'
    )
    parser.add_argument('--score', type=float, default=0.3, help='least score of an object, 0 to 1')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    files = image_files(args.images)
    check_work_dir(args.out, '--out')
    predictor = Predictor(args.config, args.checkpoint, args.device)
    unreadable = []
    for file in files:
        try:
            sample = predictor.predict(file)
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            unreadable.append(file)
            continue
        result = dict(image=str(file), **predictor.to_json(sample, args.score))
        # the whole name, suffix included: a.jpg and a.png do not overwrite each other
        Path(args.out, f'{file.name}.json').write_text(json.dumps(result, indent=1))
        picture = predictor.draw(file, sample, args.score)
        mmcv.imwrite(picture[..., ::-1], str(Path(args.out, f'{file.name}.png')))
    print(f'{len(files) - len(unreadable)} of {len(files)} images predicted, results in {args.out}')
    if unreadable:
        raise UserError(f'{len(unreadable)} of {len(files)} images could not be read, see above')
