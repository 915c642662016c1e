"""Trains a model for one step on made-up data of the kind that it takes: does the whole of it work?"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData, PixelData
from torch import nn

from ..config import datasets, num_classes, task_of
from ..config.keys import dicts
from ..errors import UserError, message
from ..registry import type_name
from .build import build_model, building
from .maps import side_of_anchors

SIDES = (128, 256)  # pixels; the second for models that choose more queries than small maps have positions
OBJECTS = 4  # in each image
REGIONS = 32  # of an image that heads are trained on
FRAMES = 2  # of a video
SEMI_BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')
TEXT = 'circle . square .'  # for models that read what they are to find


@dataclass(frozen=True)
class Trial:
    """Holds what one training step gave.

    Attributes:
        losses: by name, as the log shows them.
        without_gradient: trainable parameters that received none; as ``DistributedDataParallel`` refuses.
        not_finite: parameters whose gradient has an infinity or NaN.
    """

    losses: dict[str, float]
    without_gradient: tuple[str, ...]
    not_finite: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Return whether all losses and gradients are finite."""
        return not self.not_finite and all(map(math.isfinite, self.losses.values()))


def try_training(cfg: Config, images: int = 2, seed: int = 0) -> Trial:
    """Build the model of a config on the CPU, without its weights, and train it one step on made-up data.

    Args:
        cfg: any config with a ``model`` of mmdet or mmseg; it stays as it is.
        images: of the batch.
        seed: of data and weights.

    Raises:
        UserError: the model cannot be built or trained so; one line with the reason.
    """
    for side in [*filter(None, [side_of_anchors(cfg)]), *SIDES]:
        torch.manual_seed(seed)
        try:
            light = _lightened(cfg, side)
            model = build_model(light, 'cpu')
            with building(cfg.get('default_scope'), 'cpu'):
                model.init_weights()
                return train_step(model, make_batch(light, side, images, seed))
        except Exception as error:  # whatever a network raises
            failed = error
    text = ' '.join(message(failed).split())
    raise UserError(f'one step of {type_name(cfg.model)}: {type(failed).__name__}: {text}') from failed


def train_step(model: nn.Module, data: dict) -> Trial:
    """Compute losses and gradients of a batch; the parameters stay as they are.

    Args:
        model: of mmdet or mmseg.
        data: as :func:`make_batch` returns it, or a data loader.
    """
    hub = MessageHub.get_current_instance()
    if hub.get_info('iter') is None:  # some losses warm up by it (BoxInst)
        hub.update_info('iter', 0)
    model.train()
    model.zero_grad(set_to_none=True)
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, named = model.parse_losses(losses)
    total.backward()
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return Trial(
        {name: float(value) for name, value in named.items()},
        tuple(name for name, p in trainable if p.grad is None),
        tuple(name for name, p in trainable if p.grad is not None and not p.grad.isfinite().all()),
    )


def make_batch(
    cfg: Config,
    side: int | tuple[int, int] = SIDES[0],
    images: int = 2,
    seed: int = 0,
    objects: int = OBJECTS,
) -> dict:
    """Return made-up data as a data loader gives it: ``inputs`` and ``data_samples``.

    Args:
        cfg: of the model that will read it; it decides what comes along: boxes and masks, label maps,
            proposals, videos, or the branches of semi-supervised training.
        side: height and width of the images, in pixels; one number if they are the same.
        images: of the batch, or videos.
        seed: of the random numbers.
        objects: in each image.
    """
    size = (side, side) if isinstance(side, int) else tuple(side)
    maker = _Maker(cfg, size, np.random.default_rng(seed), objects)
    kind = type_name(cfg.model.get('data_preprocessor') or {})
    if kind == 'TrackDataPreprocessor' and not cfg.model.data_preprocessor.get('use_det_processor'):
        return dict(inputs=[maker.video() for _ in range(images)], data_samples=maker.tracks(images))
    inputs = [maker.image() for _ in range(images)]
    samples = [maker.sample() for _ in range(images)]
    if kind == 'MultiBranchDataPreprocessor':
        return dict(
            inputs={branch: list(inputs) for branch in SEMI_BRANCHES},
            data_samples={branch: [sample.clone() for sample in samples] for branch in SEMI_BRANCHES},
        )
    return dict(inputs=inputs, data_samples=samples)


def _lightened(cfg: Config, side: int) -> Config:
    """Return a config whose preprocessing leaves the small images as small as they are."""
    light = Config(dict(model=copy.deepcopy(cfg.model), default_scope=cfg.get('default_scope')))
    light.with_masks = _loads_masks(cfg)
    for node in dicts(light.model):
        for part in (node, node.get('data_preprocessor')):
            if isinstance(part, dict) and type_name(part).endswith(('DataPreprocessor', 'DataPreProcessor')):
                part.pop('batch_augments', None)
                if part.get('size') is not None:
                    part['size'] = (side, side)
        if isinstance(node.get('num'), int) and type_name(node).endswith('Sampler'):
            node['num'] = min(node['num'], REGIONS)
    return light


def _loads_masks(cfg: Config) -> bool:
    """Return whether the training data has masks; also where the config does not say."""
    steps = [s for _, data in datasets(cfg, ('train_dataloader',)) for s in dicts(data.get('pipeline'))]
    given = [step.get('with_mask', False) for step in steps if type_name(step) == 'LoadAnnotations']
    return any(given) if given else True


class _Maker:
    """Makes images and what goes with them, for one model."""

    def __init__(self, cfg: Config, size: tuple[int, int], random: np.random.Generator, objects: int):
        self.model, self.size, self.random, self.objects = cfg.model, size, random, objects
        self.with_masks = cfg.get('with_masks', _loads_masks(cfg))
        nodes = dicts(cfg.model)
        things = [node['num_things_classes'] for node in nodes if node.get('num_things_classes')]
        counts = [n for _, n in num_classes(cfg.model, 'model') if isinstance(n, int)]
        self.classes = max(1, min([*counts, *things], default=1))
        means = [len(n['mean']) for n in nodes if isinstance(n.get('mean'), (list, tuple))]
        backbones = [n.get('in_channels') for n in nodes if type_name(n).startswith('convnext_backbone.')]
        given = [n for n in backbones if isinstance(n, int)] or [n for n in means if n != 1]
        self.channels = given[0] if given else 3

    def image(self) -> torch.Tensor:
        """Return an image, (channels, height, width), uint8."""
        shape = (self.channels, *self.size)
        return torch.from_numpy(self.random.integers(0, 256, shape, dtype=np.uint8))

    def video(self) -> torch.Tensor:
        """Return a video, (frames, channels, height, width), uint8."""
        return torch.stack([self.image() for _ in range(FRAMES)])

    def _info(self) -> dict:
        size = self.size
        return dict(
            img_id=0,
            img_path='made-up',
            ori_shape=size,
            img_shape=size,
            pad_shape=size,
            batch_input_shape=size,
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=(0, 0, 0, 0),
            homography_matrix=np.eye(3, dtype=np.float32),
            text=TEXT,
            custom_entities=True,
        )

    def sample(self):
        """Return what goes with an image: boxes and masks of a detector, the label map of a segmenter."""
        if task_of(self.model) == 'segmentation':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=self._info())
            sample.gt_sem_seg = PixelData(data=self._labels(self.size))
            sample.gt_edge_map = PixelData(data=self._labels(self.size).clamp(max=1))
            sample.gt_depth_map = PixelData(data=torch.rand(1, *self.size))
            return sample
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo=self._info())
        sample.gt_instances = self._objects()
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        fused = (self.model.get('roi_head') or {}).get('semantic_head')
        sample.gt_sem_seg = PixelData(
            sem_seg=self._labels(tuple(n // 8 for n in self.size) if fused else self.size)
        )
        if self.model.get('roi_head') and not self.model.get('rpn_head'):
            boxes = torch.cat([sample.gt_instances.bboxes, self._boxes(16)])
            sample.proposals = InstanceData(bboxes=boxes, scores=torch.rand(len(boxes)))
        return sample

    def tracks(self, videos: int) -> list:
        """Return what goes with videos: the same objects in every frame."""
        from mmdet.structures import TrackDataSample

        found = []
        for _ in range(videos):
            first = self.sample()
            first.gt_instances.instances_ids = torch.arange(self.objects)
            frames = [first.clone() for _ in range(FRAMES)]
            for number, frame in enumerate(frames):
                frame.set_metainfo(dict(frame_id=number))
            track = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
            track.video_data_samples = frames
            found.append(track)
        return found

    def _boxes(self, number: int) -> torch.Tensor:
        """Return boxes of at least a sixth of the image's sides: corners x1, y1, x2, y2 in pixels."""
        low = self.random.uniform(0, 0.5, (number, 2))
        size = self.random.uniform(1 / 6, 0.5, (number, 2))
        return torch.from_numpy(
            np.concatenate([low, low + size], 1) * (*self.size[::-1], *self.size[::-1])
        ).float()

    def _objects(self) -> InstanceData:
        from mmdet.structures.bbox import HorizontalBoxes
        from mmdet.structures.mask import BitmapMasks

        boxes = self._boxes(self.objects)
        masks = np.zeros((self.objects, *self.size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        labels = torch.arange(self.objects) % min(self.classes, 2)
        wrapped = any(node.get('use_box_type') for node in dicts(self.model))
        found = InstanceData(bboxes=HorizontalBoxes(boxes) if wrapped else boxes, labels=labels)
        if self.with_masks:
            found.masks = BitmapMasks(masks, *self.size)
        return found

    def _labels(self, size: tuple[int, int]) -> torch.Tensor:
        """Return a label map, (1, height, width), with rectangles of the first classes."""
        height, width = size
        labels = torch.zeros(1, height, width, dtype=torch.long)
        for number in range(1, min(self.classes, 4)):
            start = height * number // 5
            labels[:, start : start + height // 5, width // 4 :] = number
        return labels
