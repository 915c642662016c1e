"""Does steps of mmdet's and mmseg's pipelines in less time, with the same results."""

import cv2
import numpy as np
from mmcv.transforms.utils import cache_randomness

CROPS = 10  # that mmseg tries


class PacksPlanes:
    """Splits the colours of an image by OpenCV before they are packed; PyTorch takes 15 times as long.

    Mixed into ``PackDetInputs`` and ``PackSegInputs``, which find the memory as they would make it.
    """

    def transform(self, results: dict) -> dict:
        """Pack as before."""
        image = results.get('img')
        if (
            isinstance(image, np.ndarray)
            and image.ndim == 3
            and image.dtype == np.uint8
            and image.shape[2] == 3
        ):
            planes = np.empty((3, *image.shape[:2]), np.uint8)
            cv2.split(image, list(planes))
            results['img'] = planes.transpose(1, 2, 0)
        return super().transform(results)


class CountsByTable:
    """Counts the pixels of each class by a table, where NumPy would sort them.

    Mixed into mmseg's ``RandomCrop``.
    """

    @cache_randomness
    def crop_bbox(self, results: dict) -> tuple[int, int, int, int]:
        """Return the crop that mmseg draws: y1, y2, x1, x2."""
        labels = results.get('gt_seg_map')
        if self.cat_max_ratio >= 1 or getattr(labels, 'dtype', None) != np.uint8:
            return super().crop_bbox(results)
        box = self._box(results['img'])
        for _ in range(CROPS):
            counts = np.bincount(self.crop(labels, box).reshape(-1), minlength=256)
            if 0 <= self.ignore_index < len(counts):
                counts[self.ignore_index] = 0
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio:
                break
            box = self._box(results['img'])
        return box

    def _box(self, image: np.ndarray) -> tuple[int, int, int, int]:
        height, width = self.crop_size
        top = np.random.randint(0, max(image.shape[0] - height, 0) + 1)  # noqa: NPY002  as mmseg
        left = np.random.randint(0, max(image.shape[1] - width, 0) + 1)  # noqa: NPY002
        return top, top + height, left, left + width
