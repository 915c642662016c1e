"""Folds norm affine, layer scale and response-norm shift into the linear layers, for inference."""

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..ops import has_plain_layers

NAMES = ('w1', 'b1', 'w2', 'b2')


class FoldableBlock(nn.Module):
    """Keeps folded weights beside a block's parameters, as buffers that no checkpoint contains.

    They are dropped when the parameters are about to change: by ``train()`` and by loading weights.
    """

    def __init__(self):
        super().__init__()
        self.unfold()
        self.register_load_state_dict_pre_hook(_unfold_before_loading)

    @property
    def folded(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return weight and bias of both linear layers.

        ``None`` if not folded, or while gradients are recorded.
        """
        if self.folded_w1 is None or torch.is_grad_enabled():
            return None
        return self.folded_w1, self.folded_b1, self.folded_w2, self.folded_b2

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply norm affine, layer scale and response-norm shift into the two linear layers.

        Raises:
            UserError: a layer was replaced.
        """
        if not has_plain_layers(self, without_hooks=False):
            raise UserError(
                'fuse_for_inference: a layer of a block was replaced (by an adapter, quantisation ...): '
                'merge it into the weights first, or leave the model as it is'
            )
        wide = torch.promote_types(self.pwconv1.weight.dtype, torch.float32)
        w1, b1 = self.pwconv1.weight.to(wide), self.pwconv1.bias.to(wide)
        w2, b2 = self.pwconv2.weight.to(wide), self.pwconv2.bias.to(wide)
        b1 = b1 + w1 @ self.norm.bias.to(wide)
        w1 = w1 * self.norm.weight.to(wide)
        if not isinstance(self.grn, nn.Identity):
            b2 = b2 + w2 @ self.grn.beta.to(wide).flatten()
        if self.gamma is not None:
            w2, b2 = w2 * self.gamma.to(wide)[:, None], b2 * self.gamma.to(wide)
        for name, tensor in zip(NAMES, (w1, b1, w2, b2)):
            own = tensor.detach().to(self.pwconv1.weight.dtype, copy=True)
            self.register_buffer(f'folded_{name}', own, persistent=False)

    def unfold(self) -> None:
        """Drop the folded weights, so that the block computes with its parameters themselves again."""
        for name in NAMES:
            self.register_buffer(f'folded_{name}', None, persistent=False)

    def train(self, mode: bool = True) -> 'FoldableBlock':
        """Set the mode as in torch; training drops the folded weights."""
        if mode:  # the parameters are about to change
            self.unfold()
        return super().train(mode)


def _unfold_before_loading(block: FoldableBlock, *args) -> None:
    block.unfold()


def fuse_for_inference(module: nn.Module) -> int:
    """Fold norm affine, layer scale and response-norm shift into the linear layers of every block.

    The folded weights stand beside the parameters and work only without gradients (``torch.no_grad()``,
    ``torch.inference_mode()``); parameters and ``state_dict()`` stay as they are. ``train()`` and loading
    weights undo it, :meth:`FoldableBlock.unfold` too. Call it again after changing a parameter by hand.

    Args:
        module: a backbone, or a classifier, detector or segmenter around one, in evaluation mode.

    Returns:
        How many blocks were folded.

    Raises:
        UserError: ``module`` is in training mode, or a layer of a block was replaced.
    """
    if module.training:
        raise UserError('fuse_for_inference: the module is in training mode, call eval() first')
    blocks = [part for part in module.modules() if isinstance(part, FoldableBlock)]
    for block in blocks:
        block.fold()
    return len(blocks)
