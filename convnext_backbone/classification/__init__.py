"""Classification: the pretraining of the backbones."""

from .classifier import Classifier
from .data import ImageDataset
from .metrics import Accuracy

__all__ = ['Accuracy', 'Classifier', 'ImageDataset']
