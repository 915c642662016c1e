"""Proves a swapped config: the model is built and trained a step, and its strides are those of the maps."""

from dataclasses import dataclass

from mmengine.config import Config

from ..checks.model import check_model
from ..errors import UserError, some
from ..findings import Findings
from ..measure import Trial, settings, try_training
from .plan import Plan


@dataclass(frozen=True)
class Proof:
    """Holds what the proof of a plan found.

    Attributes:
        trial: the training step.
        warnings: what is worse than it could be in the swapped config.
        unused: for each swapped backbone, the maps of the original that nothing reads: their norms received
            no gradient.
    """

    trial: Trial
    warnings: tuple[str, ...]
    unused: dict[str, set[int]]


def prove(plan: Plan) -> Proof:
    """Build the model of a plan without its weights, and train it one step on made-up data.

    Args:
        plan: what was changed.

    Raises:
        UserError: it cannot be built or trained, a loss or gradient is not finite, a trainable parameter of a
            swapped backbone has no gradient, or a stride is not that of the maps.
    """
    cfg = plan.cfg
    findings = Findings()
    check_model(cfg, findings)
    if errors := findings.of('error'):
        raise UserError('; '.join(str(finding) for finding in errors))
    try:
        trial = try_training(cfg)
    except UserError as error:
        raise UserError(
            f'it could not be proven on made-up data, --no-proof writes it without: {error}'
        ) from error
    if not trial.finite:
        bad = [name for name, value in trial.losses.items() if value != value or abs(value) == float('inf')]
        raise UserError(f'not finite after one step: {some([*bad, *trial.not_finite])}')
    lost = [n for n in trial.without_gradient if any(n.startswith(f'{b}.') for b in plan.backbones)]
    unused = {name: set() for name in plan.backbones}
    others = []
    for name in lost:
        backbone = next(b for b in plan.backbones if name.startswith(f'{b}.'))
        index = _norm_of(cfg, backbone, name.removeprefix(f'{backbone}.'))
        if index is None:
            others.append(name)
        else:
            unused[backbone].add(plan.kept[backbone][index])
    if others:
        raise UserError(f'no gradient reaches {some(others)}')
    warnings = tuple(str(finding) for finding in findings.of('warning'))
    return Proof(trial, warnings, {name: maps for name, maps in unused.items() if maps})


def _norm_of(cfg: Config, backbone: str, name: str) -> int | None:
    """Return which of the emitted maps a parameter norms, by its place; ``None`` for another parameter."""
    part = name.partition('.')[0]
    if not part.startswith('norm') or not part[4:].isdigit():
        return None
    _, node = settings(cfg, backbone)
    return list(node.get('out_indices', range(4))).index(int(part[4:]))
