"""Write the config of a training on your own images; the same as `convnext new`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['new', *sys.argv[1:]])
