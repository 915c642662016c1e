"""Make a checkpoint fit to be given away: weights alone, with what is needed to use them.

convnext publish mask_rcnn_convnext_t work_dirs/.../epoch_36.pth --out released

writes released/NAME-HASH.pth: without optimizer and logs, with architecture, classes, mean, standard
deviation and config; HASH is the start of its SHA-256.
"""

import os
from pathlib import Path

import torch

from .. import __version__
from ..checkpoint import load_trained, read_checkpoint
from ..checkpoint.formats import dataset_meta
from ..checkpoint.read import file_hash, local_file
from ..cli import Parser
from ..complexity import build_on_meta
from ..config import check_work_dir, image_format, read_config
from ..errors import UserError


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config', help='of the training; the weights must fit it')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', default='.', metavar='DIR', help='default: here')
    parser.add_argument('--weights', choices=('final', 'ema'), help='of a training with a moving average')
    parser.add_prefix_option()
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Write the file to be given away and return its path."""
    args = parse_args(argv)
    cfg = read_config(args.config)
    check_work_dir(args.out, '--out')
    file = local_file(args.checkpoint)
    content = read_checkpoint(file)
    if 'ema_state_dict' in content and args.weights is None:
        raise UserError(f'{args.checkpoint} holds final weights and their average: choose with --weights')
    model = build_on_meta(cfg)
    model.to_empty(device='cpu')
    print(load_trained(model, content, file, weights=args.weights, prefix=args.prefix))
    published = dict(
        arch=getattr(model.backbone, 'arch', None),
        dataset_meta=dataset_meta(content) or None,
        **image_format(cfg),
        cfg=cfg.pretty_text,  # mmengine never runs what stands under this name
        config_name=Path(args.config).stem,
        convnext_backbone=__version__,
    )
    part = Path(args.out, f'{Path(args.config).stem}.part')
    torch.save(dict(state_dict=model.state_dict(), meta=published), part)
    out = part.with_name(f'{part.stem}-{file_hash(part)[:8]}.pth')
    os.replace(part, out)
    print(f'written: {out}, {out.stat().st_size / 2**20:.1f} MiB')
    return out
