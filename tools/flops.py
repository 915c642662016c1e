"""Count parameters and FLOPs; the same as `convnext flops`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['flops', *sys.argv[1:]])
