"""Compares whole training steps on a GPU with the CPU, and tries mixed precision, graphs and compilation."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..backbones import ConvNeXt
from ..config import read_config
from ..config.keys import dicts
from ..heads import save_work
from ..measure import build_model, make_batch
from ..measure.build import building
from .rows import Row, same

MODELS = dict(classifier='convnext_t_in1k', mask_rcnn='mask_rcnn_convnext_t_1x', upernet='upernet_convnext_t')
SIDE = 256  # of the images of detector and segmenter, in pixels
LOSS_BOUND = 2e-3  # of a loss, relative
GRADIENT_BOUND = 2e-2  # of the gradient of the backbone: norm of the difference over the norm
DTYPES = (torch.bfloat16, torch.float16)


def make_model(name: str, arch: str = 'tiny') -> tuple[nn.Module, dict]:
    """Build a published model with random weights on the CPU, without chance, and a batch of two for it.

    Args:
        name: of :data:`MODELS`.
        arch: of the backbone; one whose widths are not tiny's fits the classifier only.
    """
    cfg = read_config(MODELS[name])
    cfg.model.backbone.update(arch=arch, drop_path_rate=0.0, fused='triton')  # without the time of trials
    for node in dicts(cfg.model):
        for key in ('dropout_ratio', 'label_smoothing'):
            if node.get(key):
                node[key] = 0.0
        node.pop('batch_augments', None)
        if 'size' in node and 'mean' in node:
            node['size'] = (SIDE, SIDE)
    cfg.model.pop('train_augments', None)
    if name == 'classifier':
        cfg.model.mixup = None
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu')
    with building(cfg.get('default_scope'), 'cpu'):
        model.init_weights()
    if name == 'classifier':
        return model, dict(inputs=torch.randn(2, 3, 224, 224), labels=torch.tensor([3, 5]))
    return model, make_batch(cfg, SIDE, 2)


def _step(model: nn.Module, data: dict, device: str, dtype: torch.dtype | None = None) -> tuple[dict, Tensor]:
    """Return the losses by name, and the gradient of the backbone as one vector, on the CPU."""
    model.to(device).train().zero_grad(set_to_none=True)
    torch.manual_seed(1)  # of the samples that heads choose; mmdet draws them on the CPU
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        total, named = model.parse_losses(losses)
    total.backward()
    gradient = [p.grad.float().flatten().cpu() for p in model.backbone.parameters() if p.grad is not None]
    return {key: value.item() for key, value in named.items()}, torch.cat(gradient)


def training_step(name: str, device: str) -> Iterator[Row]:
    """Compare losses and the backbone's gradient of a step with the CPU's; mixed precision is finite."""
    model, data = make_model(name)
    expected, right = _step(model, data, 'cpu')
    save_work(model, device)  # as our Runner does
    found, gradient = _step(model, data, device)
    for key, value in expected.items():
        if 'loss' in key:  # not the share of right classes, which is a count
            difference = abs(found[key] - value) / max(abs(value), 1e-6)
            what = f'{name} {key}: {found[key]:.5g}, on the CPU {value:.5g}'
            yield Row(what, difference <= LOSS_BOUND, f'{difference:.1e}, at most {LOSS_BOUND:.0e}')
    difference = ((gradient - right).norm() / right.norm()).item()
    yield Row(
        f'{name} gradient of the backbone',
        difference <= GRADIENT_BOUND,
        f'{difference:.1e}, at most {GRADIENT_BOUND:.0e}',
    )
    for dtype in DTYPES if device == 'cuda' else DTYPES[:1]:
        losses, gradient = _step(model, data, device, dtype)
        finite = gradient.isfinite().all() and torch.tensor(list(losses.values())).isfinite().all()
        yield same(f'{name} finite in {str(dtype).removeprefix("torch.")}', finite)


def graphs(device: str, arch: str = 'tiny') -> Iterator[Row]:
    """Capture inference and a training step of the backbone in CUDA graphs, replay, compare with eager."""
    torch.manual_seed(0)
    model = ConvNeXt(arch, drop_path_rate=0.0, layer_scale_init_value=0.5, fused='triton')
    model = model.to(device, torch.bfloat16).eval()
    images = torch.randn(2, 3, 224, 224, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(images)  # compiles the kernels, before anything is captured
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            maps = model(images)
        graph.replay()
    yield same('inference as in eager mode', all(map(torch.equal, maps, expected)))
    model.train()

    def step() -> None:
        sum(m.float().square().mean() for m in model(images)).backward()

    stream = torch.cuda.Stream()  # all of it: where gradients were first made, they are made ever after
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        eager = [p.grad.clone() for p in model.parameters()]
        model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            step()
        graph.replay()
    torch.cuda.synchronize()
    worst = max(
        ((p.grad.float() - right.float()).norm() / right.float().norm().clamp(1e-20)).item()
        for p, right in zip(model.parameters(), eager)
    )
    yield Row('gradients of a training step', worst <= 2e-2, f'{worst:.1e}, at most 2e-02')


def compilation(device: str, arch: str = 'tiny') -> Iterator[Row]:
    """Compile the backbone as one graph, for inference and training, and compare with eager mode."""
    torch.manual_seed(0)
    model = ConvNeXt(arch, drop_path_rate=0.1, layer_scale_init_value=0.5, fused='triton')
    model = model.to(device, torch.bfloat16)
    images = torch.randn(2, 3, 224, 224, device=device, dtype=torch.bfloat16)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        expected, found = model.eval()(images), compiled(images)
    for i, (right, ours) in enumerate(zip(expected, found)):
        difference = ((ours - right).float().norm() / right.float().norm()).item()
        yield Row(f'inference map {i}', difference <= 2e-2, f'{difference:.1e}, at most 2e-02')
    model.train()
    sum(m.float().square().mean() for m in compiled(images)).backward()
    gradients = torch.stack([p.grad.float().norm() for p in model.parameters()])
    yield same('training gradients finite', gradients.isfinite().all())
    yield same('every parameter has one', (gradients > 0).all())


def check(device: str) -> Iterator[Row]:
    """Compare the steps of the classifier, of Mask R-CNN and of UPerNet."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        for name in MODELS:
            yield from training_step(name, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept
