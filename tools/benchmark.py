"""Time ConvNeXt against other libraries; the same as `convnext benchmark`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['benchmark', *sys.argv[1:]])
