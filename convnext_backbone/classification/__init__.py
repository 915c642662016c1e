"""Trains and evaluates classifiers: the pretraining of the backbones."""

from .classifier import Classifier
from .data import ImageDataset, ImageStream, collate_images
from .metrics import Accuracy

__all__ = ['Accuracy', 'Classifier', 'ImageDataset', 'ImageStream', 'collate_images']
