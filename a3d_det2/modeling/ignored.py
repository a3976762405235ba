"""Which anchors are near lesions that are ignored, for every engine."""

import torch
from torch import Tensor


@torch.no_grad()
def near_ignored(ious: Tensor, least: float) -> Tensor:
    """Find the anchors that would not be background if the lesions were annotated.

    Args:
        ious: (n, A) of n lesions, one or more, with A anchors.
        least: IoU from which an anchor is no background. The best anchor of a lesion that has none of these is none
            either.

    Returns:
        (A,) bool.
    """
    best = ious.amax(dim=1, keepdim=True)
    return ((ious >= best.clamp(max=least)) & (ious > 0)).any(dim=0)
