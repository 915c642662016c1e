"""Times whole training steps and predictions of a detector and of a segmenter around the backbones, in turn.

Mask R-CNN and UPerNet as published, with random weights: the same heads, the same weights, the same images;
only the backbone is another library's. Ours trains as ``convnext train`` does, see :mod:`..rpn`. All compute
mmcv's operators by :mod:`..mmcv_ops`, if no compiled ones are there. torchvision's own Mask R-CNN takes part,
too: another implementation around torchvision's backbone, whose losses are others.
"""

import contextlib
import copy
import gc
import importlib.util

import torch
from torch import Tensor, nn

from ..backbones import fuse_for_inference
from ..checkpoint.formats import from_released, released_names
from ..config import read_config
from ..heads import predict_classes, save_work
from ..measure import build_model, make_batch
from ..measure.build import building
from .backbones import TOLERANCE
from .cell import Cell
from .networks import OURS, PEERS
from .parts import parts_of
from .timing import describe, in_turn, kept_memory, peak_memory, standing

CONFIGS = dict(mask_rcnn='mask_rcnn_convnext_t_1x', upernet='upernet_convnext_t')
BATCH = dict(mask_rcnn=dict(cpu=1, cuda=2), upernet=dict(cpu=2, cuda=16))  # images; of the recipes on a GPU
OBJECTS = 8  # in an image; 7.3 in COCO
SHARPNESS = 1000.0  # factor on the weights of the box classifier; without it, no object passes the threshold
CHECKED = (256, 320)  # height and width of the images of which losses are compared
LOSS_TOLERANCE = 2e-3  # of a loss, relative, in float32: regions are chosen by scores
OTHER = 'torchvision Mask R-CNN'


class MapsWithNorms(nn.Module):
    """Adds to another library's backbone the output norms that the published models have, as ours does."""

    def __init__(self, backbone: nn.Module, channels: list[int]):
        super().__init__()
        from torchvision.models.convnext import LayerNorm2d

        self.backbone = backbone
        self.norms = nn.ModuleList(LayerNorm2d(n, eps=1e-6) for n in channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the four maps, (N, C, H, W), in NCHW memory."""
        return tuple(norm(m).contiguous() for norm, m in zip(self.norms, self.backbone(x)))


class Entrant:
    """Holds a model of OpenMMLab with one of the backbones, ready to be timed.

    Attributes:
        kept, peak: see :class:`..backbones.Contestant`.
    """

    def __init__(self, name: str, model: nn.Module, batch: dict):
        self.name, self.model, self.batch = name, model, batch
        self.kept = self.peak = None
        # Without a rate all weights, and so the regions that are found, stay those of the others.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.05, fused=True)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Return the losses of a batch by name; their sum is called ``loss``."""
        losses = self.model(**self.model.data_preprocessor(batch, True), mode='loss')
        total, named = self.model.parse_losses(losses)
        return {**{name: value for name, value in named.items() if 'loss' in name}, 'loss': total}

    def predict(self) -> None:
        """Predict on the batch."""
        if self.name in OURS:  # as our Predictor
            predict_classes(self.model, self.batch)
        else:
            self.model.test_step(self.batch)

    def prepare(self, cell: Cell) -> None:
        """Move the model to the cell's device and set its mode; ours folds its weights to predict."""
        self.cell = cell
        self.model.to(cell.device).train(cell.mode == 'training')
        if cell.mode == 'inference' and self.name in OURS:
            fuse_for_inference(self.model)

    def autocast(self):
        """Return the context of mixed precision if the cell asks for it, else one that does nothing."""
        if self.cell.precision != 'autocast':
            return contextlib.nullcontext()
        return torch.autocast(self.cell.device, torch.bfloat16)

    def loss(self) -> Tensor:
        """Return the loss of a forward pass."""
        with self.autocast():
            return self.losses(self.batch)['loss']

    def __call__(self) -> None:
        """Run a training step, or a prediction."""
        if self.cell.mode == 'inference':
            with torch.inference_mode(), self.autocast():
                self.predict()
            return
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure_memory(self) -> None:
        """Measure ``peak`` on CUDA, and ``kept`` of a training step."""
        if self.cell.device == 'cuda':
            self.peak = peak_memory(self)
        self.kept = kept_memory(self.model, self.loss) if self.cell.mode == 'training' else None

    def parts(self) -> dict[str, list[float]]:
        """Return milliseconds by part, forward and backward, of one more step."""

        def step(watch) -> None:
            if self.cell.mode == 'inference':
                self()
                return
            watch.run_backward(self.loss())
            watch.during('optimizer', self.optimizer.step)
            self.optimizer.zero_grad()

        torch.manual_seed(0)
        return parts_of(self.model, self.cell.device, step)


class TorchvisionEntrant(Entrant):
    """Holds torchvision's own Mask R-CNN around torchvision's ConvNeXt."""

    def _inputs(self, batch: dict) -> tuple[list[Tensor], list[dict]]:
        """Return images in [0, 1] and what is to be found, on the device."""
        images = [image.to(self.device).flip(0).float() / 255 for image in batch['inputs']]
        targets = []
        for sample in batch['data_samples']:
            found = sample.gt_instances
            target = dict(
                boxes=found.bboxes,
                labels=found.labels + 1,  # 0 is the background
                masks=found.masks.to_tensor(torch.uint8, 'cpu'),
            )
            targets.append({key: value.to(self.device) for key, value in target.items()})
        return images, targets

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Return the losses of a batch by name; their sum is called ``loss``."""
        losses = self.model(*self._inputs(batch))
        return {**losses, 'loss': sum(losses.values())}

    def predict(self) -> None:
        """Predict on the batch."""
        self.model(self._inputs(self.batch)[0])


def whole_model(cfg, weights: dict) -> nn.Module:
    """Build the published model with our backbone on the CPU, with the given weights of the backbone."""
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu')
    with building(cfg.get('default_scope'), 'cpu'):
        model.init_weights()
    names = released_names(model.backbone.state_dict())
    tensors = {own: weights[name] for own, name in names.items() if name in weights and 'norm' not in own[:4]}
    model.backbone.load_state_dict({**model.backbone.state_dict(), **tensors})
    if hasattr(model, 'roi_head'):
        with torch.no_grad():
            model.roi_head.bbox_head.fc_cls.weight *= SHARPNESS
    return model


def torchvision_mask_rcnn(cfg, weights: dict, image: tuple[int, int]) -> nn.Module:
    """Build torchvision's Mask R-CNN with FPN around its ConvNeXt, on the CPU; it resizes nothing.

    Args:
        image: height and width of those on which it predicts.
    """
    from torchvision.models import convnext_tiny
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    network = convnext_tiny(stochastic_depth_prob=cfg.model.backbone.drop_path_rate)
    network.load_state_dict(from_released(weights, 'torchvision'))
    layers = {str(2 * i + 1): str(i) for i in range(4)}
    maps = BackboneWithFPN(network.features, layers, cfg.model.neck.in_channels, 256)
    torch.manual_seed(0)
    classes = cfg.model.roi_head.bbox_head.num_classes + 1
    sides = dict(min_size=min(image), max_size=max(image), _skip_resize=True)  # the last one for training
    model = MaskRCNN(maps, classes, rpn_post_nms_top_n_train=1000, **sides)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight *= SHARPNESS
    return model


def entrants(cell: Cell, weights: dict, peers: list[str]) -> list[Entrant]:
    """Return our model, and those with other backbones that are installed and have the same losses.

    Args:
        cell: the first of its task; the entrants may run others of the same task, batch and device.
        weights: of the backbone, under the released names.
        peers: of :data:`PEERS`.
    """
    cfg = read_config(CONFIGS[cell.task])
    if cell.device == 'cuda':
        cfg.model.backbone.fused = 'triton'  # without the time of trials
    if cfg.model.data_preprocessor.get('size'):
        cfg.model.data_preprocessor.size = cell.image
    batch = make_batch(cfg, cell.image, cell.batch, objects=OBJECTS)
    small = make_batch(cfg, CHECKED, 2, objects=OBJECTS)
    model = whole_model(cfg, weights)
    found = [Entrant('ours triton' if cell.device == 'cuda' else 'ours', model, batch)]
    expected = losses_without_chance(found[0], small)
    for name in peers:
        if importlib.util.find_spec(name) is None:
            print(f'{name} is not installed')
            continue
        try:
            found.append(Entrant(name, with_backbone(model, name, cell.size, cfg, weights), batch))
            same_maps(found[-1], model.backbone)
            same_losses(found[-1], small, expected)
        except Exception as error:  # a package beside others that it does not fit raises anything
            print(f'{name} is left out: {describe(error)}')
            found = [each for each in found if each.name != name]
    if cell.task == 'mask_rcnn' and 'torchvision' in peers:
        try:
            found.append(TorchvisionEntrant(OTHER, torchvision_mask_rcnn(cfg, weights, cell.image), batch))
            others = losses_without_chance(found[-1], small)
            if not all(map(torch.isfinite, others.values())):
                raise ValueError(f'its losses are not finite: {others}')
            print(f'{OTHER}: another implementation, other losses, all finite', flush=True)
        except Exception as error:
            print(f'{OTHER} is left out: {describe(error)}')
            found = [each for each in found if each.name != OTHER]
    save_work(model, cell.device)  # after the others were copied from it
    return found


def with_backbone(model: nn.Module, name: str, size: str, cfg, weights: dict) -> nn.Module:
    """Return a copy of a model with the backbone of another library in the place of ours."""
    backbone = model.backbone
    model.backbone = None
    try:
        other = copy.deepcopy(model)
    finally:
        model.backbone = backbone
    network = PEERS[name](size, True, cfg.model.backbone.drop_path_rate, weights)
    other.backbone = MapsWithNorms(network, backbone.out_channels)
    return other


def losses_without_chance(entrant: Entrant, batch: dict) -> dict[str, Tensor]:
    """Return the losses of a batch on the CPU in float32, without stochastic depth, by fixed samples."""
    entrant.model.train()
    entrant.model.backbone.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        return entrant.losses(copy.deepcopy(batch))


def same_maps(entrant: Entrant, ours: nn.Module) -> None:
    """Compare the maps of the backbone with ours; losses alone would forgive much.

    Raises:
        ValueError: they differ by more than :data:`TOLERANCE` of the largest number.
    """
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pairs = zip(ours.eval()(images), entrant.model.backbone.eval()(images), strict=True)
        difference = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    if not difference < TOLERANCE:
        raise ValueError(f'its maps differ by {difference:.1e} of the largest number')


def same_losses(entrant: Entrant, batch: dict, expected: dict[str, Tensor]) -> None:
    """Compare losses with ours.

    Raises:
        ValueError: one differs by more than :data:`LOSS_TOLERANCE`.
    """
    found = losses_without_chance(entrant, batch)
    worst = max(expected, key=lambda name: _difference(found[name], expected[name]))
    difference = _difference(found[worst], expected[worst])
    if not difference <= LOSS_TOLERANCE:
        raise ValueError(f'{worst} is {found[worst]:.5g}, ours {expected[worst]:.5g}')
    print(f'{entrant.name} has the same losses (difference {difference:.1e})', flush=True)


def _difference(found: Tensor, expected: Tensor) -> float:
    return (abs(found - expected) / abs(expected).clamp(min=1e-6)).item()


def contest(cell: Cell, all_entrants: list[Entrant], rounds: int, seconds: float) -> dict | None:
    """Run the entrants of a cell in turn; ``None`` if ours or all others fail.

    One that fails is left out of this cell, with a line.
    """
    running = []
    for entrant in all_entrants:
        try:
            entrant.prepare(cell)
            entrant()  # compiles, allocates, chooses algorithms
            entrant.measure_memory()
            running.append(entrant)
        except Exception as error:  # whatever a library raises, lack of memory too
            print(f'{cell}: {entrant.name} is left out: {describe(error)}', flush=True)
            entrant.optimizer.zero_grad()
    if len({entrant.name in OURS for entrant in running}) < 2:
        print(f'{cell}: nothing to compare', flush=True)
        return None
    if cell.device == 'cpu':
        seconds = 0  # one step is a turn
    result = standing(cell, running, in_turn(running, rounds, seconds, cell.device))
    best = result['ours'], result['best_peer']
    result['parts'] = {each.name: each.parts() for each in running if each.name in best}
    gc.collect()
    return result
