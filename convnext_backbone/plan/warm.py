"""Imports what the children of the fork server need, once for all; what libraries print goes to stderr."""

import contextlib
import importlib
import sys

with contextlib.redirect_stdout(sys.stderr):
    for _name in ('mmcv', 'mmdet', 'mmseg'):
        with contextlib.suppress(ImportError):  # a config may not need it
            importlib.import_module(_name)
