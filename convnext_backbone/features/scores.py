"""Tells how well features tell the classes of images: k-NN, and a linear probe.

The protocols: k-NN as in DINO (arXiv:2104.14294, App. F.1), and multinomial logistic regression.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .extractor import FeatureExtractor
from .sets import compute, image_set

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the linear probe; each goes on from the one before


def knn(train: Tensor, labels: Tensor, queries: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return the class of each query: its nearest neighbours vote, each by ``exp(cosine / 0.07)``.

    Args:
        train: (N, channels) features.
        labels: (N,) numbers of their classes.
        queries: (M, channels).
        neighbours: fewer where there are fewer.
    """
    train, found = F.normalize(train, dim=1), []
    for rows in F.normalize(queries, dim=1).split(1024):
        cosine, index = (rows @ train.T).topk(min(neighbours, len(train)), dim=1)
        votes = train.new_zeros(len(rows), int(labels.max()) + 1)
        found.append(votes.scatter_add(1, labels[index], (cosine / TEMPERATURE).exp()).argmax(1))
    return torch.cat(found)


class LinearProbe:
    """Classifies by multinomial logistic regression on standardised features, fitted by L-BFGS.

    Args:
        train: (N, channels) features.
        labels: (N,) numbers of their classes.
        decay: weight of half the squared norm of the matrix beside the mean cross entropy.
        start: a probe of the same features to go on from.
    """

    def __init__(self, train: Tensor, labels: Tensor, decay: float, start: 'LinearProbe | None' = None):
        self.mean, self.std = train.mean(0), train.std(0, correction=0)
        self.std = torch.where(self.std > 1e-6, self.std, 1.0)  # a channel that is always the same
        x, classes = self._standardised(train), int(labels.max()) + 1
        self.weight = start.weight.clone() if start else x.new_zeros(classes, x.shape[1])
        self.bias = start.bias.clone() if start else x.new_zeros(classes)
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        options = dict(max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-10)
        optimizer = torch.optim.LBFGS(parameters, line_search_fn='strong_wolfe', **options)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ self.weight.T + self.bias, labels)
            value = value + decay / 2 * self.weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def logits(self, features: Tensor) -> Tensor:
        """Return (N, classes) logits of (N, channels) features."""
        return self._standardised(features) @ self.weight.T + self.bias


def linear_probe(train: Tensor, labels: Tensor) -> tuple[LinearProbe, float]:
    """Fit a linear probe; the decay is the one that is best on a tenth of the images, held out at random.

    Returns:
        The probe, fitted to all images, and its decay.

    Raises:
        UserError: fewer than ten images, or all of one class.
    """
    if len(train) < 10 or len(labels.unique()) < 2:
        raise UserError(
            f'a linear probe needs at least 10 images of 2 classes to learn from, got {len(train)} of '
            f'{len(labels.unique())}'
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(order) // 10], order[len(order) // 10 :]
    right, probe = {}, None
    for decay in DECAYS:
        probe = LinearProbe(train[rest], labels[rest], decay, probe)
        right[decay] = int((probe.logits(train[held]).argmax(1) == labels[held]).sum())
    decay = max(right, key=right.get)  # the largest of several
    return LinearProbe(train, labels, decay), decay


@dataclass
class Scores:
    """Holds how well features tell the classes of the images of ``val``, learnt from those of ``train``.

    Attributes:
        knn, linear: top-1 in percent.
        decay: of the linear probe.
        images: in ``train`` and in ``val``.
        classes: how many.
        errors: of images that could not be read, a line each.
    """

    knn: float
    linear: float
    decay: float
    images: tuple[int, int]
    classes: int
    errors: list[str]


def evaluate(extractor: FeatureExtractor, folder: str | Path, batch: int = 32) -> Scores:
    """Classify ``FOLDER/val/CLASS/*`` by pooled features, from those of ``FOLDER/train/CLASS/*``.

    Raises:
        UserError: there are no such folders, or a class of ``val`` that ``train`` does not have.
    """
    sets = {}
    for split in ('train', 'val'):
        if not Path(folder, split).is_dir():
            raise UserError(
                f'--evaluate needs train/CLASS/ and val/CLASS/ in the folder, {folder} has no {split}/'
            )
        sets[split] = image_set([Path(folder, split)])
        if not sets[split].classes:
            raise UserError(
                f'{folder}/{split} holds images that lie in no folder of a class: {split}/CLASS/image.jpg'
            )
    known = sets['train'].classes
    if other := [name for name in sets['val'].classes if name not in known]:
        raise UserError(
            f'{folder}/val has the class {other[0]}, which train does not have: remove it, or add it'
        )
    numbers = [known.index(name) for name in sets['val'].classes]
    sets['val'].labels = [numbers[label] for label in sets['val'].labels]
    train, val = (compute(extractor, sets[split], batch) for split in ('train', 'val'))
    arrays = (train.array, torch.tensor(train.labels), val.array, torch.tensor(val.labels))
    examples, labels, queries, wanted = (array.to(extractor.device) for array in arrays)
    probe, decay = linear_probe(examples, labels)
    found = (knn(examples, labels, queries), probe.logits(queries).argmax(1))
    shares = [100 * (classes == wanted).float().mean().item() for classes in found]
    images = (len(train.names), len(val.names))
    return Scores(*shares, decay, images, len(known), train.errors + val.errors)
