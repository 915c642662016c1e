"""Reading images, with words when a file is none."""

import cv2
from mmcv.transforms import LoadImageFromFile

from .errors import SKIPPED, UnreadableImage
from .registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, but an unreadable file is named, and skipped only when told to.

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
