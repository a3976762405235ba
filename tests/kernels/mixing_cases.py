"""Inputs of the mixing step in all ways to lie in memory, and what it must give: shared by the tests of its kernels."""

import itertools

import torch
from torch import Tensor

from a3d_det2.kernels.mixing import mix_slices_plain

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last_3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "slices in the batch": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "some of more channels": lambda x: torch.cat([x, x, x], 1).to(memory_format=torch.channels_last_3d)[
        :, x.shape[1] : 2 * x.shape[1]
    ],
    "some of more rows": lambda x: torch.cat([x, x], 3).to(memory_format=torch.channels_last_3d)[:, :, :, : x.shape[3]],
    "every second column": lambda x: x.repeat_interleave(2, 4)[..., ::2],
    "transposed": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
    "expanded": lambda x: x[:1].expand(len(x), -1, -1, -1, -1) if len(x) else x,
}


def inputs(shape: tuple[int, ...], layout: str, dtype: torch.dtype, weights: str, affine: bool, device: str) -> list:
    """x, weight, scale and shift with gradients."""
    batch, channels, slices = shape[:3]
    x = LAYOUTS[layout](torch.randn(shape, dtype=torch.double).to(device, dtype))
    wide = torch.double if dtype == torch.double else torch.float
    sizes = {"none": None, "shared": (slices, slices, channels), "own": (batch, slices, slices, channels)}
    weight = None if sizes[weights] is None else torch.randn(sizes[weights], dtype=wide, device=device)
    scale = torch.rand(channels, dtype=wide, device=device) + 0.5 if affine else None
    shift = torch.randn(channels, dtype=wide, device=device) if affine else None
    return [None if t is None else t.detach().requires_grad_() for t in (x, weight, scale, shift)]


def reference(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None, grad: Tensor) -> list:
    """Output and gradients, in float64."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, scale, shift)]
    y = mix_slices_plain(*wide)
    y.backward(grad.double())
    return [y.detach(), *(None if t is None else t.grad for t in wide)]


def assert_close(got: list, expected: list, dtype: torch.dtype) -> None:
    """Relative to the largest value: float32 to 1e-5, the others to their own rounding."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a is None) == (b is None)
        if a is None or not a.numel():
            continue
        # What is summed over pixels has been rounded only where it was read and, in backward, where it was written.
        tolerance = {torch.double: 1e-12, torch.float: 1e-5}.get(dtype, torch.finfo(dtype).eps if i < 2 else 1e-5)
        difference = (a.double() - b).abs().max()
        assert difference <= tolerance * b.abs().max() + 1e-30, (i, difference / b.abs().max())


CASES = list(
    itertools.product(
        [(2, 3, 3, 4, 5), (1, 70, 7, 5, 3), (3, 1, 2, 1, 1), (2, 17, 1, 3, 3), (1, 5, 9, 2, 7), (1, 2, 27, 3, 2)],
        LAYOUTS,
        ["none", "shared", "own"],
        [False, True],
    )
)
