"""What the tools' command lines share: the options of every run, and errors in one line."""

import argparse
import inspect
import multiprocessing
import os
import sys
from collections.abc import Callable

from mmengine.config import DictAction

from .errors import Stopped, UserError

STOPPED = 75  # exit status of a training that was asked to end and can be resumed (EX_TEMPFAIL of sysexits.h)


class Parser(argparse.ArgumentParser):
    """A parser whose help begins with the tool's docstring."""

    def __init__(self, doc: str):
        super().__init__(description=inspect.cleandoc(doc), formatter_class=argparse.RawTextHelpFormatter)
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def add_run_options(self) -> None:
        """Options of every tool that builds a runner."""
        self.add_argument('--work-dir', help='for logs and checkpoints; default work_dirs/NAME_OF_CONFIG')
        self.add_argument(
            '--data-root', metavar='DIR', help="folder of the dataset, in place of the config's"
        )
        self.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
        self.add_argument(
            '--launcher',
            choices=('none', 'pytorch', 'slurm'),
            default='none',
            help='how several processes were started; dist_train.sh sets it',
        )
        self.add_argument(
            '--cfg-options',
            nargs='+',
            action=DictAction,
            default={},
            metavar='KEY=VALUE',
            help='change entries of the config, e.g. train_dataloader.batch_size=4',
        )


def run(main: Callable[[], None]) -> None:
    """Run a tool; a user's error becomes one line on stderr and exit status 1.

    A training that was stopped by SIGTERM or SIGUSR1, with a checkpoint, ends with status 75.
    """
    try:
        main()
        _leave_processes()
    except Stopped:
        _leave_processes()
        sys.exit(STOPPED)
    except UserError as error:
        if '--debug' in sys.argv:
            raise
        rank = f'[rank {os.environ["RANK"]}] ' if int(os.environ.get('WORLD_SIZE', 1)) > 1 else ''
        print(f'{rank}error: {message(error)}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for child in multiprocessing.active_children():  # of a data loader; the end of one that hangs is not
            child.kill()  # waited for


def _leave_processes() -> None:
    """Close the process group: a process that ends without it is now and then aborted (gloo)."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def message(error: BaseException) -> str:
    """The text of an error; of one in a data loader's process, without the traceback around it."""
    text = str(error).strip()
    if 'Original Traceback' in text:
        text = text.splitlines()[-1].partition(': ')[2]
    return text or type(error).__name__
