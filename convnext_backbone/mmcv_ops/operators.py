"""Stands in for ``mmcv._ext``: what it computes, and one line for what it does not."""

import types

import torch
import torchvision

from ..errors import UserError
from . import boxes, layers, regions

OPERATORS = {
    function.__name__: function
    for part in (boxes, layers, regions)
    for name, function in vars(part).items()
    if isinstance(function, types.FunctionType)
    and function.__module__ == part.__name__
    and not name.startswith('_')
}


class MissingOperator(UserError, NotImplementedError):
    """Is raised for an operator of mmcv that is computed by its compiled extension only."""


def get_compiler_version() -> str:
    """Return what computes the operators, where mmcv names its compiler."""
    return f'torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version of torch and torchvision; mmcv names its own here."""
    return torch.version.cuda or 'not available'


class _Operators(types.ModuleType):
    """Has every public name: mmcv asks for all its operators when it is imported."""

    __convnext_operators__ = True

    def __getattr__(self, name: str):
        if name.startswith('_'):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise MissingOperator(
                f'mmcv operator {name!r} is computed by the compiled mmcv only: install it for this torch '
                '(docs/install.md, "Compiled mmcv"), or choose a model without it'
            )

        return missing


def make_module(name: str) -> types.ModuleType:
    """Return a new module called ``name`` with all operators."""
    module = _Operators(name, __doc__)
    vars(module).update(OPERATORS)
    for function in (get_compiler_version, get_compiling_cuda_version):
        setattr(module, function.__name__, function)
    return module
