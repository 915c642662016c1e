"""Evaluate a checkpoint.

convnext test mask_rcnn_convnext_t work_dirs/.../epoch_36.pth
convnext test upernet_convnext_t CHECKPOINT --tta    several scales and flip
convnext test CONFIG CHECKPOINT --report out.html    what it does right and wrong, as one page
convnext test CONFIG CHECKPOINT --tile 1024          large images, by tiles
"""

from ..cli import Parser
from ..engine.run import test


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's tta_model and tta_pipeline"
    )
    parser.add_argument('--report', metavar='FILE', help='writes a page about what was predicted: out.html')
    parser.add_argument('--against', metavar='CHECKPOINT', help='another model, with which the page compares')
    parser.add_tile_options()
    parser.add_prefix_option()
    parser.add_run_options()
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Return the metrics, as they stand in the log and in the JSON file of the work dir."""
    options = vars(parse_args(argv))
    options.pop('debug')  # cli.run reads it
    return test(**options)
