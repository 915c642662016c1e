"""Evaluate a checkpoint; the same as `convnext test`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['test', *sys.argv[1:]])
