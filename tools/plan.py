"""Say what a training needs before it is started; the same as `convnext plan`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['plan', *sys.argv[1:]])
