"""Train a classifier, a detector or a segmenter.

convnext train cascade_convnext_t
convnext train CONFIG --data-root /data/coco --pretrained weights.pth --work-dir runs/a
convnext train CONFIG --resume
tools/dist_train.sh CONFIG 8
"""

from ..cli import Parser
from ..engine.run import train


def parse_args(argv=None):
    """Return the options of the command line."""
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
    parser.add_argument(
        '--pretrained-prefix',
        metavar='PREFIX',
        help='what is in front of the names of the network to take (such as teacher.backbone.)',
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
        '--new-lr',
        action='store_true',
        help="with --resume: the config's learning rate in place of the checkpoint's, schedule in proportion",
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


def main(argv=None) -> None:
    """Train; checkpoints and logs are in the work dir."""
    options = vars(parse_args(argv))
    options.pop('debug')  # cli.run reads it
    train(**options)
