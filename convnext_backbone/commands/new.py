"""Write the config of a training on your own images, from a folder of labels.

convnext new /data/bloodcells --model faster_rcnn --arch tiny --out bloodcells.py
convnext new /data/streets                    what fits the labels; streets.py in this folder

COCO, YOLO, Pascal VOC, LabelMe, CVAT, masks beside images, and folders of classes are recognised. Nothing is
written into the folder; lists and converted labels go beside the config. Then: convnext train bloodcells.py
"""

import os
import shlex
import sys
from pathlib import Path

from ..backbones.convnext import ARCHITECTURES
from ..checkpoint.zoo import RELEASED
from ..checks import check_config
from ..cli import Parser
from ..config import check_new_config, read_config
from ..config.data import DATALOADERS
from ..errors import UserError, check_choice, suggest
from ..labels import FORMATS, LOSSES, read_labels
from ..new import MODELS, anchor_changes, machine_at_hand, model_for, pixels_of, recipe_for, write_config
from ..new.recipe import MOSAIC
from ..swap.plan import checked_weights, default_weights


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('folder', type=Path, help='images and labels')
    parser.add_argument(
        '--model', metavar='MODEL', help=f'{", ".join(MODELS)}; default: what fits the labels'
    )
    parser.add_argument('--arch', default='tiny', metavar='ARCH', help=f'{", ".join(ARCHITECTURES)} (tiny)')
    parser.add_argument('--weights', help="released name, file or URL; none; default: the arch's of ImageNet")
    parser.add_argument('--out', type=Path, metavar='FILE', help='default: NAME_OF_FOLDER.py in this folder')
    parser.add_argument('--format', choices=FORMATS, help='of the labels, if it cannot be recognised')
    parser.add_argument('--classes', nargs='+', help='which, in this order; default: all, alphabetically')
    parser.add_argument(
        '--split',
        type=float,
        default=0.2,
        help='share of the images to validate on, where none is given (0.2)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of that split')
    parser.add_argument(
        '--drop',
        nargs='+',
        default=[],
        choices=LOSSES,
        metavar='KIND',
        help=f'may be lost: {", ".join(LOSSES)}',
    )
    parser.add_argument('--skip-corrupt', action='store_true', help='leave broken labels out, count them')
    parser.add_argument('--epochs', type=int, help='default: from the number of images')
    parser.add_argument('--batch', type=int, help='images in a step; default: for the machine at hand')
    parser.add_argument('--size', type=int, help='short side of the images, in pixels; default: from theirs')
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Write the config, check it, and print what was chosen and why.

    Raises:
        UserError: labels that cannot be read whole, a model that does not learn from them, an output that
            exists, a config that does not pass the check.
    """
    args = parse_args(argv)
    if args.arch not in ARCHITECTURES:
        raise UserError(f'--arch: no ConvNeXt is called {args.arch!r}{suggest(args.arch, ARCHITECTURES)}')
    if args.model:
        check_choice('--model', args.model, MODELS)
    out = _output(args)
    labels = read_labels(
        args.folder,
        format=args.format,
        classes=args.classes,
        split=args.split,
        seed=args.seed,
        skip_corrupt=args.skip_corrupt,
        drop=args.drop,
    )
    for split in ('train', 'val'):
        if not labels.splits.get(split):
            raise UserError(
                f'{labels.root} has no images to {"train" if split == "train" else "validate"} on'
            )
    name = model_for(labels.task, args.model)
    base = read_config(MODELS[name].bases[labels.task])
    optimizer, images = base.optim_wrapper.optimizer, base.auto_scale_lr.base_batch_size
    weights = default_weights(args.arch)
    if args.weights:
        weights = None if args.weights == 'none' else checked_weights(args.weights, args.arch)
    options = dict(epochs=args.epochs, batch=args.batch, size=args.size, scratch=weights is None)
    options['square'] = MOSAIC if name == 'rtmdet' else None
    recipe = recipe_for(labels, optimizer.lr, images, machine_at_hand(), **options)
    pixels = pixels_of(labels, weights)
    anchors, said = anchor_changes(labels, base, recipe)
    command = shlex.join(['convnext', 'new', *(sys.argv[1:] if argv is None else argv)])
    text = write_config(labels, name, args.arch, weights, base, recipe, pixels, anchors, out, command)
    part = out.with_suffix('.part')
    part.write_text(text)
    os.replace(part, out)
    print(
        f'{labels.format}: {len(labels.classes)} classes, '
        + ', '.join(f'{len(v)} {k}' for k, v in labels.splits.items())
    )
    for note in (*labels.notes, *said):
        print(f'note: {note}')
    for what, rule in recipe.told():
        print(f'{what}: {rule}')
    licence = RELEASED[weights].licence if weights in RELEASED else 'not known'
    print(f'weights: {weights}; licence: {licence}' if weights else 'weights: random')
    findings = check_config(read_config(out), [key for key in DATALOADERS if base.get(key)], 'sample')
    for finding in findings.ordered():
        print(f'{finding.level}: {finding}')
    if findings.of('error'):
        print(f'written: {out}; it cannot train before the errors above are corrected')
        sys.exit(1)
    print(f'written: {out}; next: convnext train {shlex.quote(str(out))}')
    return out


def _output(args) -> Path:
    """Return where to write.

    Raises:
        UserError: something is there already, or it is no place for a config.
    """
    out = args.out or Path(f'{args.folder.absolute().name.replace(" ", "_") or "new"}.py')
    if out.absolute().parent.resolve().is_relative_to(args.folder.resolve()):
        raise UserError(
            f'{out} lies in {args.folder}, where nothing is written: give --out FILE.py in another folder'
        )
    check_new_config(out)
    return out
