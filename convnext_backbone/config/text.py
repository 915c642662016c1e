"""Formats the text of a config once: mmengine asks for it five times at the start and at every checkpoint."""

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
