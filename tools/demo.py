"""Run the whole line on drawn shapes; the same as `convnext demo`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['demo', *sys.argv[1:]])
