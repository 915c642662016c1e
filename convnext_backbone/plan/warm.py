"""Imports what the children of the fork server need, once for all; what libraries print goes to stderr."""

import contextlib
import importlib
import sys

from ..registry import SCOPE

with contextlib.redirect_stdout(sys.stderr):
    for _name in ('mmseg.models', 'mmdet.models', f'{SCOPE}.classification', f'{SCOPE}.engine'):
        with contextlib.suppress(ImportError):  # a config may not need it
            importlib.import_module(_name)
