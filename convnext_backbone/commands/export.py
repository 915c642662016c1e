"""Export a trained classifier or segmenter, or the backbone of any config with its maps.

convnext export convnext_t_in1k convnext_tiny_1k_224_ema --format onnx
convnext export upernet_convnext_t CHECKPOINT --format torch_export
convnext export mask_rcnn_convnext_t CHECKPOINT --format onnx --part backbone

Input: images (N, 3, H, W), channels and normalisation as the file's metadata says; any N, any H and W (in a
torch.export program from 64 pixels on).
Output: logits (N, classes); logits (N, classes, H, W); or the maps of the backbone, map0 first.
The file is compared with eager on random images of three sizes before it is kept.
"""

from pathlib import Path

from ..checkpoint.formats import dataset_meta
from ..cli import Parser
from ..complexity import default_size
from ..config import check_work_dir, image_format, read_config
from ..errors import UserError
from ..export import METADATA, SUFFIXES, export
from ..inference import trained_model


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='path, URL or released name')
    parser.add_argument('--format', required=True, choices=SUFFIXES)
    parser.add_argument('--part', choices=('whole', 'backbone'), default='whole')
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
    stem = Path(args.config).stem + ('_backbone' if args.part == 'backbone' else '')
    out = Path(args.out or stem + SUFFIXES[args.format])
    if out.exists():
        raise UserError(f'{out} exists: remove it, or give another name with --out')
    check_work_dir(str(out.parent), '--out')
    model, content, report = trained_model(cfg, args.checkpoint, args.weights, args.prefix)
    print(report)
    meta = dict(
        config=Path(args.config).stem,
        part=args.part,
        **image_format(cfg),
        classes=dataset_meta(content).get('classes'),
    )
    size = tuple(args.size or ((224, 224) if args.part == 'backbone' else default_size(cfg)))
    report = export(model, out, args.format, part=args.part, size=size, meta=meta)
    for shape, difference, largest in report:
        shape = ' x '.join(map(str, shape))
        print(f'  {shape:20s} differs from eager by {difference:.1e}, largest number {largest:.3g}')
    print(f'written: {out}, {out.stat().st_size / 2**20:.1f} MiB; classes, mean and std are in {METADATA}')
    return out
