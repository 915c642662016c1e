"""Show a page to try a model on images; programs get JSON.

convnext serve CONFIG CHECKPOINT
convnext serve CONFIG CHECKPOINT --port 0 --score 0.5
"""

import contextlib
import signal
import sys

from ..classify import make_predictor
from ..cli import Parser
from ..errors import UserError
from ..serve import Answers, Server
from .infer import bounded_memory


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        '--host', default='127.0.0.1', help='address to listen at; default 127.0.0.1: this machine alone'
    )
    parser.add_argument('--port', type=int, default=8000, help='default 8000; 0: one that is free')
    parser.add_argument(
        '--score', type=float, default=0.3, help='least score of an object at the start, 0 to 1; default 0.3'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    parser.add_prefix_option()
    parser.add_argument(
        '--max-megabytes', type=float, default=32, metavar='N', help='largest image file; default 32'
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    args = parse_args(argv)
    check(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Server(args.host, args.port) as server:  # before the model is read: the port may be taken
        if not server.is_local:
            print(
                f'warning: by --host {args.host} everyone who reaches this machine by network can use it; '
                'without it this machine alone can',
                file=sys.stderr,
            )
        predictor = make_predictor(args.config, args.checkpoint, args.device, args.prefix)
        with contextlib.closing(answers(args, predictor)) as server.answers:
            print(f'{args.config} on {predictor.device}: {server.url} (Ctrl-C ends it)', flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    print('stopped')


def answers(args, predictor) -> Answers:
    """Return what answers by a model, within the memory that there is."""
    return Answers(
        predictor,
        args.config,
        args.checkpoint,
        score=args.score,
        most_bytes=int(args.max_megabytes * 2**20),
        guard=lambda: bounded_memory(predictor.device),
    )


def check(args) -> None:
    """Raise :class:`UserError` for an option that is out of range."""
    if not 0 <= args.score <= 1:
        raise UserError(f'--score is a number from 0 to 1, got {args.score:g}')
    if not 0 <= args.port <= 65535:
        raise UserError(f'--port is a number from 0 to 65535, got {args.port}')
    if not 0 < args.max_megabytes <= 4096:
        raise UserError(f'--max-megabytes is a number above 0, at most 4096, got {args.max_megabytes:g}')
