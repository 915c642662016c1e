"""Checks a segmenter's images against its network: are they large enough, and enough for batch norm?"""

import math
import os
import random
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from ..config import datasets, dicts
from ..datasets import improve
from ..datasets.images import header
from ..errors import message
from ..findings import Findings
from ..measure import BATCH_NORMS, Measured, Network, building, owner, run
from ..registry import class_of, type_name

SURE = 128  # pixels: from here on no network is run to see whether they are enough
TRIED = (16, 32, 64, 96, 128, 192, 256)  # pixels, where the least that works is sought
HEADERS = 200  # images whose size is read in each dataset


def check_sizes(cfg: Config, findings: Findings, measured: Measured, splits, images: bool) -> None:
    """Report images that are too small for the network, and a batch of one where batch norm needs more.

    Args:
        cfg: of a run; only that of a segmenter is looked at.
        findings: gets an error (kind ``fit`` or ``batch_norm``) with key, value and what is needed.
        measured: what :func:`~convnext_backbone.measure.measure` found.
        splits: keys of the data loaders that will be used.
        images: whether the smallest image of each is looked at.
    """
    if 'decode_head' in cfg.model and measured.model is not None and measured.networks:
        _Sizes(cfg, findings, measured).check(splits, images)


class _Sizes:
    """Holds what the checks of one segmenter share."""

    def __init__(self, cfg: Config, findings: Findings, measured: Measured):
        self.cfg, self.findings, self.measured = cfg, findings, measured
        self.network = measured.networks[0]
        self.device = next((p.device for p in self.network.module.parameters()), torch.device('cpu'))

    def check(self, splits, images: bool) -> None:
        """Look at the crops of the training, then at the smallest image of each dataset."""
        batch = (self.cfg.get('train_dataloader') or {}).get('batch_size', 1)
        crop = _crop(self.cfg) if 'train_dataloader' in splits else None
        if crop is not None and self.network.maps:
            where, size = crop
            if least := self._least(size):
                self.findings.add(
                    'error', 'fit', where, f'got {size[0]} x {size[1]} (height x width), {least}'
                )
            elif batch == 1 and int(os.environ.get('WORLD_SIZE', 1)) == 1:
                self._batch_norm(size)
        others = [split for split in splits if images and split != 'train_dataloader']
        seen = []
        for split, dataset in datasets(self.cfg, others):
            if dataset not in seen:  # that of the test is often that of the validation
                seen.append(dataset)
                self._smallest(split, dataset)

    def _run(self, size: tuple[int, int], training: bool = False) -> Network:
        known = self.network
        again = Network(known.place, known.backbone, known.neck, known.module)
        with building(self.cfg.get('default_scope'), str(self.device)):
            run(again, torch.zeros(1, known.in_channels, *size), training)
        return again

    def _least(self, size: tuple[int, int]) -> str:
        """Say what is needed where images of this size, height and width, are too small; else nothing."""
        if min(size) >= SURE or not (failed := self._new_failures(size)):
            return ''
        least = next((n for n in TRIED if not self._new_failures((n, n))), None)
        if least is None:
            return ''
        part, error = next(iter(failed.items()))
        text = ' '.join(message(error).split()).partition(':')[0]
        return f'needs at least {least} x {least}: model.{part} stops at {type(error).__name__}: {text}'

    def _new_failures(self, size: tuple[int, int]) -> dict[str, Exception]:
        """Return the errors that images of a size cause, and large ones do not."""
        failures = self._run(size).failures
        return {part: error for part, error in failures.items() if part not in self.network.failures}

    def _smallest(self, split: str, dataset: dict) -> None:
        """Report the smallest image of a dataset if the network cannot take it, as the pipeline leaves it."""
        found = _smallest_image(dataset)
        if found is None:
            return
        built, index, file, number = found
        try:
            inputs = built[index]['inputs']
        except Exception:  # what is wrong with the file or the pipeline is reported elsewhere
            return
        inputs = inputs[0] if isinstance(inputs, (list, tuple)) else inputs  # of several views
        size = _padded(self.cfg, inputs.shape[-2:])
        if least := self._least(size):
            self.findings.add(
                'error',
                'fit',
                split,
                f'the smallest of {number} images is {size[0]} x {size[1]} (height x width) where it reaches '
                f'the network, {least}; set model.data_preprocessor.test_cfg=dict(size_divisor=32), or '
                'enlarge it by Resize',
                [file],
            )

    def _batch_norm(self, size: tuple[int, int]) -> None:
        """Report batch norms that see one value of each channel in training, which has no variance."""
        seen = {}

        def note(place: str, layer: nn.Module, args: tuple) -> None:
            if layer.training and args[0].numel() == args[0].shape[1]:
                seen.setdefault(place, args[0].shape[1])

        handles = [
            part.register_forward_pre_hook(lambda layer, args, place=place: note(place, layer, args))
            for place, part in self.measured.model.named_modules()
            if isinstance(part, BATCH_NORMS)
        ]
        self._run(size, training=True)
        for handle in handles:
            handle.remove()
        for place, channels in seen.items():
            found = owner(self.cfg, place, 'norm_cfg')
            key, kind = (found[0], type_name(found[1]['norm_cfg'])) if found else ('the head', 'BN')
            several = 'Sync' in kind  # of several processes it would be enough
            self.findings.add(
                'warning' if several else 'error',
                'batch_norm',
                'train_dataloader.batch_size',
                f'got 1, needs at least 2: the batch norm {place} has one value of each channel'
                f'{", in a single process," if several else ""} and so no variance; or set {key}.norm_cfg='
                f"dict(type='GN', num_groups={math.gcd(channels // 2, 32)})",
            )
            return


def _crop(cfg: Config) -> tuple[str, tuple[int, int]] | None:
    """Return key, height and width of the images that a segmenter is trained on; ``None`` if they vary."""
    size, where = (cfg.model.get('data_preprocessor') or {}).get('size'), 'model.data_preprocessor.size'
    if size is None:
        for split, dataset in datasets(cfg, ('train_dataloader',)):
            for step in dicts(dataset.get('pipeline')):
                if type_name(step) == 'RandomCrop' and step.get('crop_size'):
                    where, size = f'{split}.dataset.pipeline: RandomCrop.crop_size', step['crop_size']
    size = (size, size) if isinstance(size, int) else size
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(n, int) for n in size):
        return None
    return where, tuple(size)


def _padded(cfg: Config, size) -> tuple[int, int]:
    """Return height and width of a test image after the padding of the preprocessor."""
    given = (cfg.model.get('data_preprocessor') or {}).get('test_cfg') or {}
    height, width = map(int, size)
    if divisor := given.get('size_divisor'):
        height, width = (-(-n // divisor) * divisor for n in (height, width))
    elif least := given.get('size'):
        height, width = (max(n, m) for n, m in zip((height, width), least))
    return height, width


def _smallest_image(dataset: dict) -> tuple | None:
    """Return the dataset, index, file and number of images of the smallest image among some hundred."""
    root = str(dataset.get('data_root') or '')
    kind = class_of(dataset, DATASETS)
    if '://' in root or dataset.get('backend_args') or not isinstance(kind, type) or not Path(root).is_dir():
        return None
    try:
        built = DATASETS.build(dict(dataset, type=improve(kind), serialize_data=False))
        indices = list(range(len(built)))
        random.Random(0).shuffle(indices)
        files = {index: built.get_data_info(index)['img_path'] for index in indices[:HEADERS]}
        sizes = {index: min(header(file).upright) for index, file in files.items()}
    except Exception:  # what is wrong with a dataset is reported elsewhere
        return None
    if not sizes:
        return None
    index = min(sizes, key=sizes.get)
    return built, index, files[index], len(built)
