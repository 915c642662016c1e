"""Compute features of images; the same as `convnext features`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['features', *sys.argv[1:]])
