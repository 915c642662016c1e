"""Evaluate on shifted and corrupted images; the same as `convnext robustness`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['robustness', *sys.argv[1:]])
