"""Find what is wrong with a config and its data, all at once, most serious first.

convnext check CONFIG --data-root /data/coco
convnext check CONFIG --check-data all        every image and mask, not a sample
convnext check CONFIG --json                  for programs
convnext check CONFIG --page check.html       also classes, sizes, augmented samples, images in both splits

Annotation files are read in full, images and masks for some seconds for each dataset. `convnext train` and
`convnext test` make the same checks. The exit status is 1 if there are errors.
"""

import contextlib
import json
import sys
from pathlib import Path

from ..checks import check_config
from ..cli import Parser
from ..config import read_config, set_data_root
from ..config.data import DATALOADERS
from ..errors import UserError
from ..findings import Findings
from ..page import check_target, write_page


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')
    parser.add_argument(
        '--page', type=Path, metavar='FILE', help='show findings and data on a page, one HTML file'
    )
    parser.add_data_options()
    return parser.parse_args(argv)


def main(argv=None) -> Findings:
    """Print the findings.

    Raises:
        SystemExit: with status 1, if there are errors.
    """
    args = parse_args(argv)
    if args.page:
        check_target(args.page)
    findings, cfg = Findings(), None
    with contextlib.redirect_stdout(sys.stderr):  # what other libraries print is no part of the result
        try:
            cfg = read_config(args.config, args.cfg_options)
            if args.data_root:
                set_data_root(cfg, args.data_root)
            findings += check_config(cfg, [key for key in DATALOADERS if cfg.get(key)], args.check_data)
        except UserError as error:
            findings.add('error', 'config', '', str(error))
        if args.page:
            write_page(args.page, args.config, cfg, findings, args.check_data)
    errors, warnings = len(findings.of('error')), len(findings.of('warning'))
    if args.json:
        print(json.dumps(dict(errors=errors, warnings=warnings, findings=findings.as_json()), indent=1))
    else:
        for finding in findings.ordered():
            print(f'{finding.level}: {finding}')
        print(f'{args.config}: {errors} errors, {warnings} warnings')
    if errors:
        sys.exit(1)
    return findings
