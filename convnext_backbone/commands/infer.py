"""Predict on images and videos: pictures and JSON, tables, COCO results, label maps, annotations to correct.

convnext infer CONFIG CHECKPOINT image_or_folder --out predictions
convnext infer CONFIG CHECKPOINT 'flights/**/*.tif' --out predictions --tile 1024
convnext infer CONFIG CHECKPOINT street.mp4 --out predictions --batch 8
convnext infer CONFIG CHECKPOINT val2017/ --out predictions --format coco --ann-file instances_val2017.json
"""

import contextlib
import itertools
import os
import re
import resource
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..classify import ClassPredictor, make_predictor
from ..cli import Parser
from ..config import check_work_dir
from ..errors import UserError, is_out_of_memory, message
from ..inference import Predictor
from ..inputs import Video, is_video, named_files
from ..preannotations import CvatXml, LabelStudio
from ..predictions import AnnotationFile, CocoResults, Image, LabelMaps, PictureAndJson, Table
from ..tiles import Tiling

FORMATS = {  # what may be asked for: for which models
    'json': ('detection', 'segmentation', 'classification'),
    'csv': ('detection', 'segmentation', 'classification'),
    'coco': ('detection',),
    'labels': ('segmentation',),
    'cvat': ('detection',),
    'label-studio': ('detection',),
}
CUT_OFF = 0.9  # of the frames that a video says it has; with frames of differing length it says too many
NAMES = {'detection': 'a detector', 'segmentation': 'a segmenter', 'classification': 'a classifier'}


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        'images', nargs='+', help="images, videos, folders of images, patterns such as 'a/**/*.png'"
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results')
    parser.add_argument(
        '--format',
        nargs='+',
        choices=FORMATS,
        default=['json'],
        help='json: FILE.png (drawn) and FILE.json for each FILE, the default; FILE.mp4 of a video\n'
        'csv: predictions.csv, a line for each object or class of an image\n'
        'coco: predictions.json of a detector, as pycocotools reads it\n'
        'labels: labels/FILE.png of a segmenter, class numbers\n'
        'cvat: annotations.xml of a detector, CVAT for images 1.1\n'
        'label-studio: tasks.json of a detector, with predictions',
    )
    parser.add_argument(
        '--ann-file', metavar='FILE', help='COCO annotations whose numbers of images and categories are taken'
    )
    parser.add_argument(
        '--score',
        type=float,
        help='least score of an object, 0 to 1; default 0.3, with coco 0, since all are evaluated',
    )
    parser.add_tile_options()
    parser.add_argument(
        '--batch',
        type=int,
        default=1,
        help='images of one size, or tiles, that are predicted at once; default 1',
    )
    parser.add_prefix_option()
    parser.add_argument('--recursive', action='store_true', help='images in sub-folders, too')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Predict on the images and write the results in the formats that are asked for."""
    args = parse_args(argv)
    if args.score is not None and not 0 <= args.score <= 1:
        raise UserError(f'--score is a number from 0 to 1, got {args.score:g}')
    if args.ann_file and 'coco' not in args.format:
        raise UserError('--ann-file numbers COCO results: give --format coco with it, or leave it out')
    if args.batch < 1:
        raise UserError(f'--batch is a number of images, at least 1, got {args.batch}')
    tiling = Tiling(args.tile, args.overlap, args.batch).checked() if args.tile is not None else None
    files = named_files(args.images, args.recursive, args.out)
    annotations = AnnotationFile(args.ann_file) if args.ann_file else None
    numbers = numbers_of(files, annotations)
    check_work_dir(args.out, '--out')
    predictor = make_predictor(args.config, args.checkpoint, args.device, args.prefix)
    for name in args.format:
        if predictor.task not in FORMATS[name]:
            fitting = [other for other in FORMATS if predictor.task in FORMATS[other]]
            raise UserError(
                f'--format {name} needs {NAMES[FORMATS[name][0]]}, {args.config} is '
                f'{NAMES[predictor.task]}: choose {" or ".join(fitting)}'
            )
    if tiling and predictor.task == 'classification':
        raise UserError(
            f'--tile is for detectors and segmenters, {args.config} is a classifier: leave it out'
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else parts of files would stay
    done = failed = 0
    with contextlib.ExitStack() as stack:
        writers = make_writers(args, predictor, annotations)
        check_results(files, writers)
        for writer in writers:
            writer.start(stack)
        run = Run(predictor, tiling, args.batch, min(writer.min_score for writer in writers), args.debug)
        results = run.results(images_of(files, numbers))
        bar = stack.enter_context(
            tqdm(total=length_of(files), unit='image', disable=None, dynamic_ncols=True)
        )
        for encoded in encoded_by(run, writers, results):
            bar.update()
            if encoded is None:
                failed += 1
                continue
            done += 1
            for writer, content in zip(writers, encoded):
                writer.write(content)
        for writer in writers:
            if warning := writer.finish():
                print(warning, file=sys.stderr)
    print(f'{done} of {done + failed} images predicted, results in {args.out}')
    if failed:
        raise UserError(f'{failed} of {done + failed} images could not be predicted, see above')


def numbers_of(files: dict[str, Path], annotations: AnnotationFile | None) -> Iterator[int]:
    """Yield the id of each image in COCO results, and those of the frames of videos.

    Raises:
        UserError: an image is not in the annotation file, or there is a video.
    """
    if annotations is None:
        return itertools.count(1)
    if video := next(filter(is_video, files.values()), None):
        raise UserError(f'--ann-file numbers images, and {video} is a video: predict it by itself')
    return iter(list(annotations.numbers_of(files).values()))


def images_of(files: dict[str, Path], numbers: Iterator[int]) -> Iterator[Image]:
    """Yield each image, and each frame of a video; of a video that cannot be read, it alone."""
    for name, file in files.items():
        if not is_video(file):
            yield Image(file, name, next(numbers))
            continue
        try:
            video = Video(file)
            for index, pixels in enumerate(video):
                frame = f'{name}/{index + 1:06d}'
                yield Image(file, frame, next(numbers), pixels, index / video.rate, video.rate)
            if index + 1 < CUT_OFF * video.length:
                found = f'{index + 1} of the {video.length} frames that {file} says it has can be read'
                tqdm.write(f'warning: {found}: it may be cut off', file=sys.stderr)
        except UserError as error:
            yield Image(file, name, next(numbers), error)


def length_of(files: dict[str, Path]) -> int:
    """Return how many images and frames there are, as far as the files say."""
    total = 0
    for file in files.values():
        with contextlib.suppress(UserError):
            total += Video(file).length if is_video(file) else 1
    return total


def check_results(files: dict[str, Path], writers: list) -> None:
    """Raise :class:`UserError` where a picture or video of the results would replace an input or another."""
    taken = {os.path.realpath(file): 'an input itself' for file in files.values()}
    for name, file in files.items():
        for result in (each for writer in writers for each in writer.pictures(name, is_video(file))):
            what = f'a result of {file}'
            if (other := taken.setdefault(os.path.realpath(result), what)) is not what:
                raise UserError(
                    f'{result} would be {what}, and is {other}: choose another --out, or predict on them in '
                    'two runs'
                )


def make_writers(args, predictor: Predictor | ClassPredictor, annotations: AnnotationFile | None) -> list:
    """Return a writer for each format that is asked for."""
    out, meta = Path(args.out), predictor.meta
    score = 0.3 if args.score is None else args.score  # of what is looked at; what is evaluated: all
    make = {
        'json': lambda: PictureAndJson(predictor, out, score),
        'csv': lambda: Table(predictor, out, score),
        'coco': lambda: CocoResults(meta['classes'], out, args.score or 0.0, annotations),
        'labels': lambda: LabelMaps(meta, out),
        'cvat': lambda: CvatXml(meta['classes'], out, score),
        'label-studio': lambda: LabelStudio(meta['classes'], out, score, Path(args.config).stem),
    }
    return [make[name]() for name in dict.fromkeys(args.format)]


@dataclass
class Run:
    """Predicts images one after another; one line says why there is nothing for an image.

    The next images are read and prepared by a thread while the model computes.
    """

    predictor: Predictor | ClassPredictor
    tiling: Tiling | None
    batch: int
    min_score: float
    debug: bool

    def results(self, images: Iterable[Image]) -> Iterator[tuple[Image, object]]:
        """Yield each image, with its pixels, and its data sample, or ``None``.

        Raises:
            UserError: nothing more can be predicted in this process.
        """
        if self.tiling is not None:
            for image in images:
                found = self.attempt(image, lambda image=image: self._by_tiles(image))
                yield found or (image, None)
            return
        groups = {}  # of images, or frames of a video, that make equal inputs
        with one_thread('read') as pool:
            for image, future in ahead(pool, self._read, images, 2 * self.batch):
                if (read := self.attempt(image, future.result)) is None:
                    yield image, None
                    continue
                pixels, data = read
                video = None if image.time is None else image.file
                key = video, getattr(data.get('inputs'), 'shape', None)
                for other in [each for each in groups if video and each[0] and each != key]:
                    yield from self._predict(groups.pop(other))  # frames stay in their order
                groups.setdefault(key, []).append((replace(image, pixels=pixels), data))
                if len(groups[key]) == self.batch or sum(map(len, groups.values())) > 4 * self.batch:
                    yield from self._predict(groups.pop(max(groups, key=lambda each: len(groups[each]))))
        for group in groups.values():
            yield from self._predict(group)

    def attempt(self, image: Image, compute: Callable):
        """Return what is computed for an image; ``None`` if one line says why there is nothing.

        Raises:
            UserError: nothing more can be predicted in this process.
        """
        try:
            return compute()
        except Exception as error:  # whatever it is, the other images may be predicted
            tqdm.write(f'error: {why_failed(image.file, error)}', file=sys.stderr)
            if self.debug:
                tqdm.write(traceback.format_exc(), file=sys.stderr)
            if 'CUDA error' in str(error) and 'out of memory' not in str(error):
                raise UserError(
                    f'CUDA computes nothing more in this process after {image.file}: leave it out, or start '
                    'again with CUDA_LAUNCH_BLOCKING=1 to see what failed'
                ) from error
            torch.cuda.empty_cache()  # of the memory that was too little
            return None

    def _read(self, image: Image) -> tuple:
        """Return the pixels of an image and what the model takes of it."""
        if isinstance(image.pixels, Exception):
            raise image.pixels
        loaded = image.pixels if image.pixels is not None else self.predictor.load(image.file)
        return loaded['img'] if isinstance(loaded, dict) else loaded, self.predictor.prepare(loaded)

    def _predict(self, group: list[tuple[Image, dict]]) -> list[tuple[Image, object]]:
        """Return the samples of images that are predicted at once, or, where that fails, one by one."""
        compute = self.predictor.predict_prepared
        if len(group) > 1:
            with contextlib.suppress(Exception), bounded_memory(self.predictor.device):
                return list(zip((image for image, _ in group), compute([data for _, data in group])))
        found = []
        for image, data in group:
            with bounded_memory(self.predictor.device):
                found.append((image, self.attempt(image, lambda data=data: compute([data])[0])))
        return found

    def _by_tiles(self, image: Image) -> tuple[Image, object]:
        """Return an image with the pixels that are drawn, and its sample."""
        if isinstance(image.pixels, Exception):
            raise image.pixels
        given = image.file if image.pixels is None else image.pixels
        with bounded_memory(self.predictor.device):
            sample, pixels = self.predictor.predict_by_tiles(given, self.tiling, self.min_score)
        return replace(image, pixels=pixels), sample


@contextlib.contextmanager
def one_thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """Give a thread to compute in; at an error or interrupt what it computes is not waited for."""
    pool = ThreadPoolExecutor(1, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, number: int) -> Iterator[tuple]:
    """Yield each item and the future of ``function`` of it, of which ``number`` are begun ahead.

    An error of ``items`` comes after what was begun before it, an interrupt at once.
    """
    waiting: deque[tuple[object, Future]] = deque()
    items, error = iter(items), None
    while True:
        try:
            item = next(items)
        except Exception as end:
            error = end
            break
        waiting.append((item, pool.submit(function, item)))
        while waiting and (len(waiting) > number or waiting[0][1].done()):
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
    if not isinstance(error, StopIteration):
        raise error


def encoded_by(run: Run, writers: list, results: Iterator[tuple[Image, object]]) -> Iterator[list | None]:
    """Yield what each writer is to write for an image, ``None`` if there is nothing; a thread computes it."""

    def encode(result: tuple[Image, object]) -> list | None:
        image, sample = result
        return None if sample is None else [writer.encode(image, sample) for writer in writers]

    with one_thread('encode') as pool:
        for (image, _), future in ahead(pool, encode, results, 2):
            yield run.attempt(image, future.result)


@contextlib.contextmanager
def bounded_memory(device: str) -> Iterator[None]:
    """Make an allocation on a CPU fail that is more than there is: Linux would end the process instead."""
    available = available_memory() if device == 'cpu' else None
    if available is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    given = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    own = 1024 * int(re.search(r'VmData:\s*(\d+)', Path('/proc/self/status').read_text())[1])
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (min([own + available, *given]), hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def available_memory() -> int | None:
    """Return the bytes that this process may still take, by machine and cgroup; ``None`` if nothing says."""
    try:
        found = [1024 * int(re.search(r'MemAvailable:\s*(\d+)', Path('/proc/meminfo').read_text())[1])]
        own = re.search(r'^0::/(.*)$', Path('/proc/self/cgroup').read_text(), re.MULTILINE)
    except (OSError, TypeError):
        return None
    top = Path('/sys/fs/cgroup')
    folder = top / own[1] if own else top
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError, TypeError):
            limit, used = (int((group / f'memory.{name}').read_text()) for name in ('max', 'current'))
            cache = re.search(r'^inactive_file (\d+)', (group / 'memory.stat').read_text(), re.MULTILINE)
            found.append(max(limit - used + int(cache[1]), 0))
        if group == top:
            break
    return min(found)


def why_failed(file: Path, error: Exception) -> str:
    """Return one line that names the file and what went wrong."""
    if isinstance(error, UserError):
        text = ' '.join(message(error).splitlines())
        return text if str(file) in text else f'{file} could not be predicted: {text}'
    text = ' '.join(f'{type(error).__name__}: {error}'.split()).removesuffix(':')
    advice = 'rename it' if isinstance(error, UnicodeEncodeError) else 'scale it, or leave it out'
    if is_out_of_memory(error):
        advice = 'the memory is too small for it: scale it, or take a machine with more'
    return f'{file}{size_of(file)} could not be predicted: {shorten(text)}; {advice}'


def size_of(file: Path) -> str:
    """Return the size of an image for a message, without reading all of it; empty if it does not say."""
    from PIL import Image as Header

    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of large images
        with Header.open(file) as header:
            return f' ({header.width} x {header.height} pixels)'
    return ''


def shorten(text: str, characters: int = 300) -> str:
    """Return a text, cut off after so many characters."""
    return text if len(text) <= characters else f'{text[:characters]} ...'
