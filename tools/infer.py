"""Predict on images; the same as `convnext infer`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['infer', *sys.argv[1:]])
