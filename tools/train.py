"""Train a classifier, a detector or a segmenter.

python tools/train.py configs/detection/cascade_convnext_t.py
python tools/train.py CONFIG --data-root /data/coco --pretrained weights.pth --work-dir runs/a
python tools/train.py CONFIG --resume
tools/dist_train.sh CONFIG 8
"""

from convnext_backbone.cli import Parser, run
from convnext_backbone.engine import Runner, prepare
from convnext_backbone.errors import UserError


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument(
        '--pretrained',
        metavar='PATH|NAME|none',
        help='weights by path, URL or released name, loaded strictly; none: from scratch',
    )
    parser.add_argument(
        '--pretrained-weights',
        choices=('final', 'ema'),
        help='which, of a training that kept a moving average; default: final, as the published recipes',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, if the config has none')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from a checkpoint; without PATH from the newest whole one in the work dir',
    )
    parser.add_argument(
        '--stop-at',
        type=int,
        metavar='STEP',
        help='end after this many steps in all, with a checkpoint; --resume goes on',
    )
    parser.add_argument(
        '--fsdp',
        action='store_true',
        help='divide parameters, gradients and optimizer states among the processes',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="learning rate in proportion to the batch, where that is another than the recipe's",
    )
    parser.add_argument('--seed', type=int, help='of all random numbers')
    parser.add_argument('--deterministic', action='store_true', help='repeatable algorithms only')
    parser.add_argument(
        '--skip-corrupt', action='store_true', help='leave unreadable images out, name and count them'
    )
    parser.add_run_options()
    return parser.parse_args(argv)


def training_config(args):
    """The config that ``args`` describe, ready for the Runner, and notes on what was changed."""
    cfg, notes = prepare.run_config(args, ('train_dataloader', 'val_dataloader'))
    prepare.name_unreadable_images(cfg, args.skip_corrupt)
    notes += prepare.start_from(cfg, args.resume, args.pretrained, args.pretrained_weights)
    notes += prepare.set_batch(cfg, args.auto_scale_lr)
    notes += prepare.choose_precision(cfg, args.amp, args.device)
    if args.fsdp:
        prepare.divide_model(cfg, args.launcher)
    if args.stop_at is not None and args.stop_at < 1:
        raise UserError(f'--stop-at is a number of steps, got {args.stop_at}')
    given = dict(seed=args.seed, deterministic=args.deterministic or None)
    randomness = {key: value for key, value in given.items() if value is not None}
    cfg.randomness = {'seed': None, **cfg.get('randomness', {}), **randomness}
    return cfg, notes


def main(argv=None) -> None:
    args = parse_args(argv)
    cfg, notes = training_config(args)
    runner = Runner.from_cfg(cfg).say(notes)
    runner.stop_at = args.stop_at
    runner.train()


if __name__ == '__main__':
    run(main)
