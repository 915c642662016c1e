"""Measures the time of the parts of a step, forward and backward, each without the parts inside it."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

REST = 'rest'
# Methods that make up a part, of detectors and segmenters of OpenMMLab and of torchvision's detector.
PARTS = {
    'data_preprocessor.forward': 'pre-processing',
    'transform.forward': 'pre-processing',
    'backbone.forward': 'backbone',
    'backbone.body.forward': 'backbone',
    'neck.forward': 'neck',
    'backbone.fpn.forward': 'neck',
    'rpn_head.forward': 'RPN',
    'rpn.head.forward': 'RPN',
    'rpn_head.predict_by_feat': 'proposals',
    'rpn.filter_proposals': 'proposals',
    'roi_head.bbox_roi_extractor.forward': 'RoI operators',
    'roi_head.mask_roi_extractor.forward': 'RoI operators',
    'roi_heads.box_roi_pool.forward': 'RoI operators',
    'roi_heads.mask_roi_pool.forward': 'RoI operators',
    'roi_head.bbox_head.forward': 'heads',
    'roi_head.mask_head.forward': 'heads',
    'roi_heads.box_head.forward': 'heads',
    'roi_heads.box_predictor.forward': 'heads',
    'roi_heads.mask_head.forward': 'heads',
    'roi_heads.mask_predictor.forward': 'heads',
    'decode_head.forward': 'heads',
    'auxiliary_head.forward': 'heads',
    'rpn_head.loss_by_feat': 'targets and losses',
    'rpn.assign_targets_to_anchors': 'targets and losses',
    'rpn.compute_loss': 'targets and losses',
    'roi_heads.select_training_samples': 'targets and losses',
    'roi_head.bbox_assigner.assign': 'targets and losses',
    'roi_head.bbox_sampler.sample': 'targets and losses',
    'roi_head.bbox_head.loss_and_target': 'targets and losses',
    'roi_head.mask_head.loss_and_target': 'targets and losses',
    'decode_head.loss_by_feat': 'targets and losses',
    'auxiliary_head.loss_by_feat': 'targets and losses',
    'roi_head.bbox_head.predict_by_feat': 'results',
    'roi_head.mask_head.predict_by_feat': 'results',
    'roi_heads.postprocess_detections': 'results',
    'transform.postprocess': 'results',
    'decode_head.predict_by_feat': 'results',
    'postprocess_result': 'results',
}
NAMES = (*dict.fromkeys(PARTS.values()), 'optimizer', REST)


def tensors(outputs) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list, dict)):
        for each in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(each)


class Stopwatch:
    """Adds up seconds by part.

    The backward pass runs node by node, the last made first: each node belongs to the part that made it. On
    CUDA the device is waited for wherever a part begins or ends, so that the sum is more than a step takes.

    Attributes:
        forward, backward: seconds by part.
    """

    def __init__(self, device: str):
        self.device = device
        self.forward: dict[str, float] = defaultdict(float)
        self.backward: dict[str, float] = defaultdict(float)
        self._open, self._since = [REST], 0.0
        self._nodes: dict[Node, str] = {}

    def start(self) -> None:
        """Begin to count, for what no part claims."""
        self._lap()

    def _lap(self) -> float:
        if self.device == 'cuda':
            torch.cuda.synchronize()
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def during(self, part: str, work: Callable):
        """Call ``work``, count its time for ``part``, and return what it returns."""
        self.forward[self._open[-1]] += self._lap()
        self._open.append(part)
        try:
            outputs = work()
        finally:
            self.forward[self._open.pop()] += self._lap()
        self._claim(outputs, part)
        self._lap()
        return outputs

    def _claim(self, outputs, part: str) -> None:
        """Note that the nodes behind ``outputs`` are of ``part``, as far as no other has them."""
        waiting = [tensor.grad_fn for tensor in tensors(outputs)]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._nodes or node.name().endswith('AccumulateGrad'):
                continue
            self._nodes[node] = part
            waiting.extend(before for before, _ in node.next_functions)

    def run_backward(self, loss: Tensor) -> None:
        """Run the backward pass and count the time of each part."""
        self.forward[REST] += self._lap()
        self._claim(loss, REST)
        current = [REST]

        def turn(part: str, gradients) -> None:
            self.backward[current[0]] += self._lap()
            current[0] = part

        hooks = [node.register_prehook(functools.partial(turn, part)) for node, part in self._nodes.items()]
        self._lap()
        loss.backward()
        self.backward[current[0]] += self._lap()
        for hook in hooks:
            hook.remove()
        self._nodes.clear()


def parts_of(model: nn.Module, device: str, step: Callable[[Stopwatch], None]) -> dict[str, list[float]]:
    """Return milliseconds by part of a step: forward and backward.

    Args:
        model: whose methods are those of :data:`PARTS`; it stays as it is.
        step: runs it; it is given the stopwatch for the backward pass and the optimizer.
    """
    watch, changed = Stopwatch(device), []
    for path, part in PARTS.items():
        *owners, method = path.split('.')
        owner = model
        for name in owners:
            owner = getattr(owner, name, None)
        if not hasattr(owner, method) or method in vars(owner):
            continue
        setattr(owner, method, functools.partial(_timed, watch, part, getattr(owner, method)))
        changed.append((owner, method))
    try:
        watch.start()
        step(watch)
        watch.forward[REST] += watch._lap()
    finally:
        for owner, method in changed:
            delattr(owner, method)
    found = {name: [watch.forward[name] * 1000, watch.backward[name] * 1000] for name in NAMES}
    return {name: both for name, both in found.items() if sum(both)}


def _timed(watch: Stopwatch, part: str, method: Callable, *args, **kwargs):
    return watch.during(part, lambda: method(*args, **kwargs))
