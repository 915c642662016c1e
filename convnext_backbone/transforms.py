"""Reads images and masks, naming a file that is not one, or that does not fit."""

import io
import os
import zlib

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio

from .classification.robustness import corrupt
from .datasets.images import header
from .datasets.masks import check_labels, mask_bytes, read_mask, to_labels
from .errors import SKIPPED, UnreadableImage, UserError, check_pixels
from .registry import TRANSFORMS

DIM = 2**14  # a 16-bit image that stays below has fewer bits, or is nearly black
MOST_PIXELS = 2**30  # that OpenCV reads
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Loads as mmcv's ``LoadImageFromFile``, but names an unreadable file, and skips it only on request.

    The tools put it in the place of ``LoadImageFromFile`` in every pipeline. Gray, palette, CMYK and
    transparent images become colour ones of 8 bits (transparency is dropped), photos are turned upright by
    their EXIF orientation (``color_type='color_ignore_orientation'``: they are not). Images of 16 bits are
    reduced to 8 by dropping the lower half, or by ``bits``; where that would leave next to nothing, and for
    floating point, an error asks what is meant. ``color_type='unchanged'`` takes pixels as they are.

    Args:
        bits: how many of the 16 bits count, 9 to 16; 12 for a camera whose values are 0 to 4095.
        reduce_to: JPEG images are decoded at 1/2, 1/4 or 1/8 of their sides, the smallest whose shorter side
            has as many pixels, as if the training data had been stored so: boxes, instance masks and masks of
            classes are reduced with them. For training alone. The pixels differ from those that reading the
            whole image and resizing it gives.
        skip_corrupt: return ``None`` for an unreadable file, on which mmengine's datasets take another
            sample in training; each is named in the log and counted.

    Raises:
        UnreadableImage: unless ``skip_corrupt``.
        UserError: ``bits`` or ``reduce_to`` is out of range, or the latter does not go with how is read.
    """

    def __init__(
        self,
        *,
        bits: int | None = None,
        reduce_to: int | None = None,
        skip_corrupt: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if bits is not None and bits not in range(9, 17):
            raise UserError(f'LoadImageFromFile: bits must be 9 to 16, got {bits!r}')
        check_pixels('LoadImageFromFile.reduce_to', reduce_to)
        if reduce_to and (self.imdecode_backend != 'cv2' or not self.color_type.startswith('color')):
            raise UserError(
                f'LoadImageFromFile: reduce_to is for color_type="color" and imdecode_backend="cv2", got '
                f'{self.color_type!r} and {self.imdecode_backend!r}'
            )
        self.bits, self.reduce_to, self.skip_corrupt = bits, reduce_to, skip_corrupt
        self._skipped = SKIPPED

    def transform(self, results: dict) -> dict | None:
        """Add the image at ``img_path`` as ``img``, (H, W, 3) uint8 BGR unless ``color_type`` says otherwise.

        ``None`` for an unreadable file under ``skip_corrupt``.
        """
        file = results['img_path']
        try:
            if self.color_type != 'unchanged' and (deep := self._deep(file)) is not None:
                results.update(img=deep, img_shape=deep.shape[:2], ori_shape=deep.shape[:2])
                return results
            if self.reduce_to and self._reduce(results):
                return results
            return super().transform(results)
        except UnreadableImage as error:
            reason, text = str(error), str(error)
        except (OSError, AssertionError, ValueError, SyntaxError, cv2.error, AttributeError) as error:
            reason = str(error) if isinstance(error, OSError) else _why(file)
            text = (
                f'{file} cannot be read as an image ({reason}): replace it, remove it from the '
                'annotations, or train without it by --skip-corrupt'
            )
        if not self.skip_corrupt:
            raise UnreadableImage(text)
        self._skipped.add(file, reason)
        return None

    def _deep(self, file: str) -> np.ndarray | None:
        """Return an image of more than 8 bits as one of 8 bits, ``None`` if mmcv reads the file truly."""
        if self.backend_args or self.imdecode_backend != 'cv2' or not os.path.isfile(file):
            return None
        with open(file, 'rb') as stream:
            if stream.read(2) == b'\xff\xd8':  # JPEG
                return None
        if (found := header(file)).bits <= 8:
            return None
        ignores = 'ignore_orientation' in self.color_type
        flags = cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_IGNORE_ORIENTATION if ignores else 0)
        flags |= 0 if self.color_type.startswith('gray') else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.fromfile(file, np.uint8), flags)
        kind = image.dtype if image is not None else f'{found.bits} bits, {found.mode}'
        if image is None or image.dtype != np.uint16:
            raise UnreadableImage(
                f'{file} holds pixels of {kind}, whose range is not known: save it with 8 or 16 bits, or '
                'load it '
                "with color_type='unchanged' and give mean and std of its values to the data_preprocessor"
            )
        largest, most = int(image.max()), 2 ** (self.bits or 16) - 1
        if largest > most:
            raise UnreadableImage(
                f'{file} has values up to {largest}, more than bits={self.bits} holds ({most}): set more '
                'bits in LoadImageFromFile'
            )
        if self.bits is None and largest < DIM:
            raise UnreadableImage(
                f'{file} has 16 bits, but no value above {largest}, which would be nearly black '
                f'({largest // 256} of 255): set bits={max(9, largest.bit_length())} in LoadImageFromFile, '
                'or as many as the camera has (bits=16: as it is)'
            )
        scaled = image * (255 / most) if self.bits else image // 256
        image = (scaled + 0.5 * bool(self.bits)).astype(np.uint8)
        return image.astype(np.float32) if self.to_float32 else image

    def _reduce(self, results: dict) -> bool:
        """Load a large JPEG at a part of its size; return whether it is one."""
        content = fileio.get(results['img_path'], backend_args=self.backend_args)
        if content[:2] != b'\xff\xd8':
            return False
        found = header(io.BytesIO(content))
        size = (found.height, found.width)
        factor = next((n for n in (8, 4, 2) if min(size) >= n * self.reduce_to), None)
        if factor is None:
            return False
        if results.get('seg_map_path') and 'instances' in results:
            raise UserError(
                'LoadImageFromFile: reduce_to is for boxes, instance masks, and masks of classes of mmseg; '
                'this dataset of mmdet has masks of classes, too: leave it out'
            )
        ignores = 'ignore_orientation' in self.color_type
        flags = REDUCED[factor] | (cv2.IMREAD_IGNORE_ORIENTATION if ignores else 0)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if image is None:
            return False  # mmcv says what is wrong with it
        whole = size if ignores else found.upright[::-1]
        results.update(img=image.astype(np.float32) if self.to_float32 else image)
        results.update(img_shape=image.shape[:2], ori_shape=image.shape[:2], reduced_from=whole)
        if results.get('instances'):
            results['instances'] = [_reduced(one, whole, image.shape[:2]) for one in results['instances']]
        return True


def _reduced(instance: dict, whole: tuple[int, int], size: tuple[int, int]) -> dict:
    """Return a dataset's object of an image of ``whole`` (height, width) in the same at ``size``."""
    scale = np.array([size[1] / whole[1], size[0] / whole[0]])
    instance = dict(instance, bbox=(np.reshape(instance['bbox'], (2, 2)) * scale).reshape(-1).tolist())
    mask = instance.get('mask')
    if isinstance(mask, dict):
        from pycocotools import mask as coco

        if isinstance(mask['counts'], list):
            mask = coco.frPyObjects(mask, *mask['size'])
        small = cv2.resize(coco.decode(mask), size[::-1], interpolation=cv2.INTER_NEAREST)
        instance['mask'] = coco.encode(np.asfortranarray(small))
    elif mask:
        instance['mask'] = [(np.reshape(one, (-1, 2)) * scale).reshape(-1).tolist() for one in mask]
    return instance


def _why(file: str) -> str:
    """Return why a file that is there could not be read."""
    try:
        found = header(file)
    except OSError:
        return 'it is no image, or cut off'
    if found.width * found.height >= MOST_PIXELS:
        size = f'{found.width} x {found.height}'
        return f'{size} pixels are more than OpenCV reads; see OPENCV_IO_MAX_IMAGE_PIXELS'
    return 'it is no image, or cut off'


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Loads masks as mmseg's ``LoadAnnotations``, but compares them with image and classes.

    The tools put it in its place in every pipeline of a segmenter.

    Args:
        reduce_zero_label: 0 is no class but ignored, 1 is the first class; by default what the dataset says.
        backend_args: of the storage.
        imdecode_backend: taken for mmseg's sake; Pillow reads.
        skip_corrupt: return ``None`` for an unreadable mask, on which another sample is taken in training.

    Raises:
        UserError: the mask is missing, unreadable, of another size than the image, or has a label beyond the
            classes.
    """

    def __init__(
        self,
        reduce_zero_label: bool | None = None,
        backend_args: dict | None = None,
        imdecode_backend: str = 'pillow',
        skip_corrupt: bool = False,
    ):
        self.reduce_zero_label, self.backend_args = reduce_zero_label, backend_args
        self.imdecode_backend, self.skip_corrupt = imdecode_backend, skip_corrupt
        self.num_classes, self.ignore_index = None, 255
        self._skipped = SKIPPED

    def set_classes(self, num_classes: int, ignore_index: int) -> None:
        """Set how many classes there are, and which label is none; the dataset calls this."""
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict) -> dict | None:
        """Add the mask at ``seg_map_path``: ``gt_seg_map``, (H, W) class numbers, uint8 or uint16.

        ``None`` for an unreadable file under ``skip_corrupt``.
        """
        file = results['seg_map_path']
        reduce = results.get('reduce_zero_label', False)
        if self.reduce_zero_label not in (None, reduce):
            raise UserError(
                f'reduce_zero_label is {reduce} in the dataset, but {self.reduce_zero_label} in '
                'LoadAnnotations of its pipeline: set it in the dataset, and leave it out of the pipeline'
            )
        try:
            mask = read_mask(file, mask_bytes(file, self.backend_args))
        except UserError as error:
            if not self.skip_corrupt:
                raise
            self._skipped.add(file, str(error))
            return None
        size = results.get('reduced_from', results.get('ori_shape'))
        if size is not None and tuple(size[:2]) != mask.shape:
            raise UserError(
                f'the mask {file} is {mask.shape[1]} x {mask.shape[0]} pixels, its image '
                f'{results["img_path"]} {size[1]} x {size[0]} (width x height): they must be equal'
            )
        labels = to_labels(mask, reduce, results.get('label_map'), self.ignore_index)
        if self.num_classes:
            check_labels(labels, self.num_classes, self.ignore_index, f'the mask {file}')
        labels = labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)
        if 'reduced_from' in results:
            labels = cv2.resize(labels, results['ori_shape'][::-1], interpolation=cv2.INTER_NEAREST)
        results['gt_seg_map'] = labels
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results


@TRANSFORMS.register_module()
class Corrupt(BaseTransform):
    """Applies one of the corruptions of ImageNet-C to the image as it was loaded (BGR).

    The noise depends on the file name.

    Args:
        corruption: one of :data:`convnext_backbone.classification.robustness.CORRUPTIONS`.
        severity: 1 to 5.
    """

    def __init__(self, corruption: str, severity: int):
        self.corruption, self.severity = corruption, severity

    def transform(self, results: dict) -> dict:
        """Corrupt ``img``, (H, W, 3) uint8 BGR."""
        seed = zlib.crc32(os.path.basename(results['img_path']).encode())
        image = np.ascontiguousarray(results['img'][..., ::-1])
        results['img'] = np.ascontiguousarray(corrupt(image, self.corruption, self.severity, seed)[..., ::-1])
        return results
