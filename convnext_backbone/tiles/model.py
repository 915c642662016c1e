"""Evaluates a model by tiles: the data gives whole images, the model cuts them up and joins what it finds."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ALL_MODELS

from ..registry import MODELS
from . import loaded, predict_by_tiles, threshold_of
from .grid import Tiling
from .masks import rle
from .source import Pixels


@MODELS.register_module()
class TiledModel(BaseModel):
    """Predicts by tiles with a detector or a segmenter; for evaluation only.

    Args:
        module: config of the model.
        pipeline: configs of the steps after an image is loaded, for each tile.
        tile, overlap: see :class:`~convnext_backbone.tiles.Tiling`.
    """

    def __init__(self, module: dict, pipeline: list[dict], tile: int, overlap: float):
        super().__init__()
        self.module = ALL_MODELS.build(module)
        self.pipeline, self.tiling = Compose(pipeline), Tiling(tile, overlap)

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """Pass on to the model itself."""
        return self.module(inputs, data_samples, mode)

    def test_step(self, data: dict) -> list:
        """Return the data samples of whole images.

        Args:
            data: ``inputs`` (channels, H, W) of each image as it was loaded, and ``data_samples``.
        """
        threshold, found = threshold_of(self.module), []
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
            whole = predict_by_tiles(self._predict, Pixels(pixels), self.tiling, threshold)
            sample = sample.cpu()
            if 'pred_sem_seg' in whole:
                sample.pred_sem_seg = whole.pred_sem_seg
            else:
                objects = whole.pred_instances
                if 'masks' in objects:
                    objects.masks = [rle(mask) for mask in objects.masks]
                sample.pred_instances = objects
            found.append(sample)
        return found

    @torch.no_grad()
    def _predict(self, images: Sequence[np.ndarray]) -> list:
        """Return the data sample of each tile."""
        return self.module.test_step(pseudo_collate([self.pipeline(loaded(image)) for image in images]))
