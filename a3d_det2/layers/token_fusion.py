"""Context between slices for networks of tokens, whose blocks have no convolutions to exchange."""

import torch
from torch import Tensor, nn

from .a3d import A3DConv
from .build import build_fusion_conv
from .shift import TSMConv


class TokenFusion(nn.Module):
    """Mixes the tokens of the same place across slices: y = x + gate (mix(x) - x), channel by channel.

    The mixing is that of an operator, without its convolution. The gate starts at 0, so that a network with pretrained
    weights starts as it was, and learns how much of it to take; there is no such fusion in the A3D paper.

    Args:
        op: "a3d", "tsm" or "alignshift".
        channels: C.
        num_slices: D.
        op_options: further arguments of the operator.

    Raises:
        ValueError: if the operator fuses slices by its convolution, which tokens do not have.
    """

    def __init__(self, op: str, channels: int, num_slices: int, **op_options):
        super().__init__()
        self.mixing = build_fusion_conv(op, channels, channels, 1, num_slices=num_slices, bias=False, **op_options)
        if not isinstance(self.mixing, (A3DConv, TSMConv)):
            raise ValueError(f"Expected a3d, tsm or alignshift to mix tokens with, got {op!r}.")
        self.mixing.register_parameter("weight", None)  # that of the convolution
        self.num_slices = num_slices
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor, thickness: Tensor | None = None) -> Tensor:
        """
        Args:
            tokens: (N * D, ..., C), the slices of a sample one after the other.
            thickness: (N,) in mm, which alignshift needs.

        Returns:
            the same shape.
        """
        x = tokens.unflatten(0, (-1, self.num_slices)).movedim(-1, 1)  # (N * D, ..., C) -> (N, C, D, ...)
        volume = x.flatten(3).unsqueeze(-1) if x.dim() > 3 else x[..., None, None]  # (N, C, D, L, 1)
        mixed = self.mixing.mix(volume, thickness).reshape(x.shape)
        mixed = mixed.movedim(1, -1).flatten(0, 1)
        return torch.addcmul(tokens, self.gate, mixed - tokens)


def token_channels(block: nn.Module) -> int:
    """The channels of a block's tokens: those of its first layer norm.

    Raises:
        ValueError: if it has none.
    """
    norm = next((m for m in block.modules() if isinstance(m, nn.LayerNorm)), None)
    if norm is None:
        raise ValueError(f"Expected a block of tokens with a LayerNorm, got {type(block).__name__}.")
    return norm.normalized_shape[-1]
