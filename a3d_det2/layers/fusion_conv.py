"""What a context-fusion convolution is.

A fusion conv takes the place of a 2D convolution in a network that sees a few CT slices at once. It keeps the 2D
kernel and its name, so 2D checkpoints load unchanged, and keeps the number of slices.

Shape legend, used in every docstring of this package:
    N batch, C channels, D slices, H height, W width, K kernel size
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.memory_format import is_channels_last
from ..kernels.mixing import mix_slices


def fold_slices(x: Tensor) -> Tensor:
    """(N, C, D, H, W) -> (N * D, C, H, W), the slices as a batch of 2D images; without a copy from channels_last_3d to
    channels_last."""
    if is_channels_last(x):  # with the channels at the end, a single one keeps the stride that says so
        return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
    return x.transpose(1, 2).flatten(0, 1)


def unfold_slices(x: Tensor, num_slices: int) -> Tensor:
    """(N * D, C, ...) -> (N, C, D, ...), the inverse of :func:`fold_slices`."""
    return x.unflatten(0, (-1, num_slices) if len(x) else (0, num_slices)).transpose(1, 2)


class FusionConv(nn.Conv2d):
    """Base of all fusion convs: a 2D kernel, the slice-wise convolution with it, and the checks of the input.

    Being an ``nn.Conv2d``, it has ``.weight`` (C_out, C_in / groups, K, K) and ``.bias`` (C_out) with torch's default
    initialisation, and weight initialisers, optimisers and checkpoints treat it as the 2D conv it replaces. What an
    operator learns beyond its kernel is called ``.fusion_weight``.

    Subclasses define :meth:`fuse`, and :meth:`mixing_weight` if a channel-by-channel mixing of the slices comes first.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``; they act
            on H and W only.
        num_slices: D of the inputs.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        num_slices: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        if num_slices < 1:
            raise ValueError(f"{type(self).__name__} needs num_slices >= 1. Got {num_slices} instead!")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.num_slices = num_slices

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (N, C_in, D, H, W)
            thickness: (N,) slice thickness in mm; only the operators that adapt to it need it. None is that of the
                scope, see :func:`~a3d_det2.layers.thickness.slice_thickness`.

        Returns:
            (N, C_out, D, H', W')

        Raises:
            ValueError: if the shape of ``x`` does not fit, or the operator needs the thickness and it is missing, not
                (N,) or not positive.
        """
        self.check_input(x)
        weight = self.mixing_weight(thickness, len(x))
        return self.fuse(x if weight is None else mix_slices(x, weight), thickness)

    def mixing_weight(self, thickness: Tensor | None, batch_size: int) -> Tensor | None:
        """The mixing of slices, channel by channel, that comes before :meth:`fuse`; None for no mixing.

        Args:
            thickness: (N,) in mm, see :meth:`forward`.
            batch_size: N.

        Returns:
            (D, D, C_in), or (N, D, D, C_in), as :func:`~a3d_det2.kernels.mixing.mix_slices` takes it.
        """
        return None

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        """The rest of the operator: (N, C_in, D, H, W), mixed -> (N, C_out, D, H', W')."""
        raise NotImplementedError

    def slice_conv(self, x: Tensor) -> Tensor:
        """Convolve every slice with the 2D kernel: (N, C_in, D, H, W) -> (N, C_out, D, H', W').

        It is the Conv3D with W_3D = unsqueeze(W_2D, dim=2) of Algorithm 1 (line 1 and 3) in the A3D paper.
        """
        if x.is_contiguous() and not is_channels_last(x):
            stride, dilation = (1, *self.stride), (1, *self.dilation)
            padding = self.padding if isinstance(self.padding, str) else (0, *self.padding)
            return F.conv3d(x, self.weight.unsqueeze(2), self.bias, stride, padding, dilation, self.groups)
        # In channels_last_3d, and within converted networks, the slices are a batch of 2D images without a copy.
        images = fold_slices(x)
        images = F.conv2d(images, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return unfold_slices(images, self.num_slices)

    def from_2d(self, weight: Tensor) -> Tensor:
        """The kernel of a 2D convolution, (C_out, C_in / groups, K, K), as this operator's ``.weight``."""
        return weight

    def check_input(self, x: Tensor) -> None:
        """
        Raises:
            ValueError: if ``x`` is not (N, in_channels, num_slices, H, W).
        """
        if x.dim() != 5 or x.shape[1] != self.in_channels or x.shape[2] != self.num_slices:
            raise ValueError(
                f"{type(self).__name__} takes an input of shape (N, C, D, H, W) with C = {self.in_channels} and "
                f"D = {self.num_slices}. Got {tuple(x.shape)} instead!"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_slices={self.num_slices}"


class SliceConv(FusionConv):
    """No fusion (``none``): the 2D convolution on each slice, Sec. 2.1 (a) of the A3D paper."""

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        return self.slice_conv(x)
