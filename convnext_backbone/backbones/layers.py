"""Defines the small layers the networks are made of."""

import torch
from torch import Tensor, nn

from .. import ops


class LayerNorm2d(nn.LayerNorm):
    """Normalises an (N, C, H, W) map over its channels, at every position by itself (LayerNorm).

    A map in channels_last memory is normalised where it lies: both permutes are views.

    Args:
        dim: channels.
        eps: added to the variance.
        fused: see :class:`ConvNeXt`.
    """

    def __init__(self, dim: int, eps: float = 1e-6, fused: bool | str = True):
        super().__init__(dim, eps=eps)
        self.fused = fused
        if fused is True:
            ops.expect(self, dim, 'channel_norm')

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> same
        """Normalise each position over its channels."""
        x = x.permute(0, 2, 3, 1)  # (N, H, W, C)
        triton = ops.chosen('channel_norm', self.fused, x, self.normalized_shape[0])
        x = ops.channel_norm(x, self.weight, self.bias, self.eps, triton)
        return x.permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Weighs each channel by its norm over the map: contrast between channels (arXiv:2301.00808, Sec. 4).

    The sum over the positions is taken in float32 at least. Both parameters have the shape of the
    released checkpoints, (1, 1, 1, dim), and start at zero: the layer starts as the identity.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, C) -> same
        """Compute ``x + gamma * x * share + beta`` (arXiv:2301.00808, Alg. 1).

        The share of a channel is its norm over the map, divided by the mean of these over the channels.
        """
        return torch.addcmul(self.beta + x, self.gamma, x * self._share(x))

    def without_shift(self, x: Tensor) -> Tensor:  # (N, H, W, C) -> same
        """Compute :meth:`forward` without ``beta``, which the next layer can add to its bias."""
        return x * (1 + self.gamma * self._share(x))

    def _share(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=wide)  # (N, 1, 1, C)
        return (norms / (norms.mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class DropPath(nn.Module):
    """Zeroes, in training, the whole branch of a sample with probability ``rate`` (stochastic depth).

    What is kept is divided by ``1 - rate``, so that the expectation stays (arXiv:1603.09382).

    Args:
        rate: probability in [0, 1).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) -> same
        """Multiply each sample by its factor of :meth:`scale`; in evaluation mode return ``x`` itself."""
        if self.rate == 0.0 or not self.training:
            return x
        return x * self.scale(x)

    def scale(self, x: Tensor) -> Tensor:
        """Return the factor of each sample, (N, 1, ...): 0, or 1 / (1 - rate)."""
        keep = 1.0 - self.rate
        return x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Return what torch prints within the layer's parentheses."""
        return f'rate={self.rate:g}'


def init_layer(module: nn.Module) -> None:
    """Set the starting values of the paper's training: truncated normal (std 0.02), biases zero."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
