"""Slice thickness, the distance between the slices of a series in mm, and what it does to fusion."""

import math

import torch
from torch import Tensor


def identity_share(thickness: Tensor | None, reference_thickness: float, batch_size: int) -> Tensor:
    """How much of each slice stays where it is, a = 1 - clamp(reference / thickness, 0, 1), the rule of AlignShift.

    It is 0 up to the reference thickness and goes to 1 as the slices get thicker and say less about each other.

    Args:
        thickness: (N,) in mm.
        reference_thickness: in mm.
        batch_size: N.

    Returns:
        (N,)

    Raises:
        ValueError: if ``thickness`` is missing, not (N,) or not positive. The values of a tensor on a GPU are not
            looked at, as every operator would then wait for the GPU; a model checks them before it hands them on.
    """
    if thickness is None:
        raise ValueError(f"Expected the slice thickness in mm, a tensor of shape ({batch_size},). Got None instead!")
    if not isinstance(thickness, Tensor):
        raise ValueError(f"Expected the slice thickness in mm as a tensor. Got a {type(thickness).__name__} instead!")
    if thickness.shape != (batch_size,):
        raise ValueError(
            f"Expected one slice thickness in mm per sample, shape ({batch_size},). "
            f"Got {tuple(thickness.shape)} instead!"
        )
    if thickness.device.type == "cpu" and not torch.compiler.is_compiling():
        check_positive(thickness)
    return 1 - (reference_thickness / thickness).clamp(0, 1)


def check_positive(thickness: Tensor) -> None:
    """
    Raises:
        ValueError: unless every slice thickness is positive and finite.
    """
    if not bool(((thickness > 0) & thickness.isfinite()).all()):
        raise ValueError(f"The slice thickness must be positive, in mm. Got {thickness.tolist()} instead!")


def check_reference(reference_thickness: float) -> float:
    """
    Returns:
        the reference thickness.

    Raises:
        ValueError: unless it is positive and finite.
    """
    if not 0 < reference_thickness < math.inf:
        raise ValueError(f"reference_thickness must be a positive number of mm. Got {reference_thickness} instead!")
    return reference_thickness
