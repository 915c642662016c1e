"""Write a model as ONNX, TorchScript or torch.export; the same as `convnext export`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['export', *sys.argv[1:]])
