"""How boxes are decoded and clipped in the published detector."""

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


class PublishedBox2BoxTransform(Box2BoxTransform):
    """Detectron2's, with a limit also on how far a box shrinks: to 16 / 1000 of its size, as it grows by 1000 / 16."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(n, 4 k) deltas and (n, 4) boxes -> (n, 4 k) boxes."""
        _, _, width, height = self.weights
        no_limit = float("-inf")
        least = deltas.new_tensor([no_limit, no_limit, -self.scale_clamp * width, -self.scale_clamp * height])
        return super().apply_deltas(torch.maximum(deltas, least.repeat(deltas.shape[1] // 4)), boxes)


def clip_to_pixels(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes so that each keeps a pixel of the image: a box beyond the border becomes a line along it, which
    Detectron2 would drop as empty.

    Args:
        boxes: (..., 4) XYXY, which end where their last pixel does.
        image_size: (height, width).
    """
    height, width = image_size
    first, last = boxes.unflatten(-1, (2, 2)).unbind(-2)
    size = boxes.new_tensor([width, height])
    first = torch.minimum(first.clamp(min=0), size - 1)
    last = torch.minimum(last.clamp(min=1), size)
    return torch.cat([first, last], dim=-1)
