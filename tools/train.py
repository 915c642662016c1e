"""Train a classifier, a detector or a segmenter; the same as `convnext train`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['train', *sys.argv[1:]])
