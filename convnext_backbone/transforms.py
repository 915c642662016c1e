"""Reads images, naming a file that is not one."""

import os
import zlib

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile

from .classification.robustness import corrupt
from .errors import SKIPPED, UnreadableImage
from .registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Loads as mmcv's ``LoadImageFromFile``, but names an unreadable file, and skips it only on request.

    The tools put it in the place of ``LoadImageFromFile`` in every pipeline.

    Args:
        skip_corrupt: return ``None`` for an unreadable file, on which mmengine's datasets take another
            sample in training; each is named in the log and counted.

    Raises:
        UnreadableImage: unless ``skip_corrupt``.
    """

    def __init__(self, *, skip_corrupt: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.skip_corrupt = skip_corrupt
        self._skipped = SKIPPED

    def transform(self, results: dict) -> dict | None:
        file = results['img_path']
        try:
            return super().transform(results)
        except (OSError, AssertionError, ValueError, SyntaxError, cv2.error) as error:
            reason = str(error) if isinstance(error, OSError) else 'it is no image, or cut off'
        if not self.skip_corrupt:
            raise UnreadableImage(
                f'{file} cannot be read as an image ({reason}): replace it, remove it from the '
                'annotations, or train without it by --skip-corrupt'
            )
        self._skipped.add(file, reason)
        return None


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
        seed = zlib.crc32(os.path.basename(results['img_path']).encode())
        image = np.ascontiguousarray(results['img'][..., ::-1])
        results['img'] = np.ascontiguousarray(corrupt(image, self.corruption, self.severity, seed)[..., ::-1])
        return results
