"""Leads from a ResNet to ConvNeXt, one named step of the paper at a time.

Source: "A ConvNet for the 2020s", arXiv:2201.03545, Sec. 2 and Fig. 2; accuracies and FLOPs of every step
in Tables 10 (ResNet-50 to ConvNeXt-T) and 11 (ResNet-200 to ConvNeXt-B). The code of the steps between was
never released. Where the text leaves a detail open, the choice here does not touch the printed FLOPs:
the patchify stem keeps norm and activation of the ResNet's until "fewer activations" takes the latter;
the shortcut of a downsampling block keeps its norm; layer scale comes with the last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import check_choice
from ..registry import MODELS
from .base import STRIDES, FourStageBackbone
from .block import EXPANSION, LAYER_SCALE
from .layers import DropPath, LayerNorm2d, init_layer


@dataclass(frozen=True)
class Design:
    """Holds what the steps change; the defaults are those of a ResNet."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64  # of the stem and, doubled from stage to stage, of the bottlenecks or the blocks
    patchify: bool = False  # stem: one 4x4 convolution with stride 4, in place of 7x7 and max pooling
    depthwise: bool = False
    inverted: bool = False  # wide inside a block, in place of narrow
    moved_up: bool = False  # the spatial convolution comes first in a block
    kernel: int = 3
    activation: type[nn.Module] = nn.ReLU
    fewer_activations: bool = False  # one, between the 1x1 convolutions
    fewer_norms: bool = False  # one, before the 1x1 convolutions
    norm: type[nn.Module] = nn.BatchNorm2d
    separate: bool = False  # norm and 2x2 convolution between the stages; norms around it, layer scale


# where it starts: what is its own in the changes
STARTS = {
    'resnet50': dict(stage_ratio=dict(depths=(3, 3, 9, 3)), width=dict(width=96)),
    'resnet200': dict(
        resnet=dict(depths=(3, 24, 36, 3)),
        stage_ratio=dict(depths=(3, 3, 27, 3), width=84),
        width=dict(width=128),
    ),
}
# in the order of Tables 10 and 11, each on top of those before it
STEPS = dict(
    resnet=dict(),
    enhanced_recipe=dict(),  # the same network, trained otherwise
    stage_ratio=dict(),
    patchify_stem=dict(patchify=True),
    depthwise=dict(depthwise=True),
    width=dict(),
    inverted=dict(inverted=True),
    moved_up=dict(moved_up=True),
    kernel_5=dict(kernel=5),
    kernel_7=dict(kernel=7),
    kernel_9=dict(kernel=9),
    kernel_11=dict(kernel=11),
    gelu=dict(kernel=7, activation=nn.GELU),  # 7 was kept
    fewer_activations=dict(fewer_activations=True),
    fewer_norms=dict(fewer_norms=True),
    layer_norm=dict(norm=LayerNorm2d),
    separate_downsampling=dict(separate=True),
)


def design(start: str, step: str) -> Design:
    """Return the network at ``step``: all changes up to it, from ``start`` on."""
    own = STARTS[check_choice('start', start, STARTS)]
    check_choice('step', step, STEPS)
    steps = list(STEPS)
    result = Design()
    for name in steps[: steps.index(step) + 1]:
        result = replace(result, **STEPS[name], **own.get(name, {}))
    return result


def _conv(dim_in: int, dim_out: int, kernel: int, norm: type[nn.Module] | None, stride=1, groups=1):
    """Build a convolution, with a bias unless batch norm would cancel it, and its norm."""
    bias = norm is not nn.BatchNorm2d
    yield nn.Conv2d(dim_in, dim_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
    if norm is not None:
        yield norm(dim_out)


class RoadmapBlock(nn.Module):
    """Computes two 1x1 convolutions and a spatial one, arranged as the design says, and a shortcut.

    Args:
        dim_in: channels in.
        width: of the narrow part; out come ``width`` channels if the block is inverted, else four times
            as many.
    """

    def __init__(self, dim_in: int, width: int, stride: int, design: Design, drop_path: float):
        super().__init__()
        wide = EXPANSION * width
        hidden, dim_out = (wide, width) if design.inverted else (width, wide)
        spatial = dim_in if design.moved_up else hidden  # channels of the spatial convolution
        convs = [(dim_in, hidden, 1, {}), (hidden, dim_out, 1, {})]
        how = dict(stride=stride, groups=spatial if design.depthwise else 1)
        convs.insert(0 if design.moved_up else 1, (spatial, spatial, design.kernel, how))
        layers = []
        for i, (cin, cout, kernel, how) in enumerate(convs):
            layers += _conv(cin, cout, kernel, None if i > 0 and design.fewer_norms else design.norm, **how)
            if i == 1 or (i == 0 and not design.fewer_activations):
                layers.append(design.activation())
        if design.separate:
            self.gamma = nn.Parameter(torch.full((dim_out, 1, 1), LAYER_SCALE))
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Identity()
        if stride != 1 or dim_in != dim_out:
            self.shortcut = nn.Sequential(*_conv(dim_in, dim_out, 1, design.norm, stride))
        self.drop_path = DropPath(drop_path)
        self.activation = nn.Identity() if design.fewer_activations else design.activation()

    def forward(self, x: Tensor) -> Tensor:  # (N, dim_in, H, W) -> (N, dim_out, H / stride, W / stride)
        """Compute the convolutions, layer scale if there is one, sum with the shortcut and activation."""
        y = self.branch(x)
        if hasattr(self, 'gamma'):
            y = self.gamma * y
        return self.activation(self.shortcut(x) + self.drop_path(y))


@MODELS.register_module()
class Roadmap(FourStageBackbone):
    """Computes the network of one step of the roadmap, as a dense backbone or in a classifier.

    The first step is a ResNet (with the stride in the 3x3 convolution), the last is ConvNeXt: tiny from
    ``resnet50``, base from ``resnet200``. Only that has output norms, and a norm in the classifier.

    In a config: ``backbone=dict(type='convnext_backbone.Roadmap', start='resnet50', step='depthwise')``.

    Args:
        start: resnet50 or resnet200.
        step: one of resnet, enhanced_recipe, stage_ratio, patchify_stem, depthwise, width, inverted,
            moved_up, kernel_5, kernel_7, kernel_9, kernel_11, gelu, fewer_activations, fewer_norms,
            layer_norm, separate_downsampling.
        in_channels, out_indices, drop_path_rate, frozen_stages, with_cp, output_norm, init_cfg: see
            :class:`ConvNeXt`. With gradient checkpointing, a batch norm sees every batch twice.

    Raises:
        UserError: an unknown ``start`` or ``step``, or a value out of its range.
    """

    def __init__(
        self,
        start: str,
        step: str,
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        output_norm: bool = True,
        init_cfg: dict | list | None = None,
    ):
        self.design = design(start, step)
        widths = [self.design.width << i for i in range(4)]
        channels = widths if self.design.inverted else [EXPANSION * width for width in widths]
        super().__init__(
            self.design.depths,
            channels,
            drop_path_rate=drop_path_rate,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            output_norm=output_norm,
            init_cfg=init_cfg,
        )
        self.arch = f'{start} {step}'
        if not self.design.separate:  # its convolutions pad, but for the stem
            self.least_size = STRIDES[0] if self.design.patchify else 1
        self.classifier_norm = self.design.separate
        dim = self.design.width
        for i, width in enumerate(widths[: self.num_built]):
            stride = 2 if i > 0 and not self.design.separate else 1
            if i == 0:
                self.downsample_layers.append(self._stem(in_channels))
            elif self.design.separate:
                norm_and_conv = nn.Sequential(self.design.norm(dim), nn.Conv2d(dim, channels[i], 2, stride=2))
                self.downsample_layers.append(norm_and_conv)
                dim = channels[i]
            else:
                self.downsample_layers.append(nn.Identity())
            stage = nn.Sequential()
            for j, rate in enumerate(self.drop_rates[i]):
                stage.append(RoadmapBlock(dim, width, stride if j == 0 else 1, self.design, rate))
                dim = channels[i]
            self.stages.append(stage)
        self.apply(init_layer if self.design.separate else _init_as_resnet)
        self.add_output_norms_and_freeze(LayerNorm2d if self.design.separate else nn.Identity)

    def _stem(self, in_channels: int) -> nn.Sequential:  # to stride 4
        dim, norm, activation = self.design.width, self.design.norm, self.design.activation
        if not self.design.patchify:
            layers = _conv(in_channels, dim, 7, norm, stride=2)
            return nn.Sequential(*layers, activation(), nn.MaxPool2d(3, stride=2, padding=1))
        layers = [nn.Conv2d(in_channels, dim, 4, stride=4, bias=norm is not nn.BatchNorm2d), norm(dim)]
        return nn.Sequential(*layers, *([] if self.design.fewer_activations else [activation()]))


def _init_as_resnet(module: nn.Module) -> None:
    """Set the starting values of torchvision's ResNet."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        if module.bias is not None:
            nn.init.zeros_(module.bias)
