import torch
from torch import Tensor

from .depth import conv3d, depth_kernel, plane_pads, same_pad
from .fusion_conv import FusionConv


class ACSConv(FusionConv):
    """Axial-coronal-sagittal convolution (``acs``), Sec. 2.1 (d) of the A3D paper: Yang et al. (JBHI 2021).

    One 2D kernel, whose output channels are split into three views: the first third is used as 1 x K x K, the second as
    K x 1 x K, the last as K x K x 1, the remainder going to the first views (32 -> 11, 11, 10). D is padded with zeros,
    and dilated as H is.
    In the axis where a view has one row it is the middle row of the kernel, so that all views have the same size. 1 x 1
    convolutions stay slice-wise.

    Args:
        see :class:`FusionConv`; the kernel must be square and ``groups`` 1.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.groups != 1:
            raise ValueError(f"ACSConv splits the output channels into views and needs groups = 1. Got {self.groups}!")
        self.depth = depth_kernel(self)
        third, rest = divmod(self.out_channels, 3)
        self.view_channels = (third + (rest > 0), third + (rest > 1), third)

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        if self.depth == 1:
            return self.slice_conv(x)
        dilation = self.dilation[0], *self.dilation
        depth, (height, width) = same_pad(self.depth, dilation[0]), plane_pads(self)
        middle_height, middle_width = (
            _middle_row(pad, self.depth, dilation) for pad, dilation in zip((height, width), self.dilation, strict=True)
        )
        views = (  # the kernel's one-row axis (D, H, W) = (2, 3, 4), and the padding of all three
            (2, ((0, 0), height, width)),
            (3, (depth, middle_height, width)),
            (4, (depth, height, middle_width)),
        )
        kernels = self.weight.split(self.view_channels)
        biases = (None, None, None) if self.bias is None else self.bias.split(self.view_channels)
        outputs = [
            conv3d(x, kernel.unsqueeze(axis), bias, (1, *self.stride), pads, dilation)
            for (axis, pads), kernel, bias in zip(views, kernels, biases, strict=True)
            if len(kernel)
        ]
        return torch.cat(outputs, dim=1)


def _middle_row(pad: tuple[int, int], kernel: int, dilation: int) -> tuple[int, int]:
    """The padding with which one row gives the size that the whole kernel gives with ``pad``."""
    before, after = same_pad(kernel, dilation)
    return pad[0] - before, pad[1] - after
