"""Put a ConvNeXt in the place of the backbone of any config of mmdet or mmseg, and prove that it trains.

convnext swap mask-rcnn_r50_fpn_1x_coco.py --arch tiny --out my_config.py
convnext swap mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py --arch base --weights convnext_base_22k_224
convnext swap --all mmdet mmseg --report swap.md        every config that they install, one row each

What is written inherits from the original and says only what differs, with the reason; it runs here and with
mmdet's and mmseg's own train.py. Before it is kept, the model is built and trained a step on made-up data.
"""

import contextlib
from pathlib import Path

from mmengine.config import Config

from ..backbones.convnext import ARCHITECTURES
from ..cli import Parser
from ..config import check_new_config, read_config
from ..errors import UserError
from ..swap import Plan, Refused, config_text, plan_swap, read_source
from ..swap.recipe import RECIPES
from ..swap.source import PACKAGES, similar_configs
from ..swap.sweep import swapped, sweep
from ..swap.text import table


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config', nargs='?', help='a file, mmdet::folder/file.py, or the name of such a file')
    parser.add_argument(
        '--arch', default=None, metavar='ARCH', help=f'default tiny; {", ".join(ARCHITECTURES)}'
    )
    parser.add_argument('--weights', help='released name, file or URL; default: ImageNet weights of the arch')
    parser.add_argument(
        '--recipe', choices=RECIPES, default='paper', help='keep: optimizer and schedule stay'
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='default: NAME_convnext_ARCH.py in this folder'
    )
    parser.add_argument('--no-proof', action='store_true', help='do not build and train the model')
    parser.add_argument('--all', nargs='+', choices=PACKAGES, metavar='PACKAGE', help='mmdet, mmseg, or both')
    parser.add_argument('--report', type=Path, metavar='FILE', help='of --all; goes on where it stopped')
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Write the swapped config, or the report of all.

    Raises:
        UserError: no such config or arch, an output that exists, a backbone that cannot be replaced, a model
            that does not train.
    """
    args = parse_args(argv)
    if args.all:
        if args.config or args.out or args.weights:
            raise UserError('--all takes --report, --arch and --recipe, no config, --out or --weights')
        report = args.report or Path('swap.md')
        sweep(args.all, report, args.arch or 'atto', args.recipe)
        return report
    if not args.config:
        raise UserError('give a config to swap, or --all mmdet mmseg')
    if args.report:
        raise UserError('--report belongs to --all')
    arch = args.arch or 'tiny'
    name = args.config.rpartition('::')[2]
    out = args.out or Path(f'{Path(name).stem}_convnext_{arch}.py')
    check_new_config(out)
    source = read_source(args.config)
    try:
        plan, trial = swapped(source, arch, args.weights, args.recipe, not args.no_proof)
    except Refused as error:
        raise UserError(f'{args.config} cannot be swapped: {error}{nearest(args.config, arch)}') from None
    keep(source, plan, arch, out)
    print('\n'.join(table(plan)))
    for note in plan.notes:
        print(f'note: {note}')
    if trial:
        losses = ', '.join(f'{name} {value:.4g}' for name, value in trial.losses.items() if name != 'loss')
        print(f'proof: one training step on made-up data, all finite, a gradient everywhere: {losses}')
    try:
        read_config(out)
    except UserError as error:  # for something that the original has, too
        print(f'note: convnext train stops at it: {error}')
    print(f'written: {out}')
    return out


def nearest(name: str, arch: str) -> str:
    """Return the end of a sentence that names the nearest shipped config that can be swapped, if any is."""
    for other in similar_configs(name):
        with contextlib.suppress(Exception):
            plan_swap(read_source(other), arch)
            return f'; the nearest that can be is {other}'
    return ''


def keep(source, plan: Plan, arch: str, out: Path) -> None:
    """Write the config of a plan; it is removed again if it does not say what was planned."""
    text = config_text(source, plan, arch, out.parent.resolve())
    try:
        out.write_text(text)
    except OSError as error:
        raise UserError(f'--out {out} cannot be written: {error.strerror}') from error
    try:
        again = without_scopes(Config.fromfile(out, import_custom_modules=False).to_dict())
        planned = without_scopes(plan.cfg.to_dict())
        tops = planned if source.old else {change.key.partition('.')[0] for change in plan.changes}
        for top in tops:
            if again.get(top) != planned.get(top):
                raise UserError(f'{top} is read back as something else')
    except Exception as error:
        out.unlink()
        raise UserError(f'the config that was written cannot be used: {error}') from error


def without_scopes(node):
    """Return settings without ``_scope_``, which a base that is named by its package gets."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [without_scopes(value) for value in node]
    return node
