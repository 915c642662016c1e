"""Evaluate a classifier on shifted and corrupted images, a detector or a segmenter on corrupted ones.

convnext robustness convnext_t_in1k CHECKPOINT --data-root /data
    the sets of Table 8 below /data: val, imagenet-a, imagenet-r, imagenet-sketch, imagenet-c, imagenet-c-bar
convnext robustness CONFIG CHECKPOINT --data-root DIR --corrupt
    DIR/val (of a classifier) or the test images of the config, corrupted here: 15 corruptions, 5 severities
"""

import json
from pathlib import Path

import torch
from timm.data import ImageNetInfo

from ..checkpoint.formats import dataset_meta
from ..classification import ImageDataset
from ..classification import robustness as scoring
from ..cli import Parser
from ..config import check_work_dir, choose_device, datasets, for_testing, read_config, task_of
from ..engine import Runner
from ..engine.run import run_config
from ..errors import UserError
from ..inference import trained_model

# columns of Table 8: which number, heading
COLUMNS = {
    'clean': 'Clean',
    'C_mCE': 'C mCE',
    'C_relative_mCE': 'C rel. mCE',
    'C_error': 'C error',
    'Cbar_error': 'C-bar error',
    'A': 'A',
    'R': 'R',
    'Sketch': 'SK',
}
METRICS = ('bbox_mAP', 'segm_mAP', 'mIoU')  # of detectors and segmenters, by the end of their names


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='path, URL or released name')
    parser.add_argument('--corrupt', action='store_true', help='make the corruptions from clean images')
    names = scoring.CORRUPTIONS
    parser.add_argument('--corruptions', nargs='+', choices=names, default=names, metavar='NAME')
    parser.add_argument(
        '--severities', nargs='+', type=int, choices=scoring.SEVERITIES, default=scoring.SEVERITIES
    )
    parser.add_prefix_option()
    parser.add_run_options()
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Evaluate, and return what is written to ``robustness.json``.

    Raises:
        UserError: the config names no test data, ``--corrupt`` is missing for a detector or a segmenter, or
            ``--data-root`` is no folder.
    """
    args = parse_args(argv)
    scoring_options = dict(corruptions=tuple(args.corruptions), severities=tuple(args.severities))
    cfg = read_config(args.config, args.cfg_options)
    out = Path(args.work_dir or f'work_dirs/{Path(args.config).stem}')
    check_work_dir(str(out))
    if not cfg.get('test_dataloader'):
        raise UserError(f'{args.config} has no test_dataloader, which says how images are tested')
    if task_of(cfg.model) in ('detection', 'segmentation'):
        if not args.corrupt:
            raise UserError('a detector or a segmenter is evaluated with --corrupt')
        found = dense(args, **scoring_options)
    else:
        found = classifier(args, cfg, **scoring_options)
    (out / 'robustness.json').write_text(json.dumps(found, indent=1) + '\n')
    scoring.draw(found['results'], f'{Path(args.config).stem}, {found["metric"]}', out / 'robustness.png')
    print(f'written: {out / "robustness.json"} and robustness.png')
    return found


def classifier(args, cfg, **which) -> dict:
    """Score a classifier on the datasets of Table 8 (arXiv:2201.03545), print the row and return all results.

    Args:
        which: ``corruptions`` and ``severities`` to evaluate.

    Raises:
        UserError: ``--data-root`` is no folder, or the checkpoint does not fit.
    """
    device = choose_device(args.device)
    if not args.data_root or not Path(args.data_root).is_dir():
        given = args.data_root or 'nothing'
        raise UserError(f'--data-root must be the folder of the datasets (val, imagenet-a, ...), got {given}')
    model, content, report = trained_model(cfg, args.checkpoint, prefix=args.prefix)
    print(report)
    model.to(device)
    wnids = ImageNetInfo('imagenet-1k').label_names()
    classes = dataset_meta(content).get('classes')
    classes = classes or (wnids if cfg.model.num_classes == len(wnids) else None)
    index = classes and {name: number for number, name in enumerate(classes)}
    loader = cfg.test_dataloader
    options = dict(batch_size=loader.batch_size, num_workers=loader.num_workers, device=device)

    def score(folder: Path, corruption: str, severity: int, subset: bool) -> float:
        transform = dict(loader.dataset.transform)
        if severity and not corruption:
            transform['crop_pct'] = 1.0  # the images of ImageNet-C are cut already
        images = ImageDataset(str(folder.parent), folder.name, transform, class_index=index)
        if corruption:
            images = scoring.Corrupted(images, transform, corruption, severity)
        return scoring.top1(model, images, subset=subset, **options)

    results = scoring.evaluate(score, Path(args.data_root), corrupting=args.corrupt, **which)
    imagenet = list(classes or []) == list(wnids)
    row = scoring.summarise(results, imagenet)
    print('\n| ' + ' | '.join(['Model', *COLUMNS.values()]) + ' |\n|' + '---|' * (len(COLUMNS) + 1))
    cells = ['absent' if row[key] is None else f'{row[key]:.1f}' for key in COLUMNS]
    print('| ' + ' | '.join([Path(args.config).stem, *cells]) + ' |')
    if not imagenet:
        print("mCE divides by AlexNet's errors on ImageNet-1K: it is for those classes only")
    return dict(config=args.config, checkpoint=str(args.checkpoint), metric='top-1', row=row, results=results)


def dense(args, corruptions, severities) -> dict:
    """Measure mean AP or mIoU under corruption, and relative to the clean images (arXiv:1907.07484)."""

    def test(corruption: str | None, severity: int) -> dict[str, float]:
        cfg, _, notes = run_config(
            args.config,
            ('test_dataloader',),
            work_dir=Path(work_dir, 'clean' if corruption is None else f'{corruption}_{severity}'),
            data_root=args.data_root,
            device=args.device,
            launcher=args.launcher,
            cfg_options=args.cfg_options,
        )
        if corruption:
            for _, dataset in datasets(cfg, ('test_dataloader',)):
                step = dict(type='convnext_backbone.Corrupt', corruption=corruption, severity=severity)
                dataset['pipeline'] = [dataset['pipeline'][0], step, *dataset['pipeline'][1:]]
        for_testing(cfg, args.checkpoint, args.prefix)
        found = Runner.from_cfg(cfg).log_notes(notes).test()
        return {name: float(found[key]) for name in METRICS for key in found if key.endswith(name)}

    work_dir = args.work_dir or f'work_dirs/{Path(args.config).stem}/robustness'
    clean = test(None, 0)
    levels = {c: {s: test(c, s) for s in severities} for c in corruptions}
    row = {}
    for name, value in clean.items():
        values = torch.tensor([[levels[c][s][name] for s in severities] for c in corruptions]).double()
        mean = values.mean().item()
        row[name] = dict(clean=value, corrupted=mean, relative=mean / value if value else None)
        relative = f'{mean / value:.1%} of it' if value else 'clean is 0'
        print(f'{name}: clean {value:.4g}, mean under corruption {mean:.4g} ({relative})')
    scale = 1 if 'mIoU' in clean else 100
    main_metric = next(iter(clean))
    results = dict(
        clean=scale * clean[main_metric],
        C={c: {s: scale * levels[c][s][main_metric] for s in severities} for c in corruptions},
    )
    return dict(
        config=args.config,
        checkpoint=str(args.checkpoint),
        metric=main_metric,
        row=row,
        results=results,
        levels=levels,
    )
