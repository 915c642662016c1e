"""Computes mmcv's compiled operators by torchvision and PyTorch where the compiled ones are missing.

mmcv's Python code imports its operators from one extension module, ``mmcv._ext``. :func:`install`, which
``import convnext_backbone`` calls, answers that import: with the compiled module if there is one that loads,
else with :mod:`convnext_backbone.mmcv_ops.operators`, so that the pure wheel ``mmcv-lite`` is enough and
nothing is compiled. Which one is used stands in the log.

The environment variable ``CONVNEXT_MMCV_OPS`` decides otherwise: ``torchvision`` takes ours even beside a
compiled module, ``compiled`` leaves the import alone.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

MODULE = 'mmcv._ext'
LINE_NMS = 'mmcv.ops.line_nms'  # of the maintained builds' mmcv; mmdet's lane detector asks for it
SWITCH = 'CONVNEXT_MMCV_OPS'
OURS = '__convnext_operators__'
CHOICES = ('auto', 'torchvision', 'compiled')


class OperatorFinder(importlib.abc.MetaPathFinder):
    """Answers the import of :data:`MODULE` and :data:`LINE_NMS`, and of nothing else."""

    def find_spec(self, name, path=None, target=None):
        """Return where a module comes from; ``None`` for modules that are not ours to find.

        Raises:
            UserError: the environment variable has none of the values it can have.
        """
        if name == LINE_NMS and hasattr(sys.modules.get(MODULE), OURS):
            return importlib.util.spec_from_loader(name, OperatorLoader(None, ''))
        if name != MODULE:
            return None
        choice = os.environ.get(SWITCH) or 'auto'
        if choice not in CHOICES:
            from ..errors import UserError

            raise UserError(f'{SWITCH} must be one of {", ".join(CHOICES)}, got {choice!r}')
        if choice == 'compiled':
            return None
        compiled = importlib.machinery.PathFinder.find_spec(name, path) if choice == 'auto' else None
        origin = compiled.origin if compiled else os.path.join(os.path.dirname(__file__), 'operators.py')
        loader = OperatorLoader(compiled, '' if choice == 'auto' else f'{SWITCH}={choice}')
        return importlib.util.spec_from_loader(name, loader, origin=origin)


class OperatorLoader(importlib.abc.Loader):
    """Loads the compiled module if that is possible, else ours.

    Args:
        compiled: where the compiled module lies; ``None`` if there is none, or it is not wanted.
        why: the reason for ours; found out while loading if empty.
    """

    def __init__(self, compiled: importlib.machinery.ModuleSpec | None, why: str):
        self.compiled, self.why = compiled, why

    def create_module(self, spec):
        """Load the compiled module, or make ours if that fails or is not wanted."""
        if self.compiled is not None:
            try:
                module = importlib.util.module_from_spec(self.compiled)
                self.compiled.loader.exec_module(module)
            except (ImportError, OSError) as error:
                self.why = f'the compiled {self.compiled.origin} cannot be loaded: {error}'
            else:
                return module
        from . import operators

        return operators.OPERATORS['line_nms'] if spec.name == LINE_NMS else operators.make_module(MODULE)

    def exec_module(self, module) -> None:
        """Log which operators were taken; the module is complete already."""
        if hasattr(module, OURS):
            _log(f'mmcv operators: {module.get_compiler_version()} ({self.why or "no compiled mmcv here"})')
        elif self.compiled is not None:
            _log(f'mmcv operators: compiled ({self.compiled.origin})')


_unsaid: list[str] = []  # lines from before there was a log


def _log(line: str) -> None:
    from mmengine.logging import MMLogger, print_log

    if getattr(MMLogger, '_instance_dict', True):  # without one, a line would make a log of its own
        print_log(line, 'current')
    else:
        _unsaid.append(line)


def log_choice(logger) -> None:
    """Write into ``logger`` which operators are in use, if that was decided before there was a log."""
    while _unsaid:
        logger.info(_unsaid.pop())


def install() -> None:
    """Put the finder in front of Python's own, once: a compiled file that cannot be loaded must not win."""
    if not any(isinstance(finder, OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, OperatorFinder())
