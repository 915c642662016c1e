"""Put a ConvNeXt in the place of a config's backbone; the same as `convnext swap`."""

import sys

from convnext_backbone.cli import main

if __name__ == '__main__':
    main(['swap', *sys.argv[1:]])
