"""Reads labels in the formats that people have, recognised by themselves, and writes what datasets take."""

from .read import FORMATS, read_labels, recognise
from .reading import LOSSES
from .structure import Labels, MaskValues, Object, RunLengths, Sample
from .write import ClassSplit, CocoSplit, MaskSplit, write_coco, write_lists, write_masks

__all__ = [
    'FORMATS',
    'LOSSES',
    'ClassSplit',
    'CocoSplit',
    'Labels',
    'MaskSplit',
    'MaskValues',
    'Object',
    'RunLengths',
    'Sample',
    'read_labels',
    'recognise',
    'write_coco',
    'write_lists',
    'write_masks',
]
