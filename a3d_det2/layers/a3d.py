import torch
from torch import Tensor, nn

from .fusion_conv import FusionConv


class A3DConv(FusionConv):
    """Asymmetric 3D context fusion (``a3d``), Sec. 2.2 and Algorithm 1 of the A3D paper.

    Every output slice is, channel by channel, its own linear combination of all input slices; the 2D convolution
    follows. The operator knows which slice it looks at, so it needs no padding in D.

    Beyond ``.weight`` and ``.bias`` it has ``.fusion_weight`` P (D_in, D_out, C_in), initialised to the identity plus
    uniform noise in [-0.1, 0.1]: training starts close to no fusion.
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
        super().__init__(in_channels, out_channels, kernel_size, num_slices, stride, padding, dilation, groups, bias)
        self.fusion_weight = nn.Parameter(torch.empty(num_slices, num_slices, in_channels))
        self.reset_fusion_weight()

    def reset_fusion_weight(self) -> None:
        with torch.no_grad():
            self.fusion_weight.uniform_(-0.1, 0.1).add_(torch.eye(self.num_slices).unsqueeze(2))

    def mix(self, x: Tensor) -> Tensor:
        """The mixing step alone, Eq. (1): y[:, c, k] = sum_d P[d, k, c] x[:, c, d].

        Args:
            x: (N, C_in, D, H, W)

        Returns:
            the same shape.
        """
        return torch.einsum("bcdhw,dkc->bckhw", x, self.fusion_weight)

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (N, C_in, D, H, W)
            thickness: (N,) slice thickness in mm; not used by this operator.

        Returns:
            (N, C_out, D, H', W')

        Raises:
            ValueError: if the shape of ``x`` does not fit.
        """
        self.check_input(x)
        return self.slice_conv(self.mix(x))
