"""Evaluate a checkpoint.

python tools/test.py configs/detection/mask_rcnn_convnext_t.py work_dirs/.../epoch_36.pth
python tools/test.py configs/segmentation/upernet_convnext_t.py CHECKPOINT --tta    several scales and flip
"""

from convnext_backbone.cli import Parser, run
from convnext_backbone.engine import Runner, prepare


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's tta_model and tta_pipeline"
    )
    parser.add_run_options()
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Returns the metrics, as they stand in the log and in the JSON file of the work dir."""
    args = parse_args(argv)
    cfg, notes = prepare.run_config(args, ('test_dataloader',))
    notes += prepare.choose_views(cfg, args.tta)
    prepare.write_details(cfg)
    prepare.for_testing(cfg, args.checkpoint)
    return Runner.from_cfg(cfg).say(notes).test()


if __name__ == '__main__':
    run(main)
