import torch
from torch import Tensor, nn

from .depth import conv3d, depth_kernel, same_pad
from .fusion_conv import FusionConv


class P3DConv(FusionConv):
    """Pseudo-3D convolution (``p3d``), Sec. 2.1 (c) of the A3D paper: Qiu et al. (ICCV 2017).

    The slice-wise 2D convolution, then a full K x 1 x 1 convolution over the slices, with K = 3 also after a 1 x 1
    convolution. The second has no bias, pads D with zeros and starts as [0, .., 1, .., 0]: exactly no fusion.

    Beyond ``.weight`` and ``.bias`` it has ``.fusion_weight`` (C_out, C_out, K, 1, 1).

    Args:
        see :class:`FusionConv`; the kernel must be square.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        depth = depth_kernel(self)
        self.depth = 3 if depth == 1 else depth
        self.fusion_weight = nn.Parameter(torch.empty(self.out_channels, self.out_channels, self.depth, 1, 1))
        self.reset_fusion_weight()

    def reset_fusion_weight(self) -> None:
        before, _ = same_pad(self.depth)
        with torch.no_grad():
            self.fusion_weight.zero_()
            self.fusion_weight[:, :, before, 0, 0] = torch.eye(self.out_channels)

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        pads = (same_pad(self.depth), (0, 0), (0, 0))
        return conv3d(self.slice_conv(x), self.fusion_weight, None, (1, 1, 1), pads, (1, 1, 1))
