"""How (N, C, D, H, W) lies in memory: the two ways that the kernels of the mixing step take without a copy."""

import torch
from torch import Tensor, nn


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, and the pixels of a slice at one distance from each other."""
    height, width = x.shape[3:]
    return x.stride(1) == 1 and (height <= 1 or width <= 1 or x.stride(3) == width * x.stride(4))


def is_planes(x: Tensor) -> bool:
    """Whether the pixels of a slice lie side by side."""
    height, width = x.shape[3:]
    return (width <= 1 or x.stride(4) == 1) and (height <= 1 or x.stride(3) == width)


def side_by_side(x: Tensor) -> Tensor:
    """``x`` itself, or a copy in channels_last_3d if it lies in neither way."""
    return x if is_channels_last(x) or is_planes(x) else x.contiguous(memory_format=torch.channels_last_3d)


def empty_beside(x: Tensor) -> Tensor:
    """An empty tensor of the shape of ``x`` with the same dimension side by side; in its order of strides if all its
    values have places of their own in memory."""
    y = torch.empty_like(x)
    if is_channels_last(x):
        batch, channels, *rest = x.shape
        return y if is_channels_last(y) else x.new_empty(batch, *rest, channels).movedim(-1, 1)
    return y if is_planes(y) and not is_channels_last(y) else x.new_empty(x.shape)


def like(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` itself or a copy, with the same dimension side by side as ``x``."""
    if is_channels_last(x):
        # contiguous() leaves a tensor of one channel or pixel as it is, whatever its strides.
        return grad if is_channels_last(grad) else empty_beside(x).copy_(grad)
    return grad if is_planes(grad) else grad.contiguous()


def check_same(x: Tensor, *others: Tensor) -> None:
    """What the kernels ask of the tensors of one call; they compute addresses and look at nothing else.

    Raises:
        ValueError: if the others differ from ``x`` in shape or dtype, or in which dimension lies side by side.
    """
    for other in (x, *others):
        usable = is_channels_last(other) if is_channels_last(x) else is_planes(other)
        if other.shape != x.shape or other.dtype != x.dtype or not usable:
            raise ValueError(
                f"Expected {tuple(x.shape)}, {x.dtype} with strides like {x.stride()}. "
                f"Got {tuple(other.shape)}, {other.dtype} with strides {other.stride()}!"
            )


def rows_and_lanes(x: Tensor) -> tuple[bool, int, int]:
    """
    Returns:
        whether pixels lie side by side rather than channels; and the sizes of the dimension that does not lie side by
        side, channels or pixels, and of the one that does.
    """
    channels, pixels = x.shape[1], x.shape[3] * x.shape[4]
    return (False, pixels, channels) if is_channels_last(x) else (True, channels, pixels)


def strides(x: Tensor, planes: bool) -> tuple[int, int, int]:
    """The steps, in values, from one sample, slice and row to the next; see :func:`rows_and_lanes`."""
    if planes:
        return x.stride(0), x.stride(2), x.stride(1)
    return x.stride(0), x.stride(2), x.stride(4) if x.shape[4] > 1 else x.stride(3)


def channels_last_kernel(conv: nn.Module) -> None:
    """Lay out the kernel of a convolution as its images, or its every call would begin with a copy of it."""
    last = torch.channels_last if conv.weight.dim() == 4 else torch.channels_last_3d
    conv.weight.data = conv.weight.data.contiguous(memory_format=last)
