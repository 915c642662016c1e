"""What every backbone here shares: which maps it emits, what is frozen, how deep a parameter lies."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..errors import UserError


class DenseBackbone(BaseModule):
    """A network whose stages give feature maps, one output norm for each map it emits.

    A subclass builds its stages, then calls :meth:`add_output_norms` and :meth:`freeze`.

    Args:
        num_stages: how many stages the architecture has.
        out_indices: stages whose maps are emitted, ascending, counted from 0. Stages behind the
            last of them are not built, so that every parameter receives a gradient.
        frozen_stages: as in mmdet's ResNet: -1 freezes nothing, 0 the stem, ``k`` the stem and the
            first ``k`` stages (with the downsampling in front of each). Frozen parts take no
            gradient and stay in evaluation mode under ``train()``. Output norms are never frozen:
            no classification checkpoint contains them.
        output_norm: ``False`` leaves the output norms out (a classifier has its own).
        init_cfg: as in mmengine, e.g. ``dict(type='convnext_backbone.Pretrained', checkpoint=...)``.

    Attributes:
        out_channels: channels of each emitted map.
        out_strides: input pixels per map pixel, for each emitted map.
        num_groups: depth groups of layer-wise learning-rate decay, see :meth:`layer_depth`.
        may_skip: patterns of tensors that a checkpoint may hold and this network leaves out.
        may_be_fresh: patterns of tensors of this network that a checkpoint may lack.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    num_groups: int
    may_skip: tuple[str, ...] = ('head.*', 'norm.*', 'norm[0-9].*')
    may_be_fresh: tuple[str, ...] = ('norm[0-9].*',)

    def __init__(
        self,
        *,
        num_stages: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        output_norm: bool,
        init_cfg: dict | list | None,
    ):
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        stages = set(range(num_stages))
        if not self.out_indices or sorted(stages & set(self.out_indices)) != list(self.out_indices):
            raise UserError(
                f'out_indices must be ascending stage numbers from 0 to {num_stages - 1}, '
                f'got {tuple(out_indices)}'
            )
        self.num_built = self.out_indices[-1] + 1
        if frozen_stages not in range(-1, self.num_built + 1):
            raise UserError(
                f'frozen_stages must lie between -1 (nothing) and {self.num_built} (all that is built '
                f'for out_indices={self.out_indices}), got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.output_norm = output_norm

    def add_output_norms(self, norm: type[nn.Module]) -> None:
        """Add ``norm0 ... normN``, for the emitted stages only."""
        if self.output_norm:
            for index, channels in zip(self.out_indices, self.out_channels):
                self.add_module(f'norm{index}', norm(channels))

    def output(self, index: int, x: Tensor) -> Tensor:
        """The map that stage ``index`` emits, from the stage's last activation ``x``.

        What goes to a neck or a head lies in NCHW memory: mmcv's RoIAlign (and other operators of it)
        reads memory in that order whatever the strides say, and gives wrong numbers, without an
        error, for a map in channels_last.
        """
        return getattr(self, f'norm{index}')(x).contiguous() if self.output_norm else x

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` covers."""
        raise NotImplementedError

    def layer_depth(self, name: str, by: str = 'layer_wise') -> int:
        """Depth group of the parameter ``name`` (as in this network's ``named_parameters()``).

        0 is the stem, ``num_groups + 1`` whatever lies outside the stages (output norms; a head):
        learning-rate decay gives it ``decay ** (num_groups + 1 - depth)``.

        Args:
            by: ``'layer_wise'`` or ``'stage_wise'``.
        """
        raise NotImplementedError

    def freeze(self) -> None:
        """Take the gradients from the frozen parts and put them into evaluation mode."""
        for module in self.frozen_modules():
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'DenseBackbone':
        """As in torch, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self
