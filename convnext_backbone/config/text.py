"""Writes configs and their values as text.

A config is formatted once: mmengine asks for its text five times at the start and at every checkpoint.
"""

import copy

from mmengine.config import Config


class FormattedOnce(Config):
    """Is a config whose text is formatted anew only if it was changed, since that takes about a second."""

    @property
    def pretty_text(self) -> str:
        """Return the config as formatted Python code."""
        content = repr(self.to_dict())
        if self.__dict__.get('_formatted', [None])[0] != content:
            self.__dict__['_formatted'] = [content, super().pretty_text]  # an attribute would be a key
        return self.__dict__['_formatted'][1]


def format_once(cfg: Config) -> Config:
    """Return a copy of a config as :class:`FormattedOnce`."""
    copied = FormattedOnce.__new__(FormattedOnce)  # as mmengine copies a config
    copied.__dict__.update(copy.deepcopy(cfg.__dict__))
    return copied


def as_written(value) -> str:
    """Return a value as one writes it in a config."""
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return f'dict({", ".join(f"{key}={as_written(child)}" for key, child in value.items())})'
        return '{' + ', '.join(f'{key!r}: {as_written(child)}' for key, child in value.items()) + '}'
    if isinstance(value, list):
        return f'[{", ".join(map(as_written, value))}]'
    if isinstance(value, tuple):
        inner = ', '.join(map(as_written, value))
        return f'({inner},)' if len(value) == 1 else f'({inner})'
    return repr(value)
