"""Runs the command ``convnext``; holds what its commands share: options of every run, errors in one line."""

import argparse
import atexit
import contextlib
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType

from . import __version__
from .errors import Stopped, UserError, check_torch, message, missing_package, suggest

INTERRUPTED = 130  # exit status after Ctrl-C, as a shell has it
STOPPED = 75  # exit status of a training that was asked to end and can be resumed (EX_TEMPFAIL of sysexits.h)
COMMANDS = {  # each a module of convnext_backbone.commands
    'train': 'train a classifier, a detector or a segmenter',
    'test': 'evaluate a checkpoint',
    'new': 'write the config of a training on your own images, from a folder of labels',
    'check': 'find what is wrong with a config and its data, all at once',
    'plan': 'say what a training needs: memory, largest batch, time, disk, hours on a cluster',
    'swap': 'put a ConvNeXt in the place of the backbone of any config of mmdet or mmseg',
    'infer': 'predict on images and videos: pictures and JSON, tables, COCO results, label maps',
    'serve': 'show a page to try a model on images; JSON for programs',
    'features': 'compute features of images, pooled or maps; k-NN and linear accuracy',
    'configs': 'list the configs that come along, with size, FLOPs and published figure',
    'export': 'write a model as ONNX, TorchScript or torch.export',
    'convert': 'convert weights between libraries; list the released ones',
    'publish': 'make a checkpoint fit to be given away',
    'flops': 'count parameters and FLOPs',
    'robustness': 'evaluate on shifted and corrupted images',
    'benchmark': 'time ConvNeXt against other libraries',
    'gpu-check': 'check a GPU and what runs on it: numbers, training steps, resuming, speed',
    'demo': 'run the whole line on drawn shapes',
}


class Parser(argparse.ArgumentParser):
    """Parses arguments, with a help that begins with the command's docstring."""

    def __init__(self, doc: str):
        super().__init__(description=inspect.cleandoc(doc), formatter_class=argparse.RawTextHelpFormatter)
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def add_run_options(self) -> None:
        """Add the options of every command that builds a runner."""
        from .engine.run import DEVICES, LAUNCHERS

        self.add_argument('--work-dir', help='for logs and checkpoints; default work_dirs/NAME_OF_CONFIG')
        self.add_argument('--device', choices=DEVICES, help='default: cuda where there is a GPU')
        self.add_argument(
            '--launcher',
            choices=LAUNCHERS,
            default='none',
            help='how several processes were started; dist_train.sh sets it',
        )
        self.add_data_options()

    def add_prefix_option(self) -> None:
        """Add the option of every command that reads a network from a checkpoint."""
        self.add_argument(
            '--prefix',
            help='what is in front of the names of the network to take (such as teacher.), of a file with '
            'several',
        )

    def add_tile_options(self) -> None:
        """Add the options of every command that predicts by tiles."""
        self.add_argument(
            '--tile', type=int, metavar='PIXELS', help='predict by tiles of this side, for large images'
        )
        self.add_argument(
            '--overlap',
            type=float,
            default=0.2,
            metavar='SHARE',
            help='of a tile that it has in common with the next, 0 to 0.5; default 0.2',
        )

    def add_data_options(self) -> None:
        """Add the options of every command that looks at the data of a config."""
        from .checks import AMOUNTS

        self.add_config_options()
        self.add_argument(
            '--check-data',
            choices=AMOUNTS,
            default='sample',
            help='how many images and masks are read before the run; default: some seconds for each dataset',
        )

    def add_config_options(self) -> None:
        """Add the options that change a config: where its data is, and any entry."""
        from mmengine.config import DictAction

        self.add_argument(
            '--data-root', metavar='DIR', help="folder of the dataset, in place of the config's"
        )
        self.add_argument(
            '--cfg-options',
            nargs='+',
            action=DictAction,
            default={},
            metavar='KEY=VALUE',
            help='change entries of the config, e.g. train_dataloader.batch_size=4',
        )


def main(argv: list[str] | None = None) -> None:
    """Run ``convnext COMMAND ...``; the files in tools/ call this with their own name first."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print('convnext COMMAND ...; `convnext COMMAND --help` shows the options\n')
        print('\n'.join(f'  {name:11s} {what}' for name, what in COMMANDS.items()))
    elif argv[0] == '--version':
        print(f'convnext_backbone {__version__}')
    else:
        run(lambda: run_command(*argv))


def module_of(name: str) -> ModuleType:
    """Return the module of a command, which has ``parse_args`` and ``main``."""
    return importlib.import_module(f'.commands.{name.replace("-", "_")}', __package__)


def run_command(name: str, *arguments: str) -> None:
    """Run one of :data:`COMMANDS`.

    Raises:
        UserError: there is no such command.
    """
    if name not in COMMANDS:
        raise UserError(
            f'convnext has no command {name!r}{suggest(name, COMMANDS, 0.5)}; see convnext --help'
        )
    check_torch()
    sys.argv[0] = f'convnext {name}'  # what argparse calls the program
    module_of(name).main(list(arguments))


def run(main: Callable[[], object]) -> None:
    """Run a command; a user's error becomes one line on stderr and exit status 1.

    So does a package that is not installed. A training that was stopped by SIGTERM or SIGUSR1, with a
    checkpoint, ends with status 75; at Ctrl-C a command ends with 130, at once.
    """
    try:
        main()
        _leave_processes()
    except Stopped:
        _leave_processes()
        sys.exit(STOPPED)
    except (UserError, ModuleNotFoundError) as error:
        text = missing_package(error) if isinstance(error, ModuleNotFoundError) else message(error)
        if '--debug' in sys.argv or not text:
            raise
        rank = f'[rank {os.environ["RANK"]}] ' if int(os.environ.get('WORLD_SIZE', 1)) > 1 else ''
        print(f'{rank}error: {text}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        _end_children()
        with contextlib.suppress(BaseException):  # of whatever wants to know of the end, such as wandb
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # Python would wait for threads, and clear PyTorch away for seconds
    finally:
        _end_children()


def _end_children() -> None:
    """End those of a data loader; one that hangs is not waited for, and is no error, as torch takes it."""
    if children := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in children:
            child.kill()


def _leave_processes() -> None:
    """Close the process group: a process that ends without it is now and then aborted (gloo)."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
