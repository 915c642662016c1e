"""Computes pooled or dense features of images, writes them, and tells how well they tell classes."""

from .extractor import FeatureExtractor
from .scores import LinearProbe, Scores, evaluate, knn, linear_probe
from .sets import SUFFIXES, Features, ImageSet, compute, image_set, write_each, write_features

__all__ = [
    'SUFFIXES',
    'FeatureExtractor',
    'Features',
    'ImageSet',
    'LinearProbe',
    'Scores',
    'compute',
    'evaluate',
    'image_set',
    'knn',
    'linear_probe',
    'write_each',
    'write_features',
]
