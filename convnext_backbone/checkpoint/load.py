"""Loads weights strictly: every tensor on either side is loaded, named in advance, or the run stops."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from ..errors import UserError
from ..registry import WEIGHT_INITIALIZERS
from .formats import PREFIXES, PRETRAINING, infer_arch, released_names, to_released
from .networks import AVERAGE, Tensors, below, find_tensors, no_average, prefixes
from .networks import STEMS as FIRST
from .read import file_hash, local_file, read_checkpoint
from .sharding import shard_like

STEMS = ('downsample_layers.0.0.weight', 'stem.weight')  # by the names of the released files


class CheckpointMismatch(UserError):
    """Is raised for a checkpoint that does not fit.

    Lists what is missing, unexpected or of a different shape.
    """


@dataclass
class LoadReport:
    """Records what became of every tensor of a file and of the module it was loaded into."""

    file: str
    target: str
    loaded: list[str] = field(default_factory=list)
    parameters: int = 0  # numbers in the loaded tensors
    inflated: list[str] = field(default_factory=list)  # loaded, made to fit other input channels
    skipped: list[str] = field(default_factory=list)  # in the file, left out as asked
    fresh: list[str] = field(default_factory=list)  # in the module, left as initialised as asked
    missing: list[str] = field(default_factory=list)  # in the module, not in the file, not asked
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the module, not asked
    wrong_shape: list[str] = field(default_factory=list)  # name: file (shape), module (shape)
    skip: tuple[str, ...] = ()  # the patterns that were asked
    may_be_fresh: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)  # other networks of the file, and what takes them
    hint: str = ''

    @property
    def fits(self) -> bool:
        """Return whether no tensor is left over on either side that was not named in advance."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        if not self.fits:
            rows = [f'{self.file} does not fit {self.target}']
            rows += [_row(kind, getattr(self, kind)) for kind in ('wrong_shape', 'missing', 'unexpected')]
            return '\n'.join(filter(None, [*rows, self.hint]))
        parameters = f'{self.parameters:,}'.replace(',', ' ')
        rows = [
            f'{self.file} -> {self.target}',
            f'  loaded   {len(self.loaded):4d} tensors, {parameters} parameters',
            _row('inflated', self.inflated),
            _row('skipped', self.skipped, self.skip),
            _row('fresh', self.fresh, self.may_be_fresh),
            _row('left_out', self.left_out),
            '  missing     0   unexpected 0   wrong shape 0',
        ]
        return '\n'.join(filter(None, rows))


def _row(kind: str, names: Sequence[str], asked: Sequence[str] = ()) -> str:
    if not names:
        return ''
    shown = names if len(names) <= 4 else [*names[:2], '...', *names[-2:]]
    end = f'   asked: {" ".join(asked)}' if asked else ''
    return f'  {kind.replace("_", " "):8s} {len(names):4d}   {"  ".join(shown)}{end}'


def load_checkpoint(
    module: nn.Module,
    path: str | os.PathLike,
    *,
    skip: Sequence[str] = (),
    fresh: Sequence[str] = (),
    weights: str | None = 'final',
    prefix: str | None = None,
) -> LoadReport:
    """Load a classification, detection or segmentation checkpoint into a backbone or a classifier.

    Of a file that holds a larger network, the part that fits is taken: what lies below ``backbone.``,
    ``model.``, ``student.backbone.`` or any other prefix, if one alone fits.

    Args:
        module: a backbone or a classifier of this package; its own ``may_skip`` and ``may_be_fresh``
            patterns hold beside the arguments.
        path: file or URL.
        skip: patterns (``fnmatch``, released names) of tensors that the file may hold and the module
            does not take.
        fresh: patterns of tensors that the module has and the file may lack. A name that both
            ``skip`` and ``fresh`` cover may also differ in shape (a head for other classes).
        weights: ``'final'``, or ``'ema'`` for the moving average of a training that kept one. The published
            detectors and segmenters start from final weights. ``None``: what the training evaluated.
        prefix: what is in front of the names of the network to take, such as ``'teacher.backbone.'``, where
            a file holds several that fit; empty for the one without a prefix.

    Raises:
        CheckpointMismatch: anything else is left over on either side; the module is unchanged.
        UserError: the file cannot be read, or several networks in it fit.
    """
    file = local_file(path)
    if weights not in ('final', 'ema', None):
        raise UserError(f"weights must be 'final' or 'ema', got {weights!r}")
    found = find_tensors(read_checkpoint(file), str(file), weights, prefix)
    arch = getattr(module, 'arch', None) or getattr(getattr(module, 'backbone', None), 'arch', '')
    asked = dict(
        target=f'{type(module).__name__} {arch}'.strip(),
        skip=(*getattr(module, 'may_skip', ()), *skip),
        fresh=(*getattr(module, 'may_be_fresh', ()), *fresh),
        rename=released_names,
    )
    hashed = file_hash(file)

    def compare(tensors: dict[str, Tensor]) -> _Trial:
        inner = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), '')
        outside = [name for name in tensors if not name.startswith((inner, 'norm.', 'head.'))]
        family, released = to_released({name: t for name, t in tensors.items() if name not in outside})
        options = dict(asked)
        options['skip'] += PRETRAINING.get(family, ())
        report, chosen = _compare(module, released, file=f'{file} (sha256 {hashed}, {family})', **options)
        return _Trial(inner, outside, released, report, chosen)

    options = 'load_checkpoint or init_cfg, or by --pretrained-prefix'
    return _fill(module, _choose(found, FIRST, compare, weights, str(file), options))


def load_trained(
    model: nn.Module,
    content: dict,
    file: str | os.PathLike,
    *,
    weights: str | None = None,
    prefix: str | None = None,
    **asked,
) -> LoadReport:
    """Fill a whole classifier, detector or segmenter from what :func:`read_checkpoint` gave.

    A classifier takes the files of every family.

    Args:
        file: where ``content`` was read from.
        weights: ``'final'`` or ``'ema'`` of a training with a moving average; ``None``: what it evaluated.
        prefix: see :func:`load_checkpoint`.
        asked: ``skip`` and ``fresh`` of :func:`load_checkpoint`.

    Raises:
        CheckpointMismatch: something is left over on either side; the model is unchanged.
        UserError: there are no such tensors, or several networks fit.
    """
    names = getattr(model, 'checkpoint_names', None)
    first = FIRST if names else list(model.state_dict())[:1]
    found = find_tensors(content, str(file), weights, prefix, first)
    said = f'sha256 {file_hash(file)}'

    def compare(tensors: dict[str, Tensor]) -> _Trial:
        family, options = '', dict(asked)
        if names:
            family, tensors = to_released(tensors)
            family, options['rename'] = f', {family}', names
        label = f'{file} ({said}{family})'
        report, chosen = _compare(model, tensors, file=label, target=type(model).__name__, **options)
        return _Trial('', [], tensors, report, chosen)

    options = 'load_trained or load_from, or by --prefix'
    return _fill(model, _choose(found, first, compare, weights, str(file), options))


@dataclass
class _Trial:
    """Records how the tensors below one prefix fit a module.

    Attributes:
        inner: the part of the prefix that every larger network has, such as ``backbone.``.
        outside: names that do not lie below it.
        tensors: under the released names.
    """

    inner: str
    outside: list[str]
    tensors: dict[str, Tensor]
    report: LoadReport
    chosen: dict[str, Tensor]

    @property
    def fits(self) -> bool:
        return self.report.fits and bool(self.report.loaded)

    @property
    def distance(self) -> tuple[bool, int]:
        """Return by what the nearest of several that do not fit is found: a known size, then mistakes."""
        report = self.report
        mistakes = len(report.missing) + len(report.unexpected) + len(report.wrong_shape)
        return infer_arch(self.tensors) is None, mistakes


def _choose(found: Tensors, first, compare, weights: str | None, file: str, options: str) -> _Trial:
    """Find the prefix below which the tensors fit, if it is one alone.

    Args:
        first: ends of the names by which a network is found.
        compare: gives the :class:`_Trial` of tensors without the prefix.
        options: what takes a prefix, for errors; ends with an option of the command line.

    Raises:
        UserError: several networks of the file fit, or the average that was asked for is not there.
    """
    tried = {'': compare(found.named)}
    if tried[''].fits and not tried[''].outside:
        fitting = {'': ''}
    else:
        stems = prefixes(found.named, first)
        fitting = _fitting(found.named, stems, (), compare, tried)
        # A network with others inside it, such as the student in front of whose teacher alone is a prefix.
        rest = {name: stem for name, stem in stems.items() if not name.startswith(tuple(fitting))}
        fitting |= _fitting(found.named, rest, tuple(fitting), compare, tried) if fitting else {}
    if found.prefix is not None and '' in fitting:  # just where it was said to be
        fitting = {'': fitting['']}
    start = found.prefix or ''
    wanted = {place: prefix for place, prefix in fitting.items() if _is_average(place) == (weights == 'ema')}
    if found.average or not wanted:
        wanted = fitting
    if len(wanted) > 1:
        places = [f'{start}{place}' for place in wanted]
        raise UserError(
            f'{file} holds {len(wanted)} networks that fit {tried[""].report.target}, below '
            f'{", ".join(map(repr, places))}: name one, by prefix={places[0]!r} of {options} '
            f'{places[0] or repr("")}'
        )
    if wanted:
        place, prefix = next(iter(wanted.items()))
    else:
        prefix = min(tried, key=lambda each: tried[each].distance)
        place = prefix + tried[prefix].inner
    trial, average = tried[prefix], found.average or _is_average(place)
    if weights == 'ema' and not average and (wanted or not any(map(_is_average, tried))):
        raise UserError(no_average(file))
    report = trial.report
    if weights or average:
        report.file += f', {"ema" if average else weights} weights'
    report.left_out = list(found.left_out)
    for other in fitting.keys() - wanted.keys():
        kind, option = ('moving average', 'ema') if _is_average(other) else ('final weights', 'final')
        report.left_out.append(f'{kind} below {start + other!r} (weights={option!r})')
    outside = [name for name in found.named if not name.startswith(prefix)]
    outside += [prefix + name for name in trial.outside]
    if place and not trial.fits:
        report.hint = f'  Compared was what lies below {start + place!r}.'
    if outside:
        report.skipped += [start + name for name in outside]
        report.skip += (f'outside {start + place}',)
    if found.outside:
        report.skipped += found.outside
        report.skip += (f'outside {start}',) * (not outside)
    return trial


def _fitting(tensors, stems: dict[str, list[str]], others: tuple[str, ...], compare, tried: dict) -> dict:
    """Return the place of each network that fits, and the prefix that was taken off; fill ``tried``.

    Args:
        stems: see :func:`prefixes`.
        others: places of networks that are none of these; what lies below them is left out.
    """
    fitting = {}
    for name, places in stems.items():
        for prefix in places:
            if prefix not in tried or others:
                inside = below(tensors, prefix)
                apart = [n for n in inside if others and (prefix + n).startswith(others)]
                trial = compare({n: tensor for n, tensor in inside.items() if n not in set(apart)})
                trial.outside += apart
                if trial.fits or prefix not in tried:
                    tried[prefix] = trial
            trial = tried[prefix]
            if trial.fits and name.removeprefix(prefix) not in trial.outside:
                fitting[prefix + trial.inner] = prefix
                break
    return fitting


def _is_average(place: str) -> bool:
    return bool(place and AVERAGE.search(place))


def _compare(
    module: nn.Module,
    tensors: dict[str, Tensor],
    *,
    file: str,
    target: str,
    skip: Sequence[str] = (),
    fresh: Sequence[str] = (),
    rename=lambda names: {name: name for name in names},
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Return what would become of every tensor, and those that ``module`` would take, by its own names.

    Args:
        skip, fresh: see :func:`load_checkpoint`.
        rename: maps the module's names to those of ``tensors``.
    """
    own = {new: (old, t) for (old, new), t in _zip_names(module.state_dict(), rename)}
    report = LoadReport(file, target, skip=tuple(skip), may_be_fresh=tuple(fresh))
    chosen = {}
    for name, (own_name, mine) in own.items():
        given = tensors.get(name)
        if given is None:
            (report.fresh if _matches(name, fresh) else report.missing).append(name)
            continue
        if name in STEMS and given.shape != mine.shape:
            given = inflate(given, mine.shape[1])
            report.inflated.append(name)
        if _squeezed(given) == _squeezed(mine):  # layer scale (C, 1, 1), response norm (D,), ...
            given = given.reshape(mine.shape)
        if given.shape == mine.shape:
            chosen[own_name] = given
            report.loaded.append(name)
            report.parameters += given.numel()
        elif _matches(name, fresh) and _matches(name, skip):
            report.fresh.append(name)
            report.skipped.append(name)
        else:
            report.wrong_shape.append(f'{name}: file {tuple(given.shape)}, model {tuple(mine.shape)}')
    for name in tensors.keys() - own.keys():
        (report.skipped if _matches(name, skip) else report.unexpected).append(name)
    report.skipped.sort()
    report.unexpected.sort()
    if not report.loaded:
        report.missing = report.missing or list(own)
    return report, chosen


def _fill(module: nn.Module, trial: _Trial) -> LoadReport:
    """Copy into ``module`` what was found to fit.

    Raises:
        CheckpointMismatch: it does not fit, or holds NaN or infinity.
    """
    report, chosen, file = trial.report, trial.chosen, trial.report.file
    if not trial.fits:
        hints = [report.hint]
        if arch := infer_arch(trial.tensors):
            hints.append(f'  The shapes in the file are those of {arch}.')
        if not report.loaded:
            hints.append('  No tensor of the file has a name of the model.')
        report.hint = '\n'.join(filter(None, hints))
        raise CheckpointMismatch(str(report))
    infinite = [name for name, t in chosen.items() if t.is_floating_point() and not t.isfinite().all()]
    if infinite:
        raise CheckpointMismatch(
            f'{file} holds NaN or infinity in {len(infinite)} of {len(chosen)} tensors: '
            f'{", ".join(infinite[:4])}; take an earlier checkpoint'
        )
    state = module.state_dict()
    module.load_state_dict({n: shard_like(t, state[n]) for n, t in chosen.items()}, strict=False)
    return report


def _zip_names(state: dict[str, Tensor], rename) -> Iterable[tuple[tuple[str, str], Tensor]]:
    return ((names, state[names[0]]) for names in rename(state).items())


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def inflate(weight: Tensor, in_channels: int) -> Tensor:
    """Convert a stem for three channels to one for ``in_channels``, as timm does it.

    One channel takes the sum of the three; ``n`` take them in turn, scaled by 3 / n.

    Args:
        weight: (D, 3, 4, 4).

    Returns:
        (D, in_channels, 4, 4), or ``weight`` itself if it was not made for three channels.
    """
    if weight.ndim != 4 or weight.shape[1] != 3:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(in_channels) % 3] * (3 / in_channels)


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """Loads weights as ``init_cfg`` of a backbone or a classifier; the report goes to the log.

    See :func:`load_checkpoint`.

    Args:
        checkpoint: file or URL.
        skip, fresh, weights, prefix: see :func:`load_checkpoint`.
    """

    def __init__(
        self,
        checkpoint: str,
        skip: Sequence[str] = (),
        fresh: Sequence[str] = (),
        weights: str = 'final',
        prefix: str | None = None,
    ):
        self.checkpoint = checkpoint
        self.options = dict(skip=skip, fresh=fresh, weights=weights, prefix=prefix)

    def __call__(self, module: nn.Module) -> None:
        report = load_checkpoint(module, self.checkpoint, **self.options)
        print_log(f'pretrained weights\n{report}', logger='current')
        for part in module.modules():  # mmengine initialises the parts later, unless marked as done
            if part is not module and hasattr(part, 'is_init'):
                part.is_init = True
        if hasattr(module, '_params_init_info'):  # mmengine's record of who initialised what
            update_init_info(module, init_info=f'loaded strictly from {self.checkpoint}')
