"""Reading images, with words when a file is none."""

import io
import multiprocessing

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log
from PIL import Image

from .errors import UnreadableImage
from .registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, but an unreadable file is named, and skipped only when told to.

    The tools put it in the place of ``LoadImageFromFile`` in every pipeline. Also refuses a JPEG that
    is cut off, which OpenCV fills up with grey.

    Args:
        skip_corrupt: return ``None`` for an unreadable file, on which mmengine's datasets take another
            sample in training; each is named in the log and counted in :attr:`skipped`.

    Raises:
        UnreadableImage: unless ``skip_corrupt``.
    """

    # shared with the processes of the data loaders
    skipped = multiprocessing.Value('q', 0)

    def __init__(self, *, skip_corrupt: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.skip_corrupt = skip_corrupt
        self._skipped = LoadImage.skipped  # carried to workers that are spawned, not forked

    def transform(self, results: dict) -> dict | None:
        file = results['img_path']
        try:
            loaded = super().transform(results)
            check_complete(file)
        except (OSError, AssertionError, ValueError, SyntaxError, cv2.error) as error:
            reason = str(error) if isinstance(error, OSError) else 'no image format is recognised in it'
        else:
            return loaded
        if not self.skip_corrupt:
            raise UnreadableImage(
                f'{file} cannot be read as an image ({reason}): replace it, remove it from the '
                'annotations, or train without it by --skip-corrupt'
            )
        with self._skipped.get_lock():
            self._skipped.value += 1
            count = self._skipped.value
        print_log(f'skipped unreadable image {file} ({reason}); {count} so far', 'current', 30)
        return None


def check_complete(file: str) -> None:
    """Raise ``OSError`` if ``file`` is a JPEG that is cut off.

    A JPEG that does not end with its end marker may be whole, with other bytes behind it: only such a
    one is decoded a second time, by a library that tells.
    """
    with open(file, 'rb') as stream:
        if stream.read(2) != b'\xff\xd8':
            return
        stream.seek(-2, io.SEEK_END)
        if stream.read(2) == b'\xff\xd9':
            return
    with Image.open(file) as image:
        image.load()
