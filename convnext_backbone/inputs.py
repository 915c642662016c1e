"""Finds the images and videos that are to be predicted, and reads videos frame by frame."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from .datasets.images import SUFFIXES
from .errors import UnreadableImage, UserError

VIDEOS = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg')  # in lower case
USUAL_RATE = 25.0  # frames per second, of a file that does not say


def named_files(paths: Sequence[str], recursive: bool = False, out: str | Path = '') -> dict[str, Path]:
    """Return each image and video by its name: its path below the folder that all of ``paths`` are in.

    Args:
        paths: files, folders (of which the images are taken), and patterns (``*``, ``?``, ``[]``, ``**``).
        recursive: the images in sub-folders, too.
        out: folder of the results; where it is below a folder of ``paths`` nothing in it is an image.

    Raises:
        UserError: one of them is not there, or holds no image.
    """
    files, folders, out = [], [], Path(os.path.abspath(out))
    for path in paths:
        if not os.path.exists(path) and glob.has_magic(path):
            found = _matching(path)
            parts = Path(path).parts
            folder = Path(*parts[: next(k for k, part in enumerate(parts) if glob.has_magic(part))])
        else:
            found = image_files(path, recursive)
            folder = Path(path) if Path(path).is_dir() else Path(path).parent
        folders.append(Path(os.path.abspath(folder)))  # without .., which names of results must not have
        if folders[-1] in out.parents:
            found = [file for file in found if out not in Path(os.path.abspath(file)).parents]
        files += found
    if not files:
        raise UserError(f'all images are in {out}, the folder of the results: give another --out')
    folder = os.path.commonpath(folders)
    return {Path(os.path.relpath(file, folder)).as_posix(): file for file in files}


def _matching(pattern: str) -> list[Path]:
    """Return the images and videos that a pattern matches, sorted."""
    found = [Path(file) for file in sorted(glob.glob(pattern, recursive=True))]
    found = [file for file in found if file.suffix.lower() in SUFFIXES + VIDEOS and file.is_file()]
    if not found:
        raise UserError(f'no image and no video matches {pattern}')
    return found


def image_files(path: str | Path, recursive: bool = False) -> list[Path]:
    """Return the file ``path``, or every image file in the folder ``path``, sorted.

    Args:
        recursive: those in its sub-folders, too.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UserError(f'no image and no folder at {path}')
        found = sorted(file for file in (path.rglob('*') if recursive else path.iterdir()))
        files = [file for file in found if file.suffix.lower() in SUFFIXES and not file.is_dir()]
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror})') from error
    if not files:
        advice = '' if recursive else '; --recursive looks into its sub-folders'
        if any(is_video(file) for file in found):
            advice = f"; videos are named one by one, or as '{path}/*{next(filter(is_video, found)).suffix}'"
        raise UserError(f'no images ({", ".join(SUFFIXES)}) in {path}{advice}')
    return files


def is_video(file: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return file.suffix.lower() in VIDEOS


class Video:
    """Reads a video file by OpenCV.

    Attributes:
        rate: frames per second.
        length: number of frames, as the file says; it may be wrong.

    Raises:
        UnreadableImage: it is no video that OpenCV reads.
    """

    def __init__(self, file: str | Path):
        self.file = file
        self._stream = cv2.VideoCapture(str(file))
        if not self._stream.isOpened():
            raise UnreadableImage(f'{file} cannot be read as a video: convert it, or leave it out')
        rate = self._stream.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        self.length = max(0, int(self._stream.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, (H, W, 3) uint8 BGR.

        Raises:
            UnreadableImage: there is none.
        """
        number = 0
        while True:
            there, frame = self._stream.read()
            if not there:
                break
            number += 1
            yield frame
        self._stream.release()
        if not number:
            raise UnreadableImage(f'{self.file} has no frame that can be read: convert it, or leave it out')
