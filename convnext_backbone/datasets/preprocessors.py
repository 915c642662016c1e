"""Normalises images of any number of channels, where mmengine's preprocessors take means of one or three.

The classes are made when they are asked for: mmdet and mmseg are imported where they are used, and only the
one that is meant.
"""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..registry import MODELS

HOMES = {  # name of ours and of the class that it extends: module of the latter
    'DetDataPreprocessor': 'mmdet.models.data_preprocessors',
    'SegDataPreProcessor': 'mmseg.models.data_preprocessor',
}


class AnyMeans:
    """Extends a preprocessor of mmdet or mmseg by means of any number of channels; the rest is as there.

    ``mean`` and ``std`` have one value for each channel, or one for all, in the order of the channels after
    the conversion. ``bgr_to_rgb`` and ``rgb_to_bgr`` turn images of three channels round, and leave others
    as they are, as in mmseg (mmdet's would keep the first three channels).

    Raises:
        UserError: as many values of ``mean`` as of ``std``, all of them above zero in ``std``, and images of
            that many channels were expected.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **settings):
        super().__init__(**settings)
        if (mean is None) != (std is None):
            raise UserError(f'data_preprocessor: mean is {mean}, std is {std}: give both, or none')
        if mean is None:
            return
        if len({len(mean), len(std)} - {1}) > 1 or not mean or not std:
            raise UserError(
                f'data_preprocessor: mean has {len(mean)} values, std {len(std)}: give as many, one for each '
                'channel of the images'
            )
        if min(std) <= 0:
            raise UserError(f'data_preprocessor.std must be above zero, got {list(std)}')
        self._enable_normalize = True
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Convert, normalise, pad and stack images, as the class that this extends.

        Raises:
            UserError: an image has another number of channels than there are means.
        """
        inputs = data['inputs']
        images = inputs if not isinstance(inputs, Tensor) else inputs[:1]
        samples = data.get('data_samples') or [None] * len(images)
        number = max(len(self.mean), len(self.std)) if self._enable_normalize else 1
        for image, sample in zip(images, samples):
            if number not in (1, image.shape[0]):
                file = getattr(sample, 'img_path', None) or 'an image'
                raise UserError(
                    f'{file} is read with {image.shape[0]} channels, data_preprocessor.mean has {number} '
                    'values: LoadImageFromFile gives 3 with color_type="color", 1 with "grayscale", those of '
                    'the file with "unchanged"'
                )
        conversion = self._channel_conversion
        self._channel_conversion = conversion and all(image.shape[0] == 3 for image in images)
        try:
            return super().forward(data, training)
        finally:
            self._channel_conversion = conversion


def __getattr__(name: str) -> type:
    """Make one of the classes of :data:`HOMES`."""
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    base = getattr(importlib.import_module(HOMES[name]), name)
    made = type(name, (AnyMeans, base), {'__module__': __name__, '__doc__': AnyMeans.__doc__})
    globals()[name] = made
    return made


def _register(name: str) -> None:
    def build(**settings):
        return getattr(importlib.import_module(__name__), name)(**settings)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f'Build the :class:`AnyMeans` that extends {HOMES[name]}.{name}.'
    MODELS.register_module(name=name, module=build)


for _name in HOMES:
    _register(_name)
