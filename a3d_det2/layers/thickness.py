"""Slice thickness, the distance between the slices of a series in mm: how it reaches the operators, and what it does.

Networks call their convolutions with images alone. Whoever knows the thickness opens a scope around the whole forward,

    with slice_thickness(torch.tensor([1.0, 5.0])):  # mm, of each sample
        features = backbone(images)

and an operator that needs it finds it there, through whatever lies between: necks, meta-architectures, any network.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Scope(threading.local):  # not a ContextVar, which torch.compile cannot set
    def __init__(self):
        self.thickness: Tensor | None = None


_scope = _Scope()


@contextmanager
def slice_thickness(thickness: Tensor | None) -> Iterator[None]:
    """The thickness for all operators that are called within, in this thread; scopes may stand in each other.

    A part of a network that is run once more in the backward, by activation checkpointing, is then outside of it:
    open the scope in that part as well, with :func:`current_thickness` taken before.

    Args:
        thickness: (N,) in mm; None leaves what the scope around this one says.
    """
    before = _scope.thickness
    if thickness is not None:
        _scope.thickness = thickness
    try:
        yield
    finally:
        _scope.thickness = before


def current_thickness() -> Tensor | None:
    """(N,) in mm, of the innermost scope; None outside of all."""
    return _scope.thickness


def identity_share(thickness: Tensor | None, reference_thickness: float, batch_size: int) -> Tensor:
    """How much of each slice stays where it is, a = 1 - clamp(reference / thickness, 0, 1), the rule of AlignShift.

    It is 0 up to the reference thickness and goes to 1 as the slices get thicker and say less about each other.

    Args:
        thickness: (N,) in mm; None is that of the scope, see :func:`slice_thickness`.
        reference_thickness: in mm.
        batch_size: N.

    Returns:
        (N,)

    Raises:
        ValueError: if ``thickness`` is missing, not (N,) or not positive. The values of a tensor on a GPU, or of one
            that is traced, are not looked at: every operator would then wait for the GPU. A model checks them before.
    """
    thickness = current_thickness() if thickness is None else thickness
    if thickness is None:
        raise ValueError(
            f"Expected the slice thickness in mm, a tensor of shape ({batch_size},). Got None instead! Networks are "
            "called within slice_thickness(...), as LesionRCNN and other architectures with TakesSlices do."
        )
    if not isinstance(thickness, Tensor):
        raise ValueError(f"Expected the slice thickness in mm as a tensor. Got a {type(thickness).__name__} instead!")
    if thickness.shape != (batch_size,):
        raise ValueError(
            f"Expected one slice thickness in mm per sample, shape ({batch_size},). "
            f"Got {tuple(thickness.shape)} instead!"
        )
    if thickness.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        check_positive(thickness)
    return 1 - (reference_thickness / thickness).clamp(0, 1)


def check_positive(thickness: Tensor) -> None:
    """
    Args:
        thickness: (N,) in mm.

    Raises:
        ValueError: unless every slice thickness is positive and finite.
    """
    if not bool(((thickness > 0) & thickness.isfinite()).all()):
        raise ValueError(f"The slice thickness must be positive, in mm. Got {thickness.tolist()} instead!")


def check_reference(reference_thickness: float) -> float:
    """
    Returns:
        the reference thickness in mm.

    Raises:
        ValueError: unless it is positive and finite.
    """
    if not 0 < reference_thickness < math.inf:
        raise ValueError(f"reference_thickness must be a positive number of mm. Got {reference_thickness} instead!")
    return reference_thickness
