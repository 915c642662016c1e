"""Computes the features of image files with any weights."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as pixels

from .. import __version__
from ..checkpoint import zoo
from ..checkpoint.formats import infer_arch
from ..checkpoint.networks import recognise, tensors_of
from ..checkpoint.read import file_hash, local_file, read_checkpoint
from ..classification.data import image_transform
from ..datasets.images import header
from ..errors import UnreadableImage, UserError, check_choice
from ..hub import MODELS, create_model

SHARE = 224 / 256  # of the short side that the centre crop takes, for weights that say nothing
ARCHES = {arch: name for name, arch in MODELS.items()}


class FeatureExtractor:
    """Computes the features of image files.

    Args:
        weights: released name, file or URL.
        arch: size of the network (``tiny``, ``v2_base``, ``isotropic_small``); by default that of the
            released weights, or the one whose shapes the file has.
        stage: ``None`` for pooled features, as a classifier's last layer gets them: the mean over the last
            map, and its norm. 1 to 4 for the map behind that stage, without a norm.
        size: side of the square that the network sees, in pixels: short side, then centre crop, as a
            classifier is tested. ``None``: that of the released weights, or 224; of maps, the whole image.
        device: ``cpu`` or ``cuda``.

    Attributes:
        facts: what computes: weights and SHA-256, arch, stage, size, mean and standard deviation.
        channels: of a feature.

    Raises:
        UserError: the weights cannot be read or do not fit, no size of ours has their shapes, or ``size`` is
            too small for the network.
    """

    def __init__(
        self, weights: str, arch: str | None = None, stage: int | None = None, size: int | None = None,
        device: str = 'cpu',
    ):  # fmt: skip
        file = local_file(weights)
        known = zoo.RELEASED.get(zoo.released_as(weights))
        arch = check_choice('--arch', arch, ARCHES) if arch else known.arch if known else arch_of(file)
        size = size or (known.input_size if known else 224) if stage is None else size
        maps = {} if stage is None else dict(features_only=True, out_indices=(stage - 1,))
        self.device = torch.device(device)
        self.model = create_model(ARCHES[arch], weights, num_classes=0, **maps).eval().to(self.device)
        backbone = getattr(self.model, 'backbone', self.model)
        if size and size < backbone.least_size:
            raise UserError(
                f'--size must be at least {backbone.least_size}, the stride of the map, got {size}'
            )
        (self.channels,), (self.stride,) = backbone.out_channels, backbone.out_strides
        mean, std = (known.mean, known.std) if known else (zoo.MEAN, zoo.STD)
        self.size, self.stage = size, stage
        self._mean, self._std = list(mean), list(std)
        share = known.input_size / known.resize if known else SHARE
        options = dict(input_size=size, crop_pct=share, mean=mean, std=std, interpolation='bicubic')
        self.prepare = image_transform(is_training=False, **options) if size else self._as_it_is
        self.facts = dict(
            weights=str(weights),
            sha256=file_hash(file),
            arch=arch,
            stage=stage,
            size=size,
            mean=mean,
            std=std,
            version=__version__,
        )

    def _as_it_is(self, image: Image.Image) -> Tensor:
        colours = pixels.to_dtype(pixels.pil_to_tensor(image), torch.float32, scale=True)
        return pixels.normalize(colours, self._mean, self._std)

    @torch.no_grad()
    def batches(
        self, files: Sequence[Path], batch: int = 32
    ) -> Iterator[tuple[int, Tensor | UnreadableImage]]:
        """Yield, in order, the number of each file and its feature, or why there is none.

        A feature is (channels,) or, for a stage, (channels, height, width), float32 on the CPU.

        Args:
            files: images, which are taken as colour; not turned by their EXIF data, as in the training.
            batch: images at once; whole images of several sizes go one by one.
        """
        loader = DataLoader(
            _Images(files, self.prepare),
            batch_size=batch if self.size else 1,
            num_workers=min(8, os.cpu_count() or 1) if len(files) > 2 * batch else 0,
            collate_fn=list,
        )
        for items in loader:
            good = [image for _, image in items if isinstance(image, Tensor)]
            found = iter(self._of(torch.stack(good)) if good else ())
            for number, image in items:
                yield number, self._one(files[number], next(found)) if isinstance(image, Tensor) else image

    def _of(self, images: Tensor) -> list[Tensor | UserError]:
        try:
            features = self.model(images.to(self.device))
        except UserError as error:  # an image smaller than the stride
            return [error] * len(images)
        features = features if self.stage is None else features[0]
        return list(features.float().cpu().contiguous())

    def _one(self, file: Path, feature: Tensor | UserError) -> Tensor | UnreadableImage:
        return UnreadableImage(f'{file}: {feature}') if isinstance(feature, UserError) else feature


def arch_of(file: Path) -> str:
    """Return the size whose shapes the network in a file of weights has.

    Raises:
        UserError: none of ours.
    """
    _, tensors = recognise(tensors_of(read_checkpoint(file), str(file), None))
    found = infer_arch(tensors)
    if not found:
        raise UserError(
            f'{file}: no size of ours has the shapes in it; if there is one in it, name it by --arch'
        )
    arch = re.search(r"arch='(\w+)'", found)[1]
    return f'isotropic_{arch}' if 'Isotropic' in found else arch


class _Images(Dataset):
    """Gives the number of each image, and the image as the network takes it, or why it cannot be read."""

    def __init__(self, files: Sequence[Path], prepare):
        self.files, self.prepare = files, prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[int, Tensor | UnreadableImage]:
        file = self.files[number]
        try:
            if (bits := header(file).bits) > 8:  # Pillow would make them white
                return number, UnreadableImage(f'{file} has {bits} bits, networks see 8: convert it')
            with Image.open(file) as image:
                return number, self.prepare(image.convert('RGB'))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return number, UnreadableImage(f'{file} cannot be read as an image ({error})')
