"""From D slices to 2D maps: the D x 1 x 1 squeeze, and a network over D slices with its outputs squeezed. Torch only.

The engines wrap these modules without changing a parameter's name. An image is (D, H, W), one grey channel per slice,
so a batch is (N, D, H, W). An operator that needs the slice thickness takes it from the scope that the caller opens,
see :func:`~a3d_det2.layers.thickness.slice_thickness`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..kernels.memory_format import channels_last_kernel
from .windows import WindowChannels

SQUEEZE_INITS = ("default", "kaiming_normal")


class SliceSqueeze(nn.Conv3d):
    """The D x 1 x 1 convolution from D slices to one 2D map, Sec. 2.3: (N, C, D, H, W) -> (N, C, H, W).

    Args:
        channels, num_slices: C and D.
        init: how the weights start, "default" as torch's convolutions do, or "kaiming_normal".

    Raises:
        ValueError: if ``init`` is unknown.
    """

    def __init__(self, channels: int, num_slices: int, init: str = "default"):
        super().__init__(channels, channels, (num_slices, 1, 1), bias=False)
        if init not in SQUEEZE_INITS:
            raise ValueError(f"Unknown init {init!r}. Choose one of {', '.join(SQUEEZE_INITS)}.")
        if init == "kaiming_normal":
            nn.init.kaiming_normal_(self.weight)
        channels_last_kernel(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(2)


class SqueezedTrunk(nn.Module):
    """A network over D slices with its outputs squeezed to 2D.

    Args:
        trunk: a module called with (N, 1, D, H, W), or with as many channels as ``windows`` has, that gives a dict of
            (N, C, D, H', W').
        num_slices: D; None is the ``num_slices`` of the trunk.
        channels, strides: of each output of the trunk, by name, finest first; None are its ``out_channels`` and
            ``out_strides``.
        out_features: which of them to give, such as ["dense1", "dense2", "dense3"]; all by default. The last one must
            be the trunk's last, or a part of the trunk would do nothing.
        squeeze_init: ``init`` of each :class:`SliceSqueeze`.
        windows: makes the channels of the trunk's input; None gives it the slices as they are.

    Attributes:
        out_channels, out_strides: of each output that is given, by name.

    Raises:
        ValueError: if ``out_features`` are not such a choice.
    """

    def __init__(
        self,
        trunk: nn.Module,
        num_slices: int | None = None,
        channels: Mapping[str, int] | None = None,
        strides: Mapping[str, int] | None = None,
        out_features: Sequence[str] | None = None,
        squeeze_init: str = "default",
        windows: WindowChannels | None = None,
    ):
        super().__init__()
        num_slices = trunk.num_slices if num_slices is None else num_slices
        channels, strides = channels or trunk.out_channels, strides or trunk.out_strides
        names = list(channels)
        out_features = list(out_features or names)
        if not set(out_features) <= set(names) or out_features[-1] != names[-1]:
            raise ValueError(
                f"Expected MODEL.FPN.IN_FEATURES among the trunk's outputs {names}, ending with {names[-1]!r} (of a "
                f"ResNet these are MODEL.RESNETS.OUT_FEATURES). Got {out_features}."
            )
        self.trunk = trunk
        self.windows = windows
        self.num_slices = num_slices
        self.squeeze = nn.ModuleDict(
            {name: SliceSqueeze(channels[name], num_slices, squeeze_init) for name in out_features}
        )
        self.out_channels = {name: channels[name] for name in out_features}
        self.out_strides = {name: strides[name] for name in out_features}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, D, H, W)

        Returns:
            {"dense1": (N, 256, H/4, W/4), ...}: the trunk's outputs without D.

        Raises:
            ValueError: if ``x`` does not have D channels.
        """
        if x.dim() != 4 or x.shape[1] != self.num_slices:
            raise ValueError(
                f"The backbone takes images of shape (N, D, H, W) with D = {self.num_slices} slices "
                f"(MODEL.A3D.NUM_SLICES). Got {tuple(x.shape)} instead!"
            )
        features = self.trunk(self.to_volume(x))  # {name: (N, C, D, H', W')}
        return {name: squeeze(features[name]) for name, squeeze in self.squeeze.items()}

    def to_volume(self, x: Tensor) -> Tensor:
        """(N, D, H, W) -> (N, 1, D, H, W), what the trunk is called with; with ``windows`` a channel for each."""
        return x.unsqueeze(1) if self.windows is None else self.windows(x)

    @property
    def size_divisibility(self) -> int:
        return max(self.out_strides.values())


class StackedTrunk(SqueezedTrunk):
    """A 2D network that has the slices as its input channels, "2.5D": the baseline without any 3D convolution.

    The arguments are those of :class:`SqueezedTrunk`, with ``num_slices`` the channels of the trunk's input; the trunk
    is called with (N, D, 1, H, W), a volume of one slice, and there is nothing to squeeze.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.squeeze = nn.ModuleDict({name: _OneSlice() for name in self.squeeze})

    def to_volume(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)


class _OneSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(2)
