"""Make a checkpoint fit to be given away; the same as `convnext publish`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['publish', *sys.argv[1:]])
