"""Export a trained classifier, segmenter or detector, or the backbone of any config with its maps.

convnext export convnext_t_in1k convnext_tiny_1k_224_ema --format onnx
convnext export mask_rcnn_convnext_t CHECKPOINT --format onnx --images FOLDER
convnext export upernet_convnext_t CHECKPOINT --format torch_export
convnext export dino_convnext_t CHECKPOINT --format onnx --part backbone

Input: images (N, 3, H, W), channels and normalisation as the file's metadata says; any N, any H and W (in a
torch.export program from 64 pixels on). Of a detector N is 1.
Output: logits (N, classes); logits (N, classes, H, W); boxes (n, 4), scores (n,), labels (n,) and masks
(n, S, S) of the objects in the image; or the maps of the backbone, map0 first.
The file is compared with eager, on random images of three sizes and on some of --images, before it is kept.
"""

import shlex
import shutil
from pathlib import Path

from ..checkpoint.formats import dataset_meta
from ..cli import Parser
from ..complexity import default_size
from ..config import check_work_dir, read_config
from ..errors import UserError
from ..export import COMPARED, METADATA, PRECISIONS, SUFFIXES, export, is_whole_detector
from ..export.images import describe, read_images
from ..inference import trained_model
from ..inputs import image_files

CALIBRATED = 32  # images of --images, the first in alphabetical order


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='path, URL or released name')
    parser.add_argument('--format', required=True, choices=SUFFIXES)
    parser.add_argument('--part', choices=('whole', 'backbone'), default='whole')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='fp32',
        help='of ONNX: fp16 halves the file, int8 (with --images) computes convolutions in 8 bits; the '
        'difference from eager is printed',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help=f'real images: the file is compared on {COMPARED} of them, int8 is calibrated with {CALIBRATED}',
    )
    parser.add_argument('--weights', choices=('final', 'ema'), help='of a training with a moving average')
    parser.add_prefix_option()
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('H', 'W'), help='of the images it is traced with'
    )
    parser.add_argument('--out', metavar='FILE', help='default: NAME_OF_CONFIG and what the format is called')
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Export a model, print the differences from eager, and return the path of the file."""
    args = parse_args(argv)
    cfg = read_config(args.config)
    ends = ('_backbone' if args.part == 'backbone' else '') + (
        f'_{args.precision}' * (args.precision != 'fp32')
    )
    if args.size and min(args.size) < 1:
        raise UserError(
            f'--size is height and width in pixels, at least 1, got {args.size[0]} {args.size[1]}'
        )
    out = Path(args.out or Path(args.config).stem + ends + SUFFIXES[args.format])
    if out.exists():
        raise UserError(f'{out} exists: remove it, or give another name with --out')
    check_work_dir(str(out.parent), '--out')
    if args.precision == 'int8' and not args.images:
        raise UserError(
            '--precision int8 finds the ranges of values on real images: give a folder of some with --images'
        )
    files = image_files(args.images)[:CALIBRATED] if args.images else []
    model, content, report = trained_model(cfg, args.checkpoint, args.weights, args.prefix)
    print(report)
    known = dataset_meta(content)
    meta = dict(
        config=Path(args.config).stem,
        part=args.part,
        precision=args.precision,
        **describe(cfg, known.get('classes'), known.get('palette')),
    )
    size = tuple(args.size or ((224, 224) if args.part == 'backbone' else default_size(cfg)))
    images = read_images(cfg, files if args.precision == 'int8' else files[:COMPARED])
    report = export(
        model,
        out,
        args.format,
        part=args.part,
        size=size,
        meta=meta,
        precision=args.precision,
        images=images,
    )
    for row in report:
        print(f'  {row}')
    print(f'written: {out}, {out.stat().st_size / 2**20:.1f} MiB; classes, mean and std are in {METADATA}')
    if args.format == 'onnx':
        print(_for_tensorrt(out, size, 1 if is_whole_detector(model, args.part) else 8))
    return out


def _for_tensorrt(out: Path, size: tuple[int, int], batch: int) -> str:
    """Return the command that builds an engine of TensorRT, and that it was not run."""
    height, width = size
    shapes = [(1, height // 2, width // 2), (1, height, width), (batch, max(size), max(size))]
    options = ' '.join(
        f'--{name}Shapes=images:{n}x3x{h}x{w}' for name, (n, h, w) in zip(('min', 'opt', 'max'), shapes)
    )
    why = 'not run here' if shutil.which('trtexec') else 'not run here: trtexec is not installed'
    files = shlex.join([f'--onnx={out}', f'--saveEngine={out.with_suffix(".plan")}'])
    return f'for TensorRT ({why}): trtexec {files} --fp16 {options}'
