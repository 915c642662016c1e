"""Check a GPU and what runs on it; the same as `convnext gpu-check`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['gpu-check', *sys.argv[1:]])
