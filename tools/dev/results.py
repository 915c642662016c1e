"""Write the table of results in each folder of configs/, and configs/sizes.json for `convnext configs`.

python -m tools.dev.results
"""

import ast
import json
from pathlib import Path

from convnext_backbone.cli import Parser, run
from convnext_backbone.complexity import measure
from convnext_backbone.config import CONFIGS, config_names, published, read_config

COLUMNS = {  # of the published numbers, by folder; of a pretraining there are none
    'pretraining': {},
    'classification': {'top1': 'top-1'},
    'detection': {'box_AP': 'box AP', 'mask_AP': 'mask AP'},
    'segmentation': {
        'mIoU_single_scale': 'mIoU, single scale',
        'mIoU_multi_scale_flip': 'mIoU, multi-scale + flip',
    },
}
PUBLISHED = (
    ': as published, the target of a full training. We have not trained these here. '
    'A dash: no published number.'
)
WORDS = {
    'pretraining': (
        'Pretraining without labels ([how](../../docs/pretraining.md)); what a network reaches after '
        'fine-tuning is in the [table of classification](../classification/README.md), at `_fcmae_in1k`. '
        'We have not trained these here, but for the small one on CIFAR-10. Multiply-adds are those of the '
        'whole image; in training the linear layers of the encoder are computed at visible positions only.'
    ),
    'classification': 'Top-1 in percent on the ImageNet-1K validation images' + PUBLISHED,
    'detection': 'AP in percent on COCO val2017' + PUBLISHED,
    'segmentation': (
        'mIoU in percent on the ADE20K validation images; single scale by sliding window '
        '(`tools/test.py`), several scales with flip on the whole image (`tools/test.py --tta`)' + PUBLISHED
    ),
}


def title(file: Path) -> str:
    """Return the first line of the config's docstring, without the full stop."""
    return ast.get_docstring(ast.parse(file.read_text())).splitlines()[0].rstrip('.')


def source(row: dict) -> str:
    """Return where the published figures of a row are from; a dash without any."""
    if not row:
        return '-'
    found = f'Table {row["table"]}' if row['table'] else row.get('source', 'official results page')
    return f'{found} (secondary source)' if row.get('status') == 'secondary' else found


def count() -> dict[str, dict]:
    """Return image size, parameters and GFLOPs of every config, counted from it."""
    found = {}
    for name in sorted(path.with_suffix('').as_posix() for path in config_names().values()):
        measured = measure(read_config(name))
        found[name] = dict(
            input=list(measured.input), parameters=measured.parameters, gflops=round(measured.gflops, 4)
        )
    return found


def table(folder: str, sizes: dict[str, dict]) -> str:
    """Return the README of ``configs/FOLDER``.

    Args:
        sizes: what :func:`count` found.
    """
    columns, printed = COLUMNS[folder], published()
    heads = ['Config', 'What', 'Params (M)', 'GFLOPs', *columns.values(), *['Source'] * bool(columns)]
    counted = 'Parameters and multiply-adds are counted from the config (`tools/flops.py`), at height x width'
    beside = '; `tools/flops.py --paper` sets them beside the printed ones' * bool(columns)
    lines = [
        f'# {folder.capitalize()}',
        '',
        'Written by `python -m tools.dev.results` from the configs and `configs/published.json`.',
        '',
        f'{WORDS[folder]} {counted}{beside}.',
        '',
        f'| {" | ".join(heads)} |',
        '|---' * len(heads) + '|',
    ]
    names = [name for name in sizes if name.startswith(f'{folder}/')]
    order = {name: number for number, name in enumerate(printed)}
    for name in sorted(names, key=lambda name: (order.get(name, len(order)), name)):
        file, row, measured = CONFIGS / f'{name}.py', printed.get(name, {}), sizes[name]
        size = '{} x {}'.format(*measured['input'])
        cells = [
            f'[{file.stem}]({file.relative_to(CONFIGS / folder).as_posix()})',
            title(file),
            f'{measured["parameters"] / 1e6:.1f}',
            f'{measured["gflops"]:.2f} at {size}',
            *(row.get(key, '-') for key in columns),
            *[source(row)] * bool(columns),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main(argv=None) -> None:
    """Count all networks, write ``sizes.json`` and the tables of the configs."""
    Parser(__doc__).parse_args(argv)
    sizes = count()
    rows = (f' {json.dumps(name)}: {json.dumps(row)}' for name, row in sizes.items())
    (CONFIGS / 'sizes.json').write_text('{\n' + ',\n'.join(rows) + '\n}\n')
    for folder in COLUMNS:
        file = CONFIGS / folder / 'README.md'
        file.write_text(table(folder, sizes))
        print(f'wrote {file.relative_to(CONFIGS.parent)}')


if __name__ == '__main__':
    run(main)
