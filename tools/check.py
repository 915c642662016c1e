"""Find what is wrong with a config and its data; the same as `convnext check`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['check', *sys.argv[1:]])
