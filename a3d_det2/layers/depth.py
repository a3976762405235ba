"""Kernels that extend over D: what I3D, P3D and ACS share."""

from torch import Tensor, nn
from torch.nn import functional as F

Pad = tuple[int, int]  # before and after


def depth_kernel(conv: nn.Conv2d) -> int:
    """The K of K slices that an operator with the 2D kernel K x K extends over.

    Raises:
        ValueError: if the kernel is not square.
    """
    height, width = conv.kernel_size
    if height != width:
        raise ValueError(
            f"{type(conv).__name__} needs a square kernel, whose size it takes over to D. Got {height} x {width}!"
        )
    return height


def same_pad(kernel: int, dilation: int = 1) -> Pad:
    """Padding that keeps the size; an even kernel has the additional one behind, as padding="same" in torch."""
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def plane_pads(conv: nn.Conv2d) -> tuple[Pad, Pad]:
    """The padding of a 2D convolution as numbers, along H and W."""
    if conv.padding == "valid":
        return (0, 0), (0, 0)
    if conv.padding == "same":
        height, width = map(same_pad, conv.kernel_size, conv.dilation)
        return height, width
    height, width = conv.padding
    return (height, height), (width, width)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int, int],
    pads: tuple[Pad, Pad, Pad],
    dilation: tuple[int, int, int],
    groups: int = 1,
) -> Tensor:
    """``F.conv3d`` with its own padding before and after each axis (D, H, W); a negative one crops."""
    if all(before == after >= 0 for before, after in pads):
        return F.conv3d(x, weight, bias, stride, [before for before, _ in pads], dilation, groups)
    depth, height, width = pads
    return F.conv3d(F.pad(x, (*width, *height, *depth)), weight, bias, stride, 0, dilation, groups)
