"""The mixing step on the CPU: ``csrc/mixing.cpp``, which ``pip install`` compiles once per instruction set."""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .memory_format import check_same, rows_and_lanes, strides

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
MAX_SLICES = 32

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


class _Strides(ctypes.Structure):
    _fields_ = [(name, _int64) for name in ("n", "d", "row")]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, _int64) for name in ("batch", "slices", "rows", "lanes", "channels")),
        ("weight", _pointer),
        ("weight_n", _int64),
        ("scale", _pointer),
        ("shift", _pointer),
    ]


def _load() -> ctypes.CDLL | str:
    """The library for this machine's instructions, or why there is none."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    name = f"_mixing_{capability if capability in ('avx2', 'avx512') else 'default'}"
    folder = Path(__file__).parent
    found = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if not found:
        return (
            f"{folder / name}{EXTENSION_SUFFIXES[0]} is not there. The installation of a3d_det2 compiles it where "
            "there is a C++ compiler, on x86 for processors with AVX2 or AVX-512"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"{found[0]} cannot be loaded: {error}"
    library.a3d_mix.argtypes = [ctypes.c_int, ctypes.c_int, *[_pointer] * 5]
    library.a3d_mix.restype = None
    library.a3d_mix_backward.argtypes = [ctypes.c_int, ctypes.c_int, *[_pointer] * 7, ctypes.c_int, _pointer, _int64]
    library.a3d_mix_backward.restype = None
    library.a3d_statistics.argtypes = [ctypes.c_int, ctypes.c_int, *[_pointer] * 4]
    library.a3d_statistics.restype = None
    return library


_library = _load()


def unavailable() -> str | None:
    """Why this kernel cannot be used; None if it can."""
    return _library if isinstance(_library, str) else None


def mix(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None, out: Tensor) -> None:
    """Write :func:`mix_slices` to ``out``, of the shape and dtype of ``x`` and with the same dimension side by side; it
    may be ``x`` itself."""
    if x.numel() == 0:
        return
    check_same(x, out)
    planes, problem, kept = _problem(x, weight, scale, shift)
    _library.a3d_mix(DTYPES[x.dtype], planes, ctypes.byref(problem), *_place(x, planes), *_place(out, planes))
    del kept


def mix_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    grad_x: Tensor,
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient with respect to ``x`` to ``grad_x``, or add it there, for tensors that all have the same
    dimension side by side.

    Returns:
        the gradients with respect to weight, scale and shift; empty tensors for those that are None.
    """
    batch, channels, slices = x.shape[:3]
    each = batch if weight is not None and weight.dim() == 4 else 1
    sums = torch.zeros(each, slices * slices + 2, channels, dtype=torch.float64)
    if x.numel() > 0:
        check_same(x, grad, grad_x)
        planes, problem, kept = _problem(x, weight, scale, shift)
        _library.a3d_mix_backward(
            DTYPES[x.dtype],
            planes,
            ctypes.byref(problem),
            *(pointer for tensor in (x, grad, grad_x) for pointer in _place(tensor, planes)),
            accumulate,
            sums.data_ptr(),
            sums.stride(0) if each > 1 else 0,
        )
        del kept
    none = x.new_empty(0)
    return (
        none if weight is None else sums[:, :-2].reshape(weight.shape).to(weight.dtype),
        none if scale is None else sums[:, -2].sum(0).to(scale.dtype),
        none if shift is None else sums[:, -1].sum(0).to(shift.dtype),
    )


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of (N, C, D, H, W), which must not be empty: two of (C,), float64."""
    sums = torch.zeros(3, x.shape[1], dtype=torch.float64)
    planes, problem, _ = _problem(x, None, None, None)
    _library.a3d_statistics(DTYPES[x.dtype], planes, ctypes.byref(problem), *_place(x, planes), sums.data_ptr())
    centre, total, squares = sums
    mean = total * (x.shape[1] / x.numel())
    return centre + mean, (squares * (x.shape[1] / x.numel()) - mean.square()).clamp_(min=0)


def _place(x: Tensor, planes: bool):
    """Where a tensor lies: its first value, and the steps from there."""
    return x.data_ptr(), ctypes.byref(_Strides(*strides(x, planes)))


def _problem(x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None):
    """Also returns what must live as long as the pointers to it."""
    batch, channels, slices = x.shape[:3]
    planes, rows, lanes = rows_and_lanes(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    kept = [None if t is None else t.detach().to(dtype).contiguous() for t in (weight, scale, shift)]
    pointers = [None if t is None else t.data_ptr() for t in kept]
    weight_n = weight[0].numel() if weight is not None and weight.dim() == 4 else 0
    return planes, _Problem(batch, slices, rows, lanes, channels, pointers[0], weight_n, *pointers[1:]), kept
