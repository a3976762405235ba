"""The mixing step of A3D, alone or with the scaling, shift and ReLU that a norm in front of it leaves to do.

    z = relu(scale[c] x + shift[c]), or x itself
    y[n, c, k] = sum_d weight[d, k, c] z[n, c, d], Eq. (1) of the A3D paper, or z itself

:func:`mix_slices` picks what computes it: kernels of one pass over memory, forward and backward, in C++ for the CPU
(``cpu.py``) and in Triton for CUDA (``triton.py``), or plain PyTorch, which is always right and what the
kernels are checked against; ``A3D_DET2_KERNELS=0`` in the environment asks for it. All accumulate in float32, or in
float64 for a float64 input, and give the input's dtype.
"""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from . import cpu, triton
from .memory_format import empty_beside, like, side_by_side

_enabled = os.environ.get("A3D_DET2_KERNELS", "1") != "0"
# Torch before 2.7 does not tell exporting from compiling.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


@contextmanager
def plain_mixing() -> Iterator[None]:
    """Have everything within it computed by plain PyTorch, in all threads; to compare with."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def mix_slices(
    x: Tensor, weight: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """
    Args:
        x: (N, C, D, H, W), in any memory format; channels_last_3d and contiguous are used without a copy, also as a
            part of the channels of a larger tensor.
        weight: (D, D, C), or (N, D, D, C) for each sample its own; None for no mixing.
        scale, shift: (C,); None, both, for neither them nor the ReLU.

    Returns:
        (N, C, D, H, W) in the dtype of ``x``, with the same dimension side by side in memory; channels_last_3d if that
        is neither channels nor pixels.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_shapes(x, weight, scale, shift)
    if kernel_for(x) is None:
        return mix_slices_plain(x, weight, scale, shift)
    return torch.ops.a3d_det2.mix(side_by_side(x), weight, scale, shift)


def mix_slices_plain(
    x: Tensor, weight: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """:func:`mix_slices` in plain PyTorch."""
    has_autocast = torch.amp.is_autocast_available(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if has_autocast else nullcontext():
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        if scale is not None:
            y = torch.relu(y * scale.to(y).view(-1, 1, 1, 1) + shift.to(y).view(-1, 1, 1, 1))
        if weight is not None:
            y = torch.einsum("ncdhw,dkc->nckhw" if weight.dim() == 3 else "ncdhw,ndkc->nckhw", y, weight.to(y))
        return y.to(x.dtype) if y is not x else x.clone()


def check_shapes(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> None:
    """
    Raises:
        ValueError: see :func:`mix_slices`.
    """
    if x.dim() != 5:
        raise ValueError(f"Expected an input of shape (N, C, D, H, W). Got {tuple(x.shape)} instead!")
    batch, channels, slices = x.shape[:3]
    shapes = [(slices, slices, channels), (batch, slices, slices, channels)]
    if weight is not None and weight.shape not in shapes:
        raise ValueError(f"Expected a mixing weight of shape {shapes[0]} or {shapes[1]}. Got {tuple(weight.shape)}!")
    if (scale is None) != (shift is None):
        raise ValueError("Expected both scale and shift, or neither of them. Got one of them!")
    if scale is not None and not scale.shape == shift.shape == (channels,):
        raise ValueError(
            f"Expected scale and shift of shape ({channels},). Got {tuple(scale.shape)} and {tuple(shift.shape)}!"
        )


def is_exported() -> bool:
    """Whether a network is being traced by torch.jit or exported by torch.export."""
    return torch.jit.is_tracing() or _is_exporting()


def _kernel(x: Tensor) -> ModuleType:
    return cpu if x.device.type == "cpu" else triton


def kernel_for(x: Tensor) -> ModuleType | None:
    """What computes the mixing of (N, C, D, H, W): ``cpu``, ``triton`` or None for plain PyTorch.

    That a device has kernels which cannot be used is logged once. A network that is exported has none, so that it runs
    where this package is not installed.
    """
    if not _enabled or x.device.type not in ("cpu", "cuda") or is_exported():
        return None
    kernel = _kernel(x)
    reason = kernel.unavailable()
    if reason is not None:
        if not torch.compiler.is_compiling():
            _log_missing(reason)
        return None
    return kernel if x.dtype in kernel.DTYPES and x.shape[2] <= kernel.MAX_SLICES else None


@functools.cache
def _log_missing(reason: str) -> None:
    logging.getLogger(__name__).warning(f"Mixing slices in plain PyTorch, which is slower: {reason}")


def _mix(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    y = empty_beside(x)
    _kernel(x).mix(x, weight, scale, shift, y)
    return y


def _mix_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x = empty_beside(x)
    return grad_x, *_kernel(x).mix_backward(like(grad, x), x, weight, scale, shift, grad_x, accumulate=False)


def _mix_meta(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return empty_beside(x)


def _mix_backward_meta(
    grad: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    none = x.new_empty(0)
    return empty_beside(x), *(none if t is None else torch.empty_like(t) for t in (weight, scale, shift))


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *coefficients = ctx.saved_tensors
    grads = torch.ops.a3d_det2.mix_backward(grad, x, *coefficients)
    return grads[0], *(None if t is None else g for t, g in zip(coefficients, grads[1:], strict=True))


def _twice(ctx, *grads: Tensor) -> None:
    raise RuntimeError("The kernels of mix_slices have no second derivatives. Within plain_mixing() there are some.")


_operators = torch.library.Library("a3d_det2", "DEF")
_operators.define("mix(Tensor x, Tensor? weight, Tensor? scale, Tensor? shift) -> Tensor")
_operators.define(
    "mix_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? scale, Tensor? shift)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
for _device in ("CPU", "CUDA"):
    _operators.impl("mix", _mix, _device)
    _operators.impl("mix_backward", _mix_backward, _device)
torch.library.register_fake("a3d_det2::mix", _mix_meta, lib=_operators)
torch.library.register_fake("a3d_det2::mix_backward", _mix_backward_meta, lib=_operators)
torch.library.register_autograd("a3d_det2::mix", _autograd, setup_context=_setup_context, lib=_operators)
torch.library.register_autograd("a3d_det2::mix_backward", _twice, lib=_operators)
