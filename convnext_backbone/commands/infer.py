"""Predict on an image or a folder of images: pictures and JSON, COCO results, label maps.

convnext infer CONFIG CHECKPOINT image_or_folder --out predictions
convnext infer CONFIG CHECKPOINT val2017/ --out predictions --format coco --ann-file instances_val2017.json
"""

import contextlib
import re
import resource
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..cli import Parser
from ..config import check_work_dir
from ..errors import UserError, message
from ..inference import Predictor, image_files
from ..preannotations import CvatXml, LabelStudio
from ..predictions import AnnotationFile, CocoResults, Image, LabelMaps, PictureAndJson

FORMATS = {  # what may be asked for: for which models
    'json': ('detection', 'segmentation'),
    'coco': ('detection',),
    'labels': ('segmentation',),
    'cvat': ('detection',),
    'label-studio': ('detection',),
}
NAMES = {'detection': 'a detector', 'segmentation': 'a segmenter'}


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('images', help='an image file, or a folder of them')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results')
    parser.add_argument(
        '--format',
        nargs='+',
        choices=FORMATS,
        default=['json'],
        help='json: FILE.png (drawn) and FILE.json for each FILE, the default\n'
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
    files = named_files(args)
    annotations = AnnotationFile(args.ann_file) if args.ann_file else None
    numbers = annotations.numbers_of(files) if annotations else dict(zip(files, range(1, len(files) + 1)))
    check_work_dir(args.out, '--out')
    predictor = Predictor(args.config, args.checkpoint, args.device, args.prefix)
    for name in args.format:
        if predictor.task not in FORMATS[name]:
            fitting = [other for other in FORMATS if predictor.task in FORMATS[other]]
            raise UserError(
                f'--format {name} needs {NAMES[FORMATS[name][0]]}, {args.config} is '
                f'{NAMES[predictor.task]}: choose {" or ".join(fitting)}'
            )
    failed = 0
    with contextlib.ExitStack() as stack:
        writers = make_writers(args, predictor, annotations)
        for writer in writers:
            writer.start(stack)
        for name, file in tqdm(files.items(), unit='image', disable=None, dynamic_ncols=True):
            with bounded_memory(predictor.device):
                encoded = predict(predictor, writers, Image(file, name, numbers[name]), args.debug)
            if encoded is None:
                failed += 1
                torch.cuda.empty_cache()  # of the memory that was too little
                continue
            for writer, content in zip(writers, encoded):
                writer.write(content)
    for writer in writers:
        if warning := writer.finish():
            print(warning, file=sys.stderr)
    print(f'{len(files) - failed} of {len(files)} images predicted, results in {args.out}')
    if failed:
        raise UserError(f'{failed} of {len(files)} images could not be predicted, see above')


def named_files(args) -> dict[str, Path]:
    """Return each image by its name: its path below the folder of images. Results in it are no images."""
    path, out = Path(args.images), Path(args.out).absolute()
    files = image_files(path, args.recursive)
    if args.recursive and out != path.absolute():
        files = [file for file in files if out not in file.absolute().parents]
    folder = path if path.is_dir() else path.parent
    return {file.relative_to(folder).as_posix(): file for file in files}


def make_writers(args, predictor: Predictor, annotations: AnnotationFile | None) -> list:
    """Return a writer for each format that is asked for."""
    out, score, meta = Path(args.out), args.score, predictor.meta
    make = {
        'json': lambda: PictureAndJson(predictor, out, 0.3 if score is None else score),
        'coco': lambda: CocoResults(meta['classes'], out, score or 0.0, annotations),
        'labels': lambda: LabelMaps(meta, out),
        'cvat': lambda: CvatXml(meta['classes'], out, 0.3 if score is None else score),
        'label-studio': lambda: LabelStudio(
            meta['classes'], out, 0.3 if score is None else score, Path(args.config).stem
        ),
    }
    return [make[name]() for name in dict.fromkeys(args.format)]


def predict(predictor: Predictor, writers: list, image: Image, debug: bool) -> list | None:
    """Return what each writer is to write for an image; ``None`` if one line says why there is nothing.

    Raises:
        UserError: nothing more can be predicted in this process.
    """
    try:
        sample = predictor.predict(image.file)
        return [writer.encode(image, sample) for writer in writers]
    except Exception as error:  # whatever it is, the other images may be predicted
        tqdm.write(f'error: {why_failed(image.file, error)}', file=sys.stderr)
        if debug:
            tqdm.write(traceback.format_exc(), file=sys.stderr)
        if 'CUDA error' in str(error) and 'out of memory' not in str(error):
            raise UserError(
                f'CUDA computes nothing more in this process after {image.file}: leave it out, or start '
                'again with CUDA_LAUNCH_BLOCKING=1 to see what failed'
            ) from error
        return None


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
    advice = 'scale it, or leave it out'
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", text):
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
