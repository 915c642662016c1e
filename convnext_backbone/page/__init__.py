"""Shows what the check of a config found, and its data as the network sees it, as one page."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.config import Config

from .. import __version__
from ..checkpoint.write import write_bytes
from ..config.keys import walk
from ..datasets.near import twins
from ..errors import UserError, message
from ..findings import LEVELS, Findings
from ..html import document, escape, table
from ..measure.anchors import IOU, better_scales, generators, overlaps
from . import charts, samples
from .charts import MEDIUM, SMALL
from .statistics import boxes_as_seen, build, count

TRAIN, VAL, PAIRS = 12, 4, 6  # pictures of samples, and pairs of twins that are shown
KINDS = (('all', 0, np.inf), ('small', 0, SMALL), ('medium', SMALL, MEDIUM), ('large', MEDIUM, np.inf))
COMPARED = 100_000  # images among which twins are looked for
STYLE = """
ul { padding-left: 1.2rem; }
.classes { display: grid; grid-template-columns: fit-content(35%) 1fr; gap: .25rem .6rem; font-size: .9rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 0 2rem; }
.columns > * { min-width: 0; }
.looked { font-size: .85rem; opacity: .75; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; }
.pair div { font-size: .75rem; }
"""


def check_target(file: Path) -> None:
    """Check that a page can be written before minutes are spent on it.

    Raises:
        UserError: its folder does not exist, or nothing can be written there.
    """
    if not file.parent.is_dir():
        raise UserError(f'--page {file}: there is no folder {file.parent}: make it, or name another')
    if file.is_dir():
        raise UserError(f'--page {file} is a folder: name a file in it, such as {file / "check.html"}')
    _write(file, '')


def _write(file: Path, text: str) -> None:
    """Replace a file as a whole; without a text only see whether that can be done."""
    try:
        if text:
            write_bytes(file, text.encode('utf-8', 'replace'))
        else:
            part = file.with_name(f'.{file.name}.part')
            part.touch()
            part.unlink()
    except OSError as error:
        raise UserError(f'--page {file} cannot be written: {error.strerror or error}') from error


def write_page(file: Path, name: str, cfg: Config | None, findings: Findings, amount: str = 'sample') -> None:
    """Write the page about a config and its data; what cannot be shown is said there.

    Args:
        file: HTML, replaced as a whole.
        name: of the config, as it was given.
        cfg: as it was checked; ``None`` if it could not be read.
        findings: of the check.
        amount: see :data:`convnext_backbone.checks.AMOUNTS`. With ``'none'`` neither images nor masks are
            read: there are no pictures.

    Raises:
        UserError: it cannot be written.
    """
    text = [f'<p>{escape(name)}</p>', _findings(findings)]
    if cfg is not None and cfg.get('train_dataloader' if cfg.get('train_dataloader') else 'val_dataloader'):
        text += _Data(cfg, amount).sections()
    text.append(f'<p class="looked">convnext_backbone {escape(__version__)}</p>')
    errors, warnings = len(findings.of('error')), len(findings.of('warning'))
    title = f'{Path(name).stem}: {_count(errors, "error")}, {_count(warnings, "warning")}'
    _write(file, document(title, text, samples.STYLE + STYLE))


def _count(number: int, what: str) -> str:
    return f'{number} {what}' + 's' * (number != 1)


def _findings(findings: Findings) -> str:
    lines = {level: [] for level in LEVELS}
    for finding in findings.ordered():
        mark = ' class="wrong"' if finding.level == 'error' else ''
        lines[finding.level].append(f'<li><b{mark}>{finding.level}</b> {escape(str(finding))}</li>')
    serious, notes = ''.join(lines['error'] + lines['warning']), lines['note']
    text = f'<ul>{serious}</ul>' if serious else '<p>No errors, no warnings.</p>'
    if notes:
        count = _count(len(notes), 'note')
        text += f'<details><summary>{count}</summary><ul>{"".join(notes)}</ul></details>'
    return f'<h2>Findings</h2>{text}'


class _Data:
    """Builds the sections about the data of a config."""

    def __init__(self, cfg: Config, amount: str):
        self.cfg, self.amount = cfg, amount
        self.datasets, self.numbers, self.seen = {}, {}, None

    def sections(self) -> list[str]:
        """Return the sections as HTML."""
        text = ['<h2>What is trained and validated</h2>']
        val = 'val_dataloader' if self.cfg.get('val_dataloader') else 'test_dataloader'
        for split, title in (('train_dataloader', 'train'), (val, 'val')):
            if self.cfg.get(split):
                text.append(_tried(lambda split=split, title=title: self._read(split, title), title))
        for title, section in (
            ('What is trained and validated', self._counts),
            ('Anchors', self._anchors),
            ('As the network sees it', self._samples),
            ('Validation images that are trained on', self._twins),
        ):
            text.append(_tried(section, title))
        return text

    def _read(self, split: str, title: str) -> str:
        self.datasets[title] = split, build(self.cfg, split)
        self.numbers[title] = count(self.datasets[title][1], self.amount)
        return ''

    def _counts(self) -> str:
        if not self.numbers:
            return ''
        images = '; '.join(f'{title}: {_count(one.images, "image")}' for title, one in self.numbers.items())
        text = [f'<p>{images}.</p>']
        known = {title: one for title, one in self.numbers.items() if one.what}
        if known:
            text.append(charts.classes(known))
        text.append('<div class="columns">')
        seen = None
        if known and next(iter(known.values())).boxes is not None and 'train' in self.datasets:
            self.seen, looked = boxes_as_seen(self.datasets['train'][1], self.amount)
            seen = {f'train, as trained on ({looked})': charts.sides(self.seen)}
        text += charts.sizes(self.numbers)
        text += charts.boxes(known, seen)
        text.append('</div>')
        read = '; '.join(f'{title}: {one.looked}' for title, one in self.numbers.items())
        return '\n'.join([*text, f'<p class="looked">Counted from {escape(read)}.</p>'])

    def _anchors(self) -> str:
        found, sizes = generators(self.cfg), self.seen
        if not found or sizes is None or not len(sizes):
            return ''
        text = [
            '<h2>Anchors</h2><p>Share of the boxes, at the scale that the network is trained on, that an '
            f'anchor meets with an IoU of {IOU} and more. Each box is laid at random places.</p>'
        ]
        for key, generator in found.items():
            better = better_scales(generator, sizes)
            laid = [overlaps(one, sizes) for one in (generator, better) if one]
            sides, rows = charts.sides(sizes), []
            for name, low, high in KINDS:
                own = (sides >= low) & (sides < high)
                met = [(best >= IOU)[own[chosen]] for chosen, best in laid if own[chosen].any()]
                rows.append([name, str(own.sum()), *(charts.percent(share.mean()) for share in met)])
            text.append(f'<h3>{escape(key)}</h3>')
            text.append(table(['boxes', 'number', 'met', *['proposed'] * bool(better)], rows, (1, 2, 3)))
            if better:
                changes = ', '.join(f'{k}={better[k]!r}' for k in better if better[k] != generator.get(k))
                text.append(
                    f'<p>Proposed, with as many anchors at each place: <code>{escape(changes)}</code>. '
                    'A head that was trained before learned other anchors.</p>'
                )
        return '\n'.join(text)

    def _samples(self) -> str:
        text = ['<h2>As the network sees it</h2>']
        if self.amount == 'none':
            return f'{text[0]}<p>No image was read (--check-data none).</p>'
        for title, pictures, what in (
            ('train', TRAIN, 'Training, after augmentation'),
            ('val', VAL, 'Validation'),
        ):
            if title in self.datasets:
                split, dataset = self.datasets[title]
                classes = tuple(map(str, (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()))
                shown = samples.figures(self.cfg, dataset, split, classes, pictures)
                text.append(f'<h3>{what}</h3>{shown}')
        if any('<svg' in part for part in text):
            text.insert(1, '<p><label><input type="checkbox" id="labels" checked> labels</label></p>')
        if any(node.get('mixup') for _, node in walk(self.cfg.get('model') or {}, '')):
            text.append('<p class="looked">Mixup and cutmix are made within the model and not shown.</p>')
        return '\n'.join(text)

    def _twins(self) -> str:
        title = '<h2>Validation images that are trained on</h2>'
        if len(self.numbers) < 2:
            return ''
        train, val = ([file for file in self.numbers[name].files if file] for name in ('train', 'val'))
        if self.amount == 'none' or not train or not val:
            why = (
                'no image was read (--check-data none)'
                if self.amount == 'none'
                else 'the images are no files'
            )
            return f'{title}<p>Not looked for: {why}.</p>'
        every = len(train), len(val)
        if self.amount != 'all':
            rng = np.random.default_rng(0)
            val = _some(val, COMPARED // 2, rng)
            train = _some(train, COMPARED - len(val), rng)
        pairs, unreadable = twins(val, train, 'looking for equal images')
        text = [title]
        share = f'{len(val)} of {every[1]} validation images with {len(train)} of {every[0]} training images'
        if pairs:
            text.append(
                f'<p class="wrong">{len(pairs)} of {_count(len(val), "validation image")} are nearly the '
                'same as a training image: the metric is flattered.</p>'
            )
        else:
            text.append('<p>None was found.</p>')
        shown = []
        for one, other in pairs[:PAIRS]:
            files = (('val', val[one]), ('train', train[other]))
            both = [f'<div>{samples.thumbnail(f)}{kind}: {escape(Path(f).name)}</div>' for kind, f in files]
            shown.append(f'<div class="pair">{"".join(both)}</div>')
        text.append(f'<div class="pictures">{"".join(shown)}</div>')
        lost = f'; {unreadable} could not be read' if unreadable else ''
        text.append(f'<p class="looked">Compared were {share}{lost}.</p>')
        return '\n'.join(text)


def _some(files: list[str], count: int, rng: np.random.Generator) -> list[str]:
    if len(files) <= count:
        return files
    return [files[i] for i in np.sort(rng.choice(len(files), count, replace=False))]


def _tried(section: Callable[[], str], title: str) -> str:
    """Return a section, or the reason why it cannot be shown: bad data must not take the rest along."""
    try:
        return section()
    except Exception as error:  # whatever datasets and pipelines raise
        reason = ' '.join(message(error).split()) or type(error).__name__
        return f'<p class="wrong">{escape(title)} cannot be shown: {escape(reason)}</p>'
