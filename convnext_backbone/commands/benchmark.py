"""Time ConvNeXt against timm, torchvision, Hugging Face and mmpretrain, alternating in one process.

convnext benchmark                                                  # tiny at 224 x 224, eager
convnext benchmark --sizes tiny base --tasks classify 1x800x1280 2x512x2048 --ways eager compiled
convnext benchmark --tasks mask_rcnn upernet --precisions autocast --rounds 3       # whole steps

All contestants have the same weights; one whose outputs differ from ours is left out. Training is forward,
backward and AdamW (fused), with the paper's stochastic depth; in inference ours is after
`fuse_for_inference`, the peers are as they come. Peers run in both memory layouts; ours has one.
Every round runs each contestant once; times are medians over the rounds, ratios medians of the ratios in a
round. The roofline is the larger of FLOPs over the measured rate of a matrix product and least bytes over the
measured copy bandwidth, see `least_bytes`.

The tasks mask_rcnn and upernet time whole models around the backbones, tiny, eager, in one layout, and show
the parts of a step. One whose losses differ from ours is left out; torchvision's own Mask R-CNN is another
implementation, of which only finite losses are asked.
"""

import gc
import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from ..cli import Parser
from ..config import check_work_dir, choose_device
from ..contest import DROP_PATH, PEERS, Cell, about, admitted, contest, random_weights, steps
from ..errors import UserError

MODES = ('inference', 'training')
# By torch.compile; captured: as a CUDA graph.
WAYS = dict(eager={}, compiled=dict(compiled=True), captured=dict(captured=True))
WAYS['compiled-captured'] = dict(compiled=True, captured=True)
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
        help='classify (224 x 224); IMAGESxHEIGHTxWIDTH: the four maps of the backbone;\n'
        'mask_rcnn (800 x 1280), upernet (512 x 512): the whole model',
    )
    parser.add_argument('--modes', nargs='+', default=list(MODES), choices=MODES)
    parser.add_argument(
        '--precisions', nargs='+', choices=PRECISIONS, help='default: all; whole models: float32 autocast'
    )
    parser.add_argument(
        '--batch',
        type=int,
        help='images; default on a CPU and on a GPU: classify 8, 128; mask_rcnn 1, 2; upernet 2, 16',
    )
    parser.add_argument('--peers', nargs='+', default=list(PEERS), choices=PEERS)
    parser.add_argument(
        '--ways',
        nargs='+',
        default=['eager'],
        choices=WAYS,
        help='compiled: torch.compile; captured: a CUDA graph, the time of the GPU alone',
    )
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=0.3, help='of work in a turn, at least')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    parser.add_argument('--out', metavar='DIR', help='writes benchmark.json, .md and .png there')
    return parser.parse_args(argv)


def check_tasks(args, device: str) -> None:
    """Check the tasks, and that whole models are asked for as there are.

    Raises:
        UserError: they are not.
    """
    if device != 'cuda' and any('captured' in way for way in args.ways):
        raise UserError(f'--ways captured needs a GPU: {device} has no CUDA graphs')
    for task in args.tasks:
        if task not in ('classify', *steps.CONFIGS) and not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){2}', task):
            known = ', '.join(('classify', *steps.CONFIGS))
            raise UserError(f'--tasks: expected {known} or IMAGESxHEIGHTxWIDTH, got {task!r}')
        if task not in steps.CONFIGS:
            continue
        if args.sizes != ['tiny']:
            raise UserError(f'--tasks {task} is timed with --sizes tiny, got {" ".join(args.sizes)}')
        if args.ways != ['eager']:
            raise UserError(f'--tasks {task} is timed with --ways eager, got {" ".join(args.ways)}')
        if args.precisions and 'bfloat16' in args.precisions:
            raise UserError(
                f'--tasks {task} is timed in float32 and autocast, as such models are trained: leave '
                'bfloat16 out of --precisions'
            )


def cells_of(args, device: str):
    """Yield every comparison that the options ask for."""
    for size in args.sizes:
        for task in args.tasks:
            batches = {'classify': dict(cpu=8, cuda=128), **steps.BATCH}
            whole = task in steps.CONFIGS
            for mode in args.modes:
                batch = (
                    int(task.split('x')[0]) if task not in batches else args.batch or batches[task][device]
                )
                for precision in args.precisions or PRECISIONS:
                    if whole and precision == 'bfloat16':
                        continue
                    for way in args.ways:
                        cell = Cell(size, task, mode, precision, False, batch, device)
                        yield replace(cell, **WAYS[way])


def main(argv=None) -> list[dict]:
    """Print the times of every cell and the table, write both to ``--out``, and return the results."""
    args = parse_args(argv)
    device = choose_device(args.device)
    check_tasks(args, device)
    if args.out:
        check_work_dir(args.out, '--out')
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.allow_tf32 = True
    print(header := about(device), flush=True)
    results = []
    for result in results_of(args, device):
        results.append(result)
        print(line(result), flush=True)
        if args.out:
            content = json.dumps(dict(about=header, results=results), indent=1)
            Path(args.out, 'benchmark.json').write_text(content + '\n')
    if not results:
        raise UserError('nothing was compared: see the lines above')
    text = '\n\n'.join([table(results), *(parts_table(r) for r in results if 'parts' in r)])
    print('\n' + text)
    if args.out:
        out = Path(args.out)
        (out / 'benchmark.md').write_text(f'{header}\n\n{text}\n')
        draw(results, header, out / 'benchmark.png')
        print(f'written: {out}/benchmark.json, .md and .png')
    return results


def results_of(args, device: str):
    """Yield the results of every comparison that takes place."""
    weights, of_task, contestants = {}, None, None
    for cell in cells_of(args, device):
        if cell.size not in weights:
            weights = {cell.size: random_weights(cell.size)}
        task = (cell.size, cell.task if cell.whole else cell.task != 'classify')
        if task != of_task:
            contestants = None  # the memory of whole models is wanted for the next ones
            gc.collect()
            choose = steps.entrants if cell.whole else admitted
            of_task, contestants = task, choose(cell, weights[cell.size], args.peers)
        torch.backends.cudnn.benchmark = not cell.whole  # as in their configs: regions change their number
        if cell.whole:
            result = steps.contest(cell, contestants, args.rounds, args.seconds)
        else:
            result = contest(cell, weights[cell.size], contestants, args.rounds, args.seconds)
        if result:
            yield result


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
        share = f'{r["roofline_share"]:.0%}' if 'roofline_share' in r else '-'
        both = '-' if kept[own] is None else f'{kept[own]:.0f} / {kept[best]:.0f}'
        rows.append(
            f'| {r["cell"]} | {ms[own]:.1f} | {r["images_per_second"]:.1f} | {best} | {ms[best]:.1f} '
            f'| **{r["ratio"]:.2f}** | {both} | {share} |'
        )
    return '\n'.join(rows)


def parts_table(result: dict) -> str:
    """Return milliseconds of the parts of a step, forward and backward, as a Markdown table.

    They are of one step, in which each part was waited for: on a GPU they are more than the step takes.
    """
    names = (result['ours'], result['best_peer'])
    heads = [f'{name}{kind}' for name in names for kind in (', forward', ', backward')]
    rows = [f'| {result["cell"]}, ms | {" | ".join(heads)} |', '|---' * (1 + len(heads)) + '|']
    for part in dict.fromkeys(part for name in names for part in result['parts'][name]):
        numbers = [ms for name in names for ms in result['parts'][name].get(part, (0, 0))]
        rows.append(f'| {part} | {" | ".join(f"{ms:.1f}" if ms else "-" for ms in numbers)} |')
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
