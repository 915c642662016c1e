"""Collects what checks of a config and its data find, and reports all of it at once, most serious first."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from .errors import UserError

Level = Literal['error', 'warning', 'note']
LEVELS: tuple[Level, ...] = ('error', 'warning', 'note')
EXAMPLES = 3  # shown of each finding


@dataclass(frozen=True)
class Finding:
    """Holds one thing that was found.

    Attributes:
        level: ``error``: the run would fail, or its numbers would be wrong. ``warning``: it runs, and is
            probably not what is meant. ``note``: what is worth knowing.
        kind: short name of what was found, the same for all of its kind, for programs.
        where: key of the config or file that is meant.
        text: one sentence: what was found, what was expected, what to do.
        count: how many times; 1 for a setting.
        examples: up to three of them, by name.
    """

    level: Level
    kind: str
    where: str
    text: str
    count: int = 1
    examples: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        shown = f' (for example {", ".join(self.examples)})' if self.examples else ''
        place = f'{self.where}: ' if self.where else ''
        return f'{place}{self.text}{shown}'


class Findings(list[Finding]):
    """Is a list of findings that is filled by the checks of a run."""

    def add(
        self, level: Level, kind: str, where: str, text: str, examples: Iterable | None = None, count: int = 0
    ) -> None:
        """Append a finding.

        Args:
            level, kind, where, text: see :class:`Finding`.
            examples: all that were found, or the first of them; up to three are kept.
            count: how many were found; by default as many as there are examples, at least 1.
        """
        given = [str(example) for example in examples or ()]
        self.append(Finding(level, kind, where, text, count or len(given) or 1, tuple(given[:EXAMPLES])))

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self if finding.level == level]

    def ordered(self) -> list[Finding]:
        """Return the findings, most serious first, and of one level the most frequent first."""
        return sorted(self, key=lambda finding: (LEVELS.index(finding.level), -finding.count))

    def as_json(self) -> list[dict]:
        """Return the findings in plain types, in the order of :meth:`ordered`."""
        return [asdict(finding) for finding in self.ordered()]

    def lines(self) -> list[str]:
        """Return the lines that the log of a run gets: warnings and notes."""
        return [
            f'warning: {finding}' if finding.level == 'warning' else str(finding)
            for finding in self.ordered()
            if finding.level != 'error'
        ]

    def raise_errors(self) -> None:
        """Raise a :class:`UserError` with one line for each error, if there is any."""
        if errors := [str(finding) for finding in self.ordered() if finding.level == 'error']:
            raise UserError('\nerror: '.join(errors))
