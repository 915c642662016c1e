"""Check this GPU and what runs on it: kernels, operators, training steps, resuming, speed; 8 minutes at most.

convnext gpu-check
convnext gpu-check --only choice steps --out checked

Each part runs in a process of its own: one that crashes or hangs is reported, the others go on. What was
found is written as gpu_check.json and gpu_check.html; the exit status is 1 if anything is wrong.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ..cli import Parser
from ..config import check_work_dir
from ..contest import about
from ..errors import UserError
from ..gpu import PARTS, Outcome, run_parts
from ..gpu.page import page


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS), metavar='PART')
    parser.add_argument('--seconds', type=float, default=480, help='for all parts together (480)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'), metavar='DIR')
    return parser.parse_args(argv)


def main(argv=None) -> dict[str, Outcome]:
    """Print a line for each part, write the page and the JSON file.

    Raises:
        UserError: no GPU.
        SystemExit: with status 1, if anything is wrong.
    """
    args = parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError(f'gpu-check needs a GPU that torch sees, torch {torch.__version__} sees none here')
    check_work_dir(str(args.out), '--out')
    machine = about('cuda')
    print(machine, flush=True)
    outcomes = run_parts(args.only, args.seconds, said=lambda line: print(line, flush=True))
    args.out.mkdir(parents=True, exist_ok=True)
    content = dict(about=machine, parts={name: asdict(outcome) for name, outcome in outcomes.items()})
    (args.out / 'gpu_check.json').write_text(json.dumps(content, indent=1) + '\n')
    (args.out / 'gpu_check.html').write_text(page(machine, outcomes))
    print(f'written: {args.out}/gpu_check.json and .html')
    if not all(outcome.right for outcome in outcomes.values()):
        sys.exit(1)
    return outcomes
