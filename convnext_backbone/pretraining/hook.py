"""Shows what a masked autoencoder makes of images."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..registry import HOOKS


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Writes ``reconstructions/epoch_N.png`` into the work dir: images, what is visible, what was predicted.

    The images are those of the last batch of an epoch, the hidden patches the same in every epoch.

    Args:
        interval: epochs between two pictures.
        images: number of rows.
    """

    def __init__(self, interval: int = 1, images: int = 8):
        self.interval, self.images = interval, images
        self._batch = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keep the last batch."""
        self._batch = data_batch

    def after_train_epoch(self, runner) -> None:
        """Write the picture; every process computes one, since each may have a part of the parameters."""
        if not self.every_n_epochs(runner, self.interval) or self._batch is None:
            return
        model = runner.unwrapped_model
        images = model.data_preprocessor(self._batch, False)['inputs'][: self.images].float()
        model.eval()
        with torch.random.fork_rng([images.device] * images.is_cuda):  # the training draws as without it
            torch.manual_seed(0)
            found, seen = model(images)
        model.train()
        if not is_main_process():
            return
        rows = torch.cat([images, seen, found], 3).permute(0, 2, 3, 1).cpu().numpy()
        transform = runner.train_dataloader.dataset.transform
        mean, std = (np.ravel(value) for value in _normalisation(transform))
        picture = np.concatenate(list(rows * std + mean))
        picture = (picture.clip(0, 1) * 255).round().astype(np.uint8)
        file = Path(runner.work_dir, 'reconstructions', f'epoch_{runner.epoch + 1}.png')
        file.parent.mkdir(exist_ok=True)
        if not cv2.imwrite(str(file), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
            runner.logger.warning(f'{file} cannot be written: no picture of epoch {runner.epoch + 1}')


def _normalisation(transform) -> tuple:
    """Return mean and deviation of the step that normalises, 0 and 1 if there is none."""
    for step in getattr(transform, 'transforms', ()):
        if hasattr(step, 'mean') and hasattr(step, 'std'):
            return np.asarray(step.mean), np.asarray(step.std)
    return np.zeros(3), np.ones(3)
