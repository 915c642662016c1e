"""Finds the class of each pixel of an image, without a score of every class for every pixel at once.

mmseg enlarges the scores to the size of the image, and keeps them: of 150 classes and a photo of 12
megapixels 7 GiB. Strips of rows are enough to find the largest score.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bilinear import matrix, window
from .change import computes_as

DEVICES = ('cpu', 'cuda')
METHODS = (
    'test_step',
    'forward',
    'predict',
    'inference',
    'slide_inference',
    'whole_inference',
    'postprocess_result',
)
STRIP = 2**23  # numbers in a strip of rows


@torch.no_grad()
def predict_classes(model: nn.Module, data: dict) -> list:
    """Return the data samples of ``model.test_step(data)``, those of a segmenter without ``seg_logits``.

    A segmenter that predicts in another way than mmseg's does what it does.

    Args:
        model: of mmdet or mmseg.
        data: a batch, ``inputs`` and ``data_samples``.
    """
    if not _is_usual(model) or not data.get('data_samples'):
        return model.test_step(data)
    from mmengine.structures import PixelData

    data = model.data_preprocessor(data, False)
    samples = data['data_samples']
    scores = _scores(model, data['inputs'], [sample.metainfo for sample in samples])
    for sample, own in zip(samples, scores, strict=True):
        classes = classes_of(_upright(own, sample), sample.ori_shape[:2], model.align_corners)
        sample.pred_sem_seg = PixelData(data=classes[None])
    return samples


def _is_usual(model: nn.Module) -> bool:
    usual = computes_as(model, 'mmseg.models.segmentors.EncoderDecoder', *METHODS)
    return usual and model.out_channels > 1 and next(model.parameters()).device.type in DEVICES


def _scores(model: nn.Module, images: Tensor, metas: list[dict]) -> Tensor:
    """Return what ``model.inference`` does, (N, K, H, W); of windows each is added where it lies."""
    cfg = model.test_cfg
    if cfg.get('mode', 'whole') == 'whole' or any(s > c for s, c in zip(cfg.stride, cfg.crop_size)):
        return model.inference(images, metas)  # which says that windows leave gaps
    rows, columns = (
        [min(k * step, max(side - crop, 0)) for k in range(-(-max(side - crop, 0) // step) + 1)]
        for side, crop, step in zip(images.shape[2:], cfg.crop_size, cfg.stride)
    )
    high, wide = cfg.crop_size
    total, times = None, images.new_zeros(images.shape[2:])
    for y, x in itertools.product(rows, columns):
        place = slice(y, y + high), slice(x, x + wide)
        part = images[:, :, *place]
        metas[0]['img_shape'] = part.shape[2:]  # as mmseg does; a torch.Size is the size of the scores
        scores = model.encode_decode(part, metas)
        if part.shape == images.shape:
            return scores
        if total is None:
            total = images.new_zeros(len(images), scores.shape[1], *images.shape[2:])
        total[:, :, *place] += scores
        times[place] += 1
    return total.div_(times)


def _upright(scores: Tensor, sample) -> Tensor:
    """Return scores without a border and not mirrored, as ``BaseSegmentor.postprocess_result`` does."""
    left, right, top, bottom = sample.get('img_padding_size', sample.get('padding_size', [0] * 4))
    height, width = scores.shape[1:]
    scores = scores[:, top : height - bottom, left : width - right]
    if not sample.get('flip'):
        return scores
    return scores.flip(dict(horizontal=2, vertical=1)[sample.flip_direction])


def classes_of(scores: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return the number of the highest score of each pixel, (height, width).

    Args:
        scores: (K, h, w).
        size: height and width to which scores are resized.
        align_corners: see ``torch.nn.functional.interpolate``; bilinear.
    """
    (classes, height, _), (high, wide), found = scores.shape, size, []
    if scores.shape[1:] == torch.Size(size):
        return scores.max(0).indices
    rows = max(1, STRIP // (classes * wide))
    for first in range(0, high, rows):
        line = first, min(high, first + rows), height, high, align_corners
        used = window(*line)
        part = scores[None, :, used].to(torch.promote_types(scores.dtype, torch.float32))
        part = F.interpolate(part, (part.shape[2], wide), mode='bilinear', align_corners=align_corners)[0]
        with torch.autocast(part.device.type, enabled=False):
            found.append((matrix(*line)[:, used].to(part) @ part).max(0).indices)
    return torch.cat(found)
