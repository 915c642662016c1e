"""List the configs that come along, with size, FLOPs and published figure.

convnext configs
convnext configs detection
convnext configs '*_in22k'

A config is named without its path: `convnext train cascade_convnext_t --data-root /data/coco`.
"""

from fnmatch import fnmatchcase

from ..cli import Parser
from ..config.files import CONFIGS, config_names, published, sizes
from ..errors import UserError, suggest

FIGURES = {  # of published.json: heading
    'top1': 'top-1',
    'box_AP': 'box AP',
    'mask_AP': 'mask AP',
    'mIoU_single_scale': 'mIoU',
    'mIoU_multi_scale_flip': 'mIoU, several scales',
}


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('pattern', nargs='?', default='*', help='of names, or a folder; default: all')
    return parser.parse_args(argv)


def main(argv=None) -> list[str]:
    """Print the table and return the names in it.

    Raises:
        UserError: no config has such a name.
    """
    pattern = parse_args(argv).pattern
    names = config_names()
    chosen = [
        (name, path)
        for name, path in names.items()
        if fnmatchcase(name, pattern) or pattern.strip('/') in path.parts
    ]
    if not chosen:
        folders = {part for path in names.values() for part in path.parts[:-1]}
        raise UserError(f'no config is called {pattern}{suggest(pattern, [*names, *folders])}')
    printed, measured = published(), sizes()
    print(f'{"name":40s} {"params M":>9s} {"GFLOPs":>9s} {"at":>11s}  published')
    for name, path in chosen:
        key = path.with_suffix('').as_posix()
        row, size = printed.get(key, {}), measured.get(key)
        numbers = f'{"":9s} {"":9s} {"":11s}'
        if size:
            height, width = size['input']
            numbers = f'{size["parameters"] / 1e6:9.1f} {size["gflops"]:9.2f} {f"{height} x {width}":>11s}'
        figures = ', '.join(f'{FIGURES[key]} {row[key]}' for key in FIGURES if key in row)
        print(f'{name:40s} {numbers}  {figures}'.rstrip())
    print(
        f'{len(chosen)} configs in {CONFIGS}; published: the target of a full training, in percent. We have '
        'not trained these.'
    )
    return [name for name, _ in chosen]
