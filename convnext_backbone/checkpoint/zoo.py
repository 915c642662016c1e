"""Lists released weights by name: where they come from, what they are, and under which licence.

Sources of the accuracies: the READMEs of the official code of V1 and V2, and torchvision's list of weights.
Only where these print one for a file is there one here. Sources of DINOv3, EUPE and CLIP: the READMEs and
``hub/backbones.py`` of facebookresearch/dinov3 and facebookresearch/EUPE, and timm's ``models/convnext.py``.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlparse

from ..errors import suggest

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, of most of them: RGB, 0 to 1
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MIT, BSD, APACHE = 'MIT', 'BSD-3-Clause', 'Apache-2.0'
RESTRICTED = 'CC-BY-NC 4.0: no commercial use'
DINOV3 = 'DINOv3 License: terms at https://ai.meta.com/resources/models-and-libraries/dinov3-license'
FAIR = 'FAIR Noncommercial Research License: no commercial use'
WARNED = (RESTRICTED, DINOV3, FAIR)  # not free for every use
HUGGING_FACE = 'https://huggingface.co'
LIBRARY_NAMES = ('model', 'pytorch_model', 'open_clip_model', 'open_clip_pytorch_model')  # of every such file


def in_pixels(values: tuple[float, ...]) -> list[float]:
    """Return a mean or standard deviation of colours from 0 to 1 for those from 0 to 255."""
    return [round(255 * value, 3) for value in values]


PIXEL_MEAN, PIXEL_STD = in_pixels(MEAN), in_pixels(STD)


@dataclass(frozen=True)
class Weights:
    """Describes one released file.

    Attributes:
        arch: as written in a config; ``isotropic_…`` is an :class:`IsotropicConvNeXt`.
        num_classes: 0 where there is no classifier (self-supervised pretraining).
        input_size: height and width in pixels, of the training and of the evaluation of ``top1``.
        resize: short side before the centre crop; where the two are equal, V1 and V2 squeeze to a square.
        top1: published accuracy on ImageNet-1K in percent, ``None`` where none is.
        mean, std: of the images of the training: RGB, 0 to 1.
        gated: whether the site hands the file out to those who have accepted its licence there.
    """

    url: str
    arch: str
    num_classes: int
    input_size: int
    resize: int
    top1: float | None
    licence: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    gated: bool = False

    @property
    def source(self) -> str:
        """Return where the file is from: the page at Hugging Face, else the host."""
        return page(self.url) or urlparse(self.url).netloc

    @property
    def sha256(self) -> str:
        """Return the first digits of the SHA-256, empty where none is published."""
        return published_hash(self.url)

    def __str__(self) -> str:
        what = f'{self.num_classes} classes' if self.num_classes else 'no classifier'
        accuracy = f', top-1 {self.top1} published' if self.top1 else ''
        shape = f'{self.input_size} x {self.input_size}, short side {self.resize} before the crop'
        pixels = '' if self.mean == MEAN else f', mean {self.mean}, std {self.std}'
        gate = f', gated: accept the licence at {self.source} first' if self.gated else ''
        return f'{self.arch}, {what}{accuracy} at {shape}{pixels}, licence {self.licence}{gate}'


def page(url: str) -> str:
    """Return the page of the repository at Hugging Face that a URL of a file belongs to, empty if none."""
    found = re.match(rf'({re.escape(HUGGING_FACE)}/[^/]+/[^/]+)/resolve/', url)
    return found[1] if found else ''


def file_name(url: str) -> str:
    """Return the name under which a download is kept: that of the URL; empty if it has none.

    Where a library calls the file of every network the same (``model.safetensors``), the repository's name
    stands in front.
    """
    try:
        file = PurePosixPath(urlparse(url).path)
    except ValueError:  # no URL
        return ''
    if (site := page(url)) and file.stem in LIBRARY_NAMES:
        return f'{site.rpartition("/")[2]}-{file.name}'
    return file.name


def published_hash(url: str) -> str:
    """Return the start of the SHA-256 in a file's name (``name-983f1562.pth``), empty if there is none.

    Eight digits that may be a date (``name-20240131.pth``) are not taken for one.
    """
    found = re.search(r'-([0-9a-f]{8,64})\.[a-z]+$', PurePosixPath(urlparse(url).path).name)
    return found[1] if found and not re.fullmatch(r'(19|20)\d{6}', found[1]) else ''


def _entries():
    url = 'https://dl.fbaipublicfiles.com/convnext/{}'

    def v1(name, arch, size, top1, classes=1000):
        resize = 256 if size == 224 else size
        return name, Weights(url.format(f'{name}.pth'), arch, classes, size, resize, top1, MIT)

    # With _ema: the moving average, whose accuracy is printed. Without: the final weights of the training,
    # which the published detectors and segmenters start from.
    for arch, top1 in dict(tiny=82.1, small=83.1, base=83.8, large=84.3).items():
        if arch != 'large':
            yield v1(f'convnext_{arch}_1k_224', arch, 224, None)
        yield v1(f'convnext_{arch}_1k_224_ema', arch, 224, top1)
    for arch, top1 in dict(base=85.1, large=85.5).items():
        yield v1(f'convnext_{arch}_1k_384', arch, 384, top1)
    fine_tuned = dict(
        tiny=(82.9, 84.1), small=(84.6, 85.8), base=(85.8, 86.8), large=(86.6, 87.5), xlarge=(87.0, 87.8)
    )
    for arch, accuracies in fine_tuned.items():
        yield v1(f'convnext_{arch}_22k_224', arch, 224, None, 21841)
        for size, top1 in zip((224, 384), accuracies):
            yield v1(f'convnext_{arch}_22k_1k_{size}' + '_ema' * (arch == 'xlarge'), arch, size, top1)
    for arch, top1 in dict(small=78.7, base=82.0, large=82.6).items():
        yield v1(f'convnext_iso_{arch}_1k_224_ema', f'isotropic_{arch}', 224, top1)

    def v2(folder, name, arch, size, top1, classes=1000):
        file = url.format(f'convnextv2/{folder}/{name}.pt')
        resize = 256 if size == 224 else size
        return name, Weights(file, f'v2_{arch}', classes, size, resize, top1, RESTRICTED)

    from_1k = dict(atto=76.7, femto=78.5, pico=80.3, nano=81.9, tiny=83.0, base=84.9, large=85.8, huge=86.3)
    for arch, top1 in from_1k.items():
        yield v2('pt_only', f'convnextv2_{arch}_1k_224_fcmae', arch, 224, None, 0)
        yield v2('im1k', f'convnextv2_{arch}_1k_224_ema', arch, 224, top1)
    from_22k = dict(
        nano={224: 82.1, 384: 83.4},
        tiny={224: 83.9, 384: 85.1},
        base={224: 86.8, 384: 87.7},
        large={224: 87.3, 384: 88.2},
        huge={384: 88.7, 512: 88.9},
    )
    for arch, accuracies in from_22k.items():
        for size, top1 in accuracies.items():
            yield v2('im22k', f'convnextv2_{arch}_22k_{size}_ema', arch, size, top1)

    # Trained by torchvision's own recipe.
    released = dict(
        tiny=('983f1562', 236, 82.52),
        small=('0c510722', 230, 83.616),
        base=('6075fbad', 232, 84.062),
        large=('ea097f82', 232, 84.414),
    )
    for arch, (sha, resize, top1) in released.items():
        file = f'https://download.pytorch.org/models/convnext_{arch}-{sha}.pth'
        yield f'torchvision_convnext_{arch}', Weights(file, arch, 1000, 224, resize, top1, BSD)

    hosted = HUGGING_FACE + '/{}/resolve/main/{}'

    def timm(name, arch, size, *more):
        return Weights(hosted.format(f'timm/{name}', 'model.safetensors'), arch, 0, size, size, None, *more)

    # Distilled from DINOv3's ViT-7B on LVD-1689M; the same weights from their authors, who ask first, and as
    # timm hands them out.
    for arch in ('tiny', 'small', 'base', 'large'):
        url = hosted.format(f'facebook/dinov3-convnext-{arch}-pretrain-lvd1689m', 'model.safetensors')
        name = f'dinov3_convnext_{arch}'
        yield name, Weights(url, arch, 0, 224, 224, None, DINOV3, gated=True)
        yield f'timm_{name}', timm(f'convnext_{arch}.dinov3_lvd1689m', arch, 224, DINOV3)
    for arch, letter in dict(tiny='T', small='S', base='B').items():
        url = hosted.format(f'facebook/EUPE-ConvNeXt-{letter}', f'EUPE-ConvNeXt-{letter}.pt')
        yield f'eupe_convnext_{arch}', Weights(url, arch, 0, 256, 256, None, FAIR)

    # The image towers of open_clip's models, as timm has them. Not xxlarge, whose norms have another epsilon.
    towers = dict(
        base=dict(laion2b=256, laion2b_augreg=256, laiona=256, laiona_320=320, laiona_augreg_320=320),
        large=dict(laion2b_augreg=256, laion2b_ft_320=320, laion2b_ft_soup_320=320),
    )
    for arch, trainings in towers.items():
        kind = 'large_mlp' if arch == 'large' else arch
        for training, size in trainings.items():
            file = timm(f'convnext_{kind}.clip_{training}', arch, size, APACHE, CLIP_MEAN, CLIP_STD)
            yield f'clip_convnext_{arch}_{training}', file


RELEASED: dict[str, Weights] = dict(_entries())


def nearest(name: str) -> str:
    """Return words that suggest the released name nearest to ``name``; empty if none is near."""
    return suggest(name, RELEASED, 0.8, 'the released ')


def released_as(weights) -> str:
    """Return the released name that a name, a URL or the name of a file stands for; empty if none."""
    given = str(weights)
    if given in RELEASED:
        return given
    file = file_name(given)
    for name, known in RELEASED.items():
        if given == known.url or file == file_name(known.url):
            return name
    return ''


def normalisation(weights) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation (RGB, 0 to 255) of the images that weights were trained on.

    Those of ImageNet, if they are none of the released.
    """
    known = RELEASED.get(released_as(weights))
    return (in_pixels(known.mean), in_pixels(known.std)) if known else (list(PIXEL_MEAN), list(PIXEL_STD))
