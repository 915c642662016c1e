"""Count parameters and FLOPs of configs, by the paper's protocol.

convnext flops cascade_convnext_t
convnext flops configs/segmentation/*.py --shape 512 512
convnext flops --paper                 every published row beside ours: Tables 1, 2, 3, 4, 10, 11
"""

import json
from pathlib import Path

from ..cli import Parser
from ..complexity import Complexity, Row, compare, measure
from ..config import read_config
from ..errors import UserError

TITLES = {
    1: 'Table 1: ImageNet-1K',
    2: 'Table 2: isotropic',
    3: 'Table 3: COCO (1000 proposals at the box heads, 100 RoIs at the mask heads)',
    4: 'Table 4: ADE20K',
    10: 'Table 10: from ResNet-50',
    11: 'Table 11: from ResNet-200',
}


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('configs', nargs='*')
    parser.add_argument('--paper', action='store_true', help='all published rows, beside the printed numbers')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help='of the image')
    parser.add_argument('--json', metavar='FILE', help='write the numbers there too')
    return parser.parse_args(argv)


def shape(measured: Complexity) -> str:
    """Return the size of the images as text, height first."""
    return '{} x {}'.format(*measured.input)


def as_json(name: str, measured: Complexity) -> dict:
    """Return what was counted in plain types, under the name of the config."""
    return dict(
        config=name,
        input=list(measured.input),
        parameters=measured.parameters,
        multiply_adds=sum(measured.macs.values()),
        by_part=measured.macs,
    )


def print_configs(files: list[str], size) -> list[dict]:
    """Print a row for each config and return the rows in plain types."""
    found = []
    print('input: height x width; GFLOPs: 10^9 multiply-adds of convolutions and linear layers')
    print(f'{"config":58s} {"input":>12s} {"params M":>9s} {"GFLOPs":>9s}  of which')
    for file in files:
        measured = measure(read_config(file), size)
        parts = '  '.join(f'{part} {macs / 1e9:.3f}' for part, macs in measured.macs.items())
        numbers = f'{measured.parameters / 1e6:9.2f} {measured.gflops:9.3f}'
        print(f'{file:58s} {shape(measured):>12s} {numbers}  {parts}', flush=True)
        found.append(as_json(file, measured))
    return found


def print_paper() -> list[dict]:
    """Print every published row beside ours and return the rows.

    Raises:
        UserError: a row disagrees and no footnote explains it.
    """
    found, notes, wrong = [], [], []
    rows = list(compare())
    print('input: height x width; GFLOPs: 10^9 multiply-adds of convolutions and linear layers')
    for table in sorted({row.printed['table'] for row in rows}):
        print(f'\n{TITLES[table]}')
        heads = f'{"params M":>9s} {"paper":>6s} {"GFLOPs":>9s} {"paper":>7s}  ratio'
        print(f'{"config":58s} {"input":>12s} {heads}')
        for row in rows:
            if row.printed['table'] != table:
                continue
            mark = ''
            if not row.agrees():
                if note := row.printed.get('note'):
                    notes.append(note)
                    mark = f' [{len(notes)}]'
                else:
                    wrong.append(row.name)
                    mark = ' disagrees'
            print(line(row) + mark, flush=True)
            found.append(
                dict(
                    as_json(row.name, row.measured),
                    printed=row.printed,
                    ratio=row.ratio(),
                    agrees=row.agrees(),
                )
            )
    print()
    for number, note in enumerate(notes, 1):
        print(f'[{number}] {note}')
    agree = sum(row['agrees'] for row in found)
    print(
        f'{agree} of {len(found)} rows agree: parameters to the printed digit, FLOPs within 0.5 % or one in '
        'the last printed digit'
    )
    if wrong:
        raise UserError(f'{len(wrong)} rows disagree with print without a note: {", ".join(wrong)}')
    return found


def line(row: Row) -> str:
    """Return a row of the paper with our numbers before the printed ones."""
    measured, printed = row.measured, row.printed
    params = f'{measured.parameters / 1e6:9.2f} {printed.get("params_M", "-"):>6s}'
    flops = f'{measured.gflops:9.3f} {printed["gflops"]:>7s}  {row.ratio():.4f}'
    return f'{row.name:58s} {shape(measured):>12s} {params} {flops}'


def main(argv=None) -> None:
    """Print parameters and FLOPs, and write them to ``--json``."""
    args = parse_args(argv)
    if bool(args.configs) == args.paper:
        raise UserError('give config files, or --paper for all published rows')
    if args.paper and args.shape:
        raise UserError('--paper has the sizes of the paper: leave --shape out')
    if args.shape and min(args.shape) < 1:
        raise UserError(f'--shape must be two positive integers, got {args.shape[0]} {args.shape[1]}')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f'--json {args.json}: there is no such folder')
    found = print_paper() if args.paper else print_configs(args.configs, args.shape)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + '\n')
