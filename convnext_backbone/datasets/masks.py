"""Reads masks of classes truly, or says why not: what is added to mmseg's datasets, loading and metric."""

import io
import os

import numpy as np
from mmengine.fileio import get
from mmengine.logging import print_log
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

SCALED = {2: 85, 4: 17}  # bits of a gray PNG: by what Pillow multiplies its values


def read_mask(file: str | os.PathLike, content: bytes | None = None) -> np.ndarray:
    """Read a mask: one class number for each pixel, of a gray or palette image of any depth.

    A colour image whose channels are equal is taken for a gray one. EXIF orientation is followed, as it is in
    images.

    Args:
        file: where it lies.
        content: the bytes of the file, if they were read already.

    Returns:
        (H, W) of an integer type.

    Raises:
        UserError: it is missing, cut off, a JPEG, in colour, or holds other numbers than whole ones.
    """
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the user's own file may be large
    try:
        if content is None:
            with open(file, 'rb') as stream:
                content = stream.read()
        with Image.open(io.BytesIO(content)) as image:
            if image.format == 'JPEG':
                raise UserError(
                    f'the mask {file} is a JPEG, which changes class numbers at every edge: save masks as '
                    'PNG, from the originals'
                )
            scaled = SCALED.get(content[24], 1) if image.format == 'PNG' and image.mode == 'L' else 1
            labels = np.array(ImageOps.exif_transpose(image))
            labels = labels // scaled if scaled != 1 else labels
            mode = image.mode
    except FileNotFoundError as error:
        raise UserError(f'the mask {file} does not exist') from error
    except UnidentifiedImageError as error:
        raise UserError(f'the mask {file} is no image') from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'the mask {file} cannot be read, it is cut off or damaged ({error})') from error
    finally:
        Image.MAX_IMAGE_PIXELS = most
    if labels.ndim == 3:
        if mode in ('LA', 'PA') or mode in ('RGB', 'RGBA') and (labels[..., :1] == labels[..., :3]).all():
            labels = labels[..., 0]
        else:
            raise UserError(
                f'the mask {file} is a colour picture ({mode}): a class number for each pixel is expected, '
                'in gray or as a palette; translate its colours into numbers'
            )
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    if labels.dtype.kind == 'f':
        if not (np.isfinite(labels).all() and (labels == labels.round()).all()):
            raise UserError(f'the mask {file} holds other numbers than whole ones ({labels.dtype})')
        return labels.astype(np.int64)
    return labels


def to_labels(
    mask: np.ndarray, reduce_zero_label: bool, label_map: dict | None, ignore_index: int = 255
) -> np.ndarray:
    """Return the labels that a mask stands for, as mmseg computes them, without its wrap-around at 256.

    Args:
        mask: (H, W) as stored.
        reduce_zero_label: 0 becomes ``ignore_index``, every other number one less.
        label_map: old label -> new one.

    Returns:
        (H, W), of a type in which every label fits.
    """
    if mask.dtype == np.uint8 and mask.size > 256:  # each of its values is translated once
        table = to_labels(np.arange(256), reduce_zero_label, label_map, ignore_index)
        small = table.min() >= 0 and table.max() < 256
        return (table.astype(np.uint8) if small else table)[mask]
    labels = mask.astype(np.int64)
    if reduce_zero_label:
        labels = np.where((labels == 0) | (labels == ignore_index), ignore_index, labels - 1)
    if label_map:
        mapped = labels.copy()
        for old, new in label_map.items():
            mapped[labels == old] = new
        labels = mapped
    return labels


def beyond(labels: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    """Return the labels, without repetition, that no class has and that are not ignored."""
    return np.unique(labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)])


def check_labels(labels: np.ndarray, num_classes: int, ignore_index: int, mask: str) -> None:
    """Raise :class:`UserError` for a label that no class has; ``mask`` is what the message calls it."""
    if (wrong := beyond(labels, num_classes, ignore_index)).size:
        raise UserError(
            f'{mask} has the label {wrong[0]}, with {num_classes} classes the largest is {num_classes - 1} '
            f'({ignore_index} is ignored)'
        )


class ListsImages:
    """Is mixed into ``mmseg.BaseSegDataset`` and what inherits from it.

    Empty lines of a list of images are left out, and the loading of masks learns how many classes there are.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if classes := self.metainfo.get('classes'):
            for step in self.pipeline.transforms:
                if hasattr(step, 'set_classes'):
                    step.set_classes(len(classes), self.ignore_index)

    def load_data_list(self) -> list[dict]:
        """List the images as mmseg does, without those of empty lines."""
        listed = super().load_data_list()
        nameless = (self.img_suffix, '')
        return [info for info in listed if os.path.basename(info.get('img_path', 'x')) not in nameless]


class NamesAbsentClasses:
    """Is mixed into ``mmseg.IoUMetric`` and what inherits from it."""

    def process(self, data_batch: dict, data_samples) -> None:
        """Count as mmseg does.

        Raises:
            UserError: the truth has a label that is no class: mmseg leaves it out of the count without a
                word.
        """
        number = len(self.dataset_meta['classes'])
        for sample in data_samples if not self.format_only else ():
            labels = sample['gt_sem_seg']['data'].cpu().numpy()
            check_labels(labels, number, self.ignore_index, f'the mask of {sample.get("img_path")}')
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute as mmseg does, and name the classes that the truth does not have."""
        metrics = super().compute_metrics(results)
        if results and not self.format_only:
            truth, predicted = sum(row[3] for row in results), sum(row[2] for row in results)
            classes = self.dataset_meta['classes']
            absent = [i for i in range(len(classes)) if not truth[i]]
            for found, effect in (
                (False, 'not in the mean'),
                (True, 'in the mean with IoU 0: predicted there'),
            ):
                names = [classes[i] for i in absent if bool(predicted[i]) == found]
                if names:
                    print_log(
                        f'{len(names)} of {len(classes)} classes never occur in the data that is evaluated '
                        f'and are {effect}: {", ".join(names[:8])}{" ..." * (len(names) > 8)}',
                        'current',
                        30,
                    )
        return metrics


def mask_bytes(file: str, backend_args: dict | None) -> bytes | None:
    """Return the content of a file of another storage than this machine's disks, else ``None``."""
    return get(file, backend_args=backend_args) if backend_args or '://' in str(file) else None
