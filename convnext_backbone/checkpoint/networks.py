"""Finds the networks in what a file holds: wrappers, moving averages, prefixes in front of the names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .formats import FAMILIES, to_released

# Of several dicts of tensors in a file, the first of these that is there counts.
WRAPPERS = ('state_dict', 'model', 'teacher')
AVERAGE = re.compile(r'(^|[._])(ema|swa|averaged?)([._]|$)', re.IGNORECASE)  # part of the name of an average
# The state of a training, not of a network, whatever is in it.
STATE = re.compile(
    r'optimi[sz]er|(^|_)optim(_|$)|sched|scaler|^amp$|^meta$|message_hub|(^|_)rng|random|gradient|callback|^loops$|'
    r'hyper_param|hparam|(^|_)args$|config',
    re.IGNORECASE,
)
# What torch.compile, FSDP and checkpointing put into names, anywhere.
COMPILED = re.compile(r'\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')
PARALLEL = re.compile(r'^(?:module\.)+')  # what torch's wrappers put in front of every name
COUNTERS = ('steps', 'n_averaged')  # mmengine's and torch's, beside an average below ``module.``


@dataclass
class Tensors:
    """Holds the named tensors of a file and what is known about them.

    Attributes:
        named: without wrappers and ``module.``; may still have a prefix, or several.
        average: whether they are a moving average.
        left_out: other networks of the file, each with the option that takes it.
        outside: names of tensors that do not lie below the prefix that was asked for.
        prefix: the one that was asked for, as it stands in the names; ``None`` if none was.
    """

    named: dict[str, Tensor]
    average: bool = False
    left_out: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    prefix: str | None = None


def tensors_of(
    content: dict, file: str, weights: str | None = None, prefix: str | None = None
) -> dict[str, Tensor]:
    """Return the named tensors in a checkpoint; see :func:`find_tensors`.

    Raises:
        UserError: there are none, or ``'ema'`` where there is no average.
    """
    found = find_tensors(content, file, weights, prefix)
    if weights == 'ema' and not found.average:
        raise UserError(no_average(file))
    return found.named


def no_average(file: str) -> str:
    """Return the error for a file without the average that was asked for."""
    return f'{file} holds no moving average (EMA): take its final weights'


def find_tensors(
    content: dict,
    file: str,
    weights: str | None = None,
    prefix: str | None = None,
    stems: Iterable[str] = (),
) -> Tensors:
    """Return the named tensors in a checkpoint, out of their wrappers and without ``module.``.

    Args:
        weights: ``'final'`` or ``'ema'``, of a training with a moving average; without one, final is what
            there is, and an average below a prefix is still to be found. ``None`` takes what the training
            evaluated.
        prefix: take only what lies below it; it may begin with the name of a wrapper. Empty: the network
            without a prefix.
        stems: ends of the names by which an error finds the prefixes that are there; by default those of our
            networks.

    Raises:
        UserError: there are no tensors, or none below ``prefix``.
    """
    wanted = COMPILED.sub('', prefix.strip('.') + '.') if prefix and prefix.strip('.') else ''
    found, average, left_out, rest = content, False, [], wanted
    while parts := [key for key in found if _holds_network(key, found[key])]:
        first = rest.partition('.')[0]
        if first in parts:
            rest, chosen, is_average = rest.partition('.')[2], [first], bool(AVERAGE.search(first))
        else:
            chosen, is_average = _choose(found, parts, weights)
        average = average or is_average
        if not chosen:
            break
        left_out += _others(found, parts, chosen, average)
        if len(chosen) > 1:
            found = {f'{key}.{name}': t for key in chosen for name, t in _flat(found[key])}
            break
        found = found[chosen[0]]
    tensors = _cleaned({str(name): _tensor(value) for name, value in found.items() if _is_tensor(value)})
    if not tensors:
        raise UserError(_nothing_in(content, file))
    result = Tensors(tensors, average, left_out)
    for place in (rest, PARALLEL.sub('', rest), wanted, PARALLEL.sub('', wanted)):
        if inside := below(tensors, place):
            result.outside = [name for name in tensors if not name.startswith(place)]
            result.named, result.prefix = inside, None if prefix is None else place
            result.average = average or bool(place and AVERAGE.search(place))
            return result
    near = find_places(tensors, stems) or find_places(tensors)
    there = f'networks lie below {_quoted(near)}' if near else f'its names are {_quoted(list(tensors)[:4])}'
    if near == ['']:
        there = 'its network has no prefix, leave it out'
    raise UserError(f'{file} has no tensor below the prefix {prefix!r}; {there}')


def _choose(found: dict, parts: list[str], weights: str | None) -> tuple[list[str], bool]:
    """Choose among the dicts of tensors in ``found``, and say whether they are an average."""
    averages = [key for key in parts if AVERAGE.search(key)]
    finals = [key for key in parts if key not in averages]
    if (swapped := _swapped(found)) and swapped in parts and 'state_dict' in parts:
        averages, finals = ['state_dict'], [swapped]
        weights = weights or 'ema'
    if weights == 'ema' and averages:
        return averages, True
    if first := next((key for key in WRAPPERS if key in finals), None):
        return [first], weights == 'ema' and first == 'teacher'
    if any('.' in str(name) for name, value in found.items() if _is_tensor(value)):
        return [], False  # the network itself, with others beside it
    return finals or averages, not finals


def _swapped(found: dict) -> str | None:
    """Return where the final weights are, if the average is in ``state_dict`` (mmengine, Lightning)."""
    ema = found.get('ema_state_dict')
    if isinstance(ema, dict) and ('steps' in ema or 'message_hub' in found):
        return 'ema_state_dict'
    return 'current_model_state' if isinstance(found.get('current_model_state'), dict) else None


def _others(found: dict, parts: list[str], chosen: list[str], average: bool) -> list[str]:
    """Describe what is not taken, with the option that takes it."""
    swapped, said = _swapped(found), []
    for key in parts:
        if key in chosen:
            continue
        if (key == 'state_dict') if swapped else AVERAGE.search(key):
            said.append(f"moving average in {key!r} (weights='ema')")
        elif average and (key == swapped or not swapped):
            said.append(f"final weights in {key!r} (weights='final')")
        else:
            said.append(f'another network in {key!r} (prefix={key!r})')
    return said


def _holds_network(key, value) -> bool:
    """Return whether ``value`` is a dict with tensors under names of parts, such as ``stem.weight``."""
    if not isinstance(key, str) or not isinstance(value, dict) or STATE.search(key):
        return False
    return key in WRAPPERS and any(map(_is_tensor, value.values())) or any('.' in n for n, _ in _flat(value))


def _flat(nested: dict) -> Iterable[tuple[str, Tensor]]:
    """Yield every tensor in nested dicts, by its dotted name."""
    for key, value in nested.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, dict):
            if not STATE.search(key):
                yield from ((f'{key}.{name}', tensor) for name, tensor in _flat(value))
        elif _is_tensor(value):
            yield key, _tensor(value)


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in 'fiu')


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _cleaned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take what says nothing about the network out of the names."""
    plain = {COMPILED.sub('', name): tensor for name, tensor in tensors.items()}
    plain = plain if len(plain) == len(tensors) else tensors
    counted = {name: t for name, t in plain.items() if name not in COUNTERS}
    while counted and all(name.startswith('module.') for name in counted):
        plain = counted = {name.removeprefix('module.'): tensor for name, tensor in counted.items()}
    return plain


def _nothing_in(content: dict, file: str) -> str:
    keys = ', '.join(map(str, list(content)[:8]))
    if any('optim' in str(key) for key in content) or {'state', 'param_groups'} <= set(content):
        return (
            f'{file} holds the state of an optimizer and no weights (its keys are {keys}): '
            'take the file with the weights of the same training'
        )
    return (
        f'{file} holds no tensors of a network, neither at the top nor in a dict such as '
        f'{", ".join(map(repr, WRAPPERS))}; its keys are {keys}'
    )


def _quoted(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(map(repr, names[:6])) + ', ...' * (len(names) > 6)


# By what a network of ours is found below any prefix: how each family calls the first convolution.
STEMS = {
    'stem.weight',
    'stem_0.weight',  # of timm, with features_only
    *(
        family.theirs['downsample_layers.0.0.weight'].removeprefix(family.optional)
        for family in FAMILIES.values()
    ),
}


def _ends(name: str, stem: str) -> bool:
    return name == stem or name.endswith(f'.{stem}')


def find_places(names: Iterable[str], stems: Iterable[str] = STEMS) -> list[str]:
    """Return the prefixes below which networks lie; empty text for one without a prefix."""
    ends = sorted(stems, key=len, reverse=True)  # 0.0.weight is the end of another's stem, too
    found = ((name, next((stem for stem in ends if _ends(name, stem)), None)) for name in names)
    return sorted({name.removesuffix(stem) for name, stem in found if stem})


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below ``prefix``, by the rest of their names."""
    return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}


def recognise(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Do what ``to_released`` does, without the prefix that all names have, if they have one."""
    for prefix in [prefix for places in prefixes(tensors, STEMS).values() for prefix in places]:
        inside = below(tensors, prefix)
        family, names = to_released(inside)
        if len(inside) == len(tensors) and 'downsample_layers.0.0.weight' in names:
            return family, names
    return to_released(tensors)


def prefixes(names: Iterable[str], stems: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each name that ends as one of ``stems``, the prefixes below which its network may lie.

    All that end with a dot, the shortest first: below ``a.b.`` there may be a network whose names begin with
    ``b.``.
    """
    found: dict[str, set[str]] = {}
    for name in names:
        for stem in stems:
            if _ends(name, stem):
                parts = name.removesuffix(stem).split('.')[:-1]
                places = {''.join(f'{part}.' for part in parts[:n]) for n in range(len(parts) + 1)}
                found.setdefault(name, set()).update(places)
    return {name: sorted(places, key=len) for name, places in found.items()}
