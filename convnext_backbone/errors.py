"""Defines the one kind of error that is the user's to put right, and images left out of a training."""

import difflib
import functools
import multiprocessing
import traceback
from pathlib import Path

OLDEST_TORCH = (2, 6)
PACKAGES = {  # imported where they are used: how to get them
    'mmengine': 'openmmlab',
    'mmcv': 'openmmlab',
    'mmdet': 'openmmlab',
    'mmseg': 'openmmlab',
    'webdataset': 'classification',
    'imagecorruptions': 'classification',
    'onnx': 'onnx',
    'onnxscript': 'onnx',
    'onnxruntime': 'onnx',
}


class UserError(Exception):
    """Reports wrong input: the message has in one line what was given, what was expected and what to do.

    The command line tools print it without a traceback and exit with status 1.
    """


class Stopped(Exception):
    """Is raised by a training that ended early with a checkpoint, since it was asked to.

    Attributes:
        signal: name of the signal that asked; empty for ``--stop-at``.
    """

    def __init__(self, message: str, signal: str = ''):
        super().__init__(message)
        self.signal = signal


class UnreadableImage(UserError):
    """Is raised where a file of the dataset is missing, cut off or not an image."""


def message(error: BaseException) -> str:
    """Return the text of an error; of one in a data loader's process, without the traceback around it."""
    text = str(error).strip()
    if 'Original Traceback' in text:
        text = text.splitlines()[-1].partition(': ')[2]
    return text or type(error).__name__


def report_build_errors(build):
    """Report errors raised while building from a config as a one-line :class:`UserError`."""

    @functools.wraps(build)
    def wrapped(*args, **kwargs):
        try:
            return build(*args, **kwargs)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise UserError(missing_package(error) or str(error)) from error
        except (
            TypeError,
            KeyError,
            ValueError,
            AssertionError,
            AttributeError,
            OSError,
            ImportError,
        ) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f'{"/".join(Path(place.filename).parts[-3:])}:{place.lineno}'
            text = ' '.join(message(error).split())
            raise UserError(f'{type(error).__name__}: {text} (raised in {where})') from error

    return wrapped


def suggest(name: str, names, cutoff: float = 0.75, kind: str = '') -> str:
    """Return the end of an error that proposes the nearest of ``names``; empty if none is near."""
    near = difflib.get_close_matches(name, [str(n) for n in names], 1, cutoff)
    return f'; did you mean {kind}{near[0]!r}?' if near else ''


def check_choice(name: str, value, table):
    """Return ``value`` if it is a key of ``table``.

    Raises:
        UserError: it is not; the message names the nearest key.
    """
    if value in table:
        return value
    raise UserError(
        f'{name} must be one of {", ".join(map(str, table))}, got {value!r}{suggest(str(value), table, 0.6)}'
    )


def check_torch() -> None:
    """Raise :class:`UserError` where torch is older than what this package is written for."""
    import importlib.metadata

    version = importlib.metadata.version('torch')
    if tuple(int(part) for part in version.split('.')[:2]) < OLDEST_TORCH:
        oldest = '.'.join(map(str, OLDEST_TORCH))
        raise UserError(
            f'torch {version} is older than {oldest}, the oldest this works with: '
            f"pip install 'torch>={oldest}' torchvision"
        )


def missing_package(error: ModuleNotFoundError) -> str:
    """Return one line that says how to install what is missing; empty for a module of no known package."""
    package = (error.name or '').partition('.')[0]
    if package not in PACKAGES:
        return ''
    line = f"{package} is not installed: pip install 'convnext_backbone[{PACKAGES[package]}]'"
    if PACKAGES[package] == 'openmmlab':
        line += '; docs/install.md has the maintained builds, too'
    return line


class SkippedImages:
    """Names and counts the images that were left out, over all processes of the data loaders.

    Whatever skips images keeps a reference, which is carried to processes that are spawned, not forked.
    """

    def __init__(self):
        self._count = multiprocessing.Value('q', 0)

    @property
    def count(self) -> int:
        """Return how many images were left out so far, by all processes."""
        return self._count.value

    def add(self, file: str, reason: str) -> None:
        """Log the file and how many it makes."""
        with self._count.get_lock():
            self._count.value += 1
            count = self._count.value
        from mmengine.logging import print_log

        print_log(f'skipped unreadable image {file} ({reason}); {count} so far', 'current', 30)


SKIPPED = SkippedImages()
