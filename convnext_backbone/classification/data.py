"""Feeds timm's image datasets to mmengine's data loaders: folders, tar, Hugging Face, WebDataset shards."""

import functools
import json
import os
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from PIL import Image
from timm.data import IterableImageDataset, auto_augment, create_dataset, create_transform
from timm.data.readers import reader_wds
from timm.data.readers.img_extensions import IMG_EXTENSIONS
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset, IterableDataset

from ..errors import SKIPPED, UnreadableImage, UserError, check_pixels
from ..registry import DATASETS, FUNCTIONS


@FUNCTIONS.register_module()
def collate_images(samples: list[dict]) -> dict:
    """Stack items of the datasets below: ``inputs`` (N, 3, H, W) in channels_last, ``labels`` (N,)."""
    first = samples[0]['inputs']
    inputs = torch.empty((len(samples), *first.shape), dtype=first.dtype, memory_format=torch.channels_last)
    torch.stack([sample['inputs'] for sample in samples], out=inputs)
    return dict(inputs=inputs, labels=torch.tensor([sample['labels'] for sample in samples]))


def open_image(file: str | Path) -> Image.Image:
    """Return an image in RGB, to predict on.

    Raises:
        UnreadableImage: it is none, or has more than 8 bits a channel.
    """
    try:
        picture = Image.open(file)
        if picture.mode.startswith(('I', 'F')):  # which Pillow would cut off at 255
            raise UnreadableImage(f'{file} has more than 8 bits ({picture.mode}): save it with 8')
        return picture.convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f'{file} cannot be read as an image ({error}): replace or remove it') from error


@DATASETS.register_module()
class ImageDataset(Dataset):
    """Gives one image and its label at a time, from folders, tar, Hugging Face: what timm reads at random.

    Args:
        data_root: folder that holds the splits, ``SPLIT/CLASS/*.jpg`` or ``SPLIT.tar``.
        split: name of the split, as timm takes it; for folders ``train`` or ``val``.
        transform: arguments of ``timm.data.create_transform`` (``input_size``, ``is_training``, ...).
        name: kind of dataset in timm's naming (``hfds/...``); empty for folders and tar files.
        class_index: folder of each class -> its number; or a JSON file below ``data_root`` that has it,
            perhaps as [number, name]. By default the folders of the split in alphabetical order.
        skip_corrupt: in place of an unreadable image take another, at random; each is named in the log
            and counted.
        images: text file that lists the images of the split below ``data_root`` (``CLASS/a.jpg``), where the
            folder has no splits; by default all of the folder.
        reduce_to: JPEG images are decoded at 1/2, 1/4 or 1/8 of their sides, the smallest whose shorter side
            has as many pixels. The pixels differ from those that reading the whole image and resizing it
            gives.

    Items are ``dict(inputs=Tensor (3, H, W), labels=int)``; ``metainfo['classes']`` names the classes in
    the order of the labels.

    Raises:
        UserError: nothing readable at ``data_root``, a class without images, or one that
            ``class_index`` does not have.
        UnreadableImage: on taking an item whose file is not an image, unless ``skip_corrupt``.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        transform: dict,
        name: str = '',
        class_index: str | dict[str, int] | None = None,
        skip_corrupt: bool = False,
        images: str = '',
        reduce_to: int | None = None,
    ):
        check_pixels('ImageDataset.reduce_to', reduce_to)
        transform = dict(transform)
        index = class_index or None
        if isinstance(index, str):
            index = read_class_index(os.path.join(data_root, index))
        root, tar = data_root, Path(data_root, f'{split}.tar')
        if not name and tar.is_file() and not Path(data_root, split).is_dir():
            root = str(tar)
        elif not name and not images:
            _check_folders(data_root, split, index)
        try:
            if root == str(tar) and index is not None:
                _check_classes(root, ReaderImageInTar(root).class_name_to_idx, index)
            self._images = create_dataset(
                name,
                root=root,
                split=split,
                is_training=transform.get('is_training', False),
                class_map=index or '',
            )
        except (RuntimeError, OSError, AssertionError, ValueError, ImportError, tarfile.TarError) as error:
            raise UserError(f'no images for split {split!r} at {data_root}: {error}') from error
        self.transform = self._images.transform = image_transform(**transform)
        reader = self._images.reader
        if images:
            reader.samples = _listed(images, data_root, reader.samples)
        index = index or getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', {})
        self.metainfo = dict(classes=tuple(sorted(index, key=index.get))) if index else {}
        self._skipped = SKIPPED if skip_corrupt else None
        self._reduce_to = reduce_to

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        try:
            stream, label = self._images.reader[index]
            image = Image.open(stream)
            if self._reduce_to:
                image.draft(None, (self._reduce_to, self._reduce_to))  # changes nothing but JPEGs
            image = image.convert('RGB')
        except (OSError, SyntaxError, ValueError) as error:  # timm would silently take the next one
            name = self.filename(index)
            if self._skipped is None:
                raise UnreadableImage(
                    f'{name} cannot be read as an image ({error}): replace it, remove it, or train '
                    'without it by --skip-corrupt'
                ) from error
            self._skipped.add(name, str(error))
            return self[random.randrange(len(self))]
        return dict(inputs=self._images.transform(image), labels=label)

    def filename(self, index: int) -> str:
        """Return the file name of the image, for messages."""
        return self._images.filename(index, absolute=True)

    @property
    def labels(self) -> list[int] | None:
        """Return the label of each image; ``None`` where only the images themselves tell (Hugging Face)."""
        reader = self._images.reader
        if getattr(reader, 'targets', None) is not None:  # of a tar file
            return [int(target) for target in reader.targets]
        samples = getattr(reader, 'samples', None)
        return None if samples is None else [int(target) for _, target in samples]


@DATASETS.register_module()
class ImageStream(IterableDataset):
    """Gives images and labels in the order in which timm reads them from shards, never listed whole.

    In a data loader: ``sampler=None``. Every process and worker reads shards of its own, shuffled anew
    in each epoch.

    Args:
        data_root: folder or URL of the shards; with an ``_info.json`` that lists their names and lengths,
            as timm's own sets have it.
        split: name of a split in that file, or shards and number of images, as in
            ``'train-{0000..4095}.tar|14197122'``.
        transform: see :class:`ImageDataset`.
        name: kind of dataset in timm's naming: ``wds/`` or ``hfids/...``.
        class_names: the classes in the order of the labels, if they are to be known.
        seed: of the order of the shards.
        skip_corrupt: leave out unreadable images of WebDataset shards; each is named in the log and counted.

    Raises:
        UserError: no such shards, their number of images unknown, or several processes that are to
            evaluate, which would count some images twice.
        UnreadableImage: on meeting a sample of a WebDataset shard that is not an image,
            unless ``skip_corrupt``.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        transform: dict,
        name: str = 'wds/',
        class_names: Sequence[str] | None = None,
        seed: int = 0,
        skip_corrupt: bool = False,
    ):
        transform = dict(transform)
        training = transform.get('is_training', False)
        if not training and get_world_size() > 1:
            raise UserError(
                f'{data_root} ({split}): shards are evaluated by one process; start one, or unpack'
            )
        options = dict(root=data_root, split=split, is_training=training, seed=seed, batch_size=1)
        try:
            if name.startswith('wds'):
                reader = _Shards(skip_corrupt, **options)
                self._images = IterableImageDataset(data_root, reader=reader)
            else:
                self._images = create_dataset(name, **options)
        except (RuntimeError, OSError, AssertionError, ValueError, ImportError) as error:
            raise UserError(f'no images for split {split!r} at {data_root}: {error}') from error
        self.transform = self._images.transform = image_transform(**transform)
        self.metainfo = dict(classes=tuple(class_names)) if class_names else {}

    def __len__(self) -> int:
        """Return the number of images per epoch in this process."""
        return len(self._images)

    def __iter__(self):
        for image, label in self._images:
            yield dict(inputs=image, labels=label)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, each with another order of the shards; reaches workers that are running already."""
        self._images.set_epoch(epoch)

    def set_loader(self, num_workers: int, batch_size: int) -> None:
        """Set how many processes of the data loader will read; each reads whole batches."""
        self._images.reader.batch_size = batch_size
        self._images.set_loader_cfg(num_workers=num_workers)


class _UnreadableInShard(UnreadableImage, TypeError):
    """Stops timm's reader of shards, which logs every error and goes on, except for a TypeError."""


class _Shards(reader_wds.ReaderWds):
    """Reads WebDataset shards as timm does, with the name of an image that cannot be read."""

    def __init__(self, skip_corrupt: bool, **kwargs):
        super().__init__(**kwargs)
        self._skipped = SKIPPED if skip_corrupt else None

    def _lazy_init(self) -> None:
        original = reader_wds._decode
        reader_wds._decode = functools.partial(_decode_or_name, original, self._skipped)
        try:
            super()._lazy_init()
        finally:
            reader_wds._decode = original


def _decode_or_name(decode, skipped, sample: dict, **kwargs):
    try:
        return decode(sample, **kwargs)
    except (OSError, SyntaxError, ValueError) as error:
        file = f'{sample.get("__url__")}: {sample.get("__key__")}'
        if skipped is None:
            raise _UnreadableInShard(
                f'{file} cannot be read ({error}): replace it, or train without it by --skip-corrupt'
            ) from error
        skipped.add(file, str(error))
        return None


def image_transform(**options):
    """Return ``timm.data.create_transform``'s transform, whose RandAugment also runs with Pillow 13.

    At its strongest it keeps no bit of a colour, which Pillow made black before and refuses now.
    """
    transform = create_transform(**options)
    for step in transform.transforms:
        for op in getattr(step, 'ops', ()):
            if getattr(op, 'aug_fn', None) is auto_augment.posterize:
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits_to_keep: int, **_) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)


def read_class_index(file: str) -> dict[str, int]:
    """Read folder of each class -> its number.

    The file has JSON ``{folder: number}`` or ``{folder: [number, name]}``.

    Raises:
        UserError: no such file, or the numbers are not 0 ... n - 1.
    """
    try:
        content = json.loads(Path(file).read_text())
        index = {folder: int(v[0] if isinstance(v, list) else v) for folder, v in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f'{file} is no class index ({error}): expected {{"folder": [number, "name"], ...}}'
        ) from error
    if sorted(index.values()) != list(range(len(index))):
        raise UserError(f'{file}: the numbers of its {len(index)} classes are not 0 to {len(index) - 1}')
    return index


def _listed(file: str, data_root: str, samples: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those of timm's pairs of path and label that a file lists, in its order."""
    try:
        names = [name for name in Path(file).read_text('utf-8').splitlines() if name]
    except OSError as error:
        raise UserError(f'the list of images {file} cannot be read: {error.strerror}') from error
    found = {os.path.relpath(path, data_root): (path, label) for path, label in samples}
    if absent := [name for name in names if name not in found]:
        raise UserError(
            f'{file}: {len(absent)} of {len(names)} images are not in {data_root} (first: {absent[0]}): '
            'write the list anew'
        )
    return [found[name] for name in names]


def _check_classes(root: str, names, index: dict[str, int] | None) -> None:
    if index is not None and (other := sorted(name for name in names if name not in index)):
        raise UserError(f'{root}/{other[0]} is a class that the class index does not have')


def _check_folders(data_root: str, split: str, index: dict[str, int] | None) -> None:
    """Raise :class:`UserError` for folders without images and for those without a number.

    timm leaves both out; the former shifts the labels behind.
    """
    root = Path(data_root, split)
    root = root if root.is_dir() else Path(data_root)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    _check_classes(str(root), [folder.name for folder in folders], index)
    for folder in folders:
        if not any(path.suffix.lower() in IMG_EXTENSIONS for path in folder.rglob('*')):
            raise UserError(f'{folder} is a class without images: fill it, or remove it from every split')
