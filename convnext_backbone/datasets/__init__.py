"""Reads annotations and masks truly: what is added to datasets, steps and metrics of mmdet and mmseg."""

import functools
import sys
from inspect import getattr_static

from mmengine.logging import print_log

from .annotations import Annotations, forget_annotations, read_annotations
from .coco import EvaluatesByName, LabelsByName
from .masks import ListsImages, NamesAbsentClasses
from .parcel import InOnePiece
from .steps import CountsByTable, PacksPlanes

__all__ = ['Annotations', 'InOnePiece', 'forget_annotations', 'improve', 'read_annotations']

# Module and class; what is mixed into it and all that inherits from it; the attributes that those must not
# have changed, since ours take their place; what the log says.
IMPROVED = (
    ('mmdet.datasets', 'CocoDataset', LabelsByName, ('load_data_list', 'COCOAPI'), 'labels by name'),
    (
        'mmdet.evaluation',
        'CocoMetric',
        EvaluatesByName,
        ('compute_metrics', 'results2json'),
        'classes by name',
    ),
    ('mmseg.datasets', 'BaseSegDataset', ListsImages, (), 'labels checked against the classes'),
    ('mmseg.evaluation', 'IoUMetric', NamesAbsentClasses, (), 'absent classes named'),
    ('mmdet.datasets.transforms', 'PackDetInputs', PacksPlanes, (), 'colours split by OpenCV'),
    ('mmseg.datasets.transforms', 'PackSegInputs', PacksPlanes, (), 'colours split by OpenCV'),
    ('mmseg.datasets.transforms', 'RandomCrop', CountsByTable, ('crop_bbox',), 'classes counted by a table'),
)


def improve(cls: type) -> type:
    """Return the class of a dataset, step or metric with ours mixed in; ``cls`` if none of ours is for it."""
    for module, name, mixin, replaced, what in IMPROVED:
        base = getattr(sys.modules.get(module), name, None)
        if base is None or not issubclass(cls, base) or issubclass(cls, mixin):
            continue
        if all(getattr_static(cls, key) is getattr_static(base, key) for key in replaced):
            return _mixed(cls, mixin, what)
    return cls


@functools.cache
def _mixed(cls: type, mixin: type, what: str) -> type:
    print_log(f'stand-ins: {cls.__name__} with {what}', 'current')
    mixed = type(cls.__name__, (mixin, cls), {'__module__': cls.__module__, '__doc__': cls.__doc__})
    mixed.__reduce__ = lambda self: (_restore, (cls, mixin, what, self.__dict__))  # to spawned processes
    return mixed


def _restore(cls: type, mixin: type, what: str, state: dict):
    mixed = _mixed(cls, mixin, what)
    restored = mixed.__new__(mixed)
    restored.__dict__.update(state)
    return restored
