"""A network over D slices and its squeeze to 2D, alone or under the fused neck: torch only.

The engines wrap these modules without changing a parameter's name. An image is (D, H, W), one grey channel per slice,
so a batch is (N, D, H, W). The modules are called with it and the slice thickness, (N,) in mm, which may be None where
the operator does not need it.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .densenet import SliceSqueeze
from .fused_neck import FusedNeck


class SqueezedTrunk(nn.Module):
    """A network over D slices with its outputs squeezed to 2D.

    Args:
        trunk: a module called with ``(N, 1, D, H, W), thickness`` that gives a dict of (N, C, D, H', W').
        num_slices: D.
        channels, strides: of each output of the trunk, by name, finest first.
        out_features: which of them to give, such as ["dense1", "dense2", "dense3"]; all by default. The last one must
            be the trunk's last, or a part of the trunk would do nothing.

    Attributes:
        out_channels, out_strides: of each output that is given, by name.
    """

    def __init__(
        self,
        trunk: nn.Module,
        num_slices: int,
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        out_features: Sequence[str] | None = None,
    ):
        super().__init__()
        names = list(channels)
        out_features = list(out_features or names)
        if not set(out_features) <= set(names) or out_features[-1] != names[-1]:
            raise ValueError(
                f"Expected MODEL.FPN.IN_FEATURES among the trunk's outputs {names}, ending with {names[-1]!r} (of a "
                f"ResNet these are MODEL.RESNETS.OUT_FEATURES). Got {out_features}."
            )
        self.trunk = trunk
        self.num_slices = num_slices
        self.squeeze = nn.ModuleDict({name: SliceSqueeze(channels[name], num_slices) for name in out_features})
        self.out_channels = {name: channels[name] for name in out_features}
        self.out_strides = {name: strides[name] for name in out_features}

    def forward(self, x: Tensor | tuple[Tensor, Tensor | None], thickness: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            x: (N, D, H, W); or the pair of it and the thickness, for callers that hand on one argument.
            thickness: (N,) in mm.

        Returns:
            {"dense1": (N, 256, H/4, W/4), ...}: the trunk's outputs without D.

        Raises:
            ValueError: if ``x`` does not have D channels.
        """
        if isinstance(x, tuple):
            x, thickness = x
        if x.dim() != 4 or x.shape[1] != self.num_slices:
            raise ValueError(
                f"The backbone takes images of shape (N, D, H, W) with D = {self.num_slices} slices "
                f"(MODEL.A3D.NUM_SLICES). Got {tuple(x.shape)} instead!"
            )
        features = self.trunk(x.unsqueeze(1), thickness)  # (N, D, H, W) -> {name: (N, C, D, H', W')}
        return {name: squeeze(features[name]) for name, squeeze in self.squeeze.items()}

    @property
    def size_divisibility(self) -> int:
        return max(self.out_strides.values())


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

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> dict[str, Tensor]:
        """(N, D, H, W) -> {"p2": (N, out_channels, H/4, W/4)}"""
        (name,) = self.out_strides
        return {name: self.neck(list(self.bottom_up(x, thickness).values()))}

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility
