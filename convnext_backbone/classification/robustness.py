"""Measures accuracy on shifted and corrupted images, scored as in Table 8 of the paper.

ImageNet-C (arXiv:1903.12261): the error of each corruption, averaged over five severities and divided by
AlexNet's, is its CE; their mean is the mCE. Relative: what is added to the clean error, divided likewise.
ImageNet-C-bar (arXiv:2102.11273): the mean error over its ten corruptions, not divided. ImageNet-A
(arXiv:1907.07174) and -R (arXiv:2006.16241): top-1 among the 200 classes they have; -Sketch
(arXiv:1905.13549): top-1 among all.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .data import ImageDataset, image_transform

# AlexNet's error on each corruption of ImageNet-C, percent, and on the clean images: from the authors'
# code (github.com/hendrycks/robustness)
ALEXNET = {
    'gaussian_noise': 88.6428,
    'shot_noise': 89.4468,
    'impulse_noise': 92.2640,
    'defocus_blur': 81.9880,
    'glass_blur': 82.6268,
    'motion_blur': 78.5948,
    'zoom_blur': 79.8360,
    'snow': 86.6816,
    'frost': 82.6572,
    'fog': 81.9324,
    'brightness': 56.4592,
    'contrast': 85.3204,
    'elastic_transform': 64.6056,
    'pixelate': 71.7840,
    'jpeg_compression': 60.6500,
}
ALEXNET_CLEAN = 43.5
CORRUPTIONS = tuple(ALEXNET)
CBAR = (
    'blue_noise_sample',
    'brownish_noise',
    'caustic_refraction',
    'checkerboard_cutout',
    'cocentric_sine_waves',
    'inverse_sparkles',
    'perlin_noise',
    'plasma_noise',
    'single_frequency_greyscale',
    'sparkles',
)
SEVERITIES = (1, 2, 3, 4, 5)
# where each set is looked for, below the data root
FOLDERS = {
    'clean': ('val', 'imagenet/val', 'imagenet-val', 'ILSVRC2012/val'),
    'A': ('imagenet-a',),
    'R': ('imagenet-r',),
    'Sketch': ('imagenet-sketch', 'sketch'),
    'C': ('imagenet-c', 'ImageNet-C'),
    'Cbar': ('imagenet-c-bar', 'imagenet-cbar', 'imagenet_c_bar', 'ImageNet-C-Bar'),
}
SUBSET = ('A', 'R')  # scored among the classes they have


class Corrupted(Dataset):
    """Cuts the clean images to the network's input, corrupts (``imagecorruptions``) and normalises them.

    The noise of an image depends on its number, the corruption and the severity; see :func:`corrupt`.
    """

    def __init__(self, images: ImageDataset, transform: dict, corruption: str, severity: int):
        steps = image_transform(**transform).transforms
        cut = next(i for i, step in enumerate(steps) if 'Tensor' in type(step).__name__)
        self._images, self._before, self._after = images, steps[:cut], steps[cut:]
        self.corruption, self.severity = corruption, severity
        self.metainfo = images.metainfo

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        stream, label = self._images._images.reader[index]
        image = Image.open(stream).convert('RGB')
        for step in self._before:
            image = step(image)
        image = Image.fromarray(corrupt(np.asarray(image), self.corruption, self.severity, index))
        for step in self._after:
            image = step(image)
        return dict(inputs=image, labels=label)


def corrupt(image: np.ndarray, corruption: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt ``image`` (H, W, 3) uint8 RGB, at least 32 x 32, with one of :data:`CORRUPTIONS`.

    Repeatable by ``seed``, but for impulse noise and glass blur, whose random numbers the library draws
    from generators of its own.

    Raises:
        UserError: the library is missing, the image too small.
    """
    try:
        from imagecorruptions import corrupt as apply
    except ImportError as error:
        raise UserError('corruptions need imagecorruptions: pip install imagecorruptions-imaug') from error
    if min(image.shape[:2]) < 32:
        raise UserError(
            f'an image of {image.shape[0]} x {image.shape[1]} is too small to be corrupted: 32 x 32'
        )
    state = np.random.get_state()  # noqa: NPY002  the library draws from NumPy's global generator
    np.random.seed(  # noqa: NPY002
        zlib.crc32(f'{seed} {corruption} {severity}'.encode())
    )
    try:
        return np.ascontiguousarray(apply(image, severity=severity, corruption_name=corruption))
    finally:
        np.random.set_state(state)  # noqa: NPY002


def find(root: Path, name: str) -> Path | None:
    """Return the folder of a set below the data root, ``None`` if it is not there."""
    return next((root / folder for folder in FOLDERS[name] if (root / folder).is_dir()), None)


def severity_folders(root: Path, corruptions: Sequence[str]) -> dict[str, dict[int, Path]]:
    """Map corruption -> severity -> folder, below ``root`` or a group in it (``blur/defocus_blur/3``)."""
    found = {}
    for corruption in corruptions:
        for folder in (root / corruption, *sorted(root.glob(f'*/{corruption}'))):
            levels = {s: folder / str(s) for s in SEVERITIES if (folder / str(s)).is_dir()}
            if levels:
                found[corruption] = levels
                break
    return found


def top1(
    model: Callable, dataset: Dataset, *, batch_size: int, num_workers: int, device: str, subset: bool = False
) -> float:
    """Return the percentage of the images whose label has the highest logit.

    Args:
        subset: among the classes that have images only (ImageNet-A, -R).
    """
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
    predicted, labels = [], []
    with torch.no_grad():
        for batch in loader:
            predicted.append(model(batch['inputs'].to(device)).float().cpu())
            labels.append(batch['labels'])
    logits, labels = torch.cat(predicted), torch.cat(labels)
    if subset:
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[labels.unique()] = False
        logits[:, others] = -torch.inf
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def evaluate(
    score: Callable[[Path, str, int, bool], float],
    root: Path,
    *,
    corrupting: bool,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    say: Callable = print,
) -> dict:
    """Measure the accuracies of every set that is on disk.

    Args:
        score: ``(folder, corruption, severity, subset) -> top-1 in percent``; ``corruption`` is empty
            unless the images of the folder are to be corrupted.
        corrupting: make the corruptions from the clean images.
        corruptions, severities: of ImageNet-C; all are needed for a mean.
        say: is called with a line for each result.

    Returns:
        ``clean``, ``A``, ``R``, ``Sketch`` (top-1 in percent) and ``C``, ``Cbar`` (corruption -> severity
        -> top-1), ``None`` for what is not on disk.
    """
    results = {}
    for name in ('clean', 'A', 'R', 'Sketch'):
        folder = find(root, name)
        results[name] = None if folder is None else score(folder, '', 0, name in SUBSET)
        say(f'{name}: ' + ('absent' if folder is None else f'{results[name]:.2f} top-1'))
    for name, wanted in (('C', corruptions), ('Cbar', CBAR)):
        results[name] = {}
        for corruption, severity, folder in _sources(root, name, wanted, corrupting):
            if severity not in severities:
                continue
            value = score(folder, corruption if corrupting else '', severity, False)
            results[name].setdefault(corruption, {})[severity] = value
            say(f'{name} {corruption} {severity}: {value:.2f} top-1')
        if not results[name]:
            results[name] = None
            say(f'{name}: absent')
    return results


def _sources(root: Path, name: str, corruptions, corrupting: bool) -> Iterator[tuple[str, int, Path]]:
    folder = find(root, 'clean' if corrupting else name)
    if corrupting and name == 'C' and folder is not None:
        yield from ((corruption, severity, folder) for corruption in corruptions for severity in SEVERITIES)
    elif not corrupting and folder is not None:
        for corruption, levels in severity_folders(folder, corruptions).items():
            yield from ((corruption, severity, path) for severity, path in levels.items())


def summarise(results: dict, imagenet: bool) -> dict:
    """Return the row of Table 8 from what :func:`evaluate` returns; ``None`` for what cannot be computed.

    Args:
        imagenet: the classes are those of ImageNet-1K: AlexNet's errors mean something.

    Returns:
        ``clean``, ``A``, ``R``, ``Sketch`` (top-1), ``C_error`` and ``Cbar_error`` (mean error), ``C_mCE``,
        ``C_relative_mCE``: percent. A mean over corruptions only if all of them and all severities are there.
    """
    row = {name: results.get(name) for name in ('clean', 'A', 'R', 'Sketch')}
    means = {}
    for name, corruptions in (('C', CORRUPTIONS), ('Cbar', CBAR)):
        found = results.get(name) or {}
        errors = {c: [100 - found.get(c, {}).get(s, np.nan) for s in SEVERITIES] for c in corruptions}
        means[name] = {c: float(np.mean(values)) for c, values in errors.items()}
        row[f'{name}_error'] = _mean(means[name].values())
    row['C_mCE'] = row['C_relative_mCE'] = None
    if imagenet:
        row['C_mCE'] = _mean(100 * error / ALEXNET[c] for c, error in means['C'].items())
        if row['clean'] is not None:
            clean = 100 - row['clean']
            added = [100 * (e - clean) / (ALEXNET[c] - ALEXNET_CLEAN) for c, e in means['C'].items()]
            row['C_relative_mCE'] = _mean(added)
    return row


def _mean(values) -> float | None:
    mean = float(np.mean(list(values)))
    return None if np.isnan(mean) else mean


def draw(results: dict, title: str, file: Path) -> None:
    """Draw the error of each corruption and severity, and the clean one, as a picture."""
    from matplotlib.figure import Figure

    rows = [(c, levels) for name in ('C', 'Cbar') for c, levels in (results.get(name) or {}).items()]
    figure = Figure(figsize=(9, 1.5 + 0.32 * max(len(rows), 1)), layout='constrained')
    axes = figure.subplots()
    for severity in SEVERITIES:
        height = 0.16
        positions = [i + (severity - 3) * height for i in range(len(rows))]
        errors = [100 - levels[severity] if severity in levels else np.nan for _, levels in rows]
        shade = (0.75 - 0.15 * (severity - 1),) * 2 + (0.85,)
        axes.barh(positions, errors, height, color=shade, label=f'severity {severity}')
    if results.get('clean') is not None:
        axes.axvline(100 - results['clean'], color='black', linestyle='--', linewidth=1, label='clean')
    axes.set_yticks(range(len(rows)), [c.replace('_', ' ') for c, _ in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel='100 - score, percent', title=title)
    axes.legend(loc='lower right', fontsize=8)
    figure.savefig(file, dpi=110)
