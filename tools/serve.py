"""Show a page to try a model; the same as `convnext serve`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['serve', *sys.argv[1:]])
