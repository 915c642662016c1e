"""Time ConvNeXt against timm, torchvision, Hugging Face and mmpretrain, alternating in one process.

convnext benchmark                                                  # tiny at 224 x 224, eager
convnext benchmark --sizes tiny base --tasks classify 1x800x1280 2x512x2048 --ways eager compiled

All contestants have the same weights; one whose outputs differ from ours is left out. Training is forward,
backward and AdamW (fused), with the paper's stochastic depth; in inference ours is after
`fuse_for_inference`, the peers are as they come. Peers run in both memory layouts; ours has one.
Every round runs each contestant once; times are medians over the rounds, ratios medians of the ratios in a
round. The roofline is the larger of FLOPs over the measured rate of a matrix product and least bytes over the
measured copy bandwidth, see `least_bytes`.
"""

import json
import re
from pathlib import Path

import torch

from ..cli import Parser
from ..config import check_work_dir, choose_device
from ..contest import DROP_PATH, PEERS, Cell, about, admitted, contest, random_weights
from ..errors import UserError

MODES = ('inference', 'training')
WAYS = ('eager', 'compiled')
PRECISIONS = ('float32', 'bfloat16', 'autocast')


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('--sizes', nargs='+', default=['tiny'], choices=DROP_PATH)
    parser.add_argument(
        '--tasks',
        nargs='+',
        default=['classify'],
        metavar='TASK',
        help='classify (224 x 224), or IMAGESxHEIGHTxWIDTH: the four maps of the backbone',
    )
    parser.add_argument('--modes', nargs='+', default=list(MODES), choices=MODES)
    parser.add_argument('--precisions', nargs='+', default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument('--batch', type=int, help='images to classify; default 8 on a CPU, 128 on a GPU')
    parser.add_argument('--peers', nargs='+', default=list(PEERS), choices=PEERS)
    parser.add_argument('--ways', nargs='+', default=['eager'], choices=WAYS, help='compiled: torch.compile')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=0.3, help='of work in a turn, at least')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    parser.add_argument('--out', metavar='DIR', help='writes benchmark.json, .md and .png there')
    return parser.parse_args(argv)


def cells_of(args, device: str):
    """Yield every comparison that the options ask for."""
    for size in args.sizes:
        for task in args.tasks:
            for mode in args.modes:
                if task == 'classify':
                    batch = args.batch or dict(cpu=8, cuda=128)[device]
                else:
                    batch = int(task.split('x')[0])
                for precision in args.precisions:
                    for way in args.ways:
                        yield Cell(size, task, mode, precision, way == 'compiled', batch, device)


def main(argv=None) -> list[dict]:
    """Print the times of every cell and the table, write both to ``--out``, and return the results."""
    args = parse_args(argv)
    device = choose_device(args.device)
    for task in args.tasks:
        if task != 'classify' and not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){2}', task):
            raise UserError(f'--tasks: expected classify or IMAGESxHEIGHTxWIDTH, got {task!r}')
    if args.out:
        check_work_dir(args.out, '--out')
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    print(header := about(device), flush=True)
    results, weights, builders = [], {}, {}
    for cell in cells_of(args, device):
        if cell.size not in weights:
            weights = {cell.size: random_weights(cell.size)}
        key = (cell.size, cell.task != 'classify')
        if key not in builders:
            builders[key] = admitted(cell, weights[cell.size], args.peers)
        results.append(contest(cell, weights[cell.size], builders[key], args.rounds, args.seconds))
        print(line(results[-1]), flush=True)
        if args.out:
            content = json.dumps(dict(about=header, results=results), indent=1)
            Path(args.out, 'benchmark.json').write_text(content + '\n')
    print('\n' + (text := table(results)))
    if args.out:
        out = Path(args.out)
        (out / 'benchmark.md').write_text(f'{header}\n\n{text}\n')
        draw(results, header, out / 'benchmark.png')
        print(f'written: {out}/benchmark.json, .md and .png')
    return results


def line(result: dict) -> str:
    """Return the result of a cell in one line: ratio and milliseconds."""
    times = '  '.join(f'{name} {ms:.1f}' for name, ms in result['milliseconds'].items())
    return f'{result["cell"]}: x{result["ratio"]:.2f} of {result["best_peer"]}   ms: {times}'


def table(results: list[dict]) -> str:
    """Return the results as a Markdown table; a ratio above 1 means that ours is faster."""
    memory = 'peak_mib' if results[0]['device'] == 'cuda' else 'kept_mib'
    said = 'peak MiB' if memory == 'peak_mib' else 'MiB kept for backward'
    rows = [
        '| Network, batch, precision | ours, ms | images/s | best peer | its ms | ratio '
        f'| {said}, ours / peer | roofline |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for r in results:
        ms, own, best, kept = r['milliseconds'], r['ours'], r['best_peer'], r[memory]
        both = '-' if kept[own] is None else f'{kept[own]:.0f} / {kept[best]:.0f}'
        rows.append(
            f'| {r["cell"]} | {ms[own]:.1f} | {r["images_per_second"]:.1f} | {best} | {ms[best]:.1f} '
            f'| **{r["ratio"]:.2f}** | {both} | {r["roofline_share"]:.0%} |'
        )
    return '\n'.join(rows)


def draw(results: list[dict], title: str, file: Path) -> None:
    """Draw the ratios as bars, with the range over the rounds, into a PNG file."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.4 * len(results)), layout='constrained')
    cells = [r['cell'] for r in results][::-1]
    ratios = [r['ratio'] for r in results][::-1]
    spread = [[r['ratio'] - r['ratio_range'][0], r['ratio_range'][1] - r['ratio']] for r in results][::-1]
    axes.barh(cells, ratios, xerr=list(zip(*spread)), color='tab:blue')
    axes.axvline(1, color='black', linewidth=1)
    axes.set_xlabel('speed relative to the best peer (bars: lowest and highest round)')
    axes.set_title(title, fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
