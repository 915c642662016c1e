"""Defines the one kind of error that is the user's to put right, and images left out of a training."""

import ast
import contextlib
import difflib
import functools
import linecache
import multiprocessing
import re
import traceback
from collections.abc import Iterable
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
    'rasterio': 'large',
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, of Python or torch, says that the memory was too little."""
    return isinstance(error, MemoryError) or bool(
        re.search("out of memory|can't allocate memory", str(error))
    )


def message(error: BaseException) -> str:
    """Return the text of an error; of one in a data loader's process, without the traceback around it.

    A ``KeyError`` that has a key and nothing else is put into words, and so is an assertion without a text.
    """
    if isinstance(error, KeyError) and len(error.args) == 1:
        key = error.args[0]
        bare = not isinstance(key, str) or not re.search(r'\s', key)
        text = f'the key {key!r} is missing' if bare else key.strip()
    else:
        text = str(error).strip()
    if 'Original Traceback' in text:
        text = text.splitlines()[-1].partition(': ')[2]
    if not text and isinstance(error, AssertionError) and error.__traceback__:
        text = f'`{_statement(traceback.extract_tb(error.__traceback__)[-1])}` does not hold'
    return text or type(error).__name__


def _statement(place: traceback.FrameSummary) -> str:
    """Return the source of the statement at a place, in one line."""
    source = ''.join(linecache.getlines(place.filename))
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assert) and node.lineno <= place.lineno <= (node.end_lineno or 0):
                return ' '.join((ast.get_source_segment(source, node) or '').split())
    return (place.line or '').strip()


def report_build_errors(build):
    """Report errors raised while building from a config as a one-line :class:`UserError`.

    The line begins with the key of the config that was being built, as far as that can be told.
    """

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
            LookupError,
            ValueError,
            ArithmeticError,
            AssertionError,
            AttributeError,
            OSError,
            ImportError,
        ) as error:
            key, kind = being_built(error, *args)
            what = f'{key} ({kind})' if key and kind else key or kind
            raise UserError(f'{what}: {build_error_text(error)}'.removeprefix(': ')) from error

    return wrapped


def build_error_text(error: BaseException) -> str:
    """Return in one line what a constructor raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f'{"/".join(Path(place.filename).parts[-3:])}:{place.lineno}'
    text = ' '.join(message(error).split())
    if isinstance(error, KeyError) and text.startswith('the key '):
        text += f', looked up by `{(place.line or "").strip()}`'
    return f'{type(error).__name__}: {text} (raised in {where})'


def being_built(error: BaseException, *args) -> tuple[str, str]:
    """Return the key of the config and the type that was being built when ``error`` came.

    Args:
        error: as it was raised, with its traceback.
        args: what it was built from; each that is a config, or has one as ``cfg``, is searched for the key.

    Returns:
        Either is empty where it cannot be told; the type also where something stands that is no settings.
    """
    nodes, frame = [], error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == 'build_from_cfg':  # mmengine's, from which all others follow
            nodes.append(frame.tb_frame.f_locals.get('cfg'))
        frame = frame.tb_next
    outer, node = [None, None, *nodes][-2:]
    ends = ['']
    if not isinstance(node, dict):  # such as a name without a dict around it
        inner = outer.items() if isinstance(outer, dict) else ()
        ends = [f'.{name}' for name, value in inner if value is node or value == node][:1]
        node = outer
    if not isinstance(node, dict) or 'type' not in node or not ends:
        return '', ''
    kind = node['type'] if isinstance(node['type'], str) else getattr(node['type'], '__name__', '')
    kind = '' if ends[0] else kind
    configs = [getattr(arg, 'cfg', arg) for arg in args]
    for config in configs:
        if hasattr(config, 'items') and (key := _key_of(node, dict(config.items()), '')):
            return key + ends[0], kind
    return '', kind


def _key_of(node: dict, value, key: str) -> str:
    """Return the dotted key at which ``value`` holds a dict like ``node``; empty if it does not."""
    if isinstance(value, dict):
        same = all(name in node and node[name] == given for name, given in value.items())
        if key and same and value.get('type') == node['type']:
            return key
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    else:
        return ''
    found = (_key_of(node, child, f'{key}.{name}' if key else str(name)) for name, child in inner)
    return next(filter(None, found), '')


def suggest(name: str, names, cutoff: float = 0.75, kind: str = '') -> str:
    """Return the end of an error that proposes the nearest of ``names``; empty if none is near."""
    near = difflib.get_close_matches(name, [str(n) for n in names], 1, cutoff)
    return f'; did you mean {kind}{near[0]!r}?' if near else ''


def some(values: Iterable) -> str:
    """Return the first eight of ``values`` and how many there are."""
    values = [str(v) for v in values]
    return ', '.join(values[:8]) + (f', ... ({len(values)})' if len(values) > 8 else '')


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


def check_pixels(name: str, value: int | None) -> None:
    """Raise :class:`UserError` if ``value`` is neither ``None`` nor a number of pixels."""
    if value is not None and (type(value) is not int or value < 1):
        raise UserError(f'{name} is a number of pixels, 1 or more, got {value!r}')


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
