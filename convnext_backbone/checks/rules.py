"""Says what a setting may be, and reports one that is something else."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

from mmengine.config import Config

from ..errors import suggest
from ..findings import Findings

MISSING = object()


def shown(value) -> str:
    """Return a value as an error shows it; text that is meant to be something else says so."""
    text = repr(value)
    text = text if len(text) <= 60 else f'{text[:57]}...'
    return f'the text {text}' if isinstance(value, str) else text


@dataclass(frozen=True)
class Number:
    """Is the rule of a setting that is a number, or several that each obey it.

    Attributes:
        low, high: the ends; ``above``, ``below``: the end itself is out.
        whole: integers only (12.0 is one where mmengine takes it: ``integral``).
        also: other values that are allowed.
        several: a list, tuple or list of lists of such numbers is allowed, too.
        infinite: infinity is allowed.
        off: what a negative number does, where each is allowed.
        advice: what to do about a value that is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    integral: bool = False
    also: tuple = ()
    several: bool = False
    infinite: bool = False
    off: str = ''
    advice: str = ''

    def __str__(self) -> str:
        kind = 'a whole number' if self.whole or self.integral else 'a number'
        if math.isfinite(self.high) and math.isfinite(self.low):
            left, right = '(' if self.above else '[', ')' if self.below else ']'
            text = f'{kind} in {left}{self.low:g}, {self.high:g}{right}'
        elif math.isfinite(self.low):
            text = f'{kind} {"above" if self.above else "of at least"} {self.low:g}'
        else:
            text = 'a finite number' if kind == 'a number' and not self.infinite else kind
        several = ' (or several)' if self.several else ''
        several += f' ({self.off})' if self.off else ''
        return text + several + ''.join(f' or {other!r}' for other in self.also)

    def refuses(self, value) -> bool:
        """Return whether the value is not allowed."""
        if any(value is other or (isinstance(other, str) and value == other) for other in self.also):
            return False
        if any(not isinstance(other, (str, type(None))) and _same(value, other) for other in self.also):
            return False
        if self.several and isinstance(value, (list, tuple)):
            return not value or any(self.refuses(item) for item in value)
        return not self._holds(value)

    def _holds(self, value) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            return False
        if math.isinf(value) and not self.infinite:
            return False
        if self.whole and not isinstance(value, Integral):
            return False
        if self.integral and value != int(value):
            return False
        if self.off and value < 0:
            return True
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def remark(self, value) -> str:
        """Return what to do about a value that is refused."""
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                return ''
            number = int(number) if number == int(number) and 'e' not in value.lower() else number
            return f': write {number} without quotes' if not self.refuses(number) else ''
        return f': {self.advice}' if self.advice else ''


@dataclass(frozen=True)
class Choice:
    """Is the rule of a setting that is one of a few values, or a list of them if ``several``.

    Attributes:
        values: the choices.
        several: a list or tuple of them is allowed, too.
        types: of other values that are allowed.
    """

    values: tuple
    several: bool = False
    types: tuple[type, ...] = ()

    def __str__(self) -> str:
        names = ', '.join(map(repr, self.values[:-1]))
        return f'{names} or {self.values[-1]!r}' if names else repr(self.values[-1])

    def refuses(self, value) -> bool:
        """Return whether the value is not allowed."""
        return self._wrong(value) is not MISSING

    def _wrong(self, value):
        """Return the first value that is not allowed, ``MISSING`` if all are."""
        if self.several and isinstance(value, (list, tuple)):
            return next((wrong for item in value if (wrong := self._wrong(item)) is not MISSING), MISSING)
        if self.types and isinstance(value, self.types) and not isinstance(value, bool):
            return MISSING
        same = any(value is other or (type(value) is type(other) and value == other) for other in self.values)
        return MISSING if same else value

    def remark(self, value) -> str:
        """Return the nearest choice, if one is near."""
        wrong = self._wrong(value)
        texts = [other for other in self.values if isinstance(other, str)]
        if not isinstance(wrong, str):
            return ''
        same = [text for text in texts if text.casefold() == wrong.casefold()]
        return f'; did you mean {same[0]!r}?' if same else suggest(wrong, texts, 0.5)


def _same(value, other) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and value == other


class SettingsCheck:
    """Holds a config and its findings, and reports settings that a rule refuses."""

    def __init__(self, cfg: Config, findings: Findings):
        self.cfg, self.findings = cfg, findings

    def error(self, where: str, text: str) -> None:
        """Report an error of a setting, by its dotted key."""
        self.findings.add('error', 'value', where, text)

    def rule(self, where: str, value, rule: Number | Choice) -> bool:
        """Report a value that its rule refuses, and return whether it is allowed."""
        refused = rule.refuses(value)
        if refused:
            self.error(where, f'got {shown(value)}, needs {rule}{rule.remark(value)}')
        return not refused

    def table(self, node, place: str, table: dict, free=()) -> None:
        """Report what is wrong in a dict, by its keys."""
        if not isinstance(node, (dict, Config)):
            return
        for key, rule in table.items():
            if key in node and key not in free:
                self.rule(f'{place}.{key}' if place else key, node[key], rule)
