"""Convert weights between libraries; the same as `convnext convert`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['convert', *sys.argv[1:]])
