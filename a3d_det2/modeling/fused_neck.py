"""The paper's neck: all levels in one map at the stride of the finest. Torch only."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .squeeze import SqueezedTrunk


class FusedNeck(nn.Module):
    """The paper's neck (Sec. 2.3): all levels added into ONE map at the stride of the finest.

    Each level goes through a 1x1 lateral conv; from the coarsest on, the sum so far is doubled in size (nearest) and
    added to the next finer level. There is no output convolution.

    Args:
        in_channels: channels per level, finest first; each level has half the height and width of the one before.
        out_channels: channels of the map.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(channels, out_channels, 1) for channels in in_channels])
        for lateral in self.laterals:
            nn.init.kaiming_uniform_(lateral.weight, a=1)
            nn.init.zeros_(lateral.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """
        Args:
            features: one (N, C_i, H_i, W_i) per level, finest first.

        Returns:
            (N, out_channels, H_0, W_0)

        Raises:
            ValueError: if the number of levels differs from ``in_channels``, or a level is not half the one before.
        """
        if len(features) != len(self.laterals):
            raise ValueError(f"FusedNeck has {len(self.laterals)} levels. Got {len(features)} features instead!")
        fused = self.laterals[-1](features[-1])
        for lateral, feature in zip(reversed(self.laterals[:-1]), reversed(features[:-1]), strict=True):
            if feature.shape[-2:] != (2 * fused.shape[-2], 2 * fused.shape[-1]):
                raise ValueError(
                    f"FusedNeck needs each level at twice the size of the next. Got {tuple(feature.shape[-2:])} "
                    f"above {tuple(fused.shape[-2:])}: pad the images to a multiple of the coarsest stride."
                )
            fused = lateral(feature) + F.interpolate(fused, scale_factor=2, mode="nearest")
        return fused


class FusedTrunk(nn.Module):
    """A :class:`SqueezedTrunk` under the paper's fused neck: one map, called "p2" when its stride is 4.

    Args:
        bottom_up: the trunk; all its outputs are fused.
        out_channels: channels of the map.

    Attributes:
        out_channels: as given.
        out_strides: the stride of the map, by its name.
    """

    def __init__(self, bottom_up: SqueezedTrunk, out_channels: int):
        super().__init__()
        self.bottom_up = bottom_up
        self.neck = FusedNeck(list(bottom_up.out_channels.values()), out_channels)
        self.out_channels = out_channels
        stride = min(bottom_up.out_strides.values())
        self.out_strides = {f"p{stride.bit_length() - 1}": stride}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, D, H, W) -> {"p2": (N, out_channels, H/4, W/4)}"""
        (name,) = self.out_strides
        return {name: self.neck(list(self.bottom_up(x).values()))}

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility
