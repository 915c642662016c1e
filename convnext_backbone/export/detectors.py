"""Computes by tensors alone what a detector of mmdet predicts, so that it can be exported as a whole.

The networks are the model's own modules; proposals, non-maximum suppression and the choice of levels, which
mmdet computes in Python that looks at values, are written here anew. The numbers are those of ``test_cfg``.
Batches hold one image: of several, each has another number of objects.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..errors import UserError

WIDEST = 16 / 1000  # mmdet's constant: a box grows to its inverse and shrinks to it at most, on each axis
WHOLE = (
    'as a whole Faster, Mask and Cascade R-CNN are exported, and detectors with one dense head that predicts '
    'as RetinaNet, FCOS and ATSS do; --part backbone exports the backbone of any'
)


class DetectorNetwork(nn.Module):
    """Computes boxes, scores, labels and masks of the objects in one image.

    Boxes, scores and suppression are computed in float32 whatever the type of the weights.

    Args:
        model: a detector of mmdet, in evaluation mode.

    Raises:
        UserError: it predicts in another way than the heads that are known here.

    ``min_score``, the least score of an object, is a buffer, and so an initializer of that name in an ONNX
    file.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if reason := _why_not(model):
            raise UserError(f'{type(model).__name__}: {reason}; {WHOLE}')
        self.model = model
        self.two_stages = hasattr(model, 'roi_head')
        self.cfg = (model.roi_head if self.two_stages else model.bbox_head).test_cfg
        self.has_masks = self.two_stages and model.roi_head.with_mask
        self.outputs = ['boxes', 'scores', 'labels'] + ['masks'] * self.has_masks
        self.register_buffer('min_score', torch.tensor(float(self.cfg.get('score_thr', 0))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the objects in an image, best first.

        Args:
            images: (1, 3, H, W), normalised; it is padded to the divisor of the model here.

        Returns:
            boxes (n, 4), x1 y1 x2 y2 in pixels of the input; scores (n,) in [0, 1]; labels (n,), int64; with
            a mask head masks (n, S, S), the probability of the object at S x S places of its box.
        """
        size = images.shape[-2:]
        maps = self.model.extract_feat(self._padded(images))
        if not self.two_stages:
            return self._dense(maps, size)
        boxes, scores, labels = self._regions(maps, self._proposals(maps, size), size)
        return (boxes, scores, labels, self._masks(maps, boxes, labels))[: len(self.outputs)]

    def _padded(self, images: Tensor) -> Tensor:
        """Return the image in the type of the weights, filled up at the right and at the bottom."""
        preprocessor = self.model.data_preprocessor
        divisor = preprocessor.pad_size_divisor
        # of positive numbers only: ONNX rounds a quotient towards zero
        bottom, right = ((side + divisor - 1) // divisor * divisor - side for side in images.shape[-2:])
        images = F.pad(images, (0, right, 0, bottom), value=float(preprocessor.pad_value))
        return images.to(next(self.model.parameters()).dtype)

    def _dense(self, maps: Sequence[Tensor], size) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the one dense head finds."""
        head = self.model.bbox_head
        scores, factors, labels, _, boxes = _candidates(head, maps, self.cfg.get('nms_pre', -1), size)
        kept = (scores > self.min_score).nonzero().squeeze(1)
        boxes, scores, labels = boxes[kept], (scores * factors)[kept], labels[kept]
        return _suppress(boxes, scores, labels, self.cfg)

    def _proposals(self, maps: Sequence[Tensor], size) -> Tensor:
        """Return the boxes (n, 4) that the RPN proposes."""
        head = self.model.rpn_head
        scores, _, _, levels, boxes = _candidates(head, maps, head.test_cfg.get('nms_pre', -1), size)
        return _suppress(boxes, scores, levels, head.test_cfg)[0]

    def _regions(self, maps: Sequence[Tensor], boxes: Tensor, size) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objects that the box heads find in proposals, one head after the other in a cascade."""
        heads, extractors = _stages(self.model.roi_head, 'bbox')
        boxes, total = _and_one(boxes), 0
        for stage, (head, extractor) in enumerate(zip(heads, extractors)):
            features = _features(extractor, maps, boxes)
            logits, deltas = (out.float() for out in head(features.to(maps[0].dtype)))
            deltas = deltas.view(boxes.shape[0], -1, 4)  # (n, classes or 1, 4)
            total = total + logits
            if stage < len(heads) - 1:
                best = logits[:, :-1].argmax(1)
                boxes = _decode(head.bbox_coder, boxes, _of_class(deltas, best), size)
        scores = (total / len(heads)).softmax(-1)[:-1, :-1]
        place, labels = (scores > self.min_score).nonzero().unbind(1)
        boxes = _decode(heads[-1].bbox_coder, boxes[place], _of_class(deltas[place], labels), size)
        return _suppress(boxes, scores[place, labels], labels, self.cfg)

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor | None:
        """Return the masks (n, S, S), of a cascade the mean of its heads; ``None`` without a mask head."""
        if not self.has_masks:
            return None
        heads, extractors = _stages(self.model.roi_head, 'mask')
        boxes, labels, total = _and_one(boxes), _and_one(labels), 0
        for head, extractor in zip(heads, extractors):
            logits = head(_features(extractor, maps, boxes).to(maps[0].dtype)).float()
            total = total + _of_class(logits, labels).sigmoid()
        return (total / len(heads))[:-1]


def _and_one(values: Tensor) -> Tensor:
    """Return (n, ...) with a row of zeros behind: a group norm of nothing is an error in onnxruntime."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])


def _stages(roi_head: nn.Module, kind: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the heads of a kind and their extractors, of a cascade one for each stage."""
    parts = (getattr(roi_head, f'{kind}_{part}') for part in ('head', 'roi_extractor'))
    heads, extractors = (list(part) if isinstance(part, nn.ModuleList) else [part] for part in parts)
    return heads, extractors


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """Return from (n, classes or 1, ...) what belongs to the class of each, (n, ...)."""
    if values.shape[1] == 1:
        return values[:, 0]
    return values[torch.arange(values.shape[0], device=values.device), labels]


def _candidates(head: nn.Module, maps: Sequence[Tensor], nms_pre: int, size) -> tuple[Tensor, ...]:
    """Return the best ``nms_pre`` places of each level, for all levels together.

    Returns:
        scores (k,), what they are to be multiplied by (k,), classes (k,), levels (k,) and boxes (k, 4).
    """
    logits, deltas, *factors = head(maps)
    priors = head.prior_generator.grid_priors(
        [each.shape[-2:] for each in logits], dtype=torch.float32, device=logits[0].device
    )
    found = []
    for level, own in enumerate(priors):
        scores = _flat(logits[level], head.cls_out_channels)
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
        classes = scores.shape[1]
        scores = scores.flatten()
        most = torch.sym_min(nms_pre, scores.shape[0]) if nms_pre > 0 else scores.shape[0]
        scores, index = scores.topk(most)
        place = index // classes
        factor = _flat(factors[0][level], 1)[place, 0].sigmoid() if factors else torch.ones_like(scores)
        levels = torch.full_like(index, level)
        found.append((scores, factor, index % classes, levels, own[place], _flat(deltas[level], 4)[place]))
    *known, priors, deltas = (torch.cat(each) for each in zip(*found))
    return *known, _decode(head.bbox_coder, priors, deltas, size)


def _flat(values: Tensor, channels: int) -> Tensor:
    """Return (1, A * channels, H, W) as (H * W * A, channels) in float32."""
    return values[0].float().permute(1, 2, 0).reshape(-1, channels)


def _decode(coder, priors: Tensor, deltas: Tensor, size) -> Tensor:
    """Return the boxes (n, 4) of what a head predicted, within the image of ``size`` (height, width).

    Args:
        coder: of mmdet: offsets to boxes, or distances from points to the sides.
        priors: (n, 4) boxes or (n, 2) points.
        deltas: (n, 4).
    """
    if priors.shape[1] == 2:
        boxes = torch.cat([priors - deltas[:, :2], priors + deltas[:, 2:]], 1)
    else:
        deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
        centre, sides = (priors[:, :2] + priors[:, 2:]) * 0.5, priors[:, 2:] - priors[:, :2]
        most = abs(float(torch.tensor(WIDEST, dtype=torch.float64).log()))
        centre = centre + sides * deltas[:, :2]
        half = sides * deltas[:, 2:].clamp(-most, most).exp() * 0.5
        boxes = torch.cat([centre - half, centre + half], 1)
    if not coder.clip_border:
        return boxes
    x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return torch.stack([x, y], 2).flatten(1)


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, cfg) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and groups without those that overlap with a better one of their group.

    As mmdet does it: boxes that are too small go first; groups are moved apart by more than the image.
    """
    least = cfg.get('min_bbox_size', -1)
    if least >= 0:
        kept = ((boxes[:, 2:] - boxes[:, :2]) > least).all(1).nonzero().squeeze(1)
        boxes, scores, groups = boxes[kept], scores[kept], groups[kept]
    apart = boxes
    if not cfg.nms.get('class_agnostic', False):
        largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # there may be none
        apart = boxes + (groups.to(boxes.dtype) * (largest + 1))[:, None]
    kept = torchvision.ops.nms(apart, scores, float(cfg.nms.get('iou_threshold', cfg.nms.get('iou_thr'))))
    kept = kept[: cfg.max_per_img] if cfg.max_per_img > 0 else kept
    return boxes[kept], scores[kept], groups[kept]


def _features(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return the features (n, C, S, S) of boxes in float32, each from the map that fits its size."""
    rois = F.pad(boxes, (1, 0))  # of image 0
    maps = [each.float() for each in maps[: extractor.num_inputs]]
    layers = list(zip(extractor.roi_layers, maps))
    if len(layers) == 1:
        return _aligned(*layers[0], rois)
    levels = extractor.map_roi_levels(rois, len(maps))
    features = rois.new_zeros(rois.shape[0], extractor.out_channels, *extractor.roi_layers[0].output_size)
    for level, (layer, own) in enumerate(layers):
        which = (levels == level).nonzero().squeeze(1)
        features = features.index_put((which,), _aligned(layer, own, rois[which]))
    return features


def _aligned(layer: nn.Module, map: Tensor, rois: Tensor) -> Tensor:
    return torchvision.ops.roi_align(
        map, rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
    )


def _why_not(model: nn.Module) -> str:
    """Return in what a detector differs from those that are computed here; empty if in nothing."""
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector

    if isinstance(model, TwoStageDetector) and type(model).predict is TwoStageDetector.predict:
        return _why_not_two_stages(model)
    if isinstance(model, SingleStageDetector) and type(model).predict is SingleStageDetector.predict:
        return _why_not_dense(model.bbox_head)
    return 'it predicts in a way of its own'


def _why_not_dense(head: nn.Module) -> str:
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    steps = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    if any(getattr(type(head), step, None) is not getattr(BaseDenseHead, step) for step in steps):
        return f'{type(head).__name__} predicts in a way of its own'
    return _why_not_head(head, head.test_cfg)


def _why_not_two_stages(model: nn.Module) -> str:
    from mmcv.ops import RoIAlign
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    roi_head = model.roi_head
    if not model.with_rpn or type(model.rpn_head) is not RPNHead:
        return "its proposals do not come from mmdet's RPNHead"
    if type(roi_head) not in (StandardRoIHead, CascadeRoIHead) or roi_head.with_shared_head:
        return f'{type(roi_head).__name__} is another than StandardRoIHead and CascadeRoIHead'
    kinds = ['bbox', 'mask'] if roi_head.with_mask else ['bbox']
    for head, extractor in (pair for kind in kinds for pair in zip(*_stages(roi_head, kind))):
        layers = extractor.roi_layers
        if type(extractor) is not SingleRoIExtractor or type(layers[0]) is not RoIAlign:
            return f'{type(extractor).__name__} is another than SingleRoIExtractor with RoIAlign'
        if layers[0].pool_mode != 'avg':
            return 'RoIAlign takes the largest value, not the mean'
        if isinstance(head, BBoxHead):
            predicts = type(head)._predict_by_feat_single
            if (
                predicts is not BBoxHead._predict_by_feat_single
                or head.custom_activation
                or not head.with_reg
            ):
                return f'{type(head).__name__} predicts in a way of its own'
            if reason := _why_not_coder(head.bbox_coder):
                return reason
        elif type(head) is not FCNMaskHead:
            return f'{type(head).__name__} is another than FCNMaskHead'
    return _why_not_head(model.rpn_head, model.rpn_head.test_cfg) or _why_not_nms(roi_head.test_cfg)


def _why_not_head(head: nn.Module, cfg) -> str:
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        return f'the loss {type(head.loss_cls).__name__} has scores of its own'
    return _why_not_coder(head.bbox_coder) or _why_not_nms(cfg)


def _why_not_coder(coder) -> str:
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder

    if type(coder) not in (DeltaXYWHBBoxCoder, DistancePointBBoxCoder) or getattr(
        coder, 'add_ctr_clamp', False
    ):
        return f'{type(coder).__name__} is another than DeltaXYWHBBoxCoder and DistancePointBBoxCoder'
    return ''


def _why_not_nms(cfg) -> str:
    nms = cfg.get('nms')
    known = {'type', 'iou_threshold', 'iou_thr', 'class_agnostic', 'split_thr'}
    if not nms or nms.get('type', 'nms') != 'nms' or set(nms) - known:
        return (
            f'nms={dict(nms) if nms else nms} of test_cfg is another than dict(type="nms", iou_threshold=...)'
        )
    return ''
