"""Compute features of images, pooled or maps, with released weights or your own; or evaluate them.

convnext features dinov3_convnext_tiny images/ --out features.safetensors
convnext features best.pth images/ --dense --stage 3 --out maps           a file for each image
convnext features eupe_convnext_tiny /data/imagenet --evaluate            k-NN and linear top-1 of val/

Pooled: the mean over the last map, and its norm, as a classifier's last layer gets them. Folders of classes
give labels.
"""

import sys
from pathlib import Path

from ..cli import Parser
from ..config import check_work_dir, choose_device
from ..errors import UserError
from ..features import (
    SUFFIXES,
    FeatureExtractor,
    compute,
    evaluate,
    image_set,
    write_each,
    write_features,
)


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('weights', help='released name (convnext convert --list), file or URL')
    parser.add_argument('images', nargs='+', help="images, folders of images, patterns such as 'a/**/*.png'")
    parser.add_argument(
        '--out', type=Path, metavar='PATH', help='FILE.safetensors or FILE.npy; with --dense also a folder'
    )
    parser.add_argument(
        '--evaluate', action='store_true', help='IMAGES is a folder with train/CLASS, val/CLASS'
    )
    parser.add_argument('--dense', action='store_true', help='maps, in place of pooled features')
    parser.add_argument(
        '--stage',
        type=int,
        choices=(1, 2, 3, 4),
        help='of --dense: the map behind it (4); strides 4, 8, 16, 32',
    )
    parser.add_argument(
        '--size',
        type=int,
        metavar='PIXELS',
        help="short side, then centre crop; default: the weights' or 224; with --dense whole images",
    )
    parser.add_argument('--arch', help='size of the network; default: by the weights')
    parser.add_argument(
        '--batch', type=int, default=32, help='images at once (32); whole images go one by one'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Write the features, or print the scores."""
    args = parse_args(argv)
    _check(args)
    images = None if args.evaluate else image_set(args.images, args.out)
    stage = (args.stage or 4) if args.dense else None
    extractor = FeatureExtractor(args.weights, args.arch, stage, args.size, choose_device(args.device))
    if args.evaluate:
        scores = evaluate(extractor, args.images[0], args.batch)
        (train, val), classes = scores.images, scores.classes
        print(f'{args.images[0]}: {train} images of {classes} classes in train, {val} in val')
        print(f'k-NN    top-1 {scores.knn:6.2f}   20 neighbours')
        print(f'linear  top-1 {scores.linear:6.2f}   decay {scores.decay:g}')
        errors, count = scores.errors, sum(scores.images) + len(scores.errors)
    elif args.out.suffix in SUFFIXES:
        features = compute(extractor, images, args.batch)
        write_features(features, extractor.facts, images.classes, args.out)
        shape = ' x '.join(map(str, features.array.shape))
        print(f'{args.out}: {shape}' + (f', {len(images.classes)} classes' if images.classes else ''))
        errors, count = features.errors, len(images.files)
    else:
        errors, count = write_each(extractor, images, args.out, args.batch), len(images.files)
        print(f'{count - len(errors)} maps in {args.out}')
    for error in errors:
        print(error, file=sys.stderr)
    if errors:
        raise UserError(f'{len(errors)} of {count} images have no features, see above; the others have')


def _check(args) -> None:
    """Check what options ask for before anything is read.

    Raises:
        UserError: they contradict each other, or the output cannot be written.
    """
    if args.evaluate == bool(args.out):
        raise UserError(
            'give either --out, where the features are written, or --evaluate, which prints scores'
        )
    if args.evaluate and (args.dense or len(args.images) != 1):
        raise UserError('--evaluate takes one folder and pooled features: leave --dense and other images out')
    if args.stage and not args.dense:
        raise UserError('--stage chooses the map of --dense: give both, or neither')
    if args.batch < 1:
        raise UserError(f'--batch is a number of images, at least 1, got {args.batch}')
    if args.size is not None and args.size < 1:
        raise UserError(f'--size is a number of pixels, at least 1, got {args.size}')
    if args.evaluate:
        return
    if args.out.suffix in SUFFIXES:
        if args.dense and not args.size:
            raise UserError('maps of whole images differ in size: give --size PIXELS, or --out a folder')
        written = [args.out, *([args.out.with_suffix('.json')] if args.out.suffix == '.npy' else [])]
        if there := [file for file in written if file.exists()]:
            raise UserError(f'{there[0]} exists: remove it, or give another name with --out')
        check_work_dir(args.out.parent, '--out')
    elif not args.dense:
        raise UserError(f'--out must end in {" or ".join(SUFFIXES)}, got {args.out}')
    else:
        check_work_dir(args.out, '--out')
